//! Direct return (rules 4, 5 and 6): a client's packet goes to its backend as it came, with other MACs (`dsr`), or with
//! an outer header in front of it (`ipip`, `gue`); the backend answers the client itself, and the answers do not come
//! by here. So a flow has one index entry and no port, and it may be lost as long as the service's table still gives its
//! backend.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16, Be32,
    flow::{Flow, Tuple},
    maps::mode,
    outer,
    reason::Reason,
};

use crate::{
    forward, helpers,
    icmp::Problem,
    maps,
    packet::{ETHERNET, Frame, Macs, PROTOCOL_UDP, Place, udp},
    parse::Packet,
    path::Path,
};

/// Whether a mode is one of direct return.
#[inline(always)]
pub fn is_direct(of_mode: u8) -> bool {
    of_mode >= mode::DSR
}

/// A packet that goes to a backend whole.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parcel {
    /// Offset of the transport header in the frame.
    pub transport: u32,
    /// IP protocol number of the transport header.
    pub protocol: u32,
    /// Layer-3 bytes.
    pub length: u32,
    /// Where it came in.
    pub ingress: u32,
    /// [`outer::entropy`] of its flow.
    pub entropy: u32,
}

impl Parcel {
    /// A packet of a flow.
    #[inline(always)]
    pub fn of<F: Path>(packet: &Packet<F>, entropy: u32) -> Self {
        Self {
            transport: packet.transport as u32,
            protocol: u32::from(packet.tuple.protocol),
            length: packet.length,
            ingress: packet.ingress,
            entropy,
        }
    }
}

/// Entropy of a packet's flow.
#[inline(always)]
pub fn entropy<F: Path>(packet: &Packet<F>) -> u32 {
    entropy_of(&packet.tuple)
}

/// Entropy of the flow whose client's packets carry this tuple.
#[inline(always)]
pub fn entropy_of<F: Path>(client: &Tuple<F>) -> u32 {
    outer::entropy(client.hash(maps::seeded()))
}

/// Forwards a packet whose flow has no record, and gets none: to the backend that the service's table says.
#[inline(always)]
pub fn forward_stateless<F: Path>(ctx: &XdpContext, packet: &Packet<F>, id: u32, of_mode: u8) -> Reason {
    let reason = carry(ctx, packet, entropy(packet), id, of_mode);
    account::<F>(reason, None, id, packet.length);
    reason
}

/// Forwards a packet of a known flow; `id` and `of_mode` are its record's.
#[inline(always)]
pub fn forward<F: Path>(ctx: &XdpContext, packet: &Packet<F>, flow: &mut Flow<F>, id: u32, of_mode: u8) -> Reason {
    // Errors about the flow's packets go to where the latest came from.
    let Some(head) = Frame::of(ctx).at(0, ETHERNET) else { return Reason::Truncated };
    forward::remember_client(flow, head.macs(), packet.ingress);
    let reason = if of_mode == mode::DSR {
        on_the_spot(ctx, packet, id, head)
    } else {
        carry(ctx, packet, flow.tail.entropy, id, of_mode)
    };
    account(reason, Some(flow), id, packet.length);
    reason
}

/// As [`carry`] in mode `dsr`, without a call; `head` is the frame's.
#[inline(always)]
fn on_the_spot<F: Path>(ctx: &XdpContext, packet: &Packet<F>, id: u32, head: Place) -> Reason {
    let Some(way) = forward::way_to_backend(id) else { return Reason::NextHopUnknown };
    if way.egress != packet.ingress && packet.length > way.mtu {
        return F::error(ctx, Problem::TooBig, packet.transport, 0, way.mtu);
    }
    head.set_macs(way.macs);
    forward::leave(packet.ingress, way.egress, Reason::ForwardedTx, Reason::ForwardedRedirect)
}

/// Sends a packet to a backend, or tells its sender that it is too long (rule 23).
#[inline(always)]
fn carry<F: Path>(ctx: &XdpContext, packet: &Packet<F>, entropy: u32, id: u32, of_mode: u8) -> Reason {
    let done = F::deliver(ctx, &Parcel::of(packet, entropy), id, of_mode);
    match Reason::from_number(done & 0xff) {
        Reason::TooBig => F::error(ctx, Problem::TooBig, packet.transport, 0, done >> 8),
        reason => reason,
    }
}

