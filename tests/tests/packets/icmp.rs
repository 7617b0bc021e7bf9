//! Packet tests of ICMP errors that quote a flow (rules 20 to 22), both families.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use etherparse::{Icmpv4Header, Icmpv4Type, Ipv4HeaderSlice, Ipv6HeaderSlice};
use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, CLIENT_MAC, LB_MAC, Packet, SYN, other, tcp, udp},
    packet6::{self, place},
    world::{DROP, OTHER, PASS, REDIRECT, TX, World},
};
use lb_userspace::state::Mode;

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 80);
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn client() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 4000)
}

/// An ICMP error of a type and code to `to`, quoting `length` bytes of a frame's IP packet.
fn error(to: Ipv4Addr, kind: u8, code: u8, rest: [u8; 4], frame: &[u8], length: usize) -> Packet {
    let quote = &frame[14..(14 + length).min(frame.len())];
    let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
    let mut packet = other(ROUTER, to, 1);
    packet.payload = [&Icmpv4Header::with_checksum(kind, quote).to_bytes()[..], quote].concat();
    packet
}

/// Addresses and ports of a quoted packet, its header checksum verified.
fn quoted(payload: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let ip = Ipv4HeaderSlice::from_slice(payload).unwrap();
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum(), "the quoted header's checksum");
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    (SocketAddrV4::new(ip.source_addr(), port(20)), SocketAddrV4::new(ip.destination_addr(), port(22)))
}

fn web(mode: Mode) -> World {
    let mut world = World::new(4096).unwrap();
    world.service("10.0.0.10:80", &["10.0.1.1:8080"]).unwrap().mode = mode;
    world.service("10.0.0.10:53/udp", &["10.0.1.1:5353"]).unwrap().mode = mode;
    world.apply().unwrap();
    world
}

#[test]
fn rule_20_errors_from_the_clients_side_reach_the_backend() {
    for mode in [Mode::Nat, Mode::Dnat] {
        let mut world = web(mode);
        let (server, from) = world.open(client(), VIP);
        let sent = world.send(&tcp(server, from, ACK).from_backend().payload(&[7; 100]));
        let kinds = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)];
        for (kind, code) in kinds {
            let rest = if code == 4 { [0, 0, 5, 20] } else { [0; 4] };
            for length in [28, 40, 140] {
                let answer = world.send(&error(*VIP.ip(), kind, code, rest, &sent.frame, length));
                assert_eq!((answer.verdict, answer.reason), (TX, Reason::IcmpForwarded), "{kind}/{code} of {length}");
                let seen = answer.packet();
                assert_eq!(seen.macs, (LB_MAC, BACKEND_MAC));
                let sender = if mode == Mode::Dnat { ROUTER } else { *from.ip() };
                assert_eq!((*seen.from.ip(), *seen.to.ip()), (sender, *server.ip()));
                assert_eq!(quoted(&seen.payload), (server, from), "as the backend sent it");
                let bytes = seen.icmp.unwrap().to_bytes();
                assert_eq!((bytes[0], bytes[1], &bytes[4..8]), (kind, code, &rest[..]));
            }
        }
    }
}

#[test]
fn rule_21_errors_from_the_backends_side_reach_the_client() {
    let mut world = web(Mode::Nat);
    let vip = SocketAddrV4::new(*VIP.ip(), 53);
    let sent = world.send(&udp(client(), vip).payload(&[9; 64]));
    let (from, to) = (sent.packet().from, sent.packet().to);
    for length in [28, 92] {
        let mut packet = error(*from.ip(), 3, 3, [0; 4], &sent.frame, length).from_backend();
        packet.ip.source = to.ip().octets();
        let answer = world.send(&packet);
        assert_eq!((answer.verdict, answer.reason), (TX, Reason::IcmpForwarded));
        let seen = answer.packet();
        assert_eq!((seen.macs, *seen.from.ip(), *seen.to.ip()), ((LB_MAC, CLIENT_MAC), *vip.ip(), *client().ip()));
        assert_eq!(quoted(&seen.payload), (client(), vip), "as the client sent it");
        let quote = &udp(client(), vip).payload(&[9; 64]).build()[14..];
        assert_eq!(seen.payload[26..28], quote[26..28], "the quoted UDP checksum is the client's");
    }
}

