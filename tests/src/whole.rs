//! Packets that the direct-return modes forward whole: built for both families, and unwrapped with every outer field
//! read and every outer checksum verified. Built and verified by etherparse: no checksum here is lb's.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};
use lb_userspace::state::Mode;

use crate::{
    packet::{ACK, CLIENT_MAC, FIN, LB_MAC, Mac, RST, SYN},
    world::World,
};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A client's packet.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The client.
    pub from: SocketAddr,
    /// The VIP.
    pub to: SocketAddr,
    /// TCP flags; without them it is UDP.
    pub flags: Option<u8>,
    /// What it carries.
    pub payload: Vec<u8>,
    /// DSCP and ECN.
    pub class: u8,
    /// "Don't fragment", over IPv4.
    pub df: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether a UDP datagram has a checksum.
    pub summed: bool,
    /// A hop-by-hop header of padding stands before the transport header, over IPv6.
    pub extended: bool,
}

impl Whole {
    /// A TCP segment with `flags`.
    #[must_use]
    pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Self {
        Self {
            from,
            to,
            flags: Some(flags),
            payload: Vec::new(),
            class: 0,
            df: true,
            ttl: 64,
            summed: true,
            extended: false,
        }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        Self { flags: None, payload: payload.to_vec(), ..Self::tcp(from, to, 0) }
    }

    /// The frame.
    ///
    /// # Panics
    /// The addresses are of two families.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [&LB_MAC[..], &CLIENT_MAC[..]].concat();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(0x0800_u16.to_be_bytes());
                let mut ip =
                    Ipv4Header::new(0, self.ttl, self.protocol(), from.octets(), to.octets()).unwrap_or_default();
                (ip.dscp, ip.ecn) = ((self.class >> 2).try_into().unwrap_or_default(), ecn(self.class));
                (ip.dont_fragment, ip.identification) = (self.df, 0x4242);
                let body = self.body(
                    |tcp, payload| tcp.calc_checksum_ipv4(&ip, payload).ok(),
                    |from, to, payload| UdpHeader::with_ipv4_checksum(from, to, &ip, payload).ok(),
                );
                ip.set_payload_len(body.len()).unwrap_or_default();
                ip.header_checksum = ip.calc_header_checksum();
                frame.extend(ip.to_bytes());
                frame.extend(body);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(0x86dd_u16.to_be_bytes());
                let mut ip = Ipv6Header {
                    traffic_class: self.class,
                    flow_label: Ipv6FlowLabel::try_new(0x1_2345).unwrap_or_default(),
                    payload_length: 0,
                    next_header: self.protocol(),
                    hop_limit: self.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                };
                let mut body = self.body(
                    |tcp, payload| tcp.calc_checksum_ipv6(&ip, payload).ok(),
                    |from, to, payload| UdpHeader::with_ipv6_checksum(from, to, &ip, payload).ok(),
                );
                if self.extended {
                    body.splice(0..0, [self.protocol().0, 0, 1, 4, 0, 0, 0, 0]);
                    ip.next_header = IpNumber(0);
                }
                ip.payload_length = body.len() as u16;
                frame.extend(ip.to_bytes());
                frame.extend(body);
            }
            _ => panic!("{} and {} are of two families", self.from, self.to),
        }
        frame
    }

    fn protocol(&self) -> IpNumber {
        if self.flags.is_some() { IpNumber::TCP } else { IpNumber::UDP }
    }

    fn body(
        &self,
        tcp_sum: impl Fn(&TcpHeader, &[u8]) -> Option<u16>,
        udp: impl Fn(u16, u16, &[u8]) -> Option<UdpHeader>,
    ) -> Vec<u8> {
        let mut body = Vec::new();
        if let Some(flags) = self.flags {
            let mut header = TcpHeader::new(self.from.port(), self.to.port(), 1000, 4096);
            (header.fin, header.syn) = (flags & FIN != 0, flags & SYN != 0);
            (header.rst, header.ack) = (flags & RST != 0, flags & ACK != 0);
            header.acknowledgment_number = if header.ack { 500 } else { 0 };
            header.checksum = tcp_sum(&header, &self.payload).unwrap_or_default();
            header.write(&mut body).unwrap_or_default();
        } else {
            let mut header = udp(self.from.port(), self.to.port(), &self.payload).unwrap_or_default();
            header.checksum = if self.summed { header.checksum } else { 0 };
            body.extend(header.to_bytes());
        }
        body.extend(&self.payload);
        body
    }
}