/// Rule 34: packets and bytes of the flow and of its backend, as the client sent them.
#[inline(always)]
fn account<F: Path>(reason: Reason, flow: Option<&mut Flow<F>>, id: u32, length: u32) {
    if !matches!(reason, Reason::ForwardedTx | Reason::ForwardedRedirect) {
        return;
    }
    if let Some(flow) = flow {
        flow.tail.packets_in += 1;
    }
    if let Some(counters) = maps::traffic.get_ptr_mut(id) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        let counters = unsafe { &mut *counters };
        counters.packets_in += 1;
        counters.bytes_in += length as u64;
    }
}

/// Sends a packet to a backend; gives a reason's number. With [`Reason::TooBig`] nothing was done yet, and above its eight
/// bits stands the length that would have fitted.
#[inline(always)]
pub fn deliver<F: Path>(ctx: &XdpContext, parcel: &Parcel, id: u32, of_mode: u8) -> u32 {
    let over = |reason: Reason| reason as u32;
    let Some(backend) = maps::backends.get(id) else { return over(Reason::NextHopUnknown) };
    let Some(hop) = maps::next_hops.get(backend.next_hop) else { return over(Reason::NextHopUnknown) };
    if hop.ifindex == 0 {
        return over(Reason::NextHopUnknown);
    }
    let overhead = outer::overhead(of_mode, backend.family) as u32;
    // A packet that grows may be too long for the interface that it came by, too (rule 23).
    if parcel.length + overhead > hop.mtu && (overhead != 0 || hop.ifindex != parcel.ingress) {
        let fits = hop.mtu.wrapping_sub(overhead);
        return if hop.mtu < overhead { Reason::TooBigDropped as u32 } else { Reason::TooBig as u32 | fits << 8 };
    }
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return over(Reason::Truncated) };
    if overhead == 0 {
        head.set_macs(Macs::of(&hop.ethernet));
        return over(leave(parcel, hop.ifindex));
    }
    let Some(source) = maps::snat.get(backend.snat).filter(|_| backend.snat_count != 0) else {
        return over(Reason::NextHopUnknown);
    };
    let port = if of_mode == mode::GUE { backend.outer_port } else { Be16(0) };
    let sum = if port.0 != 0 && backend.family == 6 { inner_sum::<F>(ctx, head, parcel) } else { Some(0) };
    let Some(sum) = sum else { return over(Reason::Truncated) };
    // What the checksum is made of was read elsewhere: the verifier has forgotten the place.
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return over(Reason::Truncated) };
    let first = head.load::<u32>(ETHERNET);
    let inner = if F::VERSION == 4 {
        outer::Inner::ipv4(first, head.load(ETHERNET + 6))
    } else {
        outer::Inner::ipv6(first, parcel.length as u16)
    };
    if !helpers::adjust_head(ctx, -(overhead as i32)) {
        return over(Reason::HelperFailed);
    }
    let wrap = Wrap { inner, from: source, to: &backend.address, entropy: parcel.entropy, port, sum };
    let macs = Macs::of(&hop.ethernet);
    let done = if backend.family == 6 { wrap.in_ipv6(ctx, macs) } else { wrap.in_ipv4(ctx, macs) };
    over(if done { leave(parcel, hop.ifindex) } else { Reason::HelperFailed })
}

#[inline(always)]
fn leave(parcel: &Parcel, egress: u32) -> Reason {
    forward::leave(parcel.ingress, egress, Reason::ForwardedTx, Reason::ForwardedRedirect)
}

/// What an outer header is made of.
struct Wrap {
    inner: outer::Inner,
    from: &'static [Be32; 4],
    to: &'static [Be32; 4],
    entropy: u32,
    /// Destination port of the UDP header; 0 = there is none.
    port: Be16,
    /// What the inner packet adds up to, where that is needed.
    sum: u16,
}

/// Writes both MAC addresses and the Ethernet type.
#[inline(always)]
fn ethernet(frame: Place, macs: Macs, kind: u16) {
    frame.set_macs(macs);
    frame.store(12, kind.to_be());
}

