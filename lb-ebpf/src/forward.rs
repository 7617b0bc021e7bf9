//! Forwarding a packet of a flow: rewrite, next hop, out.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::{inverse, update, update_udp},
    flow::{Flow, Tuple},
    reason::Reason,
};

use crate::{
    direct, helpers,
    icmp::Problem,
    maps,
    packet::{ETHERNET, Frame, Macs, TCP, UDP, tcp as tcp_at, udp},
    parse::Packet,
    path::Path,
    table,
    table::Found,
};

/// What becomes of a packet's headers, and where it leaves.
struct Rewrite<F: Path> {
    /// Where it goes.
    way: Way,
    /// Addresses and ports that the packet shall carry.
    tuple: Tuple<F>,
    /// What the new addresses add to the IP checksum's sum.
    address_delta: u16,
    /// What the new addresses and ports add to the transport checksum's sum.
    transport_delta: u16,
}

/// Forwards a packet of a flow.
#[inline(always)]
pub fn forward<F: Path>(ctx: &XdpContext, packet: &Packet<F>, found: Found<F>) -> Reason {
    let Found { flow, seq, from_backend, .. } = found;
    let id = flow.head.backend;
    let of_mode = flow.head.mode;
    if direct::is_direct(of_mode) {
        if seq & 1 != 0 || table::read(&flow.head.seq) != seq {
            return Reason::Contended;
        }
        return direct::forward(ctx, packet, flow, id, of_mode);
    }
    let Some(rewrite) = rewrite(flow, packet.ingress, from_backend) else { return Reason::NextHopUnknown };
    if seq & 1 != 0 || table::read(&flow.head.seq) != seq {
        return Reason::Contended;
    }
    if rewrite.way.egress != packet.ingress && packet.length > rewrite.way.mtu {
        return F::error(ctx, Problem::TooBig, packet.transport, 0, rewrite.way.mtu);
    }
    if let Err(reason) = apply(ctx, packet, &rewrite, flow, from_backend) {
        return reason;
    }
    account(flow, id, packet, from_backend);
    leave(packet.ingress, rewrite.way.egress, Reason::ForwardedTx, Reason::ForwardedRedirect)
}

/// The rewrite of a packet that goes to the backend, or to the client.
#[inline(always)]
fn rewrite<F: Path>(flow: &Flow<F>, ingress: u32, from_backend: bool) -> Option<Rewrite<F>> {
    let way = way(flow, ingress, from_backend)?;
    let (address_delta, transport_delta) = (flow.head.address_delta, flow.head.transport_delta);
    Some(if from_backend {
        let tuple = flow.client.reversed();
        Rewrite { way, tuple, address_delta: inverse(address_delta), transport_delta: inverse(transport_delta) }
    } else {
        Rewrite { way, tuple: flow.backend.reversed(), address_delta, transport_delta }
    })
}

/// Rewrites the packet. Rules 2, 7 and 9.
#[inline(always)]
fn apply<F: Path>(
    ctx: &XdpContext,
    packet: &Packet<F>,
    rewrite: &Rewrite<F>,
    flow: &mut Flow<F>,
    from_backend: bool,
) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + F::HEADER) else { return Err(Reason::Truncated) };
    if F::ttl(head) <= 1 {
        return Err(F::error(ctx, Problem::TimeExceeded, packet.transport, 0, 0));
    }
    let ports = rewrite.tuple.source_port.0 as u32 | (rewrite.tuple.destination_port.0 as u32) << 16;
    if packet.is_tcp() {
        let Some(segment) = frame.at(packet.transport(), TCP) else { return Err(Reason::Truncated) };
        segment.store(0, ports);
        segment.store(tcp_at::CHECKSUM, update(segment.load(tcp_at::CHECKSUM), rewrite.transport_delta));
    } else {
        let Some(datagram) = frame.at(packet.transport(), UDP) else { return Err(Reason::Truncated) };
        datagram.store(0, ports);
        datagram.store(udp::CHECKSUM, update_udp(datagram.load(udp::CHECKSUM), rewrite.transport_delta));
    }
    if !from_backend {
        remember_client(flow, head.macs(), packet.ingress);
    }
    head.set_macs(rewrite.way.macs);
    F::route(head, &rewrite.tuple, rewrite.address_delta);
    Ok(())
}

/// Replies leave to where the client's latest packet came from.
#[inline(always)]
pub fn remember_client<F: Path>(flow: &mut Flow<F>, macs: Macs, ingress: u32) {
    if Macs::of(&flow.tail.ethernet) != macs {
        macs.put(&mut flow.tail.ethernet);
    }
    if flow.tail.ifindex != ingress {
        flow.tail.ifindex = ingress;
    }
}

/// Rule 34: packets and bytes of the flow and of its backend.
#[inline(always)]
fn account<F: Path>(flow: &mut Flow<F>, id: u32, packet: &Packet<F>, from_backend: bool) {
    let Some(counters) = maps::traffic.get_ptr_mut(id) else { return };
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    let counters = unsafe { &mut *counters };
    if from_backend {
        flow.tail.packets_out += 1;
        counters.packets_out += 1;
        counters.bytes_out += packet.length as u64;
    } else {
        flow.tail.packets_in += 1;
        counters.packets_in += 1;
        counters.bytes_in += packet.length as u64;
    }
}

/// A way to a flow's client, or to its backend.
pub struct Way {
    /// Destination and source MAC.
    pub macs: Macs,
    /// Where it leaves.
    pub egress: u32,
    /// Largest layer-3 packet there.
    pub mtu: u32,
}

/// The way to a flow's client (for what its backend's side sent) or to its backend.
#[inline(always)]
pub fn way<F: Path>(flow: &Flow<F>, ingress: u32, from_backend: bool) -> Option<Way> {
    if from_backend {
        let egress = flow.tail.ifindex;
        let interface = if egress == ingress { None } else { maps::interface(egress) };
        let mtu = interface.map_or(u32::MAX, |interface| interface.mtu);
        return Some(Way { macs: Macs::of(&flow.tail.ethernet).turned(), egress, mtu });
    }
    way_to_backend(flow.head.backend)
}

/// The way to a backend.
#[inline(always)]
pub fn way_to_backend(id: u32) -> Option<Way> {
    let hop = maps::next_hops.get(maps::backends.get(id)?.next_hop)?;
    (hop.ifindex != 0).then(|| Way { macs: Macs::of(&hop.ethernet), egress: hop.ifindex, mtu: hop.mtu })
}

/// Sends the frame on its way; gives the reason `back` if that is where it came from, else `on`.
#[inline(always)]
pub fn leave(ingress: u32, egress: u32, back: Reason, on: Reason) -> Reason {
    if egress == ingress {
        return back;
    }
    helpers::redirect(egress);
    on
}
