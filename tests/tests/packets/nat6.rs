//! Packet tests of mode `nat` over IPv6: the numbered rules, on the real program.

use std::net::SocketAddrV6;

use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, CLIENT_MAC, FIN, LB_MAC, RST, SYN},
    packet6::{icmp, other, place, tcp, udp},
    world::{DROP, LB_ADDRESS6, OTHER, PASS, REDIRECT, TX, World},
};
use lb_userspace::state::Health;

const A: &str = "[fd00:1::1]:8080";
const B: &str = "[fd00:1::2]:8080";

fn vip() -> SocketAddrV6 {
    place("[fd00::10]:80")
}

fn client(port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(*place("[2001:db8::7]:1").ip(), port, 0, 0)
}

fn web(backends: &[&str]) -> World {
    World::with("[fd00::10]:80", backends).unwrap()
}

#[test]
fn rule_01_all_packets_of_a_flow_go_to_one_backend() {
    let mut world = web(&[A, B]);
    let mut chosen_ones = std::collections::BTreeSet::new();
    for port in 1000..1050 {
        let (chosen, _) = world.open6(client(port), vip());
        chosen_ones.insert(chosen);
        for _ in 0..3 {
            let sent = world.send6(&tcp(client(port), vip(), ACK).payload(b"GET /"));
            assert_eq!((sent.verdict, sent.packet6().to), (TX, chosen));
        }
    }
    assert_eq!(chosen_ones.len(), 2, "both backends get flows");
}

#[test]
fn rule_02_source_and_destination_are_translated_and_back() {
    let mut world = web(&[A]);
    let syn = world.send6(&tcp(client(4000), vip(), SYN));
    let seen = syn.packet6();
    assert_eq!(syn.verdict, TX);
    assert_eq!((*seen.from.ip(), seen.to), (LB_ADDRESS6, place(A)));
    assert_eq!(seen.macs, (LB_MAC, BACKEND_MAC));
    let answer = world.send6(&tcp(seen.to, seen.from, SYN | ACK).from_backend().payload(b"odd"));
    let back = answer.packet6();
    assert_eq!((back.from, back.to), (vip(), client(4000)), "the client sees only the VIP");
    assert_eq!(back.macs, (LB_MAC, CLIENT_MAC));
}

#[test]
fn rule_02_two_live_flows_never_share_a_port_and_too_many_are_refused() {
    let mut world = web(&[A]);
    world.desired.settings.snat_ports = Some((5000, 5099));
    world.apply().unwrap();
    let ports: std::collections::BTreeSet<_> = (1000..1100).map(|p| world.open6(client(p), vip()).1.port()).collect();
    assert_eq!(ports.len(), 100);
    let refused = world.send6(&tcp(client(2000), vip(), SYN));
    assert_eq!((refused.verdict, refused.reason), (TX, Reason::PortsExhausted));
    assert!(refused.packet6().tcp.unwrap().rst);
}

#[test]
fn rule_07_hop_limit_is_decremented_and_an_expired_one_answered() {
    let mut world = web(&[A]);
    let mut packet = tcp(client(1), vip(), SYN);
    assert_eq!(world.send6(&packet).packet6().ip.hop_limit, 63);
    packet.ip.hop_limit = 1;
    let answer = world.send6(&packet);
    assert_eq!((answer.verdict, answer.reason), (TX, Reason::TtlExceeded));
    let seen = answer.packet6();
    assert_eq!(seen.icmp.unwrap(), (3, 0, [0; 4]));
    assert_eq!((*seen.from.ip(), *seen.to.ip()), (*vip().ip(), *client(1).ip()));
    assert_eq!(seen.payload, packet.build()[14..14 + 60], "quotes the packet as it was sent");
}

#[test]
fn rule_09_everything_else_survives() {
    let mut world = web(&[A]);
    let packet = tcp(client(1), vip(), SYN).payload(&[0xff; 1201]);
    let seen = world.send6(&packet).packet6();
    assert_eq!((seen.ip.traffic_class, seen.ip.flow_label), (packet.ip.traffic_class, packet.ip.flow_label));
    assert_eq!(seen.payload, packet.payload);
}

#[test]
fn rule_09_checksums_are_right_for_every_payload_word() {
    let mut world = World::with("[fd00::10]:53/udp", &["[fd00:1::1]:5353"]).unwrap();
    for word in (0..=u16::MAX).step_by(97).chain([0xfffe, 0xffff]) {
        let seen = world.send6(&udp(client(7), place("[fd00::10]:53")).payload(&word.to_be_bytes())).packet6();
        assert_ne!(seen.udp_checksum, Some(0), "a computed 0 is sent as 0xffff");
    }
}

