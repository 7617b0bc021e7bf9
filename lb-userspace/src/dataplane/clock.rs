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
    let length = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(nanoseconds).context("ask how long a jiffy is")?;
    let mut object = Ebpf::load(OBJECT).context("load the program 'clock'")?;
    let program: &mut Xdp = object
        .program_mut("clock")
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::failed("the program 'clock' is missing"))?;
    program.load().context("load the program 'clock'")?;
    let options = TestRunOptions { data_in: Some(&[0; FRAME]), ..TestRunOptions::default() };
    program.test_run(options).context("run the program 'clock'")?;
    let map = object.map("readings").ok_or_else(|| Error::failed("the map 'readings' is missing"))?;
    let readings: Array<_, [u64; 2]> = map.try_into().context("open the map 'readings'")?;
    let [jiffies, time] = readings.get(&0, 0).context("read the map 'readings'")?;
    Ok(Jiffies::calibrated(length, jiffies, time))
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
}
