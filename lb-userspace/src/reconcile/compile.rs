//! The pure function from what is wanted and what is seen to what stands in the maps.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lb_common::{
    Be16, Be32, clock,
    flow::Idle,
    hash,
    maps::{self, VipKey, backend_flag, mode, on_empty, scheduler, vip_flag},
    outer,
};

use super::{BackendKey, Lingering, Observed, Tables, Usable, sizes, slow_start, usable};
use crate::{
    maglev::Candidate,
    rotation,
    state::{Admin, BackendSpec, Desired, Health, IdleTimeouts, Mode, OnDown, OnEmpty, Probe, Scheduler, ServiceSpec},
};

/// Idle timeouts (product.md; RFC 5382 for TCP, RFC 4787 for UDP).
const SYN: Duration = Duration::from_secs(60);
const ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
const HALF_CLOSED: Duration = Duration::from_secs(5 * 60);
const CLOSED: Duration = Duration::from_secs(30);
const UDP: Duration = Duration::from_secs(2 * 60);
/// Lowest port for NAT unless said otherwise.
const LOWEST_PORT: u16 = 1024;

/// Compiles; the same inputs give the same tables.
#[must_use]
pub fn compile(desired: &Desired, observed: &Observed) -> Tables {
    let mut tables = Tables::default();
    observed.tables_made.turn();
    assign_ids(desired, observed, &mut tables);
    let sizes = sizes::sizes(desired);
    for service in desired.services.values() {
        let size = sizes.get(service.name.as_str()).copied().unwrap_or_default();
        compile_service(desired, observed, (service, size), &mut tables);
    }
    for (key, lingering) in &observed.lingering {
        if let Some(id) = observed.backend_ids.get(key).filter(|id| !tables.backends.contains_key(id)) {
            linger(*id, lingering, key, (desired, observed), &mut tables);
        }
    }
    compile_addresses(desired, observed, &mut tables);
    compile_ports(desired, observed, &mut tables);
    tables
}

/// Everybody keeps the identity that they have; new ones get the lowest that is free.
fn assign_ids(desired: &Desired, observed: &Observed, tables: &mut Tables) {
    let (taken, mut next): (BTreeSet<u32>, u32) = (observed.service_ids.values().copied().collect(), 1);
    for name in desired.services.keys() {
        let id = observed.service_ids.get(name).copied().unwrap_or_else(|| lowest_free(&taken, &mut next));
        tables.service_ids.insert(name.clone(), id);
    }
    let (taken, mut next): (BTreeSet<u32>, u32) = (observed.backend_ids.values().copied().collect(), 1);
    for service in desired.services.values() {
        for backend in &service.backends {
            let key = BackendKey { service: service.name.clone(), address: backend.address };
            let id = observed.backend_ids.get(&key).copied().unwrap_or_else(|| lowest_free(&taken, &mut next));
            tables.backend_ids.insert(key, id);
        }
    }
    for key in observed.lingering.keys() {
        if let Some(id) = observed.backend_ids.get(key) {
            tables.backend_ids.entry(key.clone()).or_insert(*id);
        }
    }
}

/// The lowest identity from `next` on that is not taken; lower ones are.
fn lowest_free(taken: &BTreeSet<u32>, next: &mut u32) -> u32 {
    while taken.contains(next) {
        *next += 1;
    }
    *next += 1;
    *next - 1
}

