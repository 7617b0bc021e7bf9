//! Which record and which NAT port a new flow takes: a free one, the longest closed, the oldest that never got beyond
//! the handshake; never one of a connection that goes on.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use etherparse::TcpOptionElement;
use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, FIN, Packet, RST, SYN, Transport, tcp},
    world::World,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 80);
const BACKEND: &str = "10.0.1.1:8080";

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), port)
}

/// A world with room for so many flows and ports; everything happens on one CPU, whose hands go round in order.
fn world(flows: u32, ports: u16) -> World {
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let mut world = World::new(flows).unwrap();
    world.service("10.0.0.10:80", &[BACKEND]).unwrap();
    world.desired.settings.snat_ports = Some((5000, 5000 + ports - 1));
    world.apply().unwrap();
    world
}

fn close(world: &mut World, port: u16, backend: SocketAddrV4, lb: SocketAddrV4) {
    assert_eq!(world.send(&tcp(client(port), VIP, FIN | ACK)).reason, Reason::ForwardedTx);
    assert_eq!(world.send(&tcp(backend, lb, FIN | ACK).from_backend()).reason, Reason::ForwardedTx);
}

/// Twenty handshakes are under way and everything else is closed; many connections later they still are.
fn handshakes_survive(mut world: World, room: u16) {
    let begun: Vec<_> = (1000..1020).map(|port| (port, world.send(&tcp(client(port), VIP, SYN)).packet())).collect();
    for port in 2000..2000 + room - 20 + 300 {
        let (backend, lb) = world.open(client(port), VIP);
        close(&mut world, port, backend, lb);
    }
    for (port, seen) in begun {
        let answer = world.send(&tcp(seen.to, seen.from, SYN | ACK).from_backend());
        assert_eq!((answer.reason, answer.packet().to), (Reason::ForwardedTx, client(port)));
        assert_eq!(world.send(&tcp(client(port), VIP, ACK)).reason, Reason::ForwardedTx, "{port}");
    }
}

#[test]
fn rule_16_a_handshake_under_way_keeps_its_record_while_others_are_closed() {
    handshakes_survive(world(256, 20_000), 256);
}

/// A table that is full but for what only began: three quarters of it are connections that were opened in one go.
#[test]
fn rule_16_many_established_flows_side_by_side_are_no_obstacle() {
    let mut world = world(4096, 20_000);
    for port in 1000..1000 + 3072 {
        world.open(client(port), VIP);
    }
    let clients = |range: std::ops::Range<u16>| range.map(|port| tcp(client(port), VIP, SYN));
    assert_eq!(world.send_all(clients(10_000..20_000)).len(), 10_000, "all are forwarded");
    assert_eq!(world.send_all((1000..1000 + 3072).map(|port| tcp(client(port), VIP, ACK))).len(), 3072);
}

#[test]
fn rule_02_a_handshake_under_way_keeps_its_port_while_others_are_closed() {
    handshakes_survive(world(4096, 128), 128);
}

/// A segment with this sequence number and timestamp, among other options.
fn stamped(mut packet: Packet, sequence: u32, timestamp: Option<u32>) -> Packet {
    if let Transport::Tcp(header) = &mut packet.transport {
        header.sequence_number = sequence;
        let mut options =
            vec![TcpOptionElement::MaximumSegmentSize(1460), TcpOptionElement::SelectiveAcknowledgementPermitted];
        options.extend(timestamp.map(|stamp| TcpOptionElement::Timestamp(stamp, 7)));
        options.extend([TcpOptionElement::Noop, TcpOptionElement::WindowScale(7)]);
        header.set_options(&options).unwrap();
    }
    packet
}

/// What the client's FIN of a connection said that rests in TIME_WAIT, and whether a SYN with sequence number 2000 and
/// timestamp 500 supersedes it.
const RESTING: [(u32, Option<u32>, bool); 6] = [
    (1000, Some(400), true),
    (1000, Some(501), false),
    (5000, Some(400), false),
    (1000, None, true),
    (5000, None, false),
    (3_000_000_000, Some(3_000_000_000), true),
];

