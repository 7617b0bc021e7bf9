//! The data path's own log (`--bpf-log`): one line a packet, as it leaves, with its reason.
//!
//! The level is constant when the program is loaded: at level 0 the verifier takes all of this out, and it costs
//! nothing. Reasons go as numbers, for which user space has words. What does not fit into the ring is not logged.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::macro_support::{Level, level_enabled};
use lb_common::reason::{Reason, Verdict};

use crate::packet::{ETHERNET, Frame, IPV4, IPV6, TYPE_IPV4, TYPE_IPV6, ipv4, ipv6};

/// Logs a packet, if anything is logged.
#[inline(always)]
pub fn packet(ctx: &XdpContext, reason: Reason) {
    if level_enabled(Level::Error) {
        log_packet(ctx.ctx, reason as u32);
    }
}

/// How much a reason matters.
const fn level(reason: Reason) -> Level {
    match (reason, reason.verdict()) {
        (_, Verdict::Aborted) | (Reason::HelperFailed, _) => Level::Error,
        (_, Verdict::Drop) => Level::Warn,
        (_, Verdict::Pass) => Level::Trace,
        (
            Reason::ForwardedTx
            | Reason::ForwardedRedirect
            | Reason::IcmpForwarded
            | Reason::IcmpRedirected
            | Reason::EchoReply,
            _,
        ) => Level::Debug,
        // The answers that lb gives instead of a backend.
        (_, Verdict::Tx | Verdict::Redirect) => Level::Info,
    }
}

/// Apart, so that the verifier walks through it once, and its stack is its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn log_packet(ctx: *mut xdp_md, reason: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::of(&ctx);
    let level = level(Reason::from_number(reason));
    let ingress = ctx.ingress_ifindex() as u32;
    let Some(head) = frame.at(0, ETHERNET) else { return 0 };
    // One macro for both families, whose addresses are of different types.
    macro_rules! ip {
        ($protocol:expr, $from:expr, $to:expr, $ports:expr) => {{
            let (protocol, (from_port, to_port)): (u8, _) = ($protocol, $ports);
            let (from, to) = ($from, $to);
            #[rustfmt::skip]
            aya_log_ebpf::log!(&ctx, level, "{} {} {} {:i} {} {:i} {}", reason, ingress, protocol, from, from_port, to, to_port);
        }};
    }
    match head.load::<u16>(ETHERNET - 2) {
        TYPE_IPV4 => {
            let Some(head) = frame.at(ETHERNET, IPV4) else { return 0 };
            let address = |at| u32::from_be(head.load(at));
            // Options move the ports; lines of such packets show none.
            let plain = head.load::<u8>(ipv4::VERSION_IHL) == 0x45;
            let ports = if plain { ports(frame, ETHERNET + IPV4) } else { (0, 0) };
            ip!(head.load(ipv4::PROTOCOL), address(ipv4::ADDRESSES), address(ipv4::ADDRESSES + 4), ports);
        }
        TYPE_IPV6 => {
            let Some(head) = frame.at(ETHERNET, IPV6) else { return 0 };
            let (from, to) = (address(head, ipv6::SOURCE), address(head, ipv6::DESTINATION));
            ip!(head.load(ipv6::NEXT_HEADER), from, to, ports(frame, ETHERNET + IPV6));
        }
        other => aya_log_ebpf::log!(&ctx, level, "{} {} {}", reason, ingress, u16::from_be(other)),
    }
    0
}

/// The first two words after the IP header: of TCP and UDP, the ports.
#[inline(always)]
fn ports(frame: Frame, at: usize) -> (u16, u16) {
    frame.at(at, 4).map_or((0, 0), |place| (u16::from_be(place.load(0)), u16::from_be(place.load(2))))
}

#[inline(always)]
fn address(head: crate::packet::Place, at: usize) -> [u8; 16] {
    let words: [u32; 4] = [head.load(at), head.load(at + 4), head.load(at + 8), head.load(at + 12)];
    // SAFETY: sixteen bytes either way, and any bytes are an address.
    unsafe { core::mem::transmute(words) }
}
