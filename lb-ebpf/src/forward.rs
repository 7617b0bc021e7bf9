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
    /// Destination and source MAC.
    macs: Macs,
    /// Addresses and ports that the packet shall carry.
    tuple: Tuple<F>,
    /// What the new addresses add to the IP checksum's sum.
    address_delta: u16,
    /// What the new addresses and ports add to the transport checksum's sum.
    transport_delta: u16,
    /// Where it leaves.
    egress: u32,
    /// Largest layer-3 packet there.
    mtu: u32,
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
    let rewrite = if from_backend { Some(towards_client(flow, packet)) } else { towards_backend(flow) };
    let Some(rewrite) = rewrite else { return Reason::NextHopUnknown };
    if seq & 1 != 0 || table::read(&flow.head.seq) != seq {
        return Reason::Contended;
    }
    if rewrite.egress != packet.ingress && packet.length > rewrite.mtu {
        return F::error(ctx, Problem::TooBig, packet.transport, 0, rewrite.mtu);
    }
    if let Err(reason) = apply(ctx, packet, &rewrite, flow, from_backend) {
        return reason;
    }
    account(flow, id, packet, from_backend);
    leave(packet.ingress, rewrite.egress)
}

#[inline(always)]
fn towards_backend<F: Path>(flow: &Flow<F>) -> Option<Rewrite<F>> {
    let backend = maps::backends.get(flow.head.backend)?;
    let hop = maps::next_hops.get(backend.next_hop)?;
    if hop.ifindex == 0 {
        return None;
    }
    Some(Rewrite {
        macs: Macs::of(&hop.ethernet),
        tuple: flow.backend.reversed(),
        address_delta: flow.head.address_delta,
        transport_delta: flow.head.transport_delta,
        egress: hop.ifindex,
        mtu: hop.mtu,
    })
}

#[inline(always)]
fn towards_client<F: Path>(flow: &Flow<F>, packet: &Packet<F>) -> Rewrite<F> {
    let egress = flow.tail.ifindex;
    let mtu = if egress == packet.ingress { None } else { maps::interface(egress) };
    Rewrite {
        macs: Macs::of(&flow.tail.ethernet).turned(),
        tuple: flow.client.reversed(),
        address_delta: inverse(flow.head.address_delta),
        transport_delta: inverse(flow.head.transport_delta),
        egress,
        mtu: mtu.map_or(u32::MAX, |interface| interface.mtu),
    }
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
        let Some(segment) = frame.at(packet.transport, TCP) else { return Err(Reason::Truncated) };
        segment.store(0, ports);
        segment.store(tcp_at::CHECKSUM, update(segment.load(tcp_at::CHECKSUM), rewrite.transport_delta));
    } else {
        let Some(datagram) = frame.at(packet.transport, UDP) else { return Err(Reason::Truncated) };
        datagram.store(0, ports);
        datagram.store(udp::CHECKSUM, update_udp(datagram.load(udp::CHECKSUM), rewrite.transport_delta));
    }
    if !from_backend {
        remember_client(flow, head.macs(), packet.ingress);
    }
    head.set_macs(rewrite.macs);
    F::route(head, &rewrite.tuple, rewrite.address_delta);
    Ok(())
}

/// Replies leave to where the client's latest packet came from.
#[inline(always)]
fn remember_client<F: Path>(flow: &mut Flow<F>, macs: Macs, ingress: u32) {
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

/// Sends the frame on its way.
#[inline(always)]
pub fn leave(ingress: u32, egress: u32) -> Reason {
    if egress == ingress {
        return Reason::ForwardedTx;
    }
    helpers::redirect(egress);
    Reason::ForwardedRedirect
}
