//! Packet tests of mode `dnat`, both families.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, CLIENT_MAC, FIN, LB_MAC, RST, SYN, tcp, udp},
    packet6::{self, place},
    world::{DROP, PASS, TX, World},
};
use lb_userspace::{
    reconcile::Lingering,
    state::{Mode, OnDown},
};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 80);
const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 8080);

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), port)
}

fn gateway(vip: &str, backend: &str) -> World {
    let mut world = World::new(4096).unwrap();
    world.service(vip, &[backend]).unwrap().mode = Mode::Dnat;
    world.apply().unwrap();
    world
}

#[test]
fn rule_03_the_backend_sees_the_client_and_the_client_only_the_vip() {
    let mut world = gateway("10.0.0.10:80", "10.0.1.1:8080");
    let syn = world.send(&tcp(client(4000), VIP, SYN));
    let seen = syn.packet();
    assert_eq!((syn.verdict, seen.from, seen.to), (TX, client(4000), A));
    assert_eq!((seen.macs, seen.ip.time_to_live), ((LB_MAC, BACKEND_MAC), 63));
    let answer = world.send(&tcp(A, client(4000), SYN | ACK).from_backend());
    let back = answer.packet();
    assert_eq!((answer.verdict, back.from, back.to), (TX, VIP, client(4000)));
    assert_eq!(back.macs, (LB_MAC, CLIENT_MAC));
}

#[test]
fn rule_03_the_same_over_ipv6() {
    let (vip, server, client) = (place("[fd00::10]:80"), place("[fd00:1::1]:8080"), place("[2001:db8::7]:4000"));
    let mut world = gateway("[fd00::10]:80", "[fd00:1::1]:8080");
    let (to, from) = world.open6(client, vip);
    assert_eq!((to, from), (server, client));
    let back = world.send6(&packet6::tcp(server, client, ACK).from_backend().payload(b"x")).packet6();
    assert_eq!((back.from, back.to), (vip, client));
}

#[test]
fn rule_03_many_clients_with_the_same_port_are_told_apart() {
    let mut world = gateway("10.0.0.10:53/udp", "10.0.1.1:8080");
    let vip = SocketAddrV4::new(*VIP.ip(), 53);
    for last in 1..100 {
        let client = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 5353);
        assert_eq!(world.send(&udp(client, vip)).packet().from, client);
        let back = world.send(&udp(A, client).from_backend()).packet();
        assert_eq!((back.from, back.to), (vip, client));
    }
    assert_eq!(world.flows().len(), 99);
}

#[test]
fn rule_03_what_a_backend_sends_for_itself_passes_untouched() {
    let mut world = gateway("10.0.0.10:80", "10.0.1.1:8080");
    world.open(client(1), VIP);
    let others = [tcp(SocketAddrV4::new(*A.ip(), 40_000), client(443), SYN), tcp(A, client(2), SYN | ACK)];
    for packet in others {
        let frame = packet.from_backend().build();
        let passed = world.run(&frame);
        assert_eq!((passed.verdict, passed.reason), (PASS, Reason::NotOurs));
        assert_eq!(passed.frame, frame);
    }
}

#[test]
fn rule_15_flows_of_a_removed_backend_go_on() {
    let mut world = gateway("10.0.0.10:80", "10.0.1.1:8080");
    world.open(client(1), VIP);
    let tables = world.apply().unwrap();
    let (key, id) = tables.backend_ids.iter().next().unwrap();
    let value = tables.backends[id];
    world.first().backends.clear();
    world.observed.lingering.insert(key.clone(), Lingering { value, reset: false, on_down: OnDown::Auto });
    world.apply().unwrap();
    assert_eq!(world.send(&tcp(client(1), VIP, ACK)).packet().to, A);
    assert_eq!(world.send(&tcp(A, client(1), ACK).from_backend()).packet().from, VIP);
}

#[test]
fn rule_03_two_connections_that_a_server_could_not_tell_apart() {
    let mut world = gateway("10.0.0.10:80", "10.0.1.1:8080");
    world.service("10.0.0.10:81", &["10.0.1.1:8080"]).unwrap().mode = Mode::Dnat;
    world.apply().unwrap();
    let other = SocketAddrV4::new(*VIP.ip(), 81);
    world.open(client(1), VIP);
    let refused = world.send(&tcp(client(1), other, SYN));
    assert_eq!((refused.verdict, refused.reason), (DROP, Reason::TupleTaken));
    assert_eq!(world.send(&tcp(A, client(1), ACK).from_backend()).packet().from, VIP, "the first goes on");
    assert_eq!(world.send(&tcp(client(1), VIP, RST)).reason, Reason::ForwardedTx);
    world.open(client(1), other);
    assert_eq!(world.send(&tcp(A, client(1), ACK).from_backend()).packet().from, other);
}

#[test]
fn rule_11_the_same_port_again_after_the_end_is_a_new_connection() {
    let mut world = gateway("10.0.0.10:80", "10.0.1.1:8080");
    for _ in 0..3 {
        world.open(client(1), VIP);
        assert_eq!(world.send(&tcp(client(1), VIP, FIN | ACK)).reason, Reason::ForwardedTx);
        assert_eq!(world.send(&tcp(A, client(1), FIN | ACK).from_backend()).reason, Reason::ForwardedTx);
    }
    world.open(client(1), VIP);
    assert_eq!(world.flows().len(), 1);
}
