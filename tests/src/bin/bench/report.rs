//! Where and when figures were measured, and writing them down.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a benchmark found.
pub struct Report {
    name: &'static str,
    begun: Value,
    lines: Vec<Value>,
}

impl Report {
    /// A benchmark begins.
    pub fn new(name: &'static str) -> Self {
        let begun = environment();
        println!("{}", begun["kernel"].as_str().unwrap_or_default());
        let text = |name: &str| begun[name].as_str().unwrap_or_default().to_owned();
        println!(
            "{}, {} CPUs, load {}, JIT {}, commit {}\n",
            text("cpu"),
            begun["cpus"],
            text("load"),
            text("bpf_jit"),
            text("commit")
        );
        Self { name, begun, lines: Vec::new() }
    }

    /// Adds a line to the JSON.
    pub fn add(&mut self, line: Value) {
        self.lines.push(line);
    }

    /// Writes `bench-NAME.json`.
    pub fn write(self) -> Result<()> {
        let file = format!("bench-{}.json", self.name);
        let ended = environment();
        println!("\nload {} at the end", ended["load"].as_str().unwrap_or_default());
        let all = json!({ "begun": self.begun, "ended": ended, "lines": self.lines });
        fs::write(&file, serde_json::to_string_pretty(&all)?).with_context(|| format!("write {file}"))?;
        println!("written to {file}");
        Ok(())
    }
}

/// Kernel, CPU, how many, how busy.
fn environment() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
        "kernel": read("/proc/version").trim(),
        "cpu": cpu.unwrap_or_else(|| "unknown CPU".to_owned()),
        "cpus": aya::util::nr_cpus().unwrap_or(1),
        "load": load,
        "bpf_jit": read("/proc/sys/net/core/bpf_jit_enable").trim(),
        "bpf_jit_harden": read("/proc/sys/net/core/bpf_jit_harden").trim(),
        "driver": "veth (packets: none, BPF_PROG_TEST_RUN)",
        "commit": commit(),
        "unix_time": std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
    })
}

/// The commit that is checked out, and whether files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { format!("{commit}, changed") } else { commit }
}

/// Least and median of some figures.
pub fn least_and_median(figures: &[f64]) -> (f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted.first().copied().unwrap_or(0.0), sorted.get(sorted.len() / 2).copied().unwrap_or(0.0))
}
