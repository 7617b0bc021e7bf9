//! Packet tests of modes `ipip` and `gue`: all four combinations of inner and outer family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, FIN, LB_MAC, RST, SYN, tcp},
    whole::{self, ETHERNET, Unwrapped, Whole, unwrap},
    world::{DROP, LB_ADDRESS, LB_ADDRESS6, Outcome, TX, World},
};
use lb_userspace::state::{Health, Mode, Probe};

const VIPS: [(&str, &str); 2] = [("10.0.0.10", "192.0.2.7"), ("[fd00::10]", "2001:db8::7")];
const BACKENDS: [[&str; 2]; 2] = [["10.0.1.1", "10.0.1.2"], ["[fd00:1::1]", "[fd00:1::2]"]];

/// One service of a world.
struct Case {
    mode: Mode,
    vip: SocketAddr,
    name: String,
    client: IpAddr,
    backends: [IpAddr; 2],
}

impl Case {
    fn tcp(&self, port: u16, flags: u8) -> Whole {
        Whole::tcp(SocketAddr::new(self.client, port), self.vip, flags)
    }

    fn udp(&self, port: u16, payload: &[u8]) -> Whole {
        Whole::udp(SocketAddr::new(self.client, port), self.vip, payload)
    }

    /// Sends a packet that must be forwarded, its inner packet untouched.
    fn send(&self, world: &mut World, packet: &Whole) -> Unwrapped {
        let frame = packet.frame();
        let sent = world.run(&frame);
        self.arrived(&sent, &frame)
    }

    fn arrived(&self, sent: &Outcome, frame: &[u8]) -> Unwrapped {
        assert_eq!((sent.verdict, sent.reason), (TX, Reason::ForwardedTx), "{self}");
        let seen = unwrap(&sent.frame).unwrap_or_else(|error| panic!("{self}: {error:#}: {:02x?}", sent.frame));
        assert_eq!(seen.inner, frame[ETHERNET..], "{self}: the inner packet is as it came");
        assert_eq!(seen.macs, (LB_MAC, BACKEND_MAC));
        assert!(self.backends.contains(&seen.addresses.1));
        seen
    }

    fn overhead(&self) -> usize {
        let ip = if self.backends[0].is_ipv4() { 20 } else { 40 };
        ip + if self.mode == Mode::Gue { 8 } else { 0 }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}, backends {:?}", self.mode, self.vip, self.backends)
    }
}

/// A world with a service for every combination of modes, inner and outer family.
fn cases(modes: &[Mode], protocol: &str) -> (World, Vec<Case>) {
    let mut world = World::new(4096).unwrap();
    let mut cases = Vec::new();
    for mode in modes {
        for (address, client) in VIPS {
            for names in BACKENDS {
                let vip = format!("{address}:{}", 80 + cases.len());
                let name = format!("{vip}/{protocol}");
                let port = vip.rsplit(':').next().unwrap();
                let typed = names.map(|backend| format!("{backend}:{port}"));
                whole::add(&mut world, *mode, &name, &[&typed[0], &typed[1]]).unwrap();
                cases.push(Case {
                    mode: *mode,
                    vip: vip.parse().unwrap(),
                    name,
                    client: client.parse().unwrap(),
                    backends: typed.map(|backend| backend.parse::<SocketAddr>().unwrap().ip()),
                });
            }
        }
    }
    (world, cases)
}

const BOTH: [Mode; 2] = [Mode::Ipip, Mode::Gue];

#[test]
fn rule_05_outer_headers_in_all_four_combinations() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases {
        for class in [0, 0xb8, 0x03, 0xfd] {
            let mut packet = case.tcp(4000, SYN);
            (packet.class, packet.ttl) = (class, 3);
            let seen = case.send(&mut world, &packet);
            let own = if case.backends[0].is_ipv4() { LB_ADDRESS } else { IpAddr::V6(LB_ADDRESS6) };
            assert_eq!((seen.addresses.0, seen.class, seen.ttl, seen.df), (own, class, 64, true), "{case}");
            let wanted = match (case.mode, case.vip.is_ipv4()) {
                (Mode::Gue, _) => 17,
                (_, true) => 4,
                (_, false) => 41,
            };
            assert_eq!(seen.protocol, wanted, "{case}");
            assert_eq!(seen.udp.is_some(), case.mode == Mode::Gue);
        }
    }
}

