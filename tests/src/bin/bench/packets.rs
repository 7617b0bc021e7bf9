//! What a packet costs: the real program beside floor programs, in one run, interleaved.
//!
//! Every round of a line is checked by lb's own counters: how many packets were forwarded, and how many flows begun.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use aya::programs::ProgramFd;
use lb_common::reason::Reason;
use lb_tests::{
    packet::{ACK, BACKEND_MAC, SYN},
    whole::Whole,
    world::World,
};
use lb_userspace::state::Mode;
use serde_json::json;

use crate::{
    harness::{Flows, Harness, Job, LISTED, Listed, both_cpus, stay},
    report::{Report, least_and_median},
};

/// Runs of a round, at least.
const RUNS: u32 = 100_000;
/// Runs of a round in which every one begins a flow: all rounds together leave room in the table.
const NEW_RUNS: u32 = 12_500;
/// Rounds; the least and the median are printed.
const ROUNDS: usize = 11;
/// Flows that balancers live with.
const MANY: u32 = 65_536;
/// Size of the flow table, unless a line needs more: the default.
const TABLE: u32 = lb_common::maps::DEFAULT_MAX_FLOWS;
/// Where new clients are counted from; those of known flows are below.
const FRESH: u32 = 1 << 20;

/// What lb's counters must say of a round.
#[derive(Clone, Copy)]
enum Path {
    /// Not lb.
    Floor,
    /// All forwarded, no flow begun.
    Known,
    /// All forwarded, as many flows begun.
    New,
    /// All passed untouched.
    NotOurs,
}

struct Case {
    name: String,
    program: ProgramFd,
    packet: Vec<u8>,
    flows: Flows,
    path: Path,
    /// How many times the floor it may cost.
    budget: Option<f64>,
}

/// Where a group of lines is measured.
#[derive(Clone, Copy)]
struct Setting {
    mode: Mode,
    /// 4 or 6.
    family: u8,
    services: u32,
    backends: u32,
    table: u32,
}

const PLAIN: Setting = Setting { mode: Mode::Nat, family: 4, services: 1, backends: 16, table: TABLE };

/// Runs it all.
pub fn run() -> Result<()> {
    let mut bench = Bench::new()?;
    stay()?;
    println!(
        "{ROUNDS} rounds of {RUNS} runs or more, ns per packet net of the harness; x = times the floor with an LRU\nlookup, by the least figures and by medians\n"
    );
    let head = ("PROGRAM", "FLOWS", "LEAST", "MEDIAN", "x LEAST", "x MEDIAN", "BUDGET");
    println!("{:<44} {:>8} {:>6} {:>6} {:>8} {:>8} {:>6}", head.0, head.1, head.2, head.3, head.4, head.5, head.6);
    for mode in [Mode::Nat, Mode::Dnat, Mode::Dsr, Mode::Ipip, Mode::Gue] {
        for family in [4, 6] {
            bench.mode(Setting { mode, family, ..PLAIN })?;
        }
    }
    bench.at_both(PLAIN)?;
    bench.large()?;
    bench.report.write()
}

struct Bench {
    harness: Harness,
    report: Report,
    fresh: u32,
    setting: Setting,
}

impl Setting {
    fn world(self) -> Result<World> {
        let mut world = World::new(self.table)?;
        let port = if matches!(self.mode, Mode::Nat | Mode::Dnat) { 8080 } else { 80 };
        for n in 0..self.services {
            let list: Vec<String> = (1..=self.backends)
                .map(|m| match self.family {
                    4 => format!("10.{}.{}.{}:{port}", 128 + n % 64, m >> 8, m & 255),
                    _ => format!("[fd00:1::{m:x}]:{port}"),
                })
                .collect();
            let vip = match self.family {
                4 => SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_000a + n), 80)),
                _ => self.vip(),
            };
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            world.service(&vip.to_string(), &list)?.mode = self.mode;
        }
        world.apply()?;
        Ok(world)
    }

    fn client(self) -> SocketAddr {
        let address =
            if self.family == 4 { [198, 18, 0, 7].into() } else { IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]) };
        SocketAddr::new(address, 4096)
    }

    fn vip(self) -> SocketAddr {
        let address =
            if self.family == 4 { [10, 0, 0, 10].into() } else { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0x10]) };
        SocketAddr::new(address, 80)
    }

    /// A client's segment of 30 bytes.
    fn packet(self, flags: u8) -> Vec<u8> {
        Whole { payload: vec![7; 30], ..Whole::tcp(self.client(), self.vip(), flags) }.frame()
    }

    /// A backend's, whose addresses and ports are those of the listed flows.
    fn reply(self, flags: u8) -> Vec<u8> {
        let mut frame = self.packet(flags);
        frame[6..12].copy_from_slice(&BACKEND_MAC);
        frame
    }

    /// Whether replies pass lb.
    fn translates(self) -> bool {
        matches!(self.mode, Mode::Nat | Mode::Dnat)
    }

    /// What stands in the table: the mode, the family and what is unusual.
    fn name(self, what: &str) -> String {
        let Self { mode, family, services, backends, .. } = self;
        let unusual = match (services, backends) {
            (1, 16) => String::new(),
            (1, backends) => format!(", {backends} backends"),
            (services, _) => format!(", {services} services"),
        };
        format!("lb {mode} IPv{family}, {what}{unusual}")
    }

    fn budgets(self) -> (f64, f64) {
        let (known, new) = match self.mode {
            Mode::Nat | Mode::Dnat => (1.5, 10.0),
            Mode::Dsr | Mode::Ipip => (1.7, 5.0),
            Mode::Gue => (2.0, 5.0),
        };
        if self.family == 4 { (known, new) } else { (1.3 * known, 1.3 * new) }
    }
}

