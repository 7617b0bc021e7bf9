//! Outer headers of the tunnelling modes (`ipip`, `gue`): what goes in front of a packet that is itself not touched.
//!
//! * TTL 64; DSCP and ECN as inner (RFC 2983, uniform; RFC 6040, normal mode of the ingress).
//! * IPv4: DF as inner, and set around IPv6, which nobody fragments on its way. With DF a constant id, without it a
//!   fresh one (RFC 6864, section 4). IPv6: the flow label is the flow's entropy (RFC 6438).
//! * Protocol 4 for IPv4 and 41 for IPv6 inside; `gue` is variant 1 of GUE: UDP and then the inner packet, whose
//!   version says what it is (draft-ietf-intarea-gue-09, section 4).
//! * The UDP checksum is 0 over IPv4 (RFC 768), and valid over IPv6: computed from the inner headers and checksums
//!   (local checksum offload), because a valid inner checksum says what the bytes under it add up to.
//!
//! Headers are given as words in memory order, ready to be stored; sums are as in [`crate::checksum`].

use crate::{
    Be16, Be32,
    checksum::{fold, fold64, word},
    maps::mode,
};

/// TTL and hop limit of outer headers.
pub const TTL: u8 = 64;
/// Destination port of `gue` unless the backend says otherwise.
pub const GUE_PORT: u16 = 6080;
/// Bytes of an outer IPv4 header.
pub const IPV4: u16 = 20;
/// Bytes of an outer IPv6 header.
pub const IPV6: u16 = 40;
/// Bytes of an outer UDP header.
pub const UDP: u16 = 8;
/// IP protocol number of IPv4 in IP.
pub const PROTOCOL_IPV4: u8 = 4;
/// IP protocol number of IPv6 in IP.
pub const PROTOCOL_IPV6: u8 = 41;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// Bytes that a mode puts in front of a packet, by the family (4 or 6) of the backend's address; 0 if it puts none.
#[inline(always)]
#[must_use]
pub const fn overhead(of_mode: u8, family: u8) -> u16 {
    let ip = if family == 6 { IPV6 } else { IPV4 };
    match of_mode {
        mode::IPIP => ip,
        mode::GUE => ip + UDP,
        _ => 0,
    }
}

/// What an outer header takes over from the packet inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Layer-3 bytes; with the outer headers at most 65 535, which the caller has checked against the MTU.
    pub length: u16,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// 4 or 6.
    pub family: u8,
    /// Routers on the way may fragment it: IPv4 with DF clear.
    pub fragmentable: bool,
}

impl Inner {
    /// An IPv4 packet: its header's first word, and the word of flags and fragment offset, as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(first: u32, fragment: u16) -> Self {
        let first = u32::from_be(first);
        Self {
            length: first as u16,
            traffic_class: (first >> 16) as u8,
            family: 4,
            fragmentable: u16::from_be(fragment) & 0x4000 == 0,
        }
    }

    /// An IPv6 packet: its header's first word as it stands in memory, and its layer-3 bytes (header and payload).
    #[inline(always)]
    #[must_use]
    pub const fn ipv6(first: u32, length: u16) -> Self {
        Self { length, traffic_class: (u32::from_be(first) >> 20) as u8, family: 6, fragmentable: false }
    }

    /// The protocol number that says what is inside.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        if self.family == 6 { PROTOCOL_IPV6 } else { PROTOCOL_IPV4 }
    }
}