#[test]
fn rule_12_and_13_segments_of_no_flow() {
    let mut world = web(&[A]);
    let answer = world.send6(&tcp(client(1), vip(), ACK).payload(b"late"));
    let seen = answer.packet6();
    let header = seen.tcp.unwrap();
    assert_eq!((answer.reason, header.rst, header.ack, header.sequence_number), (Reason::NoFlow, true, false, 500));
    assert_eq!((seen.from, seen.to, seen.macs), (vip(), client(1), (LB_MAC, CLIENT_MAC)));
    assert_eq!(world.send6(&tcp(client(1), vip(), RST)).reason, Reason::StrayRst);
    assert!(world.flows().is_empty());
}

#[test]
fn rule_11_a_closed_tuple_begins_anew() {
    let mut world = web(&[A]);
    let (server, from) = world.open6(client(1), vip());
    world.send6(&tcp(client(1), vip(), FIN | ACK));
    world.send6(&tcp(server, from, FIN | ACK).from_backend());
    assert!(world.flows().is_empty(), "closed");
    assert_eq!(world.send6(&tcp(client(1), vip(), SYN)).reason, Reason::ForwardedTx);
    assert_eq!(world.flows().len(), 1);
    assert_eq!(world.flows()[0].client.to, vip().into());
}

#[test]
fn rule_19_echo_requests_to_a_vip_are_answered() {
    let mut world = web(&[A]);
    for id in (0..=u16::MAX).step_by(251).chain([0xffff]) {
        let [a, b] = id.to_be_bytes();
        let answer = world.send6(&icmp(*client(1).ip(), *vip().ip(), 128, 0, [a, b, 0, 1], b"abcdefgh"));
        let seen = answer.packet6();
        assert_eq!((answer.reason, seen.icmp.unwrap()), (Reason::EchoReply, (129, 0, [a, b, 0, 1])));
        assert_eq!((*seen.from.ip(), *seen.to.ip(), seen.ip.hop_limit), (*vip().ip(), *client(1).ip(), 64));
    }
    let to_lb = world.send6(&icmp(*client(1).ip(), *place("[fd00::1]:1").ip(), 128, 0, [0; 4], b""));
    assert_eq!((to_lb.verdict, to_lb.reason), (PASS, Reason::IcmpPassed), "the host's own address");
}

#[test]
fn rule_22_neighbour_and_router_discovery_and_listeners_pass() {
    let mut world = web(&[A]);
    for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
        let frame = icmp(*client(1).ip(), *vip().ip(), kind, 0, [0; 4], &[0; 24]).build();
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.frame), (PASS, frame), "type {kind}");
    }
}

#[test]
fn rule_23_too_big_for_the_other_interface() {
    let mut world = web(&[A]);
    world.reach(place(A).ip().to_owned().into(), OTHER, 1400);
    world.apply().unwrap();
    assert_eq!(world.send6(&tcp(client(1), vip(), SYN)).verdict, REDIRECT);
    let long = tcp(client(1), vip(), ACK).payload(&[1; 1400]);
    let answer = world.send6(&long);
    let seen = answer.packet6();
    assert_eq!((answer.verdict, answer.reason), (TX, Reason::TooBig));
    assert_eq!(seen.icmp.unwrap(), (2, 0, 1400u32.to_be_bytes()));
    assert_eq!((*seen.from.ip(), seen.macs), (*vip().ip(), (LB_MAC, CLIENT_MAC)));
    assert_eq!(seen.payload, long.build()[14..14 + 104]);
}

#[test]
fn rule_24_nobody_usable_is_refused_at_once() {
    let mut world = web(&[A]);
    let name = world.first().name.clone();
    world.first().backends[0].admin = lb_userspace::state::Admin::Drain;
    world.verdict(&name, place(A).into(), Health::Up);
    world.apply().unwrap();
    let answer = world.send6(&tcp(client(1), vip(), SYN));
    let header = answer.packet6().tcp.unwrap();
    assert_eq!((answer.reason, header.rst, header.ack), (Reason::RejectTcp, true, true));
    assert_eq!((header.sequence_number, header.acknowledgment_number), (0, 1001));

    let mut world = World::with("[fd00::10]:53/udp", &[]).unwrap();
    let sent = udp(client(1), place("[fd00::10]:53"));
    let answer = world.send6(&sent);
    assert_eq!((answer.reason, answer.packet6().icmp.unwrap()), (Reason::RejectUdp, (1, 4, [0; 4])));
}

