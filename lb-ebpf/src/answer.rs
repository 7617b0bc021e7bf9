//! RST segments to the sender of a packet (rules 12, 14 and 24).

use aya_ebpf::programs::XdpContext;
use lb_common::{checksum::fold64, flow::tcp, reason::Reason};

use crate::{
    helpers,
    packet::{ETHERNET, Frame, PROTOCOL_TCP, TCP, tcp as tcp_at},
    parse::Packet,
    path::Path,
};

/// Turns the packet into a RST to its sender, from where it was sent to (RFC 9293, section 3.5.2): sequence = its ACK
/// number; without one, sequence 0 and an ACK of everything that it carried. Gives `reason`.
#[inline(always)]
pub fn reset<F: Path>(ctx: &XdpContext, packet: &Packet<F>, reason: Reason) -> Reason {
    let frame = Frame::of(ctx);
    let (Some(head), Some(segment)) = (frame.at(0, ETHERNET), frame.at(packet.transport(), TCP)) else {
        return Reason::Truncated;
    };
    let macs = head.macs();
    let sequence = u32::from_be(segment.load(tcp_at::SEQUENCE));
    let header = (segment.load::<u8>(tcp_at::DATA_OFFSET) >> 4) as u32 * 4;
    let (sequence, acknowledgement, flags) = if packet.flags & tcp::ACK != 0 {
        (segment.load::<u32>(tcp_at::ACKNOWLEDGEMENT), 0, tcp::RST)
    } else {
        let payload = packet.length.wrapping_sub((packet.transport - ETHERNET) as u32).wrapping_sub(header);
        let ends = u32::from(packet.flags & tcp::SYN != 0) + u32::from(packet.flags & tcp::FIN != 0);
        (0, sequence.wrapping_add(payload).wrapping_add(ends).to_be(), tcp::RST | tcp::ACK)
    };
    let at = ETHERNET + F::HEADER;
    if !helpers::truncate(ctx, (at + TCP) as u32) {
        return Reason::HelperFailed;
    }
    let Some(answer) = Frame::of(ctx).at(0, at + TCP) else { return Reason::HelperFailed };
    answer.set_macs(macs.turned());
    answer.store(12, F::TYPE);
    F::write(answer, TCP as u16, PROTOCOL_TCP, packet.tuple.destination, packet.tuple.source);

    let ports = packet.tuple.destination_port.0 as u32 | (packet.tuple.source_port.0 as u32) << 16;
    let offset_flags = (5u16 << 12 | flags as u16).to_be();
    answer.store(at, ports);
    answer.store(at + tcp_at::SEQUENCE, sequence);
    answer.store(at + tcp_at::ACKNOWLEDGEMENT, acknowledgement);
    answer.store(at + tcp_at::DATA_OFFSET, offset_flags);
    answer.store(at + tcp_at::DATA_OFFSET + 2, 0u16); // window
    answer.store(at + tcp_at::CHECKSUM + 2, 0u16); // urgent pointer
    let pseudo = packet.tuple.address_sum() as u64 + (PROTOCOL_TCP as u16).to_be() as u64 + (TCP as u16).to_be() as u64;
    let sum = pseudo + ports as u64 + sequence as u64 + acknowledgement as u64 + offset_flags as u64;
    answer.store(at + tcp_at::CHECKSUM, !fold64(sum));
    reason
}