/// Entropy of a flow, from its hash, for [`source_port`] and [`flow_label`].
#[inline(always)]
#[must_use]
pub const fn entropy(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

/// The outer UDP source port of a flow: one of the 16 384 dynamic ports (RFC 6335).
#[inline(always)]
#[must_use]
pub const fn source_port(entropy: u32) -> Be16 {
    Be16::new(0xc000 | (entropy ^ entropy >> 16) as u16)
}

/// The outer flow label of a flow: 20 bits, never 0, which would mean "none" (RFC 6437, section 3).
#[inline(always)]
#[must_use]
pub const fn flow_label(entropy: u32) -> u32 {
    let label = (entropy ^ entropy >> 20) & 0xf_ffff;
    if label == 0 { 1 } else { label }
}

/// An outer IPv4 header. `with_udp`: a UDP header follows, else the inner packet. `id` is used only where the packet
/// may be fragmented; there it should not have been used lately towards the same backend.
#[inline(always)]
#[must_use]
pub const fn ipv4(inner: &Inner, with_udp: bool, id: u16, from: Be32, to: Be32) -> [u32; 5] {
    let (extra, protocol) = if with_udp { (UDP, PROTOCOL_UDP) } else { (0, inner.protocol()) };
    let length = inner.length.wrapping_add(IPV4 + extra);
    let first = Be32::new(0x45 << 24 | (inner.traffic_class as u32) << 16 | length as u32).0;
    let second = Be32::new(if inner.fragmentable { (id as u32) << 16 } else { 0x4000 }).0;
    let third = (TTL as u32) << 24 | (protocol as u32) << 16;
    let sum = first as u64 + second as u64 + Be32::new(third).0 as u64 + from.0 as u64 + to.0 as u64;
    // A header's sum is never 0, so that its checksum is never 0xffff.
    let checksum = u16::from_be(!fold64(sum));
    [first, second, Be32::new(third | checksum as u32).0, from.0, to.0]
}

/// An outer IPv6 header; `with_udp` as for [`ipv4`], `label` is 20 bits.
#[inline(always)]
#[must_use]
pub const fn ipv6(inner: &Inner, with_udp: bool, label: u32, from: [Be32; 4], to: [Be32; 4]) -> [u32; 10] {
    let (extra, protocol) = if with_udp { (UDP, PROTOCOL_UDP) } else { (0, inner.protocol()) };
    let length = inner.length.wrapping_add(extra);
    [
        Be32::new(6 << 28 | (inner.traffic_class as u32) << 20 | (label & 0xf_ffff)).0,
        Be32::new((length as u32) << 16 | (protocol as u32) << 8 | TTL as u32).0,
        from[0].0,
        from[1].0,
        from[2].0,
        from[3].0,
        to[0].0,
        to[1].0,
        to[2].0,
        to[3].0,
    ]
}

/// An outer UDP header; `checksum` as it stands in memory ([`udp_checksum`], or 0 over IPv4).
#[inline(always)]
#[must_use]
pub const fn udp(inner: &Inner, from: Be16, to: Be16, checksum: u16) -> [u32; 2] {
    let length = Be16::new(inner.length.wrapping_add(UDP));
    [pair(from.0, to.0), pair(length.0, checksum)]
}

/// Two halves as they stand in memory, first and second, as one word.
#[inline(always)]
const fn pair(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        (first as u32) << 16 | second as u32
    }
}

/// What the bytes of a whole IPv4 packet add up to, whose header and TCP or UDP checksums are right and there. Its
/// `source` and `destination`, its transport protocol, and the bytes of transport header and payload.
///
/// The IP header adds up to nothing (its checksum makes it so), the rest to the complement of its pseudo-header.
#[inline(always)]
#[must_use]
pub const fn sum_ipv4(source: Be32, destination: Be32, protocol: u8, transport_length: u16) -> u16 {
    let pseudo = word(source.0)
        + word(destination.0)
        + Be16::new(protocol as u16).0 as u32
        + Be16::new(transport_length).0 as u32;
    !fold(pseudo)
}

/// The same for an IPv6 packet: the first two words of its header as they stand in memory, its transport protocol,
/// the bytes of its extension headers and what they add up to (both 0 if there are none).
///
/// The addresses stand in header and pseudo-header alike and cancel out.
#[inline(always)]
#[must_use]
pub const fn sum_ipv6(head: [u32; 2], protocol: u8, extensions_length: u16, extensions_sum: u16) -> u16 {
    let payload = (u32::from_be(head[1]) >> 16) as u16;
    let transport_length = payload.wrapping_sub(extensions_length);
    let pseudo = Be16::new(protocol as u16).0 as u32 + Be16::new(transport_length).0 as u32;
    fold(word(head[0]) + word(head[1]) + extensions_sum as u32 + (!fold(pseudo)) as u32)
}

