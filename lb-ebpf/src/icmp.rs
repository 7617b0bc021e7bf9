//! ICMP: echo requests to a VIP (rule 19), and the errors that lb sends itself (rules 7, 23 and 24).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::{delta, fold64, update},
    maps::vip_flag,
    reason::Reason,
};

use crate::{
    helpers, maps,
    packet::{ETHERNET, Frame, ICMP},
    parse::address_flags,
    path::Path,
    quoted, time,
};

/// Most bytes that an error quotes (a multiple of four).
const MOST_QUOTED: u32 = 128;
/// Answers per service and tick (134 ms): about a hundred a second.
const ANSWERS_PER_TICK: u32 = 14;

/// An error that lb sends.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Problem {
    /// Destination unreachable, port unreachable: no usable backend.
    PortUnreachable = 0,
    /// The packet does not fit where it would leave (rule 23); its second word is the MTU there.
    TooBig = 1,
    /// Time exceeded in transit: the packet's TTL ran out here (rule 7).
    TimeExceeded = 2,
}

impl Problem {
    /// The problem of a number.
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            0 => Self::PortUnreachable,
            1 => Self::TooBig,
            _ => Self::TimeExceeded,
        }
    }

    /// Type and code as they stand in the packet; the packet's reason when it was answered, and when it was not because
    /// the answers of this tick are used up.
    #[inline(always)]
    fn about<F: Path>(self) -> (u16, Reason, Reason) {
        let kinds = F::ERRORS;
        match self {
            Self::PortUnreachable => (kinds.port_unreachable, Reason::RejectUdp, Reason::NoBackend),
            Self::TooBig => (kinds.too_big, Reason::TooBig, Reason::TooBigDropped),
            Self::TimeExceeded => (kinds.time_exceeded, Reason::TtlExceeded, Reason::TtlDropped),
        }
    }
}

/// ICMP whose header stands at `at`: an echo request to a VIP is answered, an error that quotes a packet of a flow goes
/// to whoever sent that, everything else is the host's.
#[inline(always)]
pub fn receive<F: Path>(ctx: &XdpContext, at: usize) -> Reason {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + F::HEADER) else { return Reason::Truncated };
    let Some(message) = frame.at(at, ICMP) else { return Reason::IcmpPassed };
    let (source, destination) = (F::source(head), F::destination(head));
    if F::is_error(message.load(0)) {
        return quoted::forward::<F>(ctx, at);
    }
    let (request, reply) = F::ECHO;
    if message.load::<u16>(0) != request || address_flags::<F>(destination) & vip_flag::VIP == 0 {
        return Reason::IcmpPassed;
    }
    message.store(0, reply);
    message.store(2, update(message.load(2), delta(request as u32, reply as u32)));
    head.set_macs(head.macs().turned());
    F::set_addresses(head, destination, source);
    F::refresh(head);
    Reason::EchoReply
}

/// Turns the packet into an ICMP error to its sender, from where it was sent to, quoting its headers and some bytes
/// (RFC 792, RFC 4443). `transport` is where its transport header stands, `rest` the error's second word.
#[inline(always)]
pub fn error<F: Path>(ctx: &XdpContext, problem: Problem, transport: u32, service: u32, rest: u32) -> Reason {
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return Reason::Truncated };
    let (kind, answered, silent) = problem.about::<F>();
    if (matches!(problem, Problem::TooBig) && F::fragmentable(head)) || !allowed(service) {
        return silent;
    }
    let rest = if rest > 0xffff { 0xffff } else { rest };
    let quote = transport.wrapping_add(F::QUOTE as u32 - ETHERNET as u32);
    if send_error::<F>(ctx, kind, rest.to_be(), quote) { answered } else { Reason::HelperFailed }
}

#[inline(always)]
fn send_error<F: Path>(ctx: &XdpContext, kind: u16, rest: u32, quote: u32) -> bool {
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + F::HEADER) else { return false };
    let macs = head.macs();
    let (source, destination) = (F::source(head), F::destination(head));
    let there = helpers::frame_length(ctx).wrapping_sub(ETHERNET as u32) & !3;
    let quote = if quote > MOST_QUOTED { MOST_QUOTED } else { quote };
    let quote = if quote > there { there } else { quote };
    let room = F::HEADER + ICMP;
    if !helpers::truncate(ctx, ETHERNET as u32 + quote) || !helpers::adjust_head(ctx, -(room as i32)) {
        return false;
    }
    let Some(sum) = sum_quote(ctx, ETHERNET + room, quote) else { return false };
    let Some(answer) = Frame::of(ctx).at(0, ETHERNET + room) else { return false };
    answer.set_macs(macs.turned());
    answer.store(12, F::TYPE);
    let length = (ICMP as u32 + quote) as u16;
    F::write(answer, length, F::ICMP, destination, source);
    let at = ETHERNET + F::HEADER;
    answer.store(at, kind);
    answer.store(at + 4, rest);
    answer.store(at + 2, !fold64(sum + F::icmp_sum(destination, source, length) + kind as u64 + rest as u64));
    true
}

/// The sum of the `length` quoted bytes (a multiple of four) at `from`.
#[inline(always)]
fn sum_quote(ctx: &XdpContext, from: usize, length: u32) -> Option<u64> {
    let frame = Frame::of(ctx);
    let mut sum = 0u64;
    let mut offset = 0;
    while offset < MOST_QUOTED {
        if offset >= length {
            break;
        }
        sum += frame.at(from + offset as usize, 4)?.load::<u32>(0) as u64;
        offset += 4;
    }
    Some(sum)
}

/// Whether the service may send one more answer in this tick.
#[inline(always)]
fn allowed(service: u32) -> bool {
    let now = time::now();
    let Some(tokens) = maps::icmp_tokens.get_ptr_mut(service) else { return false };
    // SAFETY: a map value's words; CPUs that meet here lose a count at worst.
    let tokens = unsafe { &mut *tokens };
    if tokens.tick != now {
        (tokens.tick, tokens.used) = (now, 0);
    }
    tokens.used += 1;
    tokens.used <= ANSWERS_PER_TICK
}
