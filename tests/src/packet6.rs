//! IPv6 packets in, and what is read off packets out; as [`crate::packet`] for IPv4.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    EtherType, Ethernet2Header, Icmpv6Header, Icmpv6Type, IpNumber, Ipv6FlowLabel, Ipv6Header, NetHeaders,
    PacketHeaders, TcpHeader, TransportHeader, UdpHeader,
};

use crate::packet::{ACK, BACKEND_MAC, CLIENT_MAC, FIN, LB_MAC, Mac, RST, SYN};

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Packet6 {
    /// Source and destination MAC.
    pub macs: (Mac, Mac),
    /// The IPv6 header; the length is filled in.
    pub ip: Ipv6Header,
    /// Extension headers: number and bytes, whose first byte (next header) is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The transport header; checksum and length are filled in.
    pub transport: Transport6,
    /// What follows.
    pub payload: Vec<u8>,
}

/// A transport header.
#[derive(Clone, Debug)]
pub enum Transport6 {
    /// TCP.
    Tcp(Box<TcpHeader>),
    /// UDP, source and destination port.
    Udp(u16, u16),
    /// ICMPv6: type and code, and the four bytes behind the checksum.
    Icmp(u8, u8, [u8; 4]),
    /// Another protocol.
    Other(u8),
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, transport: Transport6, payload: &[u8]) -> Packet6 {
    let next_header = match &transport {
        Transport6::Tcp(_) => IpNumber::TCP,
        Transport6::Udp(..) => IpNumber::UDP,
        Transport6::Icmp(..) => IpNumber::IPV6_ICMP,
        Transport6::Other(number) => IpNumber(*number),
    };
    let ip = Ipv6Header {
        traffic_class: 0x2a,
        flow_label: Ipv6FlowLabel::try_new(0xabcde).unwrap_or_default(),
        payload_length: 0,
        next_header,
        hop_limit: 64,
        source: from.octets(),
        destination: to.octets(),
    };
    Packet6 { macs: (CLIENT_MAC, LB_MAC), ip, extensions: Vec::new(), transport, payload: payload.to_vec() }
}

/// A TCP segment with `flags`; sequence number 1000, acknowledging 500.
#[must_use]
pub fn tcp(from: SocketAddrV6, to: SocketAddrV6, flags: u8) -> Packet6 {
    let mut header = TcpHeader::new(from.port(), to.port(), 1000, 4096);
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    header.acknowledgment_number = if header.ack { 500 } else { 0 };
    packet(*from.ip(), *to.ip(), Transport6::Tcp(Box::new(header)), b"")
}

/// A UDP datagram.
#[must_use]
pub fn udp(from: SocketAddrV6, to: SocketAddrV6) -> Packet6 {
    packet(*from.ip(), *to.ip(), Transport6::Udp(from.port(), to.port()), b"datagram")
}

/// An ICMPv6 message.
#[must_use]
pub fn icmp(from: Ipv6Addr, to: Ipv6Addr, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Packet6 {
    packet(from, to, Transport6::Icmp(kind, code, rest), payload)
}

/// A packet of another protocol.
#[must_use]
pub fn other(from: Ipv6Addr, to: Ipv6Addr, protocol: u8) -> Packet6 {
    packet(from, to, Transport6::Other(protocol), &[7; 40])
}

impl Packet6 {
    /// The same, with a payload.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// The same, from the backends' side.
    #[must_use]
    pub fn from_backend(mut self) -> Self {
        self.macs.0 = BACKEND_MAC;
        self
    }

    /// The same with an extension header in front of the transport header.
    #[must_use]
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        let mut body = Vec::new();
        match &self.transport {
            Transport6::Tcp(header) => {
                let mut header = header.clone();
                header.checksum = header.calc_checksum_ipv6(&ip, &self.payload).unwrap_or_default();
                header.write(&mut body).unwrap_or_default();
            }
            Transport6::Udp(from, to) => {
                let header = UdpHeader::with_ipv6_checksum(*from, *to, &ip, &self.payload);
                body.extend(header.map(|header| header.to_bytes()).unwrap_or_default());
            }
            Transport6::Icmp(kind, code, rest) => {
                let kind = Icmpv6Type::Unknown { type_u8: *kind, code_u8: *code, bytes5to8: *rest };
                let header = Icmpv6Header::with_checksum(kind, ip.source, ip.destination, &self.payload);
                body.extend(header.map(|header| header.to_bytes()).unwrap_or_default());
            }
            Transport6::Other(_) => {}
        }
        body.extend(&self.payload);
        let mut next = ip.next_header.0;
        for (number, bytes) in self.extensions.iter().rev() {
            let mut header = bytes.clone();
            header[0] = next;
            header.extend(body);
            body = header;
            next = *number;
        }
        ip.next_header = IpNumber(next);
        ip.payload_length = body.len() as u16;
        let ethernet = Ethernet2Header { source: self.macs.0, destination: self.macs.1, ether_type: EtherType::IPV6 };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend(ip.to_bytes());
        frame.extend(body);
        frame
    }
}

