//! Forwarding a packet of a flow: rewrite, next hop, out.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::{fold, inverse, update, update_udp},
    flow::{Flow4, Tuple4},
    reason::Reason,
};

use crate::{
    helpers, icmp, maps,
    packet::{ETHERNET, Frame, IPV4, Macs, TCP, UDP, ipv4, tcp as tcp_at, udp},
    parse::Packet,
    table,
    table::Found,
};

/// What becomes of a packet's headers, and where it leaves.
struct Rewrite {
    /// Destination and source MAC.
    macs: Macs,
    /// Addresses and ports that the packet shall carry.
    tuple: Tuple4,
    /// What the new addresses add to the IP checksum's sum.
    address_delta: u16,
    /// What the new addresses and ports add to the transport checksum's sum.
    transport_delta: u16,
    /// Where it leaves.
    egress: u32,
    /// Largest layer-3 packet there.
    mtu: u32,
}

/// Forwards a packet of the flow in a record.
#[inline(always)]
pub fn forward(ctx: &XdpContext, packet: &Packet, found: Found) -> Reason {
    let Some(flow) = table::record(found.record) else { return Reason::Contended };
    let seq = table::read(&flow.head.seq);
    let id = flow.head.backend;
    let rewrite = if found.from_backend { Some(towards_client(flow)) } else { towards_backend(flow) };
    let Some(rewrite) = rewrite else { return Reason::NextHopUnknown };
    if seq & 1 != 0 || table::read(&flow.head.seq) != seq {
        return Reason::Contended;
    }
    if rewrite.egress != packet.ingress && packet.length as u32 > rewrite.mtu {
        return icmp::too_big(ctx, rewrite.mtu);
    }
    if let Err(reason) = apply(ctx, packet, &rewrite, flow, found.from_backend) {
        return reason;
    }
    account(flow, id, packet, found.from_backend);
    leave(packet.ingress, rewrite.egress)
}

#[inline(always)]
fn towards_backend(flow: &Flow4) -> Option<Rewrite> {
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
fn towards_client(flow: &Flow4) -> Rewrite {
    let egress = flow.tail.ifindex;
    Rewrite {
        macs: Macs::of(&flow.tail.ethernet).turned(),
        tuple: flow.client.reversed(),
        address_delta: inverse(flow.head.address_delta),
        transport_delta: inverse(flow.head.transport_delta),
        egress,
        mtu: maps::interface(egress).map_or(u32::MAX, |interface| interface.mtu),
    }
}

/// Rewrites the packet. Rules 2, 7 and 9.
#[inline(always)]
fn apply(
    ctx: &XdpContext,
    packet: &Packet,
    rewrite: &Rewrite,
    flow: &mut Flow4,
    from_backend: bool,
) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + IPV4) else { return Err(Reason::Truncated) };
    let ttl = head.load::<u16>(ETHERNET + ipv4::TTL);
    if ttl & 0xff <= 1 {
        return Err(icmp::error(ctx, 0, &icmp::TTL_EXCEEDED, 0));
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
    // The TTL is the first byte of its word; one less is 0xfffe more in one's complement, in memory order.
    head.store(ETHERNET + ipv4::TTL, ttl - 1);
    let delta = fold(rewrite.address_delta as u32 + 0xfffe);
    head.store(ETHERNET + ipv4::CHECKSUM, update(head.load(ETHERNET + ipv4::CHECKSUM), delta));
    head.store(ETHERNET + ipv4::ADDRESSES, rewrite.tuple.source.0 as u64 | (rewrite.tuple.destination.0 as u64) << 32);
    Ok(())
}

/// Replies leave to where the client's latest packet came from.
#[inline(always)]
fn remember_client(flow: &mut Flow4, macs: Macs, ingress: u32) {
    if Macs::of(&flow.tail.ethernet) != macs {
        macs.put(&mut flow.tail.ethernet);
    }
    if flow.tail.ifindex != ingress {
        flow.tail.ifindex = ingress;
    }
}

/// Rule 34: packets and bytes of the flow and of its backend.
#[inline(always)]
fn account(flow: &mut Flow4, id: u32, packet: &Packet, from_backend: bool) {
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
fn leave(ingress: u32, egress: u32) -> Reason {
    if egress == ingress {
        return Reason::ForwardedTx;
    }
    helpers::redirect(egress);
    Reason::ForwardedRedirect
}
