//! `cargo xtask bench`: what a packet costs, beside floor programs.

use anyhow::Result;

use crate::{
    setup::{Part, setup},
    shell::{cargo, privileged, root, run},
};

/// Builds the benchmark and runs it as root.
pub fn bench() -> Result<()> {
    setup(Part::Test)?;
    run(cargo().args(["build", "--release", "--package", "lb-tests", "--bin", "bench"]))?;
    run(privileged(root().join("target/release/bench")).current_dir(root()))
}
