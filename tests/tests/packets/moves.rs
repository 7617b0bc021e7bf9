//! What changes of backends move: 100 000 known flows, and new connections of the same clients before and after.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_tests::{
    packet::{ACK, RST, SYN, tcp},
    whole::{self, Whole},
    world::World,
};
use lb_userspace::{
    reconcile::{BackendKey, Lingering, compile},
    state::{Admin, BackendSpec, Health, Mode, OnDown, Scheduler, Source},
};

/// Known flows.
const KNOWN: u32 = 100_000;
/// Clients that connect anew before and after every change.
const NEW: u32 = 20_000;

struct Moves {
    world: World,
    mode: Mode,
    v6: bool,
    name: String,
}

impl Moves {
    /// Backends of these weights, number 1, 2, ..
    fn new(mode: Mode, v6: bool, weights: &[u16]) -> Self {
        let mut moves = Self { world: World::new(1 << 19).unwrap(), mode, v6, name: String::new() };
        moves.name = format!("{}/tcp", moves.vip());
        let backends: Vec<_> = (1..).zip(weights).map(|(n, weight)| format!("{}={weight}", moves.backend(n))).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        whole::add(&mut moves.world, mode, &moves.name, &backends).unwrap();
        moves.world.first().on_down = OnDown::Keep;
        for n in 1..=weights.len() {
            moves.reach(n as u8);
        }
        moves.world.apply().unwrap();
        moves
    }

    fn address(&self, v4: [u8; 4], v6: [u16; 2], port: u16) -> SocketAddr {
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, v6[0], v6[1]);
        if self.v6 { (v6, port).into() } else { (Ipv4Addr::from(v4), port).into() }
    }

    fn vip(&self) -> SocketAddr {
        self.address([10, 0, 0, 10], [0, 10], 80)
    }

    fn backend(&self, n: u8) -> SocketAddr {
        self.address([10, 0, 1, n], [1, n.into()], if self.mode == Mode::Nat { 8080 } else { 80 })
    }

    /// Backends have next hops of their own: where nothing but MAC addresses changes they say who was chosen.
    fn reach(&mut self, n: u8) {
        let address = self.backend(n).ip();
        self.world.reach(address, lb_tests::world::INGRESS, 1500);
        self.world.observed.next_hops.get_mut(&address).unwrap().ethernet[5] = n;
    }

    /// Some clients have many connections, as in life.
    fn frame(&self, client: u32, flags: u8) -> Vec<u8> {
        let (address, port) = (client / 16, 20_000 + (client % 16) as u16);
        let [_, a, b, c] = address.to_be_bytes();
        let from = self.address([198, 18 + a, b, c], [0x1000 + u16::from(a), address as u16], port);
        Whole::tcp(from, self.vip(), flags).frame()
    }

    /// Which backends some clients' packets go to.
    fn places(&mut self, clients: std::ops::Range<u32>, flags: u8) -> Vec<u8> {
        let sent = self.sent(clients, flags);
        sent.iter().map(|frame| self.place(frame)).collect()
    }

    fn sent(&mut self, clients: std::ops::Range<u32>, flags: u8) -> Vec<Vec<u8>> {
        let frames: Vec<_> = clients.map(|client| self.frame(client, flags)).collect();
        self.world.send_frames(frames)
    }

    /// Which backend a frame is for.
    fn place(&self, frame: &[u8]) -> u8 {
        match (self.mode, self.v6) {
            (Mode::Nat, false) => frame[33],
            (Mode::Nat, true) => frame[53],
            _ => frame[5],
        }
    }

    /// Has some clients connect; where replies pass the balancer, backends answer.
    fn connect(&mut self, clients: std::ops::Range<u32>) -> Vec<u8> {
        let syns = self.sent(clients.clone(), SYN);
        let places = syns.iter().map(|frame| self.place(frame)).collect();
        if self.mode == Mode::Nat {
            let answers: Vec<_> = syns.iter().map(|frame| answer(frame)).collect();
            self.world.send_frames(answers);
        }
        assert_eq!(self.places(clients, ACK), places);
        places
    }

    /// Where new connections go; they are over then.
    fn new_ones(&mut self) -> Vec<u8> {
        let new = KNOWN..KNOWN + NEW;
        let places = self.connect(new.clone());
        assert_eq!(self.places(new, RST), places);
        places
    }

    fn weight(&mut self, n: u8, weight: u16) {
        let address = self.backend(n);
        let mut backends = self.world.first().backends.iter_mut();
        backends.find(|spec| spec.address == address).unwrap().weight = weight;
    }

    fn admin(&mut self, n: u8, admin: Admin) {
        let address = self.backend(n);
        let mut backends = self.world.first().backends.iter_mut();
        backends.find(|spec| spec.address == address).unwrap().admin = admin;
    }

    fn add(&mut self, n: u8, weight: u16) {
        let address = self.backend(n);
        let spec = BackendSpec { address, weight, admin: Admin::Ready, source: Source::Cli };
        self.world.first().backends.push(spec);
        self.verdict(n, Health::Up);
        self.reach(n);
    }

    /// Its flows go on.
    fn remove(&mut self, n: u8) {
        let address = self.backend(n);
        self.world.first().backends.retain(|spec| spec.address != address);
        let key = BackendKey { service: self.name.clone(), address };
        let value = self.world.plane.applied().backends[&self.world.observed.backend_ids[&key]];
        self.world.observed.lingering.insert(key, Lingering { value, reset: false, on_down: OnDown::Keep });
    }

    fn verdict(&mut self, n: u8, health: Health) {
        let address = self.backend(n);
        self.world.verdict(&self.name, address, health);
    }
}