impl Bench {
    fn new() -> Result<Self> {
        let report = Report::new("packets");
        Ok(Self { harness: Harness::new()?, report, fresh: FRESH, setting: PLAIN })
    }

    fn enter(&mut self, setting: Setting) -> Result<World> {
        self.setting = setting;
        println!();
        setting.world()
    }

    /// One mode over one family.
    fn mode(&mut self, setting: Setting) -> Result<()> {
        let mut world = self.enter(setting)?;
        self.known(&mut world, 1, 1)?;
        self.known(&mut world, MANY, 1)?;
        if setting.mode == Mode::Nat && setting.family == 4 {
            self.others(&mut world)?;
        }
        self.new_flows(&mut world, 1, "always new", NEW_RUNS)?;
        if setting.translates() && setting.family == 4 {
            // Now the table and its index are full of flows that have only begun.
            self.new_flows(&mut world, 1, "always new, table full", RUNS)?;
        }
        Ok(())
    }

    /// More flows, services and backends.
    fn large(&mut self) -> Result<()> {
        let mut world = self.enter(Setting { table: 1 << 20, ..PLAIN })?;
        for flows in [4_096, LISTED] {
            self.known(&mut world, flows, 1)?;
        }
        drop(world);
        for (services, backends) in [(100, 16), (10_000, 2), (1, 10_000)] {
            let mut world = self.enter(Setting { services, backends, ..PLAIN })?;
            self.known(&mut world, MANY, services)?;
            self.new_flows(&mut world, services, "always new", NEW_RUNS)?;
        }
        Ok(())
    }

    /// Begins flows and takes them through their handshake; lists what their backends' packets carry.
    fn open(&mut self, world: &mut World, flows: u32, vips: u32) -> Result<ProgramFd> {
        let setting = self.setting;
        let balancer = world.plane.program()?.fd()?.try_clone()?;
        let in_order = Flows::Counted { flows, vips, in_order: true };
        // A SYN whose port or place another flow took at that moment is dropped, and its client tries again.
        let (mut tries, before) = (0, Counted::now(world)?);
        while world.flows().len() < flows as usize {
            tries += 1;
            let counted = Counted::now(world)?.since(&before);
            ensure!(tries < 5, "no {flows} flows after {tries} tries: {:?}, {} begun", counted.seen(), counted.begun);
            self.harness.round(&balancer, Job { packet: &setting.packet(SYN), flows: in_order }, flows)?;
        }
        if setting.translates() {
            self.harness.list(&replies(world, flows)?)?;
            let listed = Flows::Listed { flows };
            self.harness.round(&balancer, Job { packet: &setting.reply(SYN | ACK), flows: listed }, flows)?;
        }
        self.harness.round(&balancer, Job { packet: &setting.packet(ACK), flows: in_order }, flows)?;
        Ok(balancer)
    }

    fn floor(&self, flows: Flows) -> Result<Case> {
        let (name, program) = ("floor: parse + LRU lookup + TX".to_owned(), self.harness.program("floor_lru")?);
        Ok(Case { name, program, packet: PLAIN.packet(ACK), flows, path: Path::Floor, budget: None })
    }

