//! Computing tables and writing them to the maps, by the control plane's own code; and what stands in the maps.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Instant,
};

use anyhow::{Result, ensure};
use lb_common::{flow, maps};
use lb_tests::world::World;
use lb_userspace::{reconcile::compile, state::Health};

use super::{line, milliseconds, resident, weight};
use crate::report::Report;

/// Runs it all.
pub fn run(report: &mut Report) -> Result<()> {
    one_service(report)?;
    many_services(report)?;
    memory(report);
    Ok(())
}

fn backend(n: u32) -> SocketAddr {
    SocketAddr::from(SocketAddrV4::new(Ipv4Addr::from_bits(0x0a80_0000 + n), 8080))
}

/// A verdict changes `times` times; from the verdict to the last store in the maps, and what of it is computing.
fn verdicts(world: &mut World, services: &[String], backends: u32, times: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut all, mut computing) = (Vec::new(), Vec::new());
    for n in 0..times {
        let service = (n as usize / 2 * 7) % services.len();
        let (name, first) = (&services[service], service as u32 * backends);
        let health = if n % 2 == 0 { Health::Down } else { Health::Up };
        // Down and up again, so that tables are not the ones of before.
        world.verdict(name, backend(first + n / 2 % backends), health);
        let begun = Instant::now();
        let tables = compile(&world.desired, &world.observed);
        computing.push(milliseconds(begun));
        let applied = world.plane.apply(&tables)?;
        all.push(milliseconds(begun));
        ensure!(applied.writes > 0, "the change changed nothing");
    }
    Ok((all, computing))
}

fn fill(world: &mut World, services: u32, backends: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for n in 0..services {
        let list: Vec<String> = (0..backends).map(|m| backend(n * backends + m).to_string()).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        let vip = SocketAddrV4::new(Ipv4Addr::from_bits(0xac10_0001 + n), 80).to_string();
        names.push(world.service(&vip, &list)?.name.clone());
    }
    Ok(names)
}

/// 655 backends have a table of 65 537 slots.
fn one_service(report: &mut Report) -> Result<()> {
    let mut world = World::new(4096)?;
    let names = fill(&mut world, 1, 655)?;
    let tables = world.apply()?;
    ensure!(tables.slots.values().all(|slots| slots.len() == 65_537), "another size of table");
    let (all, computing) = verdicts(&mut world, &names, 655, 41)?;
    line(report, "a verdict in a table of 65 537 slots: until it is in the maps", &all, "< 5 ms");
    line(report, "    of that: computing the tables", &computing, "");
    Ok(())
}

fn many_services(report: &mut Report) -> Result<()> {
    let before = resident("self")?;
    let mut world = World::new(4096)?;
    let names = fill(&mut world, 10_000, 10)?;
    let begun = Instant::now();
    let tables = compile(&world.desired, &world.observed);
    let computed = milliseconds(begun);
    world.plane.apply(&tables)?;
    line(report, "loading 10 000 services of 10 backends", &[milliseconds(begun)], "< 5 s");
    line(report, "    of that: computing the tables", &[computed], "");
    world.observed.backend_ids.clone_from(&tables.backend_ids);
    world.observed.service_ids.clone_from(&tables.service_ids);
    let (all, computing) = verdicts(&mut world, &names, 10, 11)?;
    line(report, "a verdict among 100 000 backends: until it is in the maps", &all, "");
    line(report, "    of that: computing the tables", &computing, "");
    // As when a server falls that they all share.
    for (n, name) in (0..).zip(&names) {
        world.verdict(name, backend(n * 10), Health::Down);
    }
    let begun = Instant::now();
    let applied = world.plane.apply(&compile(&world.desired, &world.observed))?;
    line(report, "a verdict for each of the 10 000 services: until all are in the maps", &[milliseconds(begun)], "");
    ensure!(applied.tables == 10_000, "{} tables", applied.tables);
    let bytes = resident("self")?.saturating_sub(before);
    weight(report, "memory of the control plane for them, of each backend", bytes / 100_000);
    Ok(())
}

fn memory(report: &mut Report) {
    let flows = u64::from(maps::DEFAULT_MAX_FLOWS);
    let index = u64::from(maps::buckets_for(maps::DEFAULT_MAX_FLOWS)) * size_of::<flow::Bucket>() as u64;
    let cpus = aya::util::nr_cpus().unwrap_or(1) as u64;
    let weights = [
        ("a flow over IPv4: record and its share of the index", size_of::<flow::Flow4>() as u64 + index / flows),
        ("a flow over IPv6: record and its share of the index", size_of::<flow::Flow6>() as u64 + index / flows),
        ("a slot of a table", 4),
        ("a service in the maps, without its table", (size_of::<maps::Service>() + 8) as u64 + cpus * 32),
        ("a backend in the maps", (size_of::<maps::Backend>() + 8) as u64 + cpus * 48),
        ("reserved for 262 144 flows over IPv4", flows * size_of::<flow::Flow4>() as u64 + index),
        ("reserved for all tables", u64::from(maps::TABLE_SLOTS) * 4),
    ];
    for (what, bytes) in weights {
        weight(report, what, bytes);
    }
}