#[test]
fn rule_02_a_syn_goes_to_a_port_where_time_wait_at_the_backend_gives_way_to_it() {
    let mut world = world(4096, 48);
    let mut ports = BTreeMap::new();
    for port in 1000..1048 {
        let (backend, lb) = world.open(client(port), VIP);
        let (sequence, timestamp, gives_way) = RESTING[usize::from(port) % RESTING.len()];
        assert_eq!(world.send(&tcp(backend, lb, FIN | ACK).from_backend()).reason, Reason::ForwardedTx);
        let fin = stamped(tcp(client(port), VIP, FIN | ACK).payload(b"bye"), sequence, timestamp);
        assert_eq!(world.send(&fin).reason, Reason::ForwardedTx);
        ports.insert(lb.port(), gives_way);
    }
    assert_eq!(ports.len(), 48);
    let syn = |port| stamped(tcp(client(port), VIP, SYN), 2000, Some(500));
    let wanted = ports.values().filter(|gives_way| **gives_way).count();
    for port in 2000..2000 + wanted as u16 {
        let taken = world.send(&syn(port)).packet().from.port();
        assert_eq!(ports.remove(&taken), Some(true), "port {taken}; left are {ports:?}");
    }
    // When there is none, it is better to be refused once than to end a handshake.
    for port in 3000..3000 + ports.len() as u16 {
        let taken = world.send(&syn(port)).packet().from.port();
        assert_eq!(ports.remove(&taken), Some(false), "port {taken}; left are {ports:?}");
    }
}

#[test]
fn rule_02_where_the_client_closed_first_nothing_rests_at_the_backend() {
    let mut world = world(4096, 8);
    for port in 1000..1008 {
        let (backend, lb) = world.open(client(port), VIP);
        assert_eq!(
            world.send(&stamped(tcp(client(port), VIP, FIN | ACK), 5000, Some(900))).reason,
            Reason::ForwardedTx
        );
        assert_eq!(world.send(&tcp(backend, lb, FIN | ACK).from_backend()).reason, Reason::ForwardedTx);
    }
    let all: BTreeMap<_, _> = (2000..2008)
        .map(|port| (world.send(&stamped(tcp(client(port), VIP, SYN), 1, Some(1))).packet().from.port(), port))
        .collect();
    assert_eq!(all.len(), 8, "{all:?}");
}

/// A backend answers a SYN that it refuses with an acknowledgement of the old connection; the client answers that with a
/// RST, which ends it. So the SYN must come to the same port again.
#[test]
fn rule_11_a_syn_that_met_time_wait_goes_to_the_same_port_again() {
    let mut world = world(4096, 100);
    let syn = world.send(&tcp(client(1), VIP, SYN)).packet();
    let challenge = world.send(&tcp(syn.to, syn.from, ACK).from_backend());
    assert_eq!((challenge.reason, challenge.packet().to), (Reason::ForwardedTx, client(1)));
    let rst = world.send(&tcp(client(1), VIP, RST));
    assert_eq!((rst.reason, rst.packet().from, rst.packet().to), (Reason::ForwardedTx, syn.from, syn.to));
    assert_eq!(world.send(&tcp(client(1), VIP, SYN)).packet().from, syn.from);
}

/// What rests in TIME_WAIT at the backend is then the same client's, whose numbers and timestamps go on.
#[test]
fn rule_11_a_client_that_uses_its_port_again_is_given_the_same_nat_port() {
    let mut world = world(4096, 20_000);
    let mut open = |port| {
        let (backend, lb) = world.open(client(port), VIP);
        assert_eq!(world.send(&tcp(backend, lb, FIN | ACK).from_backend()).reason, Reason::ForwardedTx);
        assert_eq!(world.send(&tcp(client(port), VIP, FIN | ACK)).reason, Reason::ForwardedTx);
        lb
    };
    let first: Vec<_> = (1000..1050).map(&mut open).collect();
    (2000..2050).for_each(|port| {
        open(port);
    });
    let again: Vec<_> = (1000..1050).map(open).collect();
    assert_eq!(first, again);
}

