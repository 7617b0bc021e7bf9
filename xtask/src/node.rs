//! Packages of npm that the apps of examples/ need (pm2, consul, ..): installed beside the build, not globally.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::shell::{root, run};

/// Installs what examples/package-lock.json says in target/tools/node, if that is not there yet.
pub fn provide() -> Result<()> {
    let (examples, directory) = (root().join("examples"), root().join("target/tools/node"));
    let lock = fs::read(examples.join("package-lock.json")).context("examples/package-lock.json")?;
    let installed = directory.join("installed.json");
    if fs::read(&installed).is_ok_and(|known| known == lock) {
        return Ok(());
    }
    eprintln!("xtask: installing npm packages for the examples (in target/, not globally)");
    fs::create_dir_all(&directory)?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(examples.join(name), directory.join(name)).with_context(|| format!("copy examples/{name}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--cache"]);
    run(npm.arg(directory.join("cache")).current_dir(&directory))?;
    // Last, so that what was broken off is done again.
    Ok(fs::write(installed, lock)?)
}