/// The checksum of an outer UDP header over IPv6, as it stands in memory: never 0. `inner_sum` is what the inner
/// packet's bytes add up to ([`sum_ipv4`], [`sum_ipv6`]).
#[inline(always)]
#[must_use]
pub const fn udp_checksum(inner: &Inner, inner_sum: u16, ports: (Be16, Be16), from: [Be32; 4], to: [Be32; 4]) -> u16 {
    let length = Be16::new(inner.length.wrapping_add(UDP)).0 as u64;
    let mut sum = inner_sum as u64 + ports.0.0 as u64 + ports.1.0 as u64;
    sum += length * 2 + Be16::new(PROTOCOL_UDP as u16).0 as u64;
    sum += from[0].0 as u64 + from[1].0 as u64 + from[2].0 as u64 + from[3].0 as u64;
    sum += to[0].0 as u64 + to[1].0 as u64 + to[2].0 as u64 + to[3].0 as u64;
    match !fold64(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// An inner packet: family, traffic class, DF, TCP or UDP, ports, payload.
    #[derive(Clone, Debug)]
    struct Plan {
        v6: bool,
        class: u8,
        df: bool,
        is_tcp: bool,
        source: [u8; 16],
        destination: [u8; 16],
        ports: (u16, u16),
        extensions: bool,
        payload: Vec<u8>,
    }

    prop_compose! {
        fn plan()(
            (v6, df, is_tcp, extensions) in any::<(bool, bool, bool, bool)>(),
            class in any::<u8>(),
            source in any::<[u8; 16]>(),
            destination in any::<[u8; 16]>(),
            ports in any::<(u16, u16)>(),
            payload in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..70),
        ) -> Plan {
            Plan { v6, class, df, is_tcp, source, destination, ports, extensions: extensions && v6, payload }
        }
    }

    /// A hop-by-hop header of padding (RFC 8200, section 4.3), whose next header is filled in.
    const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

    impl Plan {
        fn transport(&self) -> Vec<u8> {
            let protocol = if self.is_tcp { IpNumber::TCP } else { IpNumber::UDP };
            let (v4, v6) = (self.ipv4(0, protocol), self.ipv6(0, protocol));
            let mut bytes = Vec::new();
            if self.is_tcp {
                let mut header = TcpHeader::new(self.ports.0, self.ports.1, 1, 2);
                header.checksum = if self.v6 {
                    header.calc_checksum_ipv6(&v6, &self.payload).unwrap()
                } else {
                    header.calc_checksum_ipv4(&v4, &self.payload).unwrap()
                };
                header.write(&mut bytes).unwrap();
            } else {
                let (from, to) = self.ports;
                let header = if self.v6 {
                    UdpHeader::with_ipv6_checksum(from, to, &v6, &self.payload)
                } else {
                    UdpHeader::with_ipv4_checksum(from, to, &v4, &self.payload)
                };
                header.unwrap().write(&mut bytes).unwrap();
            }
            bytes.extend(&self.payload);
            bytes
        }

        fn ipv4(&self, length: u16, protocol: IpNumber) -> Ipv4Header {
            let of = |bytes: [u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
            let mut header =
                Ipv4Header::new(length, 7, protocol, of(self.source), of(self.destination)).unwrap_or_default();
            header.dscp = (self.class >> 2).try_into().unwrap();
            header.ecn = (self.class & 3).try_into().unwrap();
            header.dont_fragment = self.df;
            header.header_checksum = header.calc_header_checksum();
            header
        }

        fn ipv6(&self, length: u16, protocol: IpNumber) -> Ipv6Header {
            Ipv6Header {
                traffic_class: self.class,
                flow_label: Ipv6FlowLabel::try_new(0x4_2424).unwrap(),
                payload_length: length,
                next_header: protocol,
                hop_limit: 9,
                source: self.source,
                destination: self.destination,
            }
        }

        fn protocol(&self) -> u8 {
            if self.is_tcp { 6 } else { 17 }
        }

        fn packet(&self) -> Vec<u8> {
            let transport = self.transport();
            let mut bytes = Vec::new();
            if self.v6 {
                let extra = if self.extensions { PADDING.len() } else { 0 };
                let next = IpNumber(if self.extensions { 0 } else { self.protocol() });
                self.ipv6((transport.len() + extra) as u16, next).write(&mut bytes).unwrap();
                if self.extensions {
                    bytes.push(self.protocol());
                    bytes.extend(&PADDING[1..]);
                }
            } else {
                let header = self.ipv4(transport.len() as u16, IpNumber(self.protocol()));
                header.write_raw(&mut bytes).unwrap();
            }
            bytes.extend(transport);
            bytes
        }

        fn inner(&self, packet: &[u8]) -> Inner {
            let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
            if self.v6 {
                Inner::ipv6(word(0), packet.len() as u16)
            } else {
                Inner::ipv4(word(0), u16::from_ne_bytes([packet[6], packet[7]]))
            }
        }

        fn sum(&self, packet: &[u8]) -> u16 {
            let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
            if !self.v6 {
                return sum_ipv4(Be32(word(12)), Be32(word(16)), self.protocol(), packet.len() as u16 - 20);
            }
            let (length, sum) = if self.extensions { (8, reference(&packet[40..48])) } else { (0, 0) };
            sum_ipv6([word(0), word(4)], self.protocol(), length, sum)
        }
    }

    /// What bytes add up to, written from RFC 1071.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn words(address: [u8; 16]) -> [Be32; 4] {
        [0, 4, 8, 12].map(|at| Be32(u32::from_ne_bytes(address[at..at + 4].try_into().unwrap())))
    }

    proptest! {
        #[test]
        fn rule_05_outer_ipv4_reads_back(plan in plan(), id in any::<u16>(), from in any::<[u8; 4]>(), to in any::<[u8; 4]>(), with_udp: bool) {
            let packet = plan.packet();
            let inner = plan.inner(&packet);
            let be = |address: [u8; 4]| Be32(u32::from_ne_bytes(address));
            let outer = bytes(&ipv4(&inner, with_udp, id, be(from), be(to)));
            let (header, rest) = Ipv4Header::from_slice(&outer).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
            prop_assert_eq!((header.source, header.destination), (from, to));
            prop_assert_eq!((header.dscp.value() << 2) | header.ecn.value(), plan.class);
            prop_assert_eq!((header.time_to_live, header.more_fragments, header.fragment_offset.value()), (64, false, 0));
            let extra = if with_udp { 28 } else { 20 };
            prop_assert_eq!(usize::from(header.total_len), packet.len() + extra);
            prop_assert_eq!(header.protocol.0, if with_udp { 17 } else if plan.v6 { 41 } else { 4 });
            let df = plan.v6 || plan.df;
            prop_assert_eq!((header.dont_fragment, header.identification), (df, if df { 0 } else { id }));
        }

        #[test]
        fn rule_05_outer_ipv6_reads_back(plan in plan(), hash: u64, from in any::<[u8; 16]>(), to in any::<[u8; 16]>(), with_udp: bool) {
            let packet = plan.packet();
            let inner = plan.inner(&packet);
            let label = flow_label(entropy(hash));
            let outer = bytes(&ipv6(&inner, with_udp, label, words(from), words(to)));
            let (header, rest) = Ipv6Header::from_slice(&outer).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!((header.source, header.destination, header.hop_limit), (from, to, 64));
            prop_assert_eq!((header.traffic_class, header.flow_label.value()), (plan.class, label));
            prop_assert!(label != 0 && label < 1 << 20);
            let extra = if with_udp { 8 } else { 0 };
            prop_assert_eq!(usize::from(header.payload_length), packet.len() + extra);
            prop_assert_eq!(header.next_header.0, if with_udp { 17 } else if plan.v6 { 41 } else { 4 });
        }

        /// What the payload is never read for.
        #[test]
        fn rule_06_the_inner_packets_sum_follows_from_its_checksums(plan in plan()) {
            let packet = plan.packet();
            let (real, derived) = (reference(&packet), plan.sum(&packet));
            // 0 and 0xffff are the same number.
            prop_assert_eq!(real % 0xffff, derived % 0xffff);
        }

        #[test]
        fn rule_06_the_outer_udp_checksum_over_ipv6_is_valid(plan in plan(), hash: u64, from in any::<[u8; 16]>(), to in any::<[u8; 16]>()) {
            let packet = plan.packet();
            let inner = plan.inner(&packet);
            let ports = (source_port(entropy(hash)), Be16::new(GUE_PORT));
            let checksum = udp_checksum(&inner, plan.sum(&packet), ports, words(from), words(to));
            let (header, rest) = UdpHeader::from_slice(&bytes(&udp(&inner, ports.0, ports.1, checksum))).map(|(h, r)| (h, r.len())).unwrap();
            prop_assert_eq!(rest, 0);
            prop_assert!(header.source_port >= 0xc000);
            prop_assert_eq!((header.destination_port, usize::from(header.length)), (6080, packet.len() + 8));
            prop_assert_ne!(header.checksum, 0);
            let outer = Ipv6Header { source: from, destination: to, payload_length: header.length, next_header: IpNumber::UDP, ..Ipv6Header::default() };
            prop_assert_eq!(header.checksum, header.calc_checksum_ipv6(&outer, &packet).unwrap());
        }
    }

    #[test]
    fn rule_06_a_computed_zero_is_sent_as_all_ones() {
        let inner = Inner { length: 48, traffic_class: 0, family: 4, fragmentable: false };
        let address = [Be32(0); 4];
        let checksum = |sum: u16| udp_checksum(&inner, sum, (Be16(0), Be16(0)), address, address);
        let zeros: Vec<_> = (0..=u16::MAX).filter(|sum| checksum(*sum) == 0xffff).collect();
        assert!(!zeros.is_empty() && (0..=u16::MAX).all(|sum| checksum(sum) != 0));
    }

    #[test]
    fn rule_06_neighbouring_flows_spread_over_ports_and_labels() {
        let ports: std::collections::BTreeSet<_> =
            (0..4096u64).map(|n| source_port(entropy(crate::hash::mix(n, 7))).get()).collect();
        let labels: std::collections::BTreeSet<_> =
            (0..4096u64).map(|n| flow_label(entropy(crate::hash::mix(n, 7)))).collect();
        assert!(ports.len() > 3400 && labels.len() > 4000, "{} {}", ports.len(), labels.len());
        assert_eq!((source_port(0).get(), flow_label(0)), (0xc000, 1));
    }

    #[test]
    fn rule_23_overhead_by_mode_and_family() {
        assert_eq!([4, 6].map(|family| overhead(mode::IPIP, family)), [20, 40]);
        assert_eq!([4, 6].map(|family| overhead(mode::GUE, family)), [28, 48]);
        assert_eq!([mode::NAT, mode::DNAT, mode::DSR].map(|mode| overhead(mode, 6)), [0, 0, 0]);
    }
}
