//! Packets in, and what is read off packets out. Built and verified by etherparse: no checksum here is lb's.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, Ipv4Options,
    NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader, UdpHeader,
};

/// A MAC address.
pub type Mac = [u8; 6];

/// The balancer's own MAC address in tests.
pub const LB_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// Where the clients' packets come from: their router, or themselves.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 0xc1];
/// The backends' next hop.
pub const BACKEND_MAC: Mac = [2, 0, 0, 0, 0, 0xb1];

/// FIN, SYN, RST, ACK as they stand in a TCP header.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const ACK: u8 = 16;

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source and destination MAC.
    pub macs: (Mac, Mac),
    /// The IPv4 header; lengths and checksum are filled in.
    pub ip: Ipv4Header,
    /// The transport header; checksum and length are filled in.
    pub transport: Transport,
    /// What follows.
    pub payload: Vec<u8>,
}

/// A transport header.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(Box<TcpHeader>),
    /// UDP, source and destination port; whether it has a checksum.
    Udp(u16, u16, bool),
    /// ICMP echo request: identifier and sequence.
    Echo(u16, u16),
    /// Another IP protocol.
    Other(u8),
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpNumber) -> Ipv4Header {
    let mut ip = Ipv4Header::new(0, 64, protocol, from.octets(), to.octets()).unwrap_or_default();
    ip.identification = 0x1234;
    ip.dont_fragment = true;
    ip
}

/// A TCP segment with `flags`; sequence number 1000, acknowledging 500.
#[must_use]
pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Packet {
    let mut header = TcpHeader::new(from.port(), to.port(), 1000, 4096);
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    header.acknowledgment_number = if header.ack { 500 } else { 0 };
    Packet {
        macs: (CLIENT_MAC, LB_MAC),
        ip: ipv4(*from.ip(), *to.ip(), IpNumber::TCP),
        transport: Transport::Tcp(Box::new(header)),
        payload: Vec::new(),
    }
}

/// A UDP datagram.
#[must_use]
pub fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Packet {
    Packet {
        macs: (CLIENT_MAC, LB_MAC),
        ip: ipv4(*from.ip(), *to.ip(), IpNumber::UDP),
        transport: Transport::Udp(from.port(), to.port(), true),
        payload: b"datagram".to_vec(),
    }
}

/// An echo request.
#[must_use]
pub fn echo(from: Ipv4Addr, to: Ipv4Addr, identifier: u16, sequence: u16) -> Packet {
    Packet {
        macs: (CLIENT_MAC, LB_MAC),
        ip: ipv4(from, to, IpNumber::ICMP),
        transport: Transport::Echo(identifier, sequence),
        payload: b"abcdefgh".to_vec(),
    }
}

/// A packet of another IP protocol.
#[must_use]
pub fn other(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Packet {
    Packet {
        macs: (CLIENT_MAC, LB_MAC),
        ip: ipv4(from, to, IpNumber(protocol)),
        transport: Transport::Other(protocol),
        payload: vec![7; 40],
    }
}

impl Packet {
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

    /// The same, with IPv4 options (a multiple of four bytes).
    #[must_use]
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.ip.options = Ipv4Options::try_from(bytes).unwrap_or_default();
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut ip = self.ip.clone();
        let mut body = Vec::new();
        match &self.transport {
            Transport::Tcp(header) => {
                let mut header = header.clone();
                header.checksum = header.calc_checksum_ipv4(&ip, &self.payload).unwrap_or_default();
                header.write(&mut body).unwrap_or_default();
            }
            Transport::Udp(from, to, summed) => {
                let header = if *summed {
                    UdpHeader::with_ipv4_checksum(*from, *to, &ip, &self.payload)
                } else {
                    UdpHeader::without_ipv4_checksum(*from, *to, self.payload.len())
                };
                body.extend(header.map(|header| header.to_bytes()).unwrap_or_default());
            }
            Transport::Echo(id, seq) => {
                let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: *id, seq: *seq });
                body.extend(Icmpv4Header::with_checksum(echo, &self.payload).to_bytes());
            }
            Transport::Other(_) => {}
        }
        body.extend(&self.payload);
        ip.set_payload_len(body.len()).unwrap_or_default();
        ip.header_checksum = ip.calc_header_checksum();
        let ethernet = Ethernet2Header { source: self.macs.0, destination: self.macs.1, ether_type: EtherType::IPV4 };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend(ip.to_bytes());
        frame.extend(body);
        frame
    }
}

