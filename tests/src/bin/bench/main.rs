//! lb's benchmarks: `bench packets | e2e | control`, as root. Figures are printed and written to `bench-*.json`; nothing
//! passes or fails on time, but a line that did not measure what its name says is an error.
//!
//! * [`packets`]: what a packet costs, beside floor programs, by `BPF_PROG_TEST_RUN`
//! * [`e2e`]: requests per second through lb and through what one would use instead, in network namespaces
//! * [`control`]: how long changes take, and what things weigh
//! * [`harness`]: running a program many times; [`report`]: tables, JSON, and where it was measured

mod control;
mod e2e;
mod harness;
mod packets;
mod report;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None | Some("packets") => packets::run(),
        Some("e2e") => e2e::run(),
        Some("control") => control::run(),
        Some(other) => bail!("'{other}' is no benchmark: packets, e2e or control"),
    }
}