    /// Known flows in both directions, beside the floors at as many flows.
    fn known(&mut self, world: &mut World, flows: u32, vips: u32) -> Result<()> {
        let setting = self.setting;
        let program = self.open(world, flows, vips)?;
        // The floor's flows are made in the order in which lb's are, and met in another.
        let (floor, made) = (self.harness.program("floor_lru")?, Flows::Counted { flows, vips: 1, in_order: true });
        self.harness.round(&floor, Job { packet: &PLAIN.packet(ACK), flows: made }, flows)?;
        let counted = Flows::Counted { flows, vips, in_order: false };
        let mut cases = vec![self.floor(Flows::Counted { flows, vips: 1, in_order: false })?];
        if setting.mode == Mode::Nat {
            let (name, program) = ("floor: parse + swap + TX".to_owned(), self.harness.program("floor_swap")?);
            cases.push(Case {
                name,
                program,
                packet: PLAIN.packet(ACK),
                flows: counted,
                path: Path::Floor,
                budget: None,
            });
        }
        let budget = Some(setting.budgets().0);
        let client = setting.name(if setting.translates() { "known, from the client" } else { "known flow" });
        let (packet, reply) = (setting.packet(ACK), setting.reply(ACK));
        cases.push(Case {
            name: client,
            program: program.try_clone()?,
            packet,
            flows: counted,
            path: Path::Known,
            budget,
        });
        if setting.translates() {
            let (name, flows) = (setting.name("known, from the backend"), Flows::Listed { flows });
            cases.push(Case { name, program, packet: reply, flows, path: Path::Known, budget });
        }
        self.measure(world, flows, RUNS.max(flows), &cases)
    }

    fn others(&mut self, world: &mut World) -> Result<()> {
        let flows = Flows::Counted { flows: 1, vips: 1, in_order: true };
        let program = world.plane.program()?.fd()?.try_clone()?;
        let to = SocketAddr::from(([10, 200, 0, 1], 80));
        let packet = Whole { payload: vec![7; 30], ..Whole::tcp(PLAIN.client(), to, ACK) }.frame();
        let (name, budget) = ("lb, not ours: passed".to_owned(), Some(0.8));
        let cases = [self.floor(flows)?, Case { name, program, packet, flows, path: Path::NotOurs, budget }];
        self.measure(world, 1, RUNS, &cases)
    }

    fn new_flows(&mut self, world: &mut World, vips: u32, what: &str, runs: u32) -> Result<()> {
        let setting = self.setting;
        let balancer = world.plane.program()?.fd()?.try_clone()?;
        let new = Flows::New { from: 0, vips };
        let syn = setting.packet(SYN);
        let mut cases = vec![self.floor(Flows::Counted { flows: 1, vips: 1, in_order: true })?];
        let tables = [
            ("two entries into an LRU hash, no more", "table_lru"),
            ("two into a hash and out, no more", "table_hash"),
        ];
        for (name, program) in tables.into_iter().filter(|_| setting.mode == Mode::Nat && setting.family == 4) {
            let (name, program, packet) = (name.to_owned(), self.harness.program(program)?, syn.clone());
            cases.push(Case { name, program, packet, flows: new, path: Path::Floor, budget: None });
        }
        let (name, budget) = (setting.name(what), Some(setting.budgets().1));
        cases.push(Case { name, program: balancer, packet: syn, flows: new, path: Path::New, budget });
        self.measure(world, 0, runs, &cases)
    }

    /// Measures some programs, interleaved, and prints a line for each; the first is the floor.
    fn measure(&mut self, world: &World, flows: u32, runs: u32, cases: &[Case]) -> Result<()> {
        let null = self.harness.program("null")?;
        let mut times = vec![Vec::new(); cases.len()];
        for _ in 0..ROUNDS {
            for (case, times) in cases.iter().zip(&mut times) {
                let flows = match case.flows {
                    Flows::New { vips, .. } => Flows::New { from: self.fresh, vips },
                    known => known,
                };
                let job = Job { packet: &case.packet, flows };
                let harness = self.harness.round(&null, job, runs)?;
                let before = Counted::now(world)?;
                let took = self.harness.round(&case.program, job, runs)?;
                let counted = Counted::now(world)?.since(&before);
                counted.check(&case.name, case.path, runs)?;
                if matches!(flows, Flows::New { .. }) {
                    self.fresh += runs;
                }
                times.push((took - harness).max(0.0));
            }
        }
        let floor = least_and_median(&times[0]);
        for (case, times) in cases.iter().zip(times) {
            self.line(case, flows, runs, &times, floor);
        }
        Ok(())
    }

    fn line(&mut self, case: &Case, flows: u32, runs: u32, times: &[f64], floor: (f64, f64)) {
        let (least, median) = least_and_median(times);
        let most = times.iter().copied().fold(0.0, f64::max);
        let ratios = (least / floor.0.max(1.0), median / floor.1.max(1.0));
        let number = if flows == 0 { "new".to_owned() } else { flows.to_string() };
        let budget = case.budget.map_or_else(String::new, |budget| format!("{budget:.1}"));
        let name = &case.name;
        println!("{name:<44} {number:>8} {least:>6.0} {median:>6.0} {:>8.2} {:>8.2} {budget:>6}", ratios.0, ratios.1);
        let Setting { mode, family, services, backends, table } = self.setting;
        self.report.add(json!({
            "program": name, "mode": mode.to_string(), "family": family, "services": services, "backends": backends,
            "table": table, "flows": number, "least_ns": least, "median_ns": median, "most_ns": most,
            "rounds": times.len(), "runs": runs, "of_floor_least": ratios.0, "of_floor_median": ratios.1,
            "budget": case.budget,
        }));
    }

