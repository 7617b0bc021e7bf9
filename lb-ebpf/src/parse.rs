//! From a frame to a [`Packet`], cheapest question first. Whatever is not ours leaves untouched.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16, Be32,
    flow::{Tuple4, tcp},
    maps::{Interface, Vip4Key, filter_bit, vip_flag},
    reason::Reason,
};

use crate::{
    helpers, maps,
    packet::{
        ETHERNET, Frame, IPV4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Place, TCP, TYPE_IPV4, UDP, ipv4,
        tcp as tcp_at, udp,
    },
};

/// What every later step needs to know of a TCP or UDP packet over IPv4.
pub struct Packet {
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Its addresses and ports.
    pub tuple: Tuple4,
    /// Layer-3 bytes, by the IP header.
    pub length: u16,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// Where it came in.
    pub ingress: u32,
}

impl Packet {
    /// Whether it is TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.tuple.protocol == PROTOCOL_TCP
    }

    /// Whether it asks for a new connection: SYN, but neither ACK, RST nor FIN.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }
}

/// What a frame turned out to be.
pub enum Parsed {
    /// TCP or UDP that may be ours.
    Flow(Packet),
    /// ICMP to an address of ours.
    Icmp,
    /// Decided already.
    Done(Reason),
}

/// Parses a frame.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Parsed {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + IPV4) else { return Parsed::Done(Reason::NotOurs) };
    if head.load::<u16>(12) != TYPE_IPV4 {
        return Parsed::Done(Reason::NotOurs);
    }
    let addresses = head.load::<u64>(ETHERNET + ipv4::ADDRESSES);
    if !maps::bit(&maps::filter, filter_bit(Be32((addresses >> 32) as u32))) {
        return Parsed::Done(Reason::NotOurs);
    }
    let ingress = ctx.ingress_ifindex() as u32;
    let Some(interface) = maps::interface(ingress) else { return Parsed::Done(Reason::NotOurs) };
    if !for_us(head, interface) {
        return Parsed::Done(Reason::OtherMac);
    }
    ipv4(ctx, frame, head, addresses, ingress)
}

/// Rule 36: the frame is addressed to this interface's own or virtual MAC.
#[inline(always)]
fn for_us(head: Place, interface: &Interface) -> bool {
    let words: [u16; 3] = [head.load(0), head.load(2), head.load(4)];
    // SAFETY: both addresses are aligned to two in the map's value (asserted below).
    let is = |mac: &[u8; 6]| unsafe { core::ptr::from_ref(mac).cast::<[u16; 3]>().read() } == words;
    is(&interface.mac) || is(&interface.virtual_mac)
}

const _: () = assert!(core::mem::offset_of!(Interface, mac) % 2 == 0);
const _: () = assert!(core::mem::offset_of!(Interface, virtual_mac) % 2 == 0 && align_of::<Interface>() >= 2);

#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: Frame, head: Place, addresses: u64, ingress: u32) -> Parsed {
    let destination = Be32((addresses >> 32) as u32);
    let version_ihl = head.load::<u8>(ETHERNET + ipv4::VERSION_IHL);
    let header = (version_ihl as usize & 15) * 4;
    let length = Be16(head.load::<u16>(ETHERNET + ipv4::TOTAL_LENGTH)).get();
    let fits =
        frame.reaches(ETHERNET + length as usize) || ETHERNET as u32 + length as u32 <= helpers::frame_length(ctx);
    if version_ihl >> 4 != 4 || header < IPV4 || (length as usize) < header || !fits {
        return Parsed::Done(unreadable(destination, if fits { Reason::Malformed } else { Reason::Truncated }));
    }
    if head.load::<u16>(ETHERNET + ipv4::FRAGMENT) & ipv4::FRAGMENTED != 0 {
        return Parsed::Done(Reason::Fragment);
    }
    let room = length as usize - header;
    let mut packet = Packet {
        transport: ETHERNET + header,
        tuple: Tuple4 { source: Be32(addresses as u32), destination, ..Tuple4::default() },
        length,
        flags: 0,
        ingress,
    };
    let sound = match head.load::<u8>(ETHERNET + ipv4::PROTOCOL) {
        PROTOCOL_TCP => {
            let Some(segment) = frame.at(packet.transport, TCP) else {
                return Parsed::Done(unreadable(destination, Reason::Truncated));
            };
            packet.tuple.protocol = PROTOCOL_TCP;
            ports(&mut packet, segment);
            packet.flags = segment.load::<u8>(tcp_at::FLAGS);
            let offset = (segment.load::<u8>(tcp_at::DATA_OFFSET) >> 4) as usize * 4;
            offset >= TCP && offset <= room
        }
        PROTOCOL_UDP => {
            let Some(datagram) = frame.at(packet.transport, UDP) else {
                return Parsed::Done(unreadable(destination, Reason::Truncated));
            };
            packet.tuple.protocol = PROTOCOL_UDP;
            ports(&mut packet, datagram);
            let claimed = Be16(datagram.load::<u16>(udp::LENGTH)).get() as usize;
            claimed >= UDP && claimed <= room
        }
        PROTOCOL_ICMP => return Parsed::Icmp,
        _ => return Parsed::Done(Reason::OtherProtocol),
    };
    if !maps::bit(&maps::ports, packet.tuple.destination_port.get() as u32) {
        return Parsed::Done(Reason::NotOurs);
    }
    if !sound || packet.tuple.source_port.0 == 0 {
        return Parsed::Done(contradictory(&packet.tuple));
    }
    Parsed::Flow(packet)
}

#[inline(always)]
fn ports(packet: &mut Packet, transport: Place) {
    let ports = transport.load::<u32>(0);
    packet.tuple.source_port = Be16(ports as u16);
    packet.tuple.destination_port = Be16((ports >> 16) as u16);
}

/// What the map says of an address: is it a VIP, does the host own it.
#[inline(always)]
pub fn address_flags(address: Be32) -> u32 {
    let key = Vip4Key { address, ..Vip4Key::default() };
    // SAFETY: entries are made and freed by RCU (BPF_F_NO_PREALLOC), and only read here.
    unsafe { maps::vips4.get(key) }.map_or(0, |entry| entry.flags)
}

/// Rule 29: what cannot be read is dropped, unless the host owns the address and shall decide itself.
#[inline(never)]
fn unreadable(destination: Be32, reason: Reason) -> Reason {
    if address_flags(destination) & (vip_flag::VIP | vip_flag::HOST) == vip_flag::VIP {
        reason
    } else {
        Reason::NotOurs
    }
}

/// Rule 29: headers that contradict each other are dropped if the port is a VIP's.
#[inline(never)]
fn contradictory(tuple: &Tuple4) -> Reason {
    if crate::service::lookup(tuple).is_some() { Reason::Malformed } else { Reason::NotOurs }
}
