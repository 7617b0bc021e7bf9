//! From a frame to a [`Packet`], cheapest question first. Whatever is not ours leaves untouched.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16,
    family::Family,
    flow::{Tuple, tcp},
    maps::{FILTER_SOURCES, Interface, VipKey, vip_flag},
    reason::Reason,
};

use crate::{
    maps,
    packet::{ETHERNET, Frame, PROTOCOL_TCP, PROTOCOL_UDP, Place, TCP, UDP, tcp as tcp_at, udp},
    path::{Ip, Path},
};

/// What every later step needs to know of a TCP or UDP packet.
#[repr(C)]
pub struct Packet<F: Family> {
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Its addresses and ports.
    pub tuple: Tuple<F>,
    /// Layer-3 bytes, by the IP header.
    pub length: u32,
    /// Where it came in.
    pub ingress: u32,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
}

impl<F: Family> Packet<F> {
    /// An ICMP packet, of which only its header's place is known.
    #[inline(always)]
    pub fn icmp(transport: usize, protocol: u8) -> Self {
        Self { transport, tuple: Tuple { protocol, ..Tuple::default() }, length: 0, ingress: 0, flags: 0 }
    }

    /// Offset of the transport header in the frame. The mask is for the verifier, where a packet was parked.
    #[inline(always)]
    pub fn transport(&self) -> usize {
        self.transport & 0x7fff
    }

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
pub enum Parsed<F: Family> {
    /// TCP or UDP that may be ours.
    Flow(Packet<F>),
    /// ICMP that may concern us, and where its header stands.
    Icmp(usize),
    /// Decided already.
    Done(Reason),
}

/// Parses a frame of this family.
#[inline(always)]
pub fn parse<F: Path>(ctx: &XdpContext) -> Parsed<F> {
    let frame = Frame::of(ctx);
    let Some(head) = frame.at(0, ETHERNET + F::HEADER) else { return Parsed::Done(Reason::NotOurs) };
    let destination = F::destination(head);
    let to_us = maps::bit(&maps::filter, F::filter_bit(destination));
    // ICMP may be about a packet that a backend got from its client, as the two see each other (rule 21).
    if !to_us && !from_dnat::<F>(F::source(head)) && F::protocol(head) != F::ICMP {
        return Parsed::Done(Reason::NotOurs);
    }
    let ingress = ctx.ingress_ifindex() as u32;
    let Some(interface) = maps::interface(ingress) else { return Parsed::Done(Reason::NotOurs) };
    if !for_us(head, interface) {
        return Parsed::Done(Reason::OtherMac);
    }
    match F::ip(ctx, frame, head) {
        Ok(Ip { transport, protocol, .. }) if protocol == F::ICMP => Parsed::Icmp(transport),
        Ok(ip) => match transport(frame, F::addresses(head), &ip, ingress) {
            Ok(packet) => Parsed::Flow(packet),
            Err(reason) => Parsed::Done(reason),
        },
        Err(Reason::Fragment) => Parsed::Done(Reason::Fragment),
        Err(reason) => Parsed::Done(unreadable::<F>(&destination, reason)),
    }
}

/// Whether an address may be a backend's that sees its clients as they are: what it sends them is not addressed to us.
#[inline(always)]
fn from_dnat<F: Path>(source: F::Address) -> bool {
    maps::bit(&maps::filter, FILTER_SOURCES | F::filter_bit(source))
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
fn transport<F: Path>(
    frame: Frame,
    (source, destination): (F::Address, F::Address),
    ip: &Ip,
    ingress: u32,
) -> Result<Packet<F>, Reason> {
    let truncated = || unreadable::<F>(&destination, Reason::Truncated);
    // Bytes that the header says it has, or speaks for; and the least that it must.
    let (ports, claimed, least, flags) = match ip.protocol {
        PROTOCOL_TCP => {
            let Some(segment) = frame.at(ip.transport, TCP) else { return Err(truncated()) };
            let offset = (segment.load::<u8>(tcp_at::DATA_OFFSET) >> 4) as usize * 4;
            (segment.load::<u32>(0), offset, TCP, segment.load::<u8>(tcp_at::FLAGS))
        }
        PROTOCOL_UDP => {
            let Some(datagram) = frame.at(ip.transport, UDP) else { return Err(truncated()) };
            let length = Be16(datagram.load::<u16>(udp::LENGTH)).get() as usize;
            (datagram.load::<u32>(0), length, UDP, 0)
        }
        _ => return Err(Reason::OtherProtocol),
    };
    let packet = Packet {
        transport: ip.transport,
        tuple: Tuple::of_packet(source, destination, ports, ip.protocol),
        length: ip.length as u32,
        flags,
        ingress,
    };
    let to_us = maps::bit(&maps::ports, packet.tuple.destination_port.get() as u32);
    if !to_us && !from_dnat::<F>(source) {
        return Err(Reason::NotOurs);
    }
    if claimed < least || ip.transport + claimed > ETHERNET + ip.length || packet.tuple.source_port.0 == 0 {
        // A copy, so that the packet itself need not stand in memory.
        let tuple = packet.tuple;
        return Err(contradictory(&tuple));
    }
    Ok(packet)
}

/// What the map says of an address: is it a VIP, does the host own it.
#[inline(always)]
pub fn address_flags<F: Path>(address: F::Address) -> u32 {
    let key = VipKey::<F>::new(address, Be16(0), 0);
    // SAFETY: entries are made and freed by RCU (BPF_F_NO_PREALLOC), and only read here.
    unsafe { F::MAPS.vips.get(key) }.map_or(0, |entry| entry.flags)
}

/// Rule 29: what cannot be read is dropped, unless the host owns the address and shall decide itself.
#[inline(never)]
fn unreadable<F: Path>(destination: &F::Address, reason: Reason) -> Reason {
    if address_flags::<F>(*destination) & (vip_flag::VIP | vip_flag::HOST) == vip_flag::VIP {
        reason
    } else {
        Reason::NotOurs
    }
}

/// Rule 29: headers that contradict each other are dropped if the port is a VIP's.
#[inline(never)]
fn contradictory<F: Path>(tuple: &Tuple<F>) -> Reason {
    if crate::service::lookup(tuple).is_some() { Reason::Malformed } else { Reason::NotOurs }
}
