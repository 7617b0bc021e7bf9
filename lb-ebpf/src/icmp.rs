//! ICMP: echo requests to a VIP (rule 19), and the errors that lb sends itself (rules 7, 23 and 24).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::{delta, fold64, update},
    maps::vip_flag,
    reason::Reason,
};

use crate::{
    helpers, maps,
    packet::{ETHERNET, Frame, IPV4, PROTOCOL_ICMP, Place, TYPE_IPV4, ipv4},
    parse::address_flags,
};

/// Bytes of an ICMP header.
const ICMP: usize = 8;
/// Where the ICMP header of an answer stands.
const AT: usize = ETHERNET + IPV4;
/// What goes in front of the packet that an error quotes.
const OUTER: usize = IPV4 + ICMP;
/// TTL of packets that lb makes.
const TTL: u8 = 64;
/// Answers per service and tick (134 ms): about a hundred a second.
const ANSWERS_PER_TICK: u32 = 14;

/// An error that lb sends, and how the packet counts that it answers (RFC 792).
pub struct Problem {
    /// Type and code, as they stand in the packet.
    kind: u16,
    /// The packet's reason when it was answered.
    answered: Reason,
    /// Its reason when the answers of this tick are used up.
    silent: Reason,
}

/// Destination unreachable, port unreachable: no usable backend.
pub const PORT_UNREACHABLE: Problem =
    Problem { kind: u16::from_ne_bytes([3, 3]), answered: Reason::RejectUdp, silent: Reason::NoBackend };
/// Destination unreachable, fragmentation needed and DF set (RFC 1191).
const FRAGMENTATION_NEEDED: Problem =
    Problem { kind: u16::from_ne_bytes([3, 4]), answered: Reason::TooBig, silent: Reason::TooBigDropped };
/// Time exceeded in transit.
pub const TTL_EXCEEDED: Problem =
    Problem { kind: u16::from_ne_bytes([11, 0]), answered: Reason::TtlExceeded, silent: Reason::TtlDropped };
/// Type and code of an echo request.
const ECHO_REQUEST: u16 = u16::from_ne_bytes([8, 0]);
/// Type and code of an echo reply.
const ECHO_REPLY: u16 = 0;

/// ICMP to an address of ours: an echo request to a VIP is answered, everything else is the host's.
#[inline(never)]
pub fn receive(ctx: &XdpContext) -> Reason {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + IPV4) else { return Reason::Truncated };
    let header = (head.load::<u8>(ETHERNET) as usize & 15) * 4;
    let Some(message) = frame.at(ETHERNET + header, ICMP) else { return Reason::IcmpPassed };
    let addresses = head.load::<u64>(ETHERNET + ipv4::ADDRESSES);
    let destination = lb_common::Be32((addresses >> 32) as u32);
    if message.load::<u16>(0) != ECHO_REQUEST || address_flags(destination) & vip_flag::VIP == 0 {
        return Reason::IcmpPassed;
    }
    message.store(0, ECHO_REPLY);
    message.store(2, update(message.load(2), delta(ECHO_REQUEST as u32, ECHO_REPLY as u32)));
    head.set_macs(head.macs().turned());
    let old = head.load::<u16>(ETHERNET + ipv4::TTL);
    let new = u16::from_ne_bytes([TTL, PROTOCOL_ICMP]);
    head.store(ETHERNET + ipv4::TTL, new);
    head.store(ETHERNET + ipv4::CHECKSUM, update(head.load(ETHERNET + ipv4::CHECKSUM), delta(old as u32, new as u32)));
    head.store(ETHERNET + ipv4::ADDRESSES, addresses.rotate_left(32));
    Reason::EchoReply
}

