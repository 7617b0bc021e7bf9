//! ICMP errors about the outer packets of a tunnel: a router between lb and a backend found one too long. The client is
//! told, as if lb had found it: the MTU less what lb put in front (rule 23; RFC 2003, section 5.1). What else may be
//! wrong there is the health checks' to find.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    family::{V4, V6},
    flow::Tuple,
    outer,
    reason::Reason,
};

use crate::{
    direct::is_direct,
    forward, helpers,
    icmp::Problem,
    once::Once as _,
    packet::{ETHERNET, Frame, ICMP, Macs, PROTOCOL_UDP},
    path::Path,
    table::Found,
};

/// The least MTU that a client is told (RFC 791).
const LEAST: u32 = 68;

/// ICMP whose header stands at `at`, and which is about no known packet of a client or a backend.
#[inline(always)]
pub fn about<F: Path>(ctx: &XdpContext, at: usize) -> Reason {
    let frame = Frame::of(ctx);
    let (Some(message), Some(quoted)) = (frame.at(at, ICMP), frame.at(at + ICMP, F::HEADER)) else {
        return Reason::IcmpPassed;
    };
    if message.load::<u16>(0) != F::ERRORS.too_big {
        return Reason::IcmpPassed;
    }
    let told = u32::from_be(message.load(4));
    let told = if F::VERSION == 4 { told & 0xffff } else { told };
    let Some((header, protocol)) = F::quoted(quoted.before(ETHERNET)) else { return Reason::IcmpPassed };
    let behind = at + ICMP + header;
    let (family, with_udp) = match protocol {
        outer::PROTOCOL_IPV4 => (4, 0),
        outer::PROTOCOL_IPV6 => (6, 0),
        PROTOCOL_UDP => {
            let Some(udp) = frame.at(behind, outer::UDP as usize + 1) else { return Reason::IcmpPassed };
            if udp.load::<u16>(2) != outer::GUE_PORT.to_be() {
                return Reason::IcmpPassed;
            }
            (udp.load::<u8>(outer::UDP as usize) >> 4, outer::UDP as usize)
        }
        _ => return Reason::IcmpPassed,
    };
    let inner = behind + with_udp;
    let overhead = inner.wrapping_sub(at + ICMP) as u32;
    if told < overhead.saturating_add(LEAST) {
        return Reason::IcmpPassed;
    }
    let mtu = told.wrapping_sub(overhead);
    if family == 6 { V6::told(ctx, inner, mtu) } else { V4::told(ctx, inner, mtu) }
}

/// Tells the client whose packet stands at `inner` that `mtu` would have fitted.
#[inline(always)]
pub fn told<F: Path>(ctx: &XdpContext, inner: usize, mtu: u32) -> Reason {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(inner, F::HEADER) else { return Reason::IcmpPassed };
    let head = head.before(ETHERNET);
    let Some((header, protocol)) = F::quoted(head) else { return Reason::IcmpPassed };
    let Some(ports) = frame.at(inner + header, 8) else { return Reason::IcmpPassed };
    let (source, destination) = F::addresses(head);
    let sent = Tuple::<F>::of_packet(source, destination, ports.load(0), protocol);
    let Some(Found { flow, .. }) = Found::<F>::new(&sent) else { return Reason::IcmpPassed };
    if !is_direct(flow.head.mode) {
        return Reason::IcmpPassed;
    }
    let (ingress, egress) = (ctx.ingress_ifindex() as u32, flow.tail.ifindex);
    if !helpers::adjust_head(ctx, inner as i32 - ETHERNET as i32) {
        return Reason::HelperFailed;
    }
    // As it came: the error turns it round.
    let Some(head) = Frame::of(ctx).at(0, ETHERNET) else { return Reason::HelperFailed };
    head.set_macs(Macs::of(&flow.tail.ethernet));
    head.store(12, F::TYPE);
    match F::error(ctx, Problem::TooBig, ETHERNET + header, flow.head.service, mtu) {
        Reason::TooBig => forward::leave(ingress, egress, Reason::IcmpForwarded, Reason::IcmpRedirected),
        reason => reason,
    }
}