/// The SYN-ACK to a SYN.
fn answer(syn: &[u8]) -> Vec<u8> {
    let octets = |range: std::ops::Range<usize>| syn[range].to_vec();
    let port = |at: usize| u16::from_be_bytes([syn[at], syn[at + 1]]);
    let (from, to): (SocketAddr, SocketAddr) = if syn[12..14] == [8, 0] {
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(octets(at..at + 4)).unwrap());
        ((address(26), port(34)).into(), (address(30), port(36)).into())
    } else {
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(octets(at..at + 16)).unwrap());
        ((address(22), port(54)).into(), (address(38), port(56)).into())
    };
    Whole::tcp(to, from, SYN | ACK).frame()
}

/// Percentage points of new connections that moved, beyond those that had to: what shares lost.
fn beyond(before: &[u8], after: &[u8]) -> f64 {
    let moved = before.iter().zip(after).filter(|(before, after)| before != after).count();
    let mut lost = BTreeMap::<u8, i64>::new();
    before.iter().for_each(|n| *lost.entry(*n).or_default() += 1);
    after.iter().for_each(|n| *lost.entry(*n).or_default() -= 1);
    let had_to: i64 = lost.values().filter(|lost| **lost > 0).sum();
    100.0 * (moved as i64 - had_to) as f64 / before.len() as f64
}

type Change = (&'static str, fn(&mut Moves));

const CHANGES: [Change; 9] = [
    ("one is added", |moves| moves.add(11, 1)),
    ("one gets twice the weight", |moves| moves.weight(3, 2)),
    ("one drains", |moves| moves.admin(5, Admin::Drain)),
    ("one fails", |moves| moves.verdict(7, Health::Down)),
    ("one is removed", |moves| moves.remove(2)),
    ("the one that failed comes back", |moves| moves.verdict(7, Health::Up)),
    ("the drained one is removed", |moves| moves.remove(5)),
    ("a heavy one is added", |moves| moves.add(12, 5)),
    ("the heavy one gets less", |moves| moves.weight(12, 2)),
];

/// 100 000 known flows and nine changes: none of them moves, and of new ones hardly more than must.
fn changes_move_little(mode: Mode, v6: bool) {
    let mut moves = Moves::new(mode, v6, &[1; 10]);
    let known = moves.connect(0..KNOWN);
    let mut last = moves.new_ones();
    for (what, change) in CHANGES {
        change(&mut moves);
        moves.world.apply().unwrap();
        let moved = moves.places(0..KNOWN, ACK).iter().zip(&known).filter(|(now, before)| now != before).count();
        assert_eq!(moved, 0, "{what}: of {KNOWN} known flows");
        let now = moves.new_ones();
        let beyond = beyond(&last, &now);
        assert!(beyond < 1.0, "{what}: {beyond:.2} points of new flows beyond the minimum");
        last = now;
    }
    for gone in [2, 5] {
        assert!(!last.contains(&gone) && known.contains(&gone), "{gone}: removed, and its flows go on");
    }
}

#[test]
fn rule_10_changes_move_no_known_flow_nat() {
    changes_move_little(Mode::Nat, false);
}

#[test]
fn rule_10_changes_move_no_known_flow_nat6() {
    changes_move_little(Mode::Nat, true);
}

#[test]
fn rule_10_changes_move_no_known_flow_dsr() {
    changes_move_little(Mode::Dsr, false);
}

#[test]
fn rule_10_changes_move_no_known_flow_dsr6() {
    changes_move_little(Mode::Dsr, true);
}

/// Old and new tables do not fit into the map together: services are changed one after the other, each in one step.
#[test]
fn a_server_that_all_services_share_falls_where_tables_fill_the_map() {
    const SERVICES: u8 = 250;
    let mut world = World::new(4096).unwrap();
    let mut names = Vec::new();
    for n in 0..2 * u32::from(SERVICES) {
        let (network, host) = (n / u32::from(SERVICES), 1 + n % u32::from(SERVICES));
        let vip = format!("10.9.{network}.{host}:80");
        let service = world.service(&vip, &["10.0.1.1:80", "10.0.1.2:80"]).unwrap();
        // Its table is a large one, however many there are.
        service.scheduler = Scheduler::SourceHash;
        names.push((service.name.clone(), vip));
    }
    let tables = world.apply().unwrap();
    let slots: usize = tables.slots.values().map(|slots| slots.len()).sum();
    assert!(2 * slots > lb_common::maps::TABLE_SLOTS as usize, "{slots} slots");
    for (name, _) in &names {
        world.verdict(name, "10.0.1.2:80".parse().unwrap(), Health::Down);
    }
    let tables = compile(&world.desired, &world.observed);
    let applied = world.plane.apply(&tables).unwrap();
    assert_eq!(applied.tables, names.len());
    for (_, vip) in names.iter().step_by(7) {
        for port in 1000..1010 {
            let syn = tcp(format!("192.0.2.{}:{port}", port - 999).parse().unwrap(), vip.parse().unwrap(), SYN);
            assert_eq!(world.send(&syn).packet().to.to_string(), "10.0.1.1:80", "{vip}");
        }
    }
}