#[test]
fn rule_21_in_mode_dnat_whoever_tells_the_client() {
    let mut world = web(Mode::Dnat);
    let vip = SocketAddrV4::new(*VIP.ip(), 53);
    let sent = world.send(&udp(client(), vip).payload(&[9; 64]));
    let server = sent.packet().to;
    for teller in [*server.ip(), ROUTER] {
        let mut packet = error(*client().ip(), 3, 3, [0; 4], &sent.frame, 92).from_backend();
        packet.ip.source = teller.octets();
        let answer = world.send(&packet);
        assert_eq!((answer.verdict, answer.reason), (TX, Reason::IcmpForwarded), "{teller}");
        let seen = answer.packet();
        assert_eq!((seen.macs, *seen.from.ip(), *seen.to.ip()), ((LB_MAC, CLIENT_MAC), *vip.ip(), *client().ip()));
        assert_eq!(quoted(&seen.payload), (client(), vip), "as the client sent it");
    }
}

#[test]
fn rule_20_errors_leave_by_the_interface_of_their_receiver() {
    let mut world = web(Mode::Nat);
    let (server, from) = world.open(client(), VIP);
    let sent = world.send(&tcp(server, from, ACK).from_backend());
    world.reach((*server.ip()).into(), OTHER, 576);
    world.apply().unwrap();
    let packet = error(*VIP.ip(), 3, 1, [0; 4], &sent.frame, 28);
    let answer = world.send(&packet);
    assert_eq!((answer.verdict, answer.reason), (REDIRECT, Reason::IcmpRedirected));
    assert_eq!(*answer.packet().to.ip(), *server.ip());
    let mut long = packet;
    long.payload.extend([0; 600]);
    let answer = world.send(&long);
    assert_eq!((answer.verdict, answer.reason), (DROP, Reason::TooBigDropped), "no error about an error");
}

#[test]
fn rule_22_errors_that_quote_nothing_known_pass() {
    let mut world = web(Mode::Nat);
    world.open(client(), VIP);
    let stranger = tcp(VIP, SocketAddrV4::new(*client().ip(), 9), SYN).build();
    let later = {
        let mut packet = tcp(VIP, client(), ACK);
        packet.ip.fragment_offset = 100.try_into().unwrap();
        packet.build()
    };
    let short = tcp(VIP, client(), ACK).build();
    for (quote, length) in [(&stranger, 40), (&later, 40), (&short, 24)] {
        let frame = error(*VIP.ip(), 3, 1, [0; 4], quote, length).build();
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.reason), (PASS, Reason::IcmpPassed));
        assert_eq!(passed.frame, frame, "untouched");
    }
    // Nor does one to somebody who did not send what it quotes.
    let sent = tcp(VIP, client(), ACK).build();
    for to in [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(203, 0, 113, 9)] {
        let frame = error(to, 3, 1, [0; 4], &sent, 40).build();
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.reason, passed.frame), (PASS, Reason::IcmpPassed, frame));
    }
}

#[test]
fn rules_20_and_21_over_ipv6() {
    let (vip, client) = (place("[fd00::10]:80"), place("[2001:db8::7]:4000"));
    let router: Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
    let mut world = World::with("[fd00::10]:80", &["[fd00:1::1]:8080"]).unwrap();
    let (server, from) = world.open6(client, vip);
    let quoted = |payload: &[u8]| {
        let ip = Ipv6HeaderSlice::from_slice(payload).unwrap();
        let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        ((ip.source_addr(), port(40)), (ip.destination_addr(), port(42)))
    };
    let flat = |place: std::net::SocketAddrV6| (*place.ip(), place.port());

    let reply = world.send6(&packet6::tcp(server, from, ACK).from_backend().payload(&[7; 300]));
    let request = world.send6(&packet6::tcp(client, vip, ACK).payload(&[8; 300]));
    for length in [48, 60, 360] {
        for (kind, code) in [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)] {
            let rest = if kind == 2 { 1400u32.to_be_bytes() } else { [0; 4] };
            let to_vip = packet6::icmp(router, *vip.ip(), kind, code, rest, &reply.frame[14..14 + length]);
            let answer = world.send6(&to_vip);
            let seen = answer.packet6();
            assert_eq!((answer.reason, seen.icmp), (Reason::IcmpForwarded, Some((kind, code, rest))));
            assert_eq!((*seen.from.ip(), *seen.to.ip(), seen.macs.1), (*from.ip(), *server.ip(), BACKEND_MAC));
            assert_eq!(quoted(&seen.payload), (flat(server), flat(from)), "as the backend sent it");
        }
        let to_lb = packet6::icmp(*server.ip(), *from.ip(), 1, 4, [0; 4], &request.frame[14..14 + length]);
        let seen = world.send6(&to_lb.from_backend()).packet6();
        assert_eq!((*seen.from.ip(), *seen.to.ip(), seen.macs.1), (*vip.ip(), *client.ip(), CLIENT_MAC));
        assert_eq!(quoted(&seen.payload), (flat(client), flat(vip)), "as the client sent it");
    }
}
