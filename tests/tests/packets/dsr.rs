//! Packet tests of mode `dsr`, both families: nothing but MAC addresses changes.

use std::net::SocketAddr;

use lb_common::{flow::state, reason::Reason};
use lb_tests::{
    packet::{ACK, BACKEND_MAC, FIN, LB_MAC, RST, SYN},
    whole::{self, ETHERNET, Whole},
    world::{DROP, OTHER, REDIRECT, TX, World},
};
use lb_userspace::state::{Admin, Health, Mode, OnDown, Probe};

/// A VIP's address, two backends, a client.
const FAMILIES: [(&str, [&str; 2], &str); 2] = [
    ("10.0.0.10", ["10.0.1.1", "10.0.1.2"], "192.0.2.7"),
    ("[fd00::10]", ["[fd00:1::1]", "[fd00:1::2]"], "2001:db8::7"),
];

/// One service of a world.
struct Case {
    vip: SocketAddr,
    name: String,
    backends: [SocketAddr; 2],
    client: std::net::IpAddr,
}

impl Case {
    fn tcp(&self, port: u16, flags: u8) -> Whole {
        Whole::tcp(SocketAddr::new(self.client, port), self.vip, flags)
    }

    fn udp(&self, port: u16) -> Whole {
        Whole::udp(SocketAddr::new(self.client, port), self.vip, b"datagram")
    }

    /// A client's port whose SYN goes to the first backend.
    fn port_of_first(&self, world: &mut World) -> u16 {
        (1000..).find(|port| chosen(&world.run(&self.tcp(*port, SYN).frame()).frame) == 0).unwrap()
    }
}

/// A world with a service for each family. Every backend has a next hop of its own, so that the destination MAC says
/// which was chosen.
fn cases(port: u16, protocol: &str) -> (World, Vec<Case>) {
    let mut world = World::new(4096).unwrap();
    let cases = FAMILIES.map(|family| add(&mut world, family, port, protocol)).into();
    (world, cases)
}

fn add(world: &mut World, family: (&str, [&str; 2], &str), port: u16, protocol: &str) -> Case {
    let (address, names, client) = family;
    let name = format!("{address}:{port}/{protocol}");
    let typed = names.map(|backend| format!("{backend}:{port}"));
    whole::add(world, Mode::Dsr, &name, &[&typed[0], &typed[1]]).unwrap();
    let backends = typed.map(|backend| backend.parse::<SocketAddr>().unwrap());
    for (n, backend) in backends.iter().enumerate() {
        world.observed.next_hops.get_mut(&backend.ip()).unwrap().ethernet[5] = 0xb1 + n as u8;
    }
    world.apply().unwrap();
    Case { vip: format!("{address}:{port}").parse().unwrap(), name, backends, client: client.parse().unwrap() }
}

/// Which backend a forwarded frame goes to.
fn chosen(frame: &[u8]) -> usize {
    assert_eq!((&frame[..5], &frame[6..12]), (&BACKEND_MAC[..5], &LB_MAC[..]));
    usize::from(frame[5] - 0xb1)
}

#[test]
fn rule_04_only_mac_addresses_change() {
    let (mut world, mut all) = cases(80, "tcp");
    all.extend(FAMILIES.map(|family| add(&mut world, family, 81, "udp")));
    for case in all {
        let is_udp = case.vip.port() == 81;
        for (port, ttl) in [(4000, 64), (4001, 1), (4002, 255)] {
            let mut packet = if is_udp { case.udp(port) } else { case.tcp(port, SYN) };
            (packet.ttl, packet.class) = (ttl, 0xb9);
            let frame = packet.frame();
            let sent = world.run(&frame);
            assert_eq!((sent.verdict, sent.reason), (TX, Reason::ForwardedTx), "{packet:?}");
            chosen(&sent.frame);
            assert_eq!(sent.frame[12..], frame[12..], "TTL {ttl} and all else as it came");
        }
    }
}

#[test]
fn rule_01_all_packets_of_a_flow_go_to_one_backend_and_flows_spread() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        let mut counts = [0; 2];
        for port in 1000..1100 {
            let first = chosen(&world.run(&case.tcp(port, SYN).frame()).frame);
            counts[first] += 1;
            for flags in [ACK, ACK, FIN | ACK, ACK] {
                assert_eq!(chosen(&world.run(&case.tcp(port, flags).frame()).frame), first);
            }
        }
        assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    }
}

#[test]
fn rule_10_a_known_flow_keeps_its_backend_through_every_change() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        let firsts: Vec<_> = (1000..1040).map(|port| chosen(&world.run(&case.tcp(port, SYN).frame()).frame)).collect();
        world.desired.services.get_mut(&case.name).unwrap().backends[0].admin = Admin::Drain;
        world.apply().unwrap();
        for (port, first) in (1000..).zip(&firsts) {
            assert_eq!(chosen(&world.run(&case.tcp(port, ACK).frame()).frame), *first);
        }
        for port in 2000..2040 {
            assert_eq!(chosen(&world.run(&case.tcp(port, SYN).frame()).frame), 1, "new ones avoid it");
        }
    }
}