#[test]
fn rule_02_services_that_share_a_server_share_its_ports() {
    let mut world = world(4096, 64);
    world.service("10.0.0.11:80", &[BACKEND]).unwrap();
    world.apply().unwrap();
    let vips = [VIP, SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 11), 80)];
    let begun: BTreeMap<_, _> = (1000..1032)
        .flat_map(|port| vips.map(|vip| (port, vip)))
        .map(|(port, vip)| (world.send(&tcp(client(port), vip, SYN)).packet().from.port(), (port, vip)))
        .collect();
    assert_eq!(begun.len(), 64, "every port is taken once: {begun:?}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Closed,
    Handshake,
    Established,
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What a port carries: a flow of this client's port, in a state.
type Model = BTreeMap<u16, (u16, State)>;

/// One of the ports in a state.
fn pick(model: &Model, state: State, numbers: &mut Numbers) -> Option<(u16, u16)> {
    let all: Vec<_> = model.iter().filter(|(_, held)| held.1 == state).map(|(lb, held)| (*lb, held.0)).collect();
    (!all.is_empty()).then(|| all[numbers.below(all.len())])
}

/// A new flow: takes what the rule says.
fn begin(world: &mut World, model: &mut Model, ports: usize, port: u16) {
    let sent = world.send(&tcp(client(port), VIP, SYN));
    if model.len() == ports && model.values().all(|held| held.1 == State::Established) {
        assert_eq!(sent.reason, Reason::PortsExhausted, "{model:?}");
        return;
    }
    assert_eq!(sent.reason, Reason::ForwardedTx, "{model:?}");
    let taken = sent.packet().from.port();
    let worst = (model.len() == ports).then(|| model.values().map(|held| held.1).min()).flatten();
    let was = model.insert(taken, (port, State::Handshake)).map(|held| held.1);
    assert_eq!(was, worst, "port {taken} was taken; {model:?}");
}

#[test]
fn rule_02_ports_are_taken_in_the_order_of_a_model() {
    const PORTS: u16 = 16;
    for seed in 1..=2 {
        let (mut world, mut numbers, mut model) = (world(4096, PORTS), Numbers(seed), Model::new());
        let backend: SocketAddrV4 = BACKEND.parse().unwrap();
        let lb = |port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port);
        for port in 1000..1600 {
            // Some worlds fill up, others empty.
            match numbers.below(if seed % 2 == 0 { 5 } else { 8 }) {
                0 => {
                    let Some((held, owner)) = pick(&model, State::Established, &mut numbers) else { continue };
                    close(&mut world, owner, backend, lb(held));
                    model.insert(held, (owner, State::Closed));
                }
                1 | 2 => {
                    let Some((held, owner)) = pick(&model, State::Handshake, &mut numbers) else { continue };
                    let answer = world.send(&tcp(backend, lb(held), SYN | ACK).from_backend());
                    assert_eq!((answer.reason, answer.packet().to), (Reason::ForwardedTx, client(owner)));
                    assert_eq!(world.send(&tcp(client(owner), VIP, ACK)).reason, Reason::ForwardedTx);
                    model.insert(held, (owner, State::Established));
                }
                3 => {
                    let Some((held, owner)) = pick(&model, State::Established, &mut numbers) else { continue };
                    let sent = world.send(&tcp(client(owner), VIP, ACK).payload(b"goes on"));
                    assert_eq!((sent.reason, sent.packet().from), (Reason::ForwardedTx, lb(held)));
                }
                _ => begin(&mut world, &mut model, PORTS.into(), port),
            }
        }
        assert!(model.len() == usize::from(PORTS), "seed {seed}: the ports were never all in use");
    }
}