#[test]
fn rule_25_and_31_other_ports_and_protocols_pass() {
    let mut world = web(&[A]);
    let port = tcp(client(1), place("[fd00::10]:81"), SYN).build();
    assert_eq!(world.run(&port).frame, port);
    let sctp = other(*client(1).ip(), *vip().ip(), 132);
    assert_eq!(world.send6(&sctp).reason, Reason::OtherProtocol);
    let elsewhere = tcp(client(1), place("[fd00::99]:80"), SYN);
    assert_eq!(world.send6(&elsewhere).reason, Reason::NotOurs);
}

#[test]
fn rule_28_extension_headers_are_walked_to_a_depth_of_eight() {
    let mut world = web(&[A]);
    // Hop-by-hop, two destination options of 8 and 16 bytes, routing, a fragment header of the whole packet.
    let options = |length: usize| {
        let mut bytes = vec![0; length];
        bytes[1] = (length / 8 - 1) as u8;
        bytes
    };
    let walked = tcp(client(1), vip(), SYN)
        .extension(0, &options(8))
        .extension(60, &options(16))
        .extension(43, &options(24))
        .extension(44, &[0; 8]);
    let sent = world.send6(&walked);
    assert_eq!(sent.reason, Reason::ForwardedTx);
    assert_eq!(sent.packet6().to, place(A));
    let known = world.send6(&tcp(client(1), vip(), ACK).extension(60, &options(32)));
    assert_eq!(known.packet6().to, place(A), "another chain, the same flow");

    let chain = |number: usize| (0..number).fold(tcp(client(2), vip(), SYN), |p, _| p.extension(60, &options(8)));
    assert_eq!(world.send6(&chain(8)).reason, Reason::ForwardedTx);
    let deep = world.send6(&chain(9));
    assert_eq!((deep.verdict, deep.reason), (DROP, Reason::HeaderChain));
    world.observed.host_addresses.insert((*vip().ip()).into());
    world.apply().unwrap();
    let frame = chain(9).build();
    let passed = world.run(&frame);
    assert_eq!((passed.verdict, passed.frame), (PASS, frame), "the host may read it");

    let fragment = tcp(client(3), vip(), SYN).extension(44, &[0, 0, 0, 1, 0, 0, 0, 9]).build();
    let passed = world.run(&fragment);
    assert_eq!((passed.verdict, passed.reason), (PASS, Reason::Fragment));
}

#[test]
fn rule_29_contradictions_are_dropped() {
    let mut world = web(&[A]);
    let frame = tcp(client(1), vip(), SYN).build();
    let mut longer = frame.clone();
    longer[19] += 1;
    assert_eq!(world.run(&longer).reason, Reason::Truncated);
    let mut offset = frame.clone();
    offset[14 + 40 + 12] = 0x40;
    assert_eq!(world.run(&offset).reason, Reason::Malformed);
    let mut port = frame;
    port[14 + 40..14 + 42].copy_from_slice(&[0, 0]);
    assert_eq!(world.run(&port).reason, Reason::Malformed);
}

#[test]
fn rule_33_and_36_frames_to_others_pass_untouched() {
    let mut world = web(&[A]);
    for destination in [[0x33, 0x33, 0, 0, 0, 1], [0xff; 6], [2, 0, 0, 0, 0, 9]] {
        let mut packet = tcp(client(1), vip(), SYN);
        packet.macs.1 = destination;
        let frame = packet.build();
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.reason), (PASS, Reason::OtherMac));
        assert_eq!(passed.frame, frame);
    }
}

#[test]
fn rule_34_traffic_is_counted_exactly() {
    let mut world = web(&[A]);
    let (server, from) = world.open6(client(1), vip());
    world.send6(&tcp(client(1), vip(), ACK).payload(&[0; 100]));
    world.send6(&tcp(server, from, ACK).from_backend().payload(&[0; 50]));
    let counters = world.plane.counters().unwrap();
    let traffic = counters.traffic.values().next().unwrap();
    assert_eq!((traffic.packets_in, traffic.packets_out), (3, 2));
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (3 * 60 + 100, 2 * 60 + 50));
    let flow = world.flows()[0];
    assert_eq!((flow.tail.packets_in, flow.tail.packets_out), (3, 2));
}