/// What a frame says, all checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source and destination MAC.
    pub macs: (Mac, Mac),
    /// The IPv4 header.
    pub ip: Ipv4Header,
    /// Source, with port if it has ports.
    pub from: SocketAddrV4,
    /// Destination, with port if it has ports.
    pub to: SocketAddrV4,
    /// The TCP header, if it is TCP.
    pub tcp: Option<TcpHeader>,
    /// The UDP checksum, if it is UDP.
    pub udp_checksum: Option<u16>,
    /// The ICMP header, if it is ICMP.
    pub icmp: Option<Icmpv4Header>,
    /// What follows.
    pub payload: Vec<u8>,
}

/// Reads a frame and verifies every checksum in it.
pub fn read(frame: &[u8]) -> Result<Seen> {
    let headers = PacketHeaders::from_ethernet_slice(frame).context("parse the frame")?;
    let Some(etherparse::LinkHeader::Ethernet2(ethernet)) = headers.link else { bail!("no Ethernet header") };
    let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { bail!("no IPv4 header") };
    ensure!(ip.header_checksum == ip.calc_header_checksum(), "IP checksum {:#x}", ip.header_checksum);
    let payload = headers.payload.slice().to_vec();
    let mut seen = Seen {
        macs: (ethernet.source, ethernet.destination),
        from: SocketAddrV4::new(ip.source.into(), 0),
        to: SocketAddrV4::new(ip.destination.into(), 0),
        tcp: None,
        udp_checksum: None,
        icmp: None,
        payload,
        ip,
    };
    match headers.transport {
        Some(TransportHeader::Tcp(tcp)) => {
            let wanted = tcp.calc_checksum_ipv4(&seen.ip, &seen.payload)?;
            ensure!(same_sum(tcp.checksum, wanted), "TCP checksum {:#x}, not {wanted:#x}", tcp.checksum);
            (seen.from, seen.to) = (with_port(seen.from, tcp.source_port), with_port(seen.to, tcp.destination_port));
            seen.tcp = Some(tcp);
        }
        Some(TransportHeader::Udp(udp)) => {
            let wanted = udp.calc_checksum_ipv4(&seen.ip, &seen.payload)?;
            ensure!(udp.checksum == 0 || udp.checksum == wanted, "UDP checksum {:#x}, not {wanted:#x}", udp.checksum);
            (seen.from, seen.to) = (with_port(seen.from, udp.source_port), with_port(seen.to, udp.destination_port));
            seen.udp_checksum = Some(udp.checksum);
        }
        Some(TransportHeader::Icmpv4(icmp)) => {
            ensure!(icmp.checksum == icmp.icmp_type.calc_checksum(&seen.payload), "ICMP checksum {:#x}", icmp.checksum);
            seen.icmp = Some(icmp);
        }
        _ => {}
    }
    Ok(seen)
}

/// 0 and 0xffff are the same sum.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

fn with_port(address: SocketAddrV4, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(*address.ip(), port)
}

/// A frame that is not IP: ethertype and some bytes.
#[must_use]
pub fn frame(ether_type: u16, destination: Mac) -> Vec<u8> {
    let header = Ethernet2Header { source: CLIENT_MAC, destination, ether_type: EtherType(ether_type) };
    let mut frame = header.to_bytes().to_vec();
    frame.extend([0x55; 46]);
    frame
}

/// A frame of IPv6 and TCP to `destination`, as another host's traffic would be.
#[must_use]
pub fn ipv6_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, LB_MAC).ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4);
    builder.write(&mut frame, b"").unwrap_or_default();
    frame
}