/// A service, and the size of its table.
fn compile_service(desired: &Desired, observed: &Observed, (service, size): (&ServiceSpec, u32), tables: &mut Tables) {
    let id = tables.service_ids[&service.name];
    let key = |address| BackendKey { service: service.name.clone(), address };
    let takers = usable(service, |address| observed.verdicts.get(&key(address)).copied());
    let policy = match (&takers, service.on_empty) {
        (Usable::Unchecked, _) => on_empty::UNCHECKED,
        (_, OnEmpty::Reject) => on_empty::REJECT,
        (_, OnEmpty::Drop) => on_empty::DROP,
    };
    let takers = match takers {
        Usable::Set(set) => set,
        Usable::Unchecked | Usable::Nobody => BTreeSet::new(),
    };
    tables.services.insert(
        id,
        maps::Service {
            name_hash: hash::name(service.name.as_bytes()).max(1),
            mode: mode_number(service.mode),
            scheduler: scheduler_number(service.scheduler),
            on_empty: policy,
            affinity: service.affinity.map_or(0, ticks),
            ..maps::Service::default()
        },
    );
    let mut candidates = Vec::new();
    for backend in &service.backends {
        let backend_id = tables.backend_ids[&key(backend.address)];
        let is_taker = takers.contains(&backend.address);
        let verdict = observed.verdicts.get(&key(backend.address)).copied();
        let health = match (&service.health.probe, verdict) {
            (Probe::None, _) => Health::Up,
            (_, Some(seen)) => seen.health,
            (_, None) => Health::Unknown,
        };
        let value = maps::Backend {
            flags: flags(service, backend, health, verdict.is_some_and(|seen| seen.was_up), is_taker),
            down_since: verdict.filter(|_| health == Health::Down).map_or(0, |seen| seen.since),
            service: id,
            protocol: 0,
            idle: idle(&service.idle),
            outer_port: Be16::new(if service.mode == Mode::Gue { outer::GUE_PORT } else { 0 }),
            ..place_backend(desired, observed, service.mode, backend.address, tables)
        };
        tables.backends.insert(backend_id, value);
        let part = if is_taker { slow_start::part(service, verdict, observed.now) } else { 0 };
        let now = u32::from(backend.weight) * part;
        candidates.push(Candidate { id: backend_id, address: backend.address, weight: backend.weight, now });
    }
    let members = members(service.scheduler, &candidates);
    if !members.is_empty() {
        tables.members.insert(id, members);
    }
    let table = observed.tables_made.table(candidates, size);
    tables.fingerprints.insert(service.name.clone(), table.fingerprint);
    tables.slots.insert(id, table.slots);
    tables.usable.insert(service.name.clone(), takers);
}

/// What schedulers that look at members see.
fn members(word: Scheduler, candidates: &[Candidate]) -> Vec<[u32; 2]> {
    let takers: Vec<_> = candidates.iter().filter(|candidate| candidate.now > 0).collect();
    match word {
        Scheduler::LeastConn => takers.iter().map(|taker| [taker.id, taker.now]).collect(),
        Scheduler::RoundRobin => {
            let weights: Vec<u32> = takers.iter().map(|taker| taker.now).collect();
            rotation::order(&weights).into_iter().map(|index| [takers[index].id, takers[index].now]).collect()
        }
        Scheduler::Maglev | Scheduler::SourceHash | Scheduler::Random => Vec::new(),
    }
}

/// A backend's bits. One that takes new flows although it is down keeps its old ones too.
fn flags(service: &ServiceSpec, backend: &BackendSpec, health: Health, was_up: bool, is_taker: bool) -> u32 {
    let mut flags = backend_flag::USED | health_flag(health, was_up);
    if is_taker {
        flags |= backend_flag::TAKES;
    }
    flags |= match backend.admin {
        Admin::Ready => 0,
        Admin::Drain => backend_flag::DRAIN,
        Admin::Maint => backend_flag::MAINT | backend_flag::RESET | backend_flag::MOVE_UDP,
    };
    if health == Health::Down && !is_taker {
        flags |= when_down(on_down(service));
    }
    flags
}

/// What happens to flows of a service's backend that is down; whether it is silent is only seen when replies pass lb.
#[must_use]
pub fn on_down(service: &ServiceSpec) -> OnDown {
    match (service.on_down, service.mode) {
        (OnDown::Auto, Mode::Dsr | Mode::Ipip | Mode::Gue) => OnDown::Keep,
        (said, _) => said,
    }
}

