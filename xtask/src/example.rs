//! `cargo xtask example NAME`: a scenario of docs/scenarios/, in a lab of its own.

use anyhow::Result;

use crate::{
    setup::{Part, setup},
    shell::{cargo, privileged, root, run},
};

/// Builds lb and the scenarios, and runs one as root; without a name, says which there are.
pub fn example(name: Option<&str>) -> Result<()> {
    setup(Part::Test)?;
    run(cargo().args(["build", "--workspace", "--exclude", "lb-ebpf", "--bin", "lb", "--bin", "example"]))?;
    run(privileged(root().join("target/debug/example")).args(name).current_dir(root()))
}