#[test]
fn rule_05_df_is_copied_and_without_it_ids_are_fresh() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases.into_iter().filter(|case| case.vip.is_ipv4() && case.backends[0].is_ipv4()) {
        let mut packet = case.tcp(4000, SYN);
        assert_eq!(case.send(&mut world, &packet).id, 0, "an atomic datagram needs none");
        packet.df = false;
        let ids: BTreeSet<_> = (0..50)
            .map(|_| {
                let seen = case.send(&mut world, &packet);
                assert!(!seen.df);
                seen.id
            })
            .collect();
        assert!(ids.len() > 45, "{ids:?}");
    }
}

#[test]
fn rule_05_an_outer_flow_label_stays_with_its_flow() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases.into_iter().filter(|case| case.backends[0].is_ipv6()) {
        let mut labels = BTreeSet::new();
        for port in 1000..1050 {
            let first = case.send(&mut world, &case.tcp(port, SYN)).id;
            assert_eq!(case.send(&mut world, &case.tcp(port, ACK)).id, first);
            labels.insert(first);
        }
        assert!(labels.len() > 45 && !labels.contains(&0));
    }
}

#[test]
fn rule_06_the_source_port_varies_by_flow_and_stays_with_it() {
    let (mut world, cases) = cases(&[Mode::Gue], "tcp");
    for case in cases {
        let mut ports = BTreeSet::new();
        for port in 1000..1050 {
            let (source, destination, _) = case.send(&mut world, &case.tcp(port, SYN)).udp.unwrap();
            assert_eq!(destination, 6080);
            assert_eq!(case.send(&mut world, &case.tcp(port, ACK)).udp.unwrap().0, source);
            ports.insert(source);
        }
        assert!(ports.len() > 45 && ports.iter().all(|port| *port >= 0xc000), "{ports:?}");
    }
}

/// `unwrap` verifies the checksum over IPv6, and that there is none over IPv4.
#[test]
fn rule_06_checksums_hold_for_every_length_and_pattern() {
    let (mut world, datagrams) = cases(&[Mode::Gue], "udp");
    for case in datagrams {
        for byte in [0, 0xff, 0x5a] {
            for length in (0..40).chain([127, 128, 129, 1000, 1399]) {
                for summed in [true, false] {
                    let mut packet = case.udp(5000, &vec![byte; length]);
                    packet.summed = summed;
                    case.send(&mut world, &packet);
                }
            }
        }
        // Every sum comes by, those of 0 and 0xffff too.
        for word in 0..2000_u16 {
            case.send(&mut world, &case.udp(5000, &word.wrapping_mul(33).to_be_bytes()));
        }
    }
    let (mut world, segments) = cases(&[Mode::Gue], "tcp");
    for case in segments {
        for length in 0..20 {
            let mut packet = case.tcp(4000, SYN);
            packet.payload = vec![0xab; length];
            packet.extended = case.vip.is_ipv6();
            case.send(&mut world, &packet);
        }
    }
}

#[test]
fn rule_29_padding_is_not_part_of_the_packet() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases {
        let frame = case.tcp(4000, SYN).frame();
        let mut padded = frame.clone();
        padded.resize(frame.len() + 6, 0xee);
        let sent = world.run(&padded);
        case.arrived(&sent, &frame);
    }
}

#[test]
fn rule_10_and_12_a_flow_keeps_its_backend_and_a_stranger_takes_the_tables() {
    let ((mut world, cases), (mut other, _)) = (cases(&BOTH, "tcp"), cases(&BOTH, "tcp"));
    for case in cases {
        let firsts: Vec<_> = (1000..1020).map(|port| case.send(&mut world, &case.tcp(port, SYN)).addresses.1).collect();
        for (port, first) in (1000..).zip(&firsts) {
            assert_eq!(case.send(&mut other, &case.tcp(port, ACK)).addresses.1, *first, "{case}");
        }
        world.desired.services.get_mut(&case.name).unwrap().backends[0].weight = 0;
        world.apply().unwrap();
        for (port, first) in (1000..).zip(&firsts) {
            assert_eq!(case.send(&mut world, &case.tcp(port, ACK)).addresses.1, *first, "{case}");
        }
    }
}

#[test]
fn rule_13_a_rst_of_an_unknown_tuple_is_wrapped_and_makes_nothing() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases {
        case.send(&mut world, &case.tcp(1000, RST));
        assert!(world.flows().is_empty());
    }
}

