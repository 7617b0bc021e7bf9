//! Which time it is in the kernel, and how the data path may know without asking.

use aya::{
    Ebpf,
    maps::Array,
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::clock::{Jiffies, ticks};
use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::{Error, Result, error::Context as _};

/// A program that reads both of the kernel's coarse clocks.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/clock.bpf.o"));
/// Bytes of the shortest frame that a test run takes.
const FRAME: usize = 64;

/// Times that both clocks are read.
const READINGS: u32 = 5;

/// Now, in ticks of the data path's clock.
#[must_use]
pub fn now() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| ticks(nanoseconds(time)))
}

/// How ticks are made of jiffies here. Where that cannot be found out, the data path reads the clock itself: some
/// nanoseconds more for each packet.
pub fn jiffies() -> Jiffies {
    calibrate().unwrap_or_else(|error| {
        tracing::debug!(%error, "the data path reads the clock by a call");
        Jiffies::default()
    })
}

fn calibrate() -> Result<Jiffies> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC).map(nanoseconds).context("ask how fine the clock is")?;
    if resolution != 1 {
        // Without high-resolution timers jiffies count interrupts, and drift.
        return Err(Error::failed(format!("the clock's resolution is {resolution} ns")));
    }
    let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(nanoseconds).context("ask how long a jiffy is")?;
    let mut object = Ebpf::load(OBJECT).context("load the program 'clock'")?;
    program(&mut object)?.load().context("load the program 'clock'")?;
    let mut best = None;
    for _ in 0..READINGS {
        let reading = read(&mut object)?;
        let jiffies = Jiffies::calibrated(length, reading[0], reading[1]);
        // Whatever came between the two readings made the offset larger.
        best =
            best.filter(|best: &Jiffies| best.offset.wrapping_sub(jiffies.offset).cast_signed() <= 0).or(Some(jiffies));
    }
    best.ok_or_else(|| Error::failed("the clock was not read"))
}

/// Jiffies and nanoseconds, read one after the other.
fn read(object: &mut Ebpf) -> Result<[u64; 2]> {
    let options = TestRunOptions { data_in: Some(&[0; FRAME]), ..TestRunOptions::default() };
    program(object)?.test_run(options).context("run the program 'clock'")?;
    let map = object.map("readings").ok_or_else(|| Error::failed("the map 'readings' is missing"))?;
    let readings: Array<_, [u64; 2]> = map.try_into().context("open the map 'readings'")?;
    readings.get(&0, 0).context("read the map 'readings'")
}

fn program(object: &mut Ebpf) -> Result<&mut Xdp> {
    object
        .program_mut("clock")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::failed("the program 'clock' is missing"))
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
}
