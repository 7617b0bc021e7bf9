//! How long changes take, and what things weigh.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, loaded_programs};
use lb_common::{flow, maps};
use lb_tests::{
    e2e::Setup,
    packet::{SYN, tcp},
    world::World,
};
use lb_userspace::{reconcile::compile, state::Health};
use serde_json::json;

use crate::{
    harness::{Flows, Harness, Job},
    report::{Report, least_and_median},
};

/// Runs it all.
pub fn run() -> Result<()> {
    let mut report = Report::new("control");
    println!("{:<64} {:>12} {:>12}  GOAL", "WHAT", "LEAST", "MEDIAN");
    one_service(&mut report)?;
    many_services(&mut report)?;
    memory(&mut report);
    million_flows(&mut report)?;
    idle(&mut report)?;
    report.write()
}

fn line(report: &mut Report, what: &str, ms: &[f64], goal: &str) {
    let (least, median) = least_and_median(ms);
    println!("{what:<64} {least:>9.2} ms {median:>9.2} ms  {goal}");
    report.add(json!({ "what": what, "least_ms": least, "median_ms": median, "times": ms.len(), "goal": goal }));
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
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
    let before = resident();
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
    let bytes = resident().saturating_sub(before);
    let each = bytes as f64 / 100_000.0;
    println!("{:<64} {:>8} MB   {each:.0} bytes a backend", "memory of the control plane for them", bytes >> 20);
    report.add(json!({ "what": "resident bytes for 10 000 services of 10 backends", "bytes": bytes }));
    Ok(())
}

/// Resident memory of this process, without what it has mapped of the kernel's.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anonymous =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().split(' ').next()?.parse().ok());
    anonymous.unwrap_or(0u64) * 1024
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
        println!("{what:<64} {bytes:>12} bytes");
        report.add(json!({ "what": what, "bytes": bytes }));
    }
}

/// Opens flows on the data plane of a world or a daemon.
fn open_flows(program: &ProgramFd, macs: Option<[u8; 6]>, vip: SocketAddrV4, flows: u32) -> Result<()> {
    let mut harness = Harness::new()?;
    let mut syn = tcp("192.0.2.7:4096".parse()?, vip, SYN).payload(&[7; 30]);
    if let Some(mac) = macs {
        syn.macs.1 = mac;
    }
    let flows_in_order = Flows::Counted { flows, vips: 1, in_order: true };
    harness.round(program, Job { packet: &syn.build(), flows: flows_in_order }, flows)?;
    Ok(())
}

fn million_flows(report: &mut Report) -> Result<()> {
    const FLOWS: u32 = 1 << 20;
    let mut setup = Setup::new(1, 1500)?;
    // A million flows need as many ports: 24 backends that nobody has to reach.
    let backends: Vec<String> = (100..124).map(|n| format!("10.66.0.{n}:80")).collect();
    setup.attach(&format!("--vip 80 --backends {} --health none --max-flows 1100000", backends.join(",")))?;
    let status = setup.json("status")?;
    let interface = &status["interfaces"][0];
    let id = interface["program_id"].as_u64().context("program")?;
    let program = loaded_programs().flatten().find(|program| u64::from(program.id()) == id);
    let program = program.context("the daemon's program")?.fd()?;
    let mac = interface["mac"].as_str().context("MAC")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let vip = SocketAddrV4::new(setup.balancer.address, 80);
    open_flows(&program, Some(bytes.as_slice().try_into()?), vip, FLOWS)?;
    let counted: u64 = setup.json("conn count")?.as_u64().context("a number")?;
    ensure!(counted * 100 > u64::from(FLOWS) * 98, "only {counted} flows");
    for (what, arguments, times) in [
        ("conn count", "conn count", 5),
        ("conn count -s", "conn count --backend 10.66.0.100:80", 5),
        ("conn list --limit 10", "conn list --limit 10", 5),
        ("conn list -o json, all", "conn list -o json", 2),
        ("status", "status", 5),
    ] {
        let mut times_ms = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            let output = setup.lb(arguments)?;
            times_ms.push(milliseconds(begun));
            ensure!(output.status.success(), "lb {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        }
        line(report, &format!("lb {what}, of {counted} connections"), &times_ms, "");
    }
    Ok(())
}

/// CPU time of a daemon that has nothing to do.
fn idle(report: &mut Report) -> Result<()> {
    const TIME: Duration = Duration::from_secs(20);
    let mut setup = Setup::new(3, 1500)?;
    setup.serve_files(8080, &[])?;
    setup.attach(&format!("--vip 80 --backends {}", setup.list(8080)))?;
    setup.wait_usable(3)?;
    let pid = setup.daemon()?.id();
    let before = cpu_time(pid)?;
    std::thread::sleep(TIME);
    let share = 100.0 * (cpu_time(pid)? - before) / TIME.as_secs_f64();
    println!("{:<64} {share:>10.2} %  of a CPU", "an idle daemon with three checked backends");
    report.add(json!({ "what": "idle daemon, three checked backends", "percent_of_a_cpu": share }));
    Ok(())
}

/// Seconds of CPU that a process has used.
fn cpu_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
