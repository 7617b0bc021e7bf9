//! `cargo xtask run`: builds lb and runs it as root.

use anyhow::{Result, bail};

use crate::{
    setup::{Part, setup},
    shell::{cargo, privileged, root, run as run_command},
};

/// Builds `lb` and runs it with `arguments`; without any, the demo.
pub fn run(arguments: &[String]) -> Result<()> {
    setup(Part::Build)?;
    run_command(cargo().args(["build", "--release", "--package", "lb-userspace", "--bin", "lb"]))?;
    let mut lb = privileged(root().join("target/release/lb"));
    if arguments.is_empty() {
        lb.arg("demo");
    }
    let status = lb.args(arguments).status()?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("lb ended by a signal: {status}"),
    }
}