    /// Two CPUs at once: both with clients' packets, one with clients' and one with backends' of the same flows, and both
    /// with new flows.
    fn at_both(&mut self, setting: Setting) -> Result<()> {
        if aya::util::nr_cpus().map_or(1, |cpus| cpus) < 2 {
            println!("one CPU only: nothing at once");
            return Ok(());
        }
        let mut world = self.enter(setting)?;
        let balancer = self.open(&mut world, MANY, 1)?;
        let (client, reply, syn) = (setting.packet(ACK), setting.reply(ACK), setting.packet(SYN));
        let known = Job { packet: &client, flows: Flows::Counted { flows: MANY, vips: 1, in_order: false } };
        let replies = Job { packet: &reply, flows: Flows::Listed { flows: MANY } };
        for (what, jobs) in
            [("known", Some([known; 2])), ("known, replies on the other", Some([known, replies])), ("always new", None)]
        {
            let (mut alone, mut together) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let new = |from| Job { packet: &syn, flows: Flows::New { from, vips: 1 } };
                let before = Counted::now(&world)?;
                let frames = self.harness.aim(&balancer, &jobs.unwrap_or([new(self.fresh); 2]))?;
                alone.push(both_cpus(self.harness.restore()?, &frames, 1, RUNS)?);
                let frames = self.harness.aim(&balancer, &jobs.unwrap_or([new(self.fresh + RUNS); 2]))?;
                together.push(both_cpus(self.harness.restore()?, &frames, 2, RUNS)?);
                self.fresh += 2 * RUNS;
                let path = if jobs.is_none() { Path::New } else { Path::Known };
                Counted::now(&world)?.since(&before).check(what, path, 3 * RUNS)?;
            }
            let (one, both) = (least_and_median(&alone), least_and_median(&together));
            let ratios = (2.0 * one.0 / both.0, 2.0 * one.1 / both.1);
            let name = setting.name(&format!("both CPUs: {what}"));
            println!("{name:<60} throughput {:.2} times one's (medians {:.2})", ratios.0, ratios.1);
            self.report.add(json!({ "program": name, "flows": MANY, "one_cpu_ns": one.0, "two_cpus_ns": both.0,
                "times_one_least": ratios.0, "times_one_median": ratios.1 }));
        }
        Ok(())
    }
}

/// What a round did, by lb's own counters.
struct Counted {
    reasons: Vec<u64>,
    begun: u64,
}

impl Counted {
    fn now(world: &World) -> Result<Self> {
        let counters = world.plane.counters()?;
        Ok(Self { reasons: counters.reasons, begun: counters.traffic.values().map(|traffic| traffic.flows).sum() })
    }

    fn since(&self, before: &Self) -> Self {
        let reasons = self.reasons.iter().zip(&before.reasons).map(|(after, before)| after - before).collect();
        Self { reasons, begun: self.begun - before.begun }
    }

    /// What packets were counted under.
    fn seen(&self) -> Vec<(&'static str, u64)> {
        let all = Reason::ALL.iter().map(|reason| (reason.name(), self.reasons[*reason as usize]));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Every run took the path that the line says. Of new flows a few in a hundred may not come about: a full table of
    /// flows that have only begun.
    fn check(&self, name: &str, path: Path, runs: u32) -> Result<()> {
        let of = |reason: Reason| self.reasons[reason as usize];
        let (runs, forwarded) = (u64::from(runs), of(Reason::ForwardedTx) + of(Reason::ForwardedRedirect));
        let right = match path {
            Path::Floor => self.reasons.iter().all(|count| *count == 0),
            Path::Known => (forwarded, self.begun) == (runs, 0),
            Path::New => self.begun.abs_diff(forwarded) * 100 <= runs && forwarded * 100 >= runs * 95,
            Path::NotOurs => of(Reason::NotOurs) == runs,
        };
        let (seen, begun) = (self.seen(), self.begun);
        ensure!(right, "'{name}' was not about what it says: {runs} packets were {seen:?}, {begun} flows were begun");
        Ok(())
    }
}

/// What the backends' packets of all flows carry, in no order.
fn replies(world: &World, most: u32) -> Result<Vec<Listed>> {
    let flows = world.flows();
    ensure!(flows.len() >= most as usize, "{} flows of {most}", flows.len());
    let mut replies: Vec<Listed> = flows.iter().map(|flow| Listed::of(flow.backend)).take(most as usize).collect();
    replies.sort_by_key(|reply| lb_common::hash::mix(reply.addresses[0] ^ reply.addresses[3], u64::from(reply.ports)));
    Ok(replies)
}
