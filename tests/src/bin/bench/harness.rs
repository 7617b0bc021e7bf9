//! Running a program many times over a packet that is made anew before every run.
//!
//! `BPF_PROG_TEST_RUN` does not restore the packet between runs, so the wrapper `restore` (lb-ebpf/src/lab.rs) does, undoes
//! encapsulation, and makes it a packet of the next flow. What the wrapper costs is what the program `null` costs behind
//! it, measured in the same round and subtracted.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Barrier,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use lb_userspace::dataplane::{LAB_OBJECT, Side};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Bytes of a packet's head that the wrapper restores.
const HEAD: usize = 64;
/// From one flow's number to the next where they come in no order: odd.
const STRIDE: u32 = 0x9e37_79b1;
/// Flows that can be told apart by address and port.
const NEW: u32 = 1 << 27;
/// Most flows that [`Flows::Listed`] may have.
pub const LISTED: u32 = 1 << 19;

/// As in lb-ebpf/src/lab.rs.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    head: [u64; HEAD / 8],
    length: u32,
    flows: u32,
    run: u32,
    stride: u32,
    vips: u32,
    kind: u32,
    ahead: u32,
    pad: u32,
}

/// As in lb-ebpf/src/lab.rs: addresses and ports of one flow's packets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Listed {
    /// Source and destination, as they stand in the packet; IPv4 in the first word.
    pub addresses: [u64; 4],
    /// Source and destination port, as they stand in the packet.
    pub ports: u32,
    /// Zero.
    pub pad: u32,
}

// SAFETY: `repr(C)`, no padding, valid for every bit pattern.
unsafe impl Pod for Template {}
// SAFETY: as above.
unsafe impl Pod for Listed {}

impl Listed {
    /// What one direction's packets carry.
    pub fn of(side: Side) -> Self {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let mut addresses = [0; 4];
        match (side.from.ip(), side.to.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                for (address, bytes) in addresses.iter_mut().zip([from.octets(), to.octets()].concat().chunks(8)) {
                    *address = word(bytes);
                }
            }
            (from, to) => {
                let octets = |address| if let IpAddr::V4(v4) = address { v4.octets() } else { [0; 4] };
                addresses[0] = word(&[octets(from), octets(to)].concat());
            }
        }
        let port = |place: SocketAddr| u32::from(place.port().to_be());
        Self { addresses, ports: port(side.from) | port(side.to) << 16, pad: 0 }
    }
}

/// Which flows the packets belong to, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// So many (a power of two) by source address and port, and so many VIPs from the packet's own on. In the order of
    /// their numbers when `in_order`, else all over the place, as in life.
    Counted { flows: u32, vips: u32, in_order: bool },
    /// Never one that was there before in this benchmark: number `from` and the next ones.
    New { from: u32, vips: u32 },
    /// So many of those in [`Harness::list`].
    Listed { flows: u32 },
}

/// What is run many times.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The packet, as it is before every run but for its flow.
    pub packet: &'a [u8],
    /// Whose packet it is, run by run.
    pub flows: Flows,
}

/// See the module.
pub struct Harness {
    lab: Ebpf,
    jump: ProgramArray<MapData>,
    template: PerCpuArray<MapData, Template>,
    listed: Array<MapData, Listed>,
}