/// Rule 23: the packet does not fit where it would leave.
#[inline(never)]
pub fn too_big(ctx: &XdpContext, mtu: u32) -> Reason {
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + IPV4) else { return Reason::Truncated };
    if head.load::<u16>(ETHERNET + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT == 0 {
        return Reason::TooBigDropped;
    }
    let mtu = if mtu > 0xffff { 0xffff } else { mtu };
    error(ctx, 0, &FRAGMENTATION_NEEDED, mtu.to_be())
}

/// Turns the packet into an ICMP error to its sender, from where it was sent to, quoting its IP header and eight bytes
/// (RFC 792). `rest` is the error's second word.
#[inline(always)]
pub fn error(ctx: &XdpContext, service: u32, problem: &Problem, rest: u32) -> Reason {
    if !allowed(service) {
        return problem.silent;
    }
    if send_error(ctx, problem.kind, rest) { problem.answered } else { Reason::HelperFailed }
}

#[inline(never)]
fn send_error(ctx: &XdpContext, kind: u16, rest: u32) -> bool {
    let Some(head) = Frame::of(ctx).at(0, ETHERNET + IPV4) else { return false };
    let macs = head.macs();
    let addresses = head.load::<u64>(ETHERNET + ipv4::ADDRESSES);
    let quote = (head.load::<u8>(ETHERNET) as u32 & 15) * 4 + 8;
    if !helpers::truncate(ctx, ETHERNET as u32 + quote) || !helpers::adjust_head(ctx, -(OUTER as i32)) {
        return false;
    }
    let Some(sum) = sum_quote(ctx, quote) else { return false };
    let Some(answer) = Frame::of(ctx).at(0, ETHERNET + OUTER) else { return false };
    answer.set_macs(macs.turned());
    answer.store(12, TYPE_IPV4);
    write_ipv4(answer, OUTER as u16 + quote as u16, PROTOCOL_ICMP, (addresses >> 32) as u32, addresses as u32);
    answer.store(AT, kind);
    answer.store(AT + 4, rest);
    answer.store(AT + 2, !fold64(sum + kind as u64 + rest as u64));
    true
}

/// The sum of the `length` quoted bytes (a multiple of four, at most 68) behind the new headers.
#[inline(always)]
fn sum_quote(ctx: &XdpContext, length: u32) -> Option<u64> {
    let frame = Frame::of(ctx);
    let mut sum = 0u64;
    let mut offset = 0;
    while offset < 68 {
        if offset < length as usize {
            sum += frame.at(ETHERNET + OUTER + offset, 4)?.load::<u32>(0) as u64;
        }
        offset += 4;
    }
    Some(sum)
}

/// Whether the service may send one more answer in this tick.
#[inline(always)]
fn allowed(service: u32) -> bool {
    let now = helpers::now();
    let Some(tokens) = maps::icmp_tokens.get_ptr_mut(service) else { return false };
    // SAFETY: a map value's words; CPUs that meet here lose a count at worst.
    let tokens = unsafe { &mut *tokens };
    if tokens.tick != now {
        (tokens.tick, tokens.used) = (now, 0);
    }
    tokens.used += 1;
    tokens.used <= ANSWERS_PER_TICK
}

/// Writes a fresh IPv4 header without options: DF, no id (RFC 6864), checksum; addresses as they stand in the packet.
#[inline(always)]
pub fn write_ipv4(frame: Place, length: u16, protocol: u8, from: u32, to: u32) {
    let first = u32::from_be_bytes([0x45, 0, (length >> 8) as u8, length as u8]).to_be();
    let second = u32::from_be_bytes([0, 0, 0x40, 0]).to_be();
    let third = u32::from_be_bytes([TTL, protocol, 0, 0]).to_be();
    let sum = first as u64 + second as u64 + third as u64 + from as u64 + to as u64;
    frame.store(ETHERNET, first);
    frame.store(ETHERNET + 4, second);
    frame.store(ETHERNET + 8, third);
    frame.store(ETHERNET + ipv4::CHECKSUM, !fold64(sum));
    frame.store(ETHERNET + ipv4::ADDRESSES, from as u64 | (to as u64) << 32);
}