const fn when_down(on_down: OnDown) -> u32 {
    backend_flag::MOVE_UDP
        | match on_down {
            OnDown::Auto => backend_flag::RESET_SILENT,
            OnDown::Reset => backend_flag::RESET,
            OnDown::Keep => 0,
        }
}

const fn health_flag(health: Health, was_up: bool) -> u32 {
    match (health, was_up) {
        (Health::Up, _) => backend_flag::UP,
        (Health::Down, false) => backend_flag::DOWN,
        (Health::Down, true) => backend_flag::DOWN | backend_flag::FELL,
        (Health::Unknown, _) => 0,
    }
}

/// Idle timeouts in ticks.
fn idle(said: &IdleTimeouts) -> Idle {
    let IdleTimeouts { syn, established, half_closed, closed, udp } = *said;
    Idle {
        syn: ticks(syn.unwrap_or(SYN)),
        established: ticks(established.unwrap_or(ESTABLISHED)),
        half_closed: ticks(half_closed.unwrap_or(HALF_CLOSED)),
        closed: ticks(closed.unwrap_or(CLOSED)),
        udp: ticks(udp.unwrap_or(UDP)),
    }
}

/// What is the same for every backend at an address: next hop, addresses for NAT.
fn place_backend(
    desired: &Desired,
    observed: &Observed,
    mode: Mode,
    address: SocketAddr,
    tables: &mut Tables,
) -> maps::Backend {
    let hop = observed.next_hops.get(&address.ip()).filter(|hop| hop.ifindex != 0);
    let next_hop = hop.map_or(0, |hop| tables.next_hops.place(hop, &observed.next_hop_places));
    let (snat, snat_count) = if mode == Mode::Dnat {
        tables.filter_sources.insert(address.ip());
        (0, 0)
    } else {
        snat_run(desired, observed, address.ip(), tables)
    };
    let (family, words) = words(address.ip());
    maps::Backend {
        next_hop,
        snat,
        snat_count,
        port: Be16::new(address.port()),
        address: words,
        family,
        ..maps::Backend::default()
    }
}

/// Addresses that NAT uses towards a backend: the preferred source of its route, then `--snat`. Equal lists share a run.
fn snat_run(desired: &Desired, observed: &Observed, backend: IpAddr, tables: &mut Tables) -> (u32, u16) {
    let mut run: Vec<[Be32; 4]> = Vec::new();
    let preferred = observed.sources.get(&backend);
    for address in preferred.into_iter().chain(&desired.settings.snat).filter(|a| a.is_ipv4() == backend.is_ipv4()) {
        let (_, words) = words(*address);
        if !run.contains(&words) {
            run.push(words);
        }
        tables.filter.insert(*address);
    }
    if run.is_empty() {
        return (0, 0);
    }
    let known = tables.snat.windows(run.len()).position(|window| window == run);
    let base = known.unwrap_or_else(|| {
        tables.snat.extend_from_slice(&run);
        tables.snat.len() - run.len()
    });
    (base as u32, run.len() as u16)
}

/// A removed backend whose flows go on: everything as it was, but for what must follow the network and its health.
fn linger(id: u32, lingering: &Lingering, key: &BackendKey, from: (&Desired, &Observed), tables: &mut Tables) {
    let (desired, observed) = from;
    let Lingering { value, reset, on_down } = lingering;
    let hop = observed.next_hops.get(&key.address.ip()).filter(|hop| hop.ifindex != 0);
    let next_hop = hop.map_or(0, |hop| tables.next_hops.place(hop, &observed.next_hop_places));
    let mut flags = backend_flag::USED | backend_flag::REMOVED;
    let mut down_since = 0;
    if let Some(seen) = observed.verdicts.get(key) {
        flags |= health_flag(seen.health, seen.was_up);
        if seen.health == Health::Down {
            flags |= when_down(*on_down);
            down_since = seen.since;
        }
    }
    if *reset {
        flags |= backend_flag::MAINT | backend_flag::RESET | backend_flag::MOVE_UDP;
    }
    let (snat, snat_count) = if value.snat_count == 0 {
        tables.filter_sources.insert(key.address.ip());
        (0, 0)
    } else {
        snat_run(desired, observed, key.address.ip(), tables)
    };
    tables.backends.insert(id, maps::Backend { flags, next_hop, down_since, snat, snat_count, ..*value });
}

