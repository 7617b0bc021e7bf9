//! ICMP errors that quote a packet of a flow (rules 20 and 21): they go to whoever sent that packet. Translated inside
//! and outside where the packet was; whole, by the flow's own way, where the backend answers its client directly.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::{delta, update, update_udp},
    flow::{Flow, Tuple},
    reason::Reason,
};

use crate::{
    direct::{self, Parcel, is_direct},
    forward::{self, Way, way},
    helpers, maps,
    packet::{ETHERNET, Frame, ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Place, tcp, udp},
    path::Path,
    select, service,
    table::Found,
};

/// Bytes of a transport header that are always quoted (RFC 792): ports, and UDP's checksum.
const LEAST: usize = 8;

/// Forwards an error whose message stands at `at`; [`Reason::IcmpPassed`] if it quotes nothing that is known.
#[inline(always)]
pub fn forward<F: Path>(ctx: &XdpContext, at: usize) -> Reason {
    let frame = Frame::of(ctx);
    let inner = at + ICMP;
    let Some(quoted) = frame.at(inner, F::HEADER) else { return Reason::IcmpPassed };
    let quoted = quoted.before(ETHERNET);
    let Some((header, protocol)) = F::quoted(quoted) else { return Reason::IcmpPassed };
    let transport = inner + header;
    let Some(ports) = frame.at(transport, LEAST) else { return Reason::IcmpPassed };
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return Reason::IcmpPassed;
    }
    let (source, destination) = F::addresses(quoted);
    let sent = Tuple::<F>::of_packet(source, destination, ports.load(0), protocol);
    let Some(head) = frame.at(0, ETHERNET + F::HEADER) else { return Reason::Truncated };
    // An error goes to whoever sent the packet that it is about.
    if !F::same(F::destination(head), sent.source) {
        return Reason::IcmpPassed;
    }
    // Its flow is found by what the other side sends.
    let theirs = sent.reversed();
    let Some(Found { flow, from_backend, .. }) = Found::<F>::new(&theirs) else {
        return match by_table(&theirs) {
            Some((id, of_mode)) => relay::<F>(ctx, at, direct::entropy_of(&theirs), id, of_mode),
            None => Reason::IcmpPassed,
        };
    };
    if is_direct(flow.head.mode) {
        return relay::<F>(ctx, at, flow.tail.entropy, flow.head.backend, flow.head.mode);
    }
    let ingress = ctx.ingress_ifindex() as u32;
    let Some(Way { macs, egress, mtu }) = way(flow, ingress, from_backend) else { return Reason::NextHopUnknown };
    if egress != ingress && helpers::frame_length(ctx) > mtu.saturating_add(ETHERNET as u32) {
        return Reason::TooBigDropped;
    }
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return Reason::Truncated };
    if F::ttl(head) <= 1 {
        return Reason::TtlDropped;
    }
    head.set_macs(macs);
    if !translate(ctx, at, transport, head, &sent, flow, from_backend) {
        return Reason::Truncated;
    }
    forward::leave(ingress, egress, Reason::IcmpForwarded, Reason::IcmpRedirected)
}

/// The backend and the mode of packets that no flow explains, where the table does (rule 12): the error may have come to
/// another balancer than the flow.
#[inline(always)]
fn by_table<F: Path>(client: &Tuple<F>) -> Option<(u32, u8)> {
    let service = maps::services.get(service::lookup(client)?)?;
    if !is_direct(service.mode) {
        return None;
    }
    Some((select::by_table(service, F::fold(client.source), service::ports(client))?, service.mode))
}

/// Sends the error to a backend of direct return, as its flow's packets go there.
#[inline(always)]
fn relay<F: Path>(ctx: &XdpContext, at: usize, entropy: u32, id: u32, of_mode: u8) -> Reason {
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return Reason::Truncated };
    let parcel = Parcel {
        transport: at as u32,
        protocol: u32::from(F::ICMP),
        length: F::length(head),
        ingress: ctx.ingress_ifindex() as u32,
        entropy,
    };
    match Reason::from_number(F::deliver(ctx, &parcel, id, of_mode) & 0xff) {
        Reason::ForwardedTx => Reason::IcmpForwarded,
        Reason::ForwardedRedirect => Reason::IcmpRedirected,
        // No error about an error (RFC 1122, section 3.2.2).
        Reason::TooBig => Reason::TooBigDropped,
        reason => reason,
    }
}

/// Gives the error and its quote the addresses that its receiver knows.
#[inline(always)]
fn translate<F: Path>(
    ctx: &XdpContext,
    at: usize,
    transport: usize,
    head: Place,
    sent: &Tuple<F>,
    flow: &Flow<F>,
    from_backend: bool,
) -> bool {
    let frame = Frame::of(ctx);
    // What the receiver of the error sent.
    let shall = if from_backend { flow.client } else { flow.backend };
    let (Some(message), Some(quoted)) = (frame.at(at, ICMP), frame.at(at + ICMP, F::HEADER)) else { return false };
    let quoted = quoted.before(ETHERNET);
    let Some(ports) = frame.at(transport, LEAST) else { return false };
    let inner = delta(sent.address_sum(), shall.address_sum());
    let all = delta(sent.address_sum() + sent.port_sum(), shall.address_sum() + shall.port_sum());
    // Sums of the words that change, before and after.
    let (mut old, mut new) = (sent.port_sum(), shall.port_sum());
    ports.store(0, shall.source_port.0 as u32 | (shall.destination_port.0 as u32) << 16);
    if sent.protocol == PROTOCOL_UDP {
        let field = ports.load::<u16>(udp::CHECKSUM);
        let updated = update_udp(field, all);
        ports.store(udp::CHECKSUM, updated);
        (old, new) = (old + field as u32, new + updated as u32);
    } else if let Some(segment) = frame.at(transport, tcp::CHECKSUM + 2) {
        let field = segment.load::<u16>(tcp::CHECKSUM);
        let updated = update(field, all);
        segment.store(tcp::CHECKSUM, updated);
        (old, new) = (old + field as u32, new + updated as u32);
    }
    let (before, after) = F::requote(quoted, sent, &shall, inner);
    (old, new) = (old + before, new + after);

    // The error comes from whom its receiver talked to, unless it may know the routers in between: `dnat` shows the
    // backend the client as it is.
    let (from, to) = (F::source(head), F::destination(head));
    let keep = !from_backend && F::same(shall.destination, sent.destination);
    let outer = Tuple::<F> {
        source: if keep { from } else { shall.destination },
        destination: shall.source,
        ..Tuple::default()
    };
    let (was, is) = (F::sum(from) + F::sum(to), outer.address_sum());
    F::route(head, &outer, delta(was, is));
    if F::VERSION == 6 {
        (old, new) = (old + was, new + is);
    }
    message.store(2, update(message.load(2), delta(old, new)));
    true
}
