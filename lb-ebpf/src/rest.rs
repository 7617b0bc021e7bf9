//! TIME_WAIT at the backend: a connection that the backend closed first rests there for a minute, and its port with it.
//! A SYN that comes to it is taken for a new connection only if it is newer in sequence number and timestamp (RFC 6191);
//! else the client's connection hangs until the SYN is sent again. Clients' clocks and numbers have nothing to do with
//! each other. So the record of a closed flow keeps what the backend will compare with.

use aya_ebpf::{EbpfContext as _, bindings::xdp_md, programs::XdpContext};
use lb_common::{
    clock,
    flow::{Flow, Opening, flag},
};

use crate::{
    packet::{ETHERNET, Frame, TCP, tcp},
    parse::Packet,
    path::Path,
    table,
};

/// How long systems keep a connection in TIME_WAIT; 60 s on Linux, up to 4 min by RFC 9293.
const TIME_WAIT: u32 = clock::ticks_from_millis(60_000);
/// Options that are looked at; a header has room for 40 bytes of them.
const OPTIONS: u32 = 14;

/// Notes that record `index` was closed by its backend first, and now by the client's FIN, which stands at `transport` in a
/// packet of `length` layer-3 bytes.
#[inline(always)]
pub fn begin<F: Path>(ctx: &XdpContext, index: u32, transport: usize, length: u32) -> u32 {
    let Some(flow) = table::record::<F>(index) else { return 0 };
    let Some(segment) = Frame::of(ctx).at(transport, TCP) else { return 0 };
    let header = (segment.load::<u8>(tcp::DATA_OFFSET) >> 4) as u32 * 4;
    let payload = length.wrapping_sub((transport - ETHERNET) as u32).wrapping_sub(header);
    let sequence = u32::from_be(segment.load(tcp::SEQUENCE));
    flow.tail.rest_sequence = sequence.wrapping_add(payload).wrapping_add(1);
    let stamp = stamp(ctx, transport);
    flow.tail.rest_timestamp = stamp as u32;
    flow.head.flags |= flag::RESTS | if stamp == 0 { 0 } else { flag::STAMPED };
    1
}

/// What a SYN says about itself; nothing for a datagram.
#[inline(always)]
pub fn opening<F: Path>(ctx: &XdpContext, packet: &Packet<F>) -> Opening {
    let mut opening = Opening::default();
    if packet.is_tcp() {
        let transport = packet.transport();
        let Some(segment) = Frame::of(ctx).at(transport, TCP) else { return opening };
        opening.sequence = u32::from_be(segment.load(tcp::SEQUENCE));
        let stamp = stamp(ctx, transport);
        (opening.timestamp, opening.stamped) = (stamp as u32, (stamp >> 32) as u32);
    }
    opening
}

/// Whether the backend may refuse a SYN to a closed flow's port.
#[inline(always)]
pub fn rests<F: Path>(flow: &Flow<F>, idle: u32, opening: &Opening) -> bool {
    flow.head.flags & flag::RESTS != 0 && idle <= TIME_WAIT && !opening.supersedes(flow.head.flags, &flow.tail)
}

#[inline(always)]
fn stamp(ctx: &XdpContext, transport: usize) -> u64 {
    timestamp(ctx.as_ptr().cast(), transport as u32)
}

/// The timestamp of the TCP segment at `transport`, and bit 32; 0 if it has none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn timestamp(ctx: *mut xdp_md, transport: u32) -> u64 {
    let transport = transport as usize & 0x7fff;
    let frame = Frame::of(&XdpContext::new(ctx));
    let Some(segment) = frame.at(transport, TCP) else { return 0 };
    let end = transport + (segment.load::<u8>(tcp::DATA_OFFSET) >> 4) as usize * 4;
    let mut offset = transport + TCP;
    let mut looked = 0;
    while looked < OPTIONS {
        looked += 1;
        let Some(option) = frame.at(offset, 2) else { return 0 };
        let (kind, length) = (option.load::<u8>(0), option.load::<u8>(1));
        if (kind, length) == tcp::TIMESTAMPS {
            let Some(option) = frame.at(offset, 10) else { return 0 };
            let inside = offset + 10 <= end;
            return if inside { 1 << 32 | u64::from(u32::from_be(option.load(2))) } else { 0 };
        }
        let length = if kind == tcp::NOTHING { 1 } else { length as usize };
        offset += length;
        if length == 0 || offset >= end {
            return 0;
        }
    }
    0
}