impl Harness {
    /// Loads the lab's programs.
    pub fn new() -> Result<Self> {
        let mut lab = Ebpf::load(LAB_OBJECT)?;
        for name in ["null", "restore", "floor_swap", "floor_lru", "table_lru", "table_hash"] {
            let program: &mut Xdp = lab.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        let jump = ProgramArray::try_from(lab.take_map("jump").context("jump")?)?;
        let template = PerCpuArray::try_from(lab.take_map("template").context("template")?)?;
        let listed = Array::try_from(lab.take_map("listed").context("listed")?)?;
        Ok(Self { lab, jump, template, listed })
    }

    /// One of the lab's programs.
    pub fn program(&self, name: &str) -> Result<ProgramFd> {
        let program: &Xdp = self.lab.program(name).context("a lab program")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Says what [`Flows::Listed`] means.
    pub fn list(&mut self, flows: &[Listed]) -> Result<()> {
        for (index, flow) in (0..LISTED).zip(flows) {
            self.listed.set(index, flow, 0)?;
        }
        Ok(())
    }

    /// The program that restores and calls what [`Harness::aim`] says; for running it on several CPUs.
    pub fn restore(&self) -> Result<&Xdp> {
        Ok(self.lab.program("restore").context("restore")?.try_into()?)
    }

    /// Prepares runs on every CPU, in turn for each of some jobs; gives the frames to run them with.
    pub fn aim(&mut self, program: &ProgramFd, jobs: &[Job<'_>]) -> Result<Vec<Vec<u8>>> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let frames: Vec<_> = jobs.iter().map(|job| frame(job.packet)).collect();
        let templates: Result<Vec<_>> = (0u32..)
            .zip(jobs.iter().zip(&frames).cycle())
            .map(|(cpu, (job, frame))| Template::new(frame, job.flows, cpu))
            .take(cpus)
            .collect();
        self.template.set(0, PerCpuValues::try_from(templates?)?, 0)?;
        self.jump.set(0, program, 0)?;
        Ok(frames)
    }

    /// Nanoseconds of one run, wrapper included.
    pub fn round(&mut self, program: &ProgramFd, job: Job<'_>, runs: u32) -> Result<f64> {
        let frames = self.aim(program, &[job])?;
        once(self.restore()?, &frames[0], runs)
    }
}

/// The packet, with room for what is restored.
fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = packet.to_vec();
    frame.resize(frame.len().max(HEAD), 0);
    frame
}

impl Template {
    fn new(frame: &[u8], flows: Flows, cpu: u32) -> Result<Self> {
        let mut head = [0; HEAD / 8];
        for (word, bytes) in head.iter_mut().zip(frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let length = frame.len() as u32;
        // CPUs do not follow each other through the flows.
        let run = cpu.wrapping_mul(0x2545_f491);
        let plain = Self { head, length, flows: 1, run, stride: 1, vips: 1, kind: 0, ahead: 0, pad: 0 };
        Ok(match flows {
            Flows::Counted { flows, vips, in_order } => {
                Self { flows, vips, stride: if in_order { 1 } else { STRIDE }, ..plain }
            }
            Flows::New { from, vips } => Self { flows: NEW, run: from.wrapping_add(cpu * (NEW / 4)), vips, ..plain },
            Flows::Listed { flows } => Self { flows, stride: STRIDE, kind: 1, ..plain },
        })
    }
}

/// Nanoseconds of one run.
pub fn once(program: &Xdp, frame: &[u8], runs: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat: runs, ..TestRunOptions::default() };
    let result = program.test_run(options)?;
    let took: Duration = result.duration;
    ensure!(result.return_value != 0, "the last run was aborted");
    Ok(took.as_nanos() as f64)
}

/// This thread runs on the last CPU from now on: the first has most of the interrupts.
pub fn stay() -> Result<()> {
    on_cpu(nr_cpus().map_err(|(_, error)| error)?.saturating_sub(1))
}

fn on_cpu(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

/// Nanoseconds of one run, wrapper included, with a thread on each of the first CPUs at once; the slowest one's.
pub fn both_cpus(program: &Xdp, frames: &[Vec<u8>], cpus: usize, runs: u32) -> Result<f64> {
    let barrier = Barrier::new(cpus);
    let times: Result<Vec<f64>> = std::thread::scope(|scope| {
        let work = |(cpu, frame): (usize, &Vec<u8>)| {
            let (barrier, frame) = (&barrier, frame.clone());
            scope.spawn(move || {
                let placed = on_cpu(cpu);
                barrier.wait();
                placed.and_then(|()| once(program, &frame, runs))
            })
        };
        let threads: Vec<_> = frames.iter().enumerate().take(cpus).map(work).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread failed"))?).collect()
    });
    Ok(times?.into_iter().fold(0.0, f64::max))
}
