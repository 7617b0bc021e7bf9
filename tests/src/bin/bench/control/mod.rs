//! How long changes take, what things weigh, and what an idle daemon costs.
//!
//! * [`tables`]: computing tables and writing them to the maps, by the control plane's own code
//! * [`flows`]: the daemon with a million connections
//! * [`daemon`]: the daemon with ten thousand services, and with ten thousand health checks

mod daemon;
mod flows;
mod tables;

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::report::{Report, least_and_median};

/// Runs it all.
pub fn run() -> Result<()> {
    let mut report = Report::new("control");
    println!("{:<76} {:>12} {:>12}  GOAL", "WHAT", "LEAST", "MEDIAN");
    tables::run(&mut report)?;
    flows::run(&mut report)?;
    daemon::run(&mut report)?;
    report.write()
}

/// A line of times.
fn line(report: &mut Report, what: &str, ms: &[f64], goal: &str) {
    let (least, median) = least_and_median(ms);
    println!("{what:<76} {least:>9.2} ms {median:>9.2} ms  {goal}");
    report.add(json!({ "what": what, "least_ms": least, "median_ms": median, "times": ms.len(), "goal": goal }));
}

/// A line of bytes.
fn weight(report: &mut Report, what: &str, bytes: u64) {
    println!("{what:<76} {bytes:>12} bytes");
    report.add(json!({ "what": what, "bytes": bytes }));
}

/// A line of a process's CPU time, and how many of a million of something that is.
fn share(report: &mut Report, what: &str, percent: f64, goal: &str) {
    println!("{what:<76} {percent:>10.2} % of a CPU     {goal}");
    report.add(json!({ "what": what, "percent_of_a_cpu": percent, "goal": goal }));
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Memory of a process that is its own, without what it has mapped of the kernel's.
fn resident(process: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().split(' ').next());
    Ok(anonymous.context("RssAnon")?.parse::<u64>()? * 1024)
}

/// Seconds of CPU that a process has used, in user space and in the kernel.
fn cpu_time(process: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? / 100.0, fields[12].parse::<f64>()? / 100.0))
}
