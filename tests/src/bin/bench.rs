//! What a packet costs: the real program beside floor programs, in one run, interleaved.
//!
//! `BPF_PROG_TEST_RUN` does not restore the packet between runs, so the wrapper `restore` does, and varies the client;
//! its own cost is that of the program `null` behind it, and subtracted. Counters prove that every run took the path
//! that its line says. Figures are printed; nothing passes or fails on them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, SYN, tcp},
    world::World,
};
use lb_userspace::dataplane::LAB_OBJECT;
use serde_json::json;

/// Runs of a round.
const RUNS: u32 = 100_000;
/// Rounds; the least and the median are printed.
const ROUNDS: usize = 11;
/// Bytes of a packet's head that the wrapper restores.
const HEAD: usize = 64;

/// As in lb-ebpf/src/lab.rs.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    head: [u64; HEAD / 8],
    flows: u32,
    run: u32,
}

// SAFETY: `repr(C)`, no padding, valid for every bit pattern.
unsafe impl Pod for Template {}

struct Bench {
    lab: Ebpf,
    jump: ProgramArray<MapData>,
    template: Array<MapData, Template>,
}

struct Line {
    name: &'static str,
    flows: u32,
    least: f64,
    median: f64,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut lab = Ebpf::load(LAB_OBJECT)?;
        for name in ["null", "restore", "floor_swap", "floor_lru", "table_lru", "table_hash"] {
            let program: &mut Xdp = lab.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        let jump = ProgramArray::try_from(lab.take_map("jump").context("jump")?)?;
        let template = Array::try_from(lab.take_map("template").context("template")?)?;
        Ok(Self { lab, jump, template })
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        Ok(self.lab.program(name).context("a lab program")?.try_into()?)
    }

    /// Nanoseconds of one run, wrapper included.
    fn round(&mut self, program: &ProgramFd, packet: &[u8], flows: u32, from: u32) -> Result<f64> {
        let mut frame = packet.to_vec();
        frame.resize(frame.len().max(HEAD), 0);
        let mut head = [0; HEAD / 8];
        for (word, bytes) in head.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        self.template.set(0, Template { head, flows, run: from }, 0)?;
        self.jump.set(0, program, 0)?;
        let options = TestRunOptions { data_in: Some(&frame), repeat: RUNS, ..TestRunOptions::default() };
        let took: Duration = self.program("restore")?.test_run(options)?.duration;
        Ok(took.as_nanos() as f64)
    }
}

fn main() -> Result<()> {
    let mut bench = Bench::new()?;
    let backends: Vec<String> = (1..=8).map(|n| format!("10.0.1.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut world = World::new(262_144)?;
    world.service("10.0.0.10:80", &backends)?;
    world.apply()?;
    let (client, vip) = ("192.0.2.7:4096".parse()?, "10.0.0.10:80".parse()?);
    let (syn, ack) = (tcp(client, vip, SYN).payload(&[7; 30]).build(), tcp(client, vip, ACK).payload(&[7; 30]).build());
    let mut other = tcp(client, "10.0.0.77:80".parse()?, ACK);
    other.payload = vec![7; 30];
    let other = other.build();
    let balancer = world.plane.program()?.fd()?.try_clone()?;

    println!("{}", std::fs::read_to_string("/proc/version")?.trim());
    println!("{RUNS} runs a round, {ROUNDS} rounds, ns per packet net of the harness\n");
    println!("{:<28} {:>9} {:>8} {:>8} {:>8}", "PROGRAM", "FLOWS", "LEAST", "MEDIAN", "x FLOOR");
    let mut lines = Vec::new();
    for flows in [1, 4_096, 65_536] {
        // Every flow of the round exists before it begins.
        bench.round(&balancer, &syn, flows, 0)?;
        let cases = [("floor: parse + swap", "floor_swap", &ack), ("floor: parse + LRU lookup", "floor_lru", &ack)];
        measure(&mut bench, &mut lines, flows, &cases, Some(("lb, known flow", &balancer, &ack)))?;
    }
    measure(
        &mut bench,
        &mut lines,
        1,
        &[("floor: parse + LRU lookup", "floor_lru", &ack)],
        Some(("lb, not ours", &balancer, &other)),
    )?;
    let before = world.plane.counters()?.of(Reason::ForwardedTx);
    let new = [("two entries, LRU hash", "table_lru", &syn), ("two entries, plain hash", "table_hash", &syn)];
    measure(&mut bench, &mut lines, 1 << 27, &new, Some(("lb, always new", &balancer, &syn)))?;
    let forwarded = world.plane.counters()?.of(Reason::ForwardedTx) - before;
    let wanted = u64::from(RUNS) * ROUNDS as u64;
    println!("\n{forwarded} of {wanted} always-new packets were forwarded");
    ensure!(forwarded * 100 > wanted * 99, "the always-new line is not about new flows");
    let rows: Vec<_> = lines
        .iter()
        .map(|line| json!({ "program": line.name, "flows": line.flows, "least_ns": line.least, "median_ns": line.median }))
        .collect();
    let file = "bench-packets.json";
    std::fs::write(file, serde_json::to_string_pretty(&json!({ "runs": RUNS, "rounds": ROUNDS, "lines": rows }))?)?;
    println!("written to {file}");
    Ok(())
}

/// Measures some lab programs and the balancer, interleaved, and prints a line for each.
fn measure(
    bench: &mut Bench,
    lines: &mut Vec<Line>,
    flows: u32,
    lab: &[(&'static str, &str, &Vec<u8>)],
    balancer: Option<(&'static str, &ProgramFd, &Vec<u8>)>,
) -> Result<()> {
    let null = bench.program("null")?.fd()?.try_clone()?;
    let mut programs = Vec::new();
    for (name, program, packet) in lab {
        programs.push((*name, bench.program(program)?.fd()?.try_clone()?, *packet));
    }
    if let Some((name, program, packet)) = balancer {
        programs.push((name, program.try_clone()?, packet));
    }
    let mut times = vec![Vec::new(); programs.len()];
    for round in 0..ROUNDS as u32 {
        let from = if flows > RUNS { round * RUNS } else { 0 };
        for ((_, program, packet), times) in programs.iter().zip(&mut times) {
            let harness = bench.round(&null, packet, flows, from)?;
            times.push((bench.round(program, packet, flows, from)? - harness).max(0.0));
        }
    }
    let mut floor = None;
    for ((name, ..), mut times) in programs.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let line = Line { name, flows, least: times[0], median: times[ROUNDS / 2] };
        if name.contains("LRU lookup") {
            floor = Some(line.least);
        }
        let ratio = floor.map_or_else(|| "-".to_owned(), |floor| format!("{:.2}", line.least / floor.max(1.0)));
        println!("{name:<28} {flows:>9} {:>8.0} {:>8.0} {ratio:>8}", line.least, line.median);
        lines.push(line);
    }
    Ok(())
}