#[test]
fn rule_11_a_syn_on_a_closing_flow_begins_anew() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        let port = (1000..).find(|port| chosen(&world.run(&case.tcp(*port, SYN).frame()).frame) == 0).unwrap();
        assert_eq!(chosen(&world.run(&case.tcp(port, SYN).frame()).frame), 0, "a retransmission");
        world.desired.services.get_mut(&case.name).unwrap().backends[0].admin = Admin::Drain;
        world.apply().unwrap();
        assert_eq!(chosen(&world.run(&case.tcp(port, SYN).frame()).frame), 0, "still a retransmission");
        for flags in [ACK, FIN | ACK] {
            assert_eq!(chosen(&world.run(&case.tcp(port, flags).frame()).frame), 0);
        }
        assert_eq!(chosen(&world.run(&case.tcp(port, SYN).frame()).frame), 1, "a new connection");
    }
}

#[test]
fn rule_12_a_segment_without_a_flow_goes_where_the_table_says() {
    let ((mut world, cases), (mut other, _)) = (cases(80, "tcp"), cases(80, "tcp"));
    for case in cases {
        for port in 1000..1030 {
            let first = chosen(&world.run(&case.tcp(port, SYN).frame()).frame);
            let segment = other.run(&case.tcp(port, ACK).frame());
            assert_eq!(chosen(&segment.frame), first, "another balancer sends it to the same backend");
        }
    }
    let states: Vec<_> = other.flows().iter().map(|flow| flow.head.state).collect();
    assert_eq!(states, [state::ESTABLISHED; 60]);
}

#[test]
fn rule_13_a_rst_of_an_unknown_tuple_is_forwarded_and_makes_nothing() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        let sent = world.run(&case.tcp(1000, RST).frame());
        assert_eq!(sent.reason, Reason::ForwardedTx);
        chosen(&sent.frame);
        assert!(world.flows().is_empty());
    }
}

#[test]
fn rule_14_flows_of_a_fallen_backend_stay_unless_told_otherwise_and_udp_moves() {
    let mut world = World::new(4096).unwrap();
    for (n, (policy, reset)) in
        [(OnDown::Auto, false), (OnDown::Keep, false), (OnDown::Reset, true)].into_iter().enumerate()
    {
        for case in FAMILIES.map(|family| add(&mut world, family, 80 + n as u16, "tcp")) {
            world.desired.services.get_mut(&case.name).unwrap().on_down = policy;
            let port = case.port_of_first(&mut world);
            world.run(&case.tcp(port, ACK).frame());
            world.verdict(&case.name, case.backends[0], Health::Down);
            world.apply().unwrap();
            let sent = world.run(&case.tcp(port, ACK).frame());
            if reset {
                assert_eq!(sent.reason, Reason::ResetDown);
            } else {
                assert_eq!(chosen(&sent.frame), 0, "{policy}");
            }
        }
    }
    for case in FAMILIES.map(|family| add(&mut world, family, 90, "udp")) {
        let port = (1000..).find(|port| chosen(&world.run(&case.udp(*port).frame()).frame) == 0).unwrap();
        world.desired.services.get_mut(&case.name).unwrap().health.probe = Probe::tcp();
        world.verdict(&case.name, case.backends[0], Health::Down);
        world.apply().unwrap();
        assert_eq!(chosen(&world.run(&case.udp(port).frame()).frame), 1, "at once");
    }
}

#[test]
fn rule_16_without_room_for_a_record_the_table_decides() {
    let mut world = World::new(64).unwrap();
    whole::add(&mut world, Mode::Dsr, "10.0.0.10:80", &["10.0.1.1:80"]).unwrap();
    for port in 1000..1200 {
        for flags in [SYN, ACK] {
            let from = SocketAddr::from(([192, 0, 2, 7], port));
            let sent = world.run(&Whole::tcp(from, "10.0.0.10:80".parse().unwrap(), flags).frame());
            assert_eq!(sent.reason, Reason::ForwardedTx, "port {port}");
        }
    }
    let refused: u64 = world.plane.counters().unwrap().refusals.values().map(|r| r.table_full).sum();
    assert!(refused > 100, "{refused} losses are counted");
}

#[test]
fn rule_23_a_packet_too_long_for_another_interface_is_said_so() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        for backend in case.backends {
            world.reach(backend.ip(), OTHER, 1400);
        }
        world.apply().unwrap();
        let mut packet = case.tcp(1000, SYN);
        assert_eq!(world.run(&packet.frame()).verdict, REDIRECT);
        packet.payload = vec![1; 1400];
        let sent = world.run(&packet.frame());
        assert_eq!(sent.reason, Reason::TooBig);
        packet.df = false;
        if case.vip.is_ipv4() {
            let sent = world.run(&packet.frame());
            assert_eq!((sent.verdict, sent.reason), (DROP, Reason::TooBigDropped));
        }
    }
}

#[test]
fn rule_34_packets_and_bytes_are_counted_as_clients_sent_them() {
    let (mut world, cases) = cases(80, "tcp");
    for case in cases {
        let counted = |world: &World| {
            let traffic = world.plane.counters().unwrap().traffic;
            traffic.values().fold((0, 0, 0), |sum, t| (sum.0 + t.packets_in, sum.1 + t.bytes_in, sum.2 + t.flows))
        };
        let before = counted(&world);
        let frame = case.tcp(1000, SYN).frame();
        world.run(&frame);
        let mut packet = case.tcp(1000, ACK);
        packet.payload = vec![1; 100];
        let second = packet.frame();
        world.run(&second);
        let after = counted(&world);
        let bytes = (frame.len() + second.len() - 2 * ETHERNET) as u64;
        assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (2, bytes, 1));
        let flows = world.flows();
        let flow = flows.iter().find(|flow| flow.client.to == case.vip).unwrap();
        assert_eq!((flow.tail.packets_in, flow.tail.packets_out), (2, 0));
    }
}
