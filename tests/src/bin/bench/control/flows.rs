//! A million connections: counting and listing them, and the sweeper.

use std::{
    net::{SocketAddr, SocketAddrV4},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::programs::{ProgramFd, loaded_programs};
use lb_tests::{
    e2e::Setup,
    packet::{SYN, tcp},
    world::World,
};
use lb_userspace::{dataplane, state::Scheduler};

use super::{cpu_time, line, milliseconds, share};
use crate::{
    harness::{Flows, Harness, Job, stay},
    report::Report,
};

/// Connections. They need as many ports, of which a host leaves about 36 000 for each of its backends:
/// these are 40 that nobody has to reach.
const FLOWS: u32 = 1 << 20;
const MAX_FLOWS: u32 = 1_200_000;
const BACKENDS: u32 = 40;

/// Runs it all.
pub fn run(report: &mut Report) -> Result<()> {
    asked(report)?;
    swept(report)
}

/// Opens connections on the data plane of a world or a daemon.
fn open(program: &ProgramFd, mac: Option<[u8; 6]>, vip: SocketAddrV4) -> Result<()> {
    let mut syn = tcp("192.0.2.7:4096".parse()?, vip, SYN).payload(&[7; 30]);
    if let Some(mac) = mac {
        syn.macs.1 = mac;
    }
    let flows = Flows::Counted { flows: FLOWS, vips: 1, in_order: true };
    let (frame, mut harness) = (syn.build(), Harness::new()?);
    // On one CPU: another's would look for records in another place, and find half-open ones to take.
    std::thread::scope(|scope| {
        let run = || {
            stay()?;
            harness.round(program, Job { packet: &frame, flows }, FLOWS)
        };
        scope.spawn(run).join().map_err(|_| anyhow!("opening connections failed"))?
    })?;
    Ok(())
}

/// What a person asks a daemon that has them.
fn asked(report: &mut Report) -> Result<()> {
    let mut setup = Setup::new(1, 1500)?;
    let backends: Vec<String> = (0..BACKENDS).map(|n| format!("\"10.66.0.{}:80\"", 100 + n)).collect();
    let file = setup.directory().join("lb.toml");
    // They have only begun, and shall not end while they are looked at.
    let text = format!(
        "max_flows = {MAX_FLOWS}\nidle = {{ syn = \"1h\" }}\n[[service]]\nvip = \"{}:80\"\nbackends = [{}]\n\
         health = {{ type = \"none\" }}\n",
        setup.balancer.address,
        backends.join(", ")
    );
    std::fs::write(&file, text)?;
    setup.attach(&format!("--config {}", file.display()))?;
    let status = setup.json("status")?;
    let interface = &status["interfaces"][0];
    let id = interface["program_id"].as_u64().context("program")?;
    let program = loaded_programs().flatten().find(|program| u64::from(program.id()) == id);
    let program = program.context("the daemon's program")?.fd()?;
    let mac = interface["mac"].as_str().context("MAC")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    open(&program, Some(bytes.as_slice().try_into()?), SocketAddrV4::new(setup.balancer.address, 80))?;
    let counted: u64 = setup.json("conn count")?.as_u64().context("a number")?;
    ensure!(counted * 100 > u64::from(FLOWS) * 98, "only {counted} flows");
    for (what, arguments, times) in [
        ("conn count", "conn count", 5),
        ("conn count --backend", "conn count --backend 10.66.0.100:80", 5),
        ("conn list --limit 10", "conn list --limit 10", 5),
        ("conn list --client, none found", "conn list --client 192.0.2.8", 5),
        ("conn list -o json, all", "conn list -o json", 3),
        ("conn list, all as a table", "conn list", 3),
        ("status", "status", 5),
        ("backend weight", "backend weight 10.66.0.100:80 2", 1),
        ("backend remove", "backend remove 10.66.0.101:80", 1),
    ] {
        let mut times_ms = Vec::new();
        for _ in 0..times {
            let begun = Instant::now();
            // What reads the output costs nothing.
            let status = setup.command("", arguments).stdout(Stdio::null()).status()?;
            times_ms.push(milliseconds(begun));
            ensure!(status.success(), "lb {arguments}: {status}");
        }
        let goal = if arguments.starts_with("conn") { "< 1 s" } else { "" };
        line(report, &format!("lb {what}, of {counted} connections"), &times_ms, goal);
    }
    let percent = used(setup.daemon()?.id(), Duration::from_secs(20))?;
    share(report, "the daemon while it waits for the last connection of a removed backend", percent, "< 1 %");
    Ok(())
}

/// Percentage of a CPU that a process uses for a while.
pub fn used(process: u32, time: Duration) -> Result<f64> {
    let (begun, before) = (Instant::now(), cpu_time(process)?);
    std::thread::sleep(time);
    let after = cpu_time(process)?;
    Ok(100.0 * (after.0 + after.1 - before.0 - before.1) / begun.elapsed().as_secs_f64())
}

/// What the daemon does with them by itself, once a minute, for the sake of `least-conn`.
fn swept(report: &mut Report) -> Result<()> {
    let mut world = World::new(MAX_FLOWS)?;
    let backends: Vec<String> =
        (1..=BACKENDS).map(|n| SocketAddr::from(([10, 0, 1, n as u8], 80)).to_string()).collect();
    let service = world.service("10.0.0.10:80", &backends.iter().map(String::as_str).collect::<Vec<_>>())?;
    service.scheduler = Scheduler::LeastConn;
    service.idle.syn = Some(Duration::from_secs(3600));
    world.apply()?;
    open(&world.plane.program()?.fd()?.try_clone()?, None, "10.0.0.10:80".parse()?)?;
    let counted = world.plane.flows().count(dataplane::now()).active;
    ensure!(counted * 100 > u64::from(FLOWS) * 98, "only {counted} flows");
    let sweep = |world: &mut World, now: u32| {
        let begun = Instant::now();
        let over = world.plane.sweep(now);
        (over, milliseconds(begun))
    };
    let times: Vec<f64> = (0..5).map(|_| sweep(&mut world, dataplane::now()).1).collect();
    line(report, &format!("the sweeper, {counted} connections, none over"), &times, "< 1 s");
    share(report, "    of that a minute", times.iter().sum::<f64>() / 5.0 / 600.0, "< 1 %");
    let (over, took) = sweep(&mut world, dataplane::now() + lb_common::clock::ticks_from_millis(7_200_000));
    ensure!(over as u64 == counted, "{over} of {counted} are over");
    line(report, "the sweeper, all of them over", &[took], "< 1 s");
    Ok(())
}