fn ecn(class: u8) -> etherparse::IpEcn {
    (class & 3).try_into().unwrap_or_default()
}

/// An outer header and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// Source and destination MAC.
    pub macs: (Mac, Mac),
    /// Outer source and destination.
    pub addresses: (IpAddr, IpAddr),
    /// Outer protocol.
    pub protocol: u8,
    /// Outer DSCP and ECN.
    pub class: u8,
    /// Outer TTL or hop limit.
    pub ttl: u8,
    /// Outer DF; true over IPv6.
    pub df: bool,
    /// Outer identification, or flow label.
    pub id: u32,
    /// Outer UDP ports and checksum.
    pub udp: Option<(u16, u16, u16)>,
    /// The packet inside, from its IP header on.
    pub inner: Vec<u8>,
}

/// Reads a frame of ipip or gue.
///
/// # Errors
/// A checksum or a length is wrong.
pub fn unwrap(frame: &[u8]) -> Result<Unwrapped> {
    let mut macs = ([0; 6], [0; 6]);
    macs.1.copy_from_slice(&frame[..6]);
    macs.0.copy_from_slice(&frame[6..12]);
    let packet = &frame[ETHERNET..];
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    let (mut seen, rest, v6) = if kind == 0x0800 {
        let (ip, rest) = Ipv4Header::from_slice(packet)?;
        ensure!(ip.header_checksum == ip.calc_header_checksum(), "outer IP checksum {:#x}", ip.header_checksum);
        ensure!(ip.options.is_empty() && !ip.more_fragments && ip.fragment_offset.value() == 0, "outer {ip:?}");
        let length = usize::from(ip.total_len) - ip.header_len();
        let seen = Unwrapped {
            macs,
            addresses: (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
            protocol: ip.protocol.0,
            class: ip.dscp.value() << 2 | ip.ecn.value(),
            ttl: ip.time_to_live,
            df: ip.dont_fragment,
            id: ip.identification.into(),
            udp: None,
            inner: Vec::new(),
        };
        (seen, &rest[..length], None)
    } else {
        ensure!(kind == 0x86dd, "ethertype {kind:#x}");
        let (ip, rest) = Ipv6Header::from_slice(packet)?;
        let seen = Unwrapped {
            macs,
            addresses: (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
            protocol: ip.next_header.0,
            class: ip.traffic_class,
            ttl: ip.hop_limit,
            df: true,
            id: ip.flow_label.value(),
            udp: None,
            inner: Vec::new(),
        };
        let rest = &rest[..usize::from(ip.payload_length)];
        (seen, rest, Some(ip))
    };
    let mut inner = rest;
    if seen.protocol == 17 {
        let (udp, behind) = UdpHeader::from_slice(rest)?;
        ensure!(usize::from(udp.length) == rest.len(), "outer UDP length {}", udp.length);
        match v6 {
            Some(ip) => {
                let wanted = udp.calc_checksum_ipv6(&ip, behind)?;
                ensure!(udp.checksum == wanted, "outer UDP checksum {:#x}, not {wanted:#x}", udp.checksum);
            }
            None => ensure!(udp.checksum == 0, "outer UDP checksum {:#x} over IPv4", udp.checksum),
        }
        seen.udp = Some((udp.source_port, udp.destination_port, udp.checksum));
        inner = behind;
    }
    seen.inner = inner.to_vec();
    Ok(seen)
}

/// Adds a service in a direct-return mode.
///
/// # Errors
/// As for [`World::with`].
pub fn add(world: &mut World, mode: Mode, vip: &str, backends: &[&str]) -> Result<()> {
    world.service(vip, backends)?.mode = mode;
    world.apply()?;
    Ok(())
}