/// What a frame says, all checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen6 {
    /// Source and destination MAC.
    pub macs: (Mac, Mac),
    /// The IPv6 header.
    pub ip: Ipv6Header,
    /// Source, with port if it has ports.
    pub from: SocketAddrV6,
    /// Destination, with port if it has ports.
    pub to: SocketAddrV6,
    /// The TCP header, if it is TCP.
    pub tcp: Option<TcpHeader>,
    /// The UDP checksum, if it is UDP.
    pub udp_checksum: Option<u16>,
    /// Type and code and the four bytes behind the checksum, if it is ICMPv6.
    pub icmp: Option<(u8, u8, [u8; 4])>,
    /// What follows.
    pub payload: Vec<u8>,
}

/// Reads a frame and verifies every checksum in it.
pub fn read(frame: &[u8]) -> Result<Seen6> {
    let headers = PacketHeaders::from_ethernet_slice(frame).context("parse the frame")?;
    let Some(etherparse::LinkHeader::Ethernet2(ethernet)) = headers.link else { bail!("no Ethernet header") };
    let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { bail!("no IPv6 header") };
    let payload = headers.payload.slice().to_vec();
    let place = |address: [u8; 16], port| SocketAddrV6::new(address.into(), port, 0, 0);
    let (source, destination) = (ip.source, ip.destination);
    let mut seen = Seen6 {
        macs: (ethernet.source, ethernet.destination),
        from: place(source, 0),
        to: place(destination, 0),
        tcp: None,
        udp_checksum: None,
        icmp: None,
        payload,
        ip,
    };
    match headers.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            let wanted = tcp.calc_checksum_ipv6(&seen.ip, &seen.payload)?;
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0);
            ensure!(same(tcp.checksum, wanted), "TCP checksum {:#x}, not {wanted:#x}", tcp.checksum);
            (seen.from, seen.to) = (place(source, tcp.source_port), place(destination, tcp.destination_port));
            seen.tcp = Some(tcp);
        }
        Some(TransportHeader::Udp(udp)) => {
            let wanted = udp.calc_checksum_ipv6(&seen.ip, &seen.payload)?;
            ensure!(udp.checksum == wanted, "UDP checksum {:#x}, not {wanted:#x}", udp.checksum);
            (seen.from, seen.to) = (place(source, udp.source_port), place(destination, udp.destination_port));
            seen.udp_checksum = Some(udp.checksum);
        }
        Some(TransportHeader::Icmpv6(icmp)) => {
            let wanted = icmp.icmp_type.calc_checksum(source, destination, &seen.payload)?;
            ensure!(icmp.checksum == wanted, "ICMPv6 checksum {:#x}, not {wanted:#x}", icmp.checksum);
            let bytes = icmp.to_bytes();
            seen.icmp = Some((bytes[0], bytes[1], [bytes[4], bytes[5], bytes[6], bytes[7]]));
        }
        _ => {}
    }
    Ok(seen)
}

/// An IPv6 address and port.
///
/// # Panics
/// It is none.
#[must_use]
pub fn place(text: &str) -> SocketAddrV6 {
    match text.parse() {
        Ok(SocketAddr::V6(place)) => place,
        _ => panic!("'{text}' is not an IPv6 address and port"),
    }
}