/// VIPs and the entries that say what an address is.
fn compile_addresses(desired: &Desired, observed: &Observed, tables: &mut Tables) {
    let mut of_vips = BTreeSet::new();
    for service in desired.services.values() {
        for vip in &service.vips {
            tables.wildcard |= vip.port == 0;
            tables.vip_ports.insert(vip.port);
            of_vips.insert(vip.address);
            let value = maps::Vip { service: tables.service_ids[&service.name], flags: 0 };
            insert_vip(tables, vip.address, vip.port, vip.protocol.number(), value);
        }
    }
    for vip in &observed.lingering_vips {
        tables.vip_ports.insert(vip.port);
        tables.wildcard |= vip.port == 0;
        tables.filter.insert(vip.address);
    }
    tables.filter.extend(&of_vips);
    for address in tables.filter.clone() {
        let vip = if of_vips.contains(&address) { vip_flag::VIP } else { 0 };
        let host = if observed.host_addresses.contains(&address) { vip_flag::HOST } else { 0 };
        insert_vip(tables, address, 0, 0, maps::Vip { service: 0, flags: vip | host });
    }
}

fn insert_vip(tables: &mut Tables, address: IpAddr, port: u16, protocol: u8, value: maps::Vip) {
    let port = Be16::new(port);
    match address {
        IpAddr::V4(v4) => tables.vips4.insert(VipKey::new(Be32::new(v4.to_bits()), port, protocol), value),
        IpAddr::V6(v6) => tables.vips6.insert(VipKey::new(words_of(v6), port, protocol), value),
    };
}

/// Ports for NAT: what was said, or everything from 1024 on but the host's own; never a VIP's.
fn compile_ports(desired: &Desired, observed: &Observed, tables: &mut Tables) {
    let (low, high) = desired.settings.snat_ports.unwrap_or((LOWEST_PORT, u16::MAX));
    let explicit = desired.settings.snat_ports.is_some();
    let reserved =
        |port: u16| !explicit && observed.reserved_ports.iter().any(|(from, to)| (*from..=*to).contains(&port));
    tables.nat_ports =
        (low.max(1)..=high).filter(|port| !reserved(*port) && !tables.vip_ports.contains(port)).collect();
}

/// Family and words of an address.
fn words(address: IpAddr) -> (u8, [Be32; 4]) {
    match address {
        IpAddr::V4(v4) => (4, [Be32::new(v4.to_bits()), Be32(0), Be32(0), Be32(0)]),
        IpAddr::V6(v6) => (6, words_of(v6)),
    }
}

/// An IPv6 address as the maps have it.
pub(crate) fn words_of(address: Ipv6Addr) -> [Be32; 4] {
    let bits = address.to_bits();
    [96, 64, 32, 0].map(|shift: u32| Be32::new((bits >> shift) as u32))
}

fn ticks(time: Duration) -> u32 {
    clock::ticks_from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

const fn mode_number(word: Mode) -> u8 {
    match word {
        Mode::Nat => mode::NAT,
        Mode::Dnat => mode::DNAT,
        Mode::Dsr => mode::DSR,
        Mode::Ipip => mode::IPIP,
        Mode::Gue => mode::GUE,
    }
}

const fn scheduler_number(word: Scheduler) -> u8 {
    match word {
        Scheduler::Maglev => scheduler::MAGLEV,
        Scheduler::RoundRobin => scheduler::ROUND_ROBIN,
        Scheduler::LeastConn => scheduler::LEAST_CONN,
        Scheduler::SourceHash => scheduler::SOURCE_HASH,
        Scheduler::Random => scheduler::RANDOM,
    }
}