#[test]
fn rule_14_udp_moves_at_once() {
    let (mut world, cases) = cases(&BOTH, "udp");
    for case in cases {
        let before = case.send(&mut world, &case.udp(1000, b"x")).addresses.1;
        world.desired.services.get_mut(&case.name).unwrap().health.probe = Probe::tcp();
        world.verdict(&case.name, SocketAddr::new(before, case.vip.port()), Health::Down);
        world.apply().unwrap();
        assert_ne!(case.send(&mut world, &case.udp(1000, b"x")).addresses.1, before, "{case}");
    }
}

/// An ICMP error from lb: type and code, its second word, and what it quotes.
fn icmp(frame: &[u8], v4: bool) -> (u8, u8, u32, Vec<u8>) {
    let at = ETHERNET + if v4 { 20 } else { 40 };
    let word = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
    (frame[at], frame[at + 1], word, frame[at + 8..].to_vec())
}

#[test]
fn rule_23_the_longest_packet_passes_and_a_longer_one_is_told_the_mtu_less_the_overhead() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases {
        let v4 = case.vip.is_ipv4();
        let headers = if v4 { 40 } else { 60 };
        let mut packet = case.tcp(4000, ACK);
        packet.payload = vec![7; 1500 - case.overhead() - headers];
        assert_eq!(case.send(&mut world, &packet).inner.len() + case.overhead(), 1500, "{case}");
        packet.payload.push(7);
        let frame = packet.frame();
        let sent = world.run(&frame);
        assert_eq!((sent.verdict, sent.reason), (TX, Reason::TooBig), "{case}");
        let (kind, code, mtu, quote) = icmp(&sent.frame, v4);
        assert_eq!((kind, code), if v4 { (3, 4) } else { (2, 0) });
        assert_eq!(mtu as usize, 1500 - case.overhead(), "{case}");
        assert_eq!(quote, frame[ETHERNET..ETHERNET + quote.len()], "quoted as the client sent it");
        assert!(quote.len() >= if v4 { 28 } else { 48 });
        let addresses = if v4 { ETHERNET + 12..ETHERNET + 20 } else { ETHERNET + 8..ETHERNET + 40 };
        let half = addresses.len() / 2;
        let (from, to) = sent.frame[addresses.clone()].split_at(half);
        assert_eq!([to, from].concat(), frame[addresses], "from the VIP to the client");
        if v4 {
            packet.df = false;
            let sent = world.run(&packet.frame());
            assert_eq!((sent.verdict, sent.reason), (DROP, Reason::TooBigDropped));
        }
    }
}

#[test]
fn rule_34_bytes_are_those_of_the_inner_packet() {
    let (mut world, cases) = cases(&BOTH, "tcp");
    for case in cases {
        let packet = case.tcp(1000, SYN);
        let counted = |world: &World| {
            let traffic = world.plane.counters().unwrap().traffic;
            traffic.values().fold((0, 0), |sum, t| (sum.0 + t.packets_in, sum.1 + t.bytes_in))
        };
        let before = counted(&world);
        case.send(&mut world, &packet);
        case.send(&mut world, &case.tcp(1000, FIN | ACK));
        let after = counted(&world);
        let bytes = 2 * (packet.frame().len() - ETHERNET) as u64;
        assert_eq!((after.0 - before.0, after.1 - before.1), (2, bytes), "{case}");
    }
}

/// Side by side with `nat` in one program.
#[test]
fn rule_01_every_mode_has_its_own_way_in_one_program() {
    let mut world = World::with("10.0.0.10:80", &["10.0.1.9:8080"]).unwrap();
    let modes = [(Mode::Dsr, 81), (Mode::Ipip, 82), (Mode::Gue, 83)];
    for (mode, port) in modes {
        whole::add(&mut world, mode, &format!("10.0.0.10:{port}"), &[&format!("10.0.1.1:{port}")]).unwrap();
    }
    let client = SocketAddr::from(([192, 0, 2, 7], 4000));
    for _ in 0..2 {
        for (mode, port) in modes {
            let frame = Whole::tcp(client, SocketAddr::from(([10, 0, 0, 10], port)), SYN).frame();
            let sent = world.run(&frame);
            assert_eq!(sent.reason, Reason::ForwardedTx, "{mode}");
            if mode == Mode::Dsr {
                assert_eq!(sent.frame[12..], frame[12..]);
            } else {
                assert_eq!(unwrap(&sent.frame).unwrap().inner, frame[ETHERNET..], "{mode}");
            }
        }
        let nat = world.send(&tcp("192.0.2.7:4000".parse().unwrap(), "10.0.0.10:80".parse().unwrap(), SYN));
        assert_eq!(nat.packet().to.to_string(), "10.0.1.9:8080");
    }
    assert_eq!(world.flows().len(), 4);
}
