//! `cargo xtask lint`: formatting and lints, warnings as errors.

use anyhow::Result;

use crate::{
    setup::{Part, setup},
    shell::{cargo, run},
};

/// Checks the whole workspace.
pub fn lint() -> Result<()> {
    setup(Part::Build)?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}
