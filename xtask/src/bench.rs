//! `cargo xtask bench [packets|e2e|control]`: what a packet costs, what users would notice, and how long changes take.

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::{
    setup::{Part, setup},
    shell::{authenticate, cargo, privileged, root, run},
    test::show,
};

/// Benchmarks; docs/benchmarks.md has their method.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// Nanoseconds per packet, beside floor programs
    Packets,
    /// Requests per second through lb, nftables, HAProxy and nginx
    E2e,
    /// How long changes take, and what things weigh
    Control,
}

/// Builds a benchmark and runs it as root.
pub fn bench(benchmark: Benchmark) -> Result<()> {
    setup(if benchmark == Benchmark::E2e { Part::Bench } else { Part::Test })?;
    run(cargo().args(["build", "--release", "--package", "lb-userspace", "--package", "lb-tests", "--bins"]))?;
    let name = match benchmark {
        Benchmark::Packets => "packets",
        Benchmark::E2e => "e2e",
        Benchmark::Control => "control",
    };
    authenticate()?;
    let status = show(privileged(root().join("target/release/bench")).arg(name).current_dir(root()))?;
    ensure!(status.success(), "the benchmark failed: {status}");
    Ok(())
}