impl Wrap {
    /// Writes the headers; there is room for them. Word by word: a whole header would be put together on the stack.
    #[inline(always)]
    fn in_ipv4(&self, ctx: &XdpContext, macs: Macs) -> bool {
        let with_udp = self.port.0 != 0;
        let Some(frame) = Frame::of(ctx).at(0, ETHERNET + outer::IPV4 as usize) else { return false };
        ethernet(frame, macs, 0x0800);
        let id = if self.inner.fragmentable { helpers::random() as u16 } else { 0 };
        let Some(frame) = Frame::of(ctx).at(ETHERNET, outer::IPV4 as usize) else { return false };
        let [a, b, c, d, e] = outer::ipv4(&self.inner, with_udp, id, self.from[0], self.to[0]);
        frame.store(0, a);
        frame.store(4, b);
        frame.store(8, c);
        frame.store(12, d);
        frame.store(16, e);
        !with_udp || self.udp(ctx, outer::IPV4 as usize, 0)
    }

    /// As [`Wrap::in_ipv4`].
    #[inline(always)]
    fn in_ipv6(&self, ctx: &XdpContext, macs: Macs) -> bool {
        let with_udp = self.port.0 != 0;
        let Some(frame) = Frame::of(ctx).at(0, ETHERNET + outer::IPV6 as usize) else { return false };
        ethernet(frame, macs, 0x86dd);
        let label = outer::flow_label(self.entropy);
        let [a, b, c, d, e, f, g, h, i, j] = outer::ipv6(&self.inner, with_udp, label, *self.from, *self.to);
        frame.store(ETHERNET, a);
        frame.store(ETHERNET + 4, b);
        frame.store(ETHERNET + 8, c);
        frame.store(ETHERNET + 12, d);
        frame.store(ETHERNET + 16, e);
        frame.store(ETHERNET + 20, f);
        frame.store(ETHERNET + 24, g);
        frame.store(ETHERNET + 28, h);
        frame.store(ETHERNET + 32, i);
        frame.store(ETHERNET + 36, j);
        if !with_udp {
            return true;
        }
        let ports = (outer::source_port(self.entropy), self.port);
        self.udp(ctx, outer::IPV6 as usize, outer::udp_checksum(&self.inner, self.sum, ports, *self.from, *self.to))
    }

    #[inline(always)]
    fn udp(&self, ctx: &XdpContext, behind: usize, checksum: u16) -> bool {
        let Some(place) = Frame::of(ctx).at(ETHERNET + behind, outer::UDP as usize) else { return false };
        let [first, second] = outer::udp(&self.inner, outer::source_port(self.entropy), self.port, checksum);
        place.store(0, first);
        place.store(4, second);
        true
    }
}

/// What the bytes of the packet add up to, by its own checksums; they are only read where there is none.
#[inline(always)]
fn inner_sum<F: Path>(ctx: &XdpContext, head: Place, parcel: &Parcel) -> Option<u16> {
    // The mask is for the verifier: no header chain is that long.
    let transport = parcel.transport as usize & 0x7fff;
    let before = (transport as u32).wrapping_sub(ETHERNET as u32);
    if parcel.protocol == u32::from(PROTOCOL_UDP) {
        let datagram = Frame::of(ctx).at(transport, outer::UDP as usize)?;
        if datagram.load::<u16>(udp::CHECKSUM) == 0 {
            return helpers::sum(ctx, ETHERNET as u32, parcel.length);
        }
    }
    if F::VERSION == 4 {
        // ICMP's checksum covers no addresses: header and message both add up to nothing.
        if parcel.protocol == u32::from(F::ICMP) {
            return Some(0);
        }
        let (source, destination) = (F::words(F::source(head))[0], F::words(F::destination(head))[0]);
        return Some(outer::sum_ipv4(
            source,
            destination,
            parcel.protocol as u8,
            parcel.length.wrapping_sub(before) as u16,
        ));
    }
    if before != F::HEADER as u32 {
        return helpers::sum(ctx, ETHERNET as u32, parcel.length);
    }
    Some(outer::sum_ipv6([head.load(ETHERNET), head.load(ETHERNET + 4)], parcel.protocol as u8, 0, 0))
}
