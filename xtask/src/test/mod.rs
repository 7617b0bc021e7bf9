//! `cargo xtask test`: every tier, then one line that says how many passed.
//!
//! Tests are built by cargo as the user, and their binaries run as root, because they load programs into the kernel
//! and make network namespaces. A tier that cannot run has failed, and so has a test that never ends or leaves
//! something behind. Ctrl-C ends the running tests and removes what they made.

mod leftovers;
mod watch;

pub use watch::show;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    setup::{Part, setup},
    shell::{cargo, privileged, typed},
};

/// Where a test binary belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Unit,
    Packets,
    EndToEnd,
    Serial,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packets => "packets",
            Self::EndToEnd => "end to end",
            Self::Serial => "serial",
        }
    }

    /// By the name of cargo's target: an integration test's is its tier's.
    fn of(target: &str, is_integration: bool) -> Self {
        match target {
            "packets" if is_integration => Self::Packets,
            "e2e" if is_integration => Self::EndToEnd,
            "serial" if is_integration => Self::Serial,
            _ => Self::Unit,
        }
    }
}

/// Tests of a tier that run beside each other; `None`: as many as there are cores.
const fn threads(tier: Tier) -> Option<&'static str> {
    match tier {
        Tier::Unit | Tier::Packets => None,
        // They wait for each other's servers more than they compute.
        Tier::EndToEnd => Some("--test-threads=4"),
        Tier::Serial => Some("--test-threads=1"),
    }
}

struct Binary {
    tier: Tier,
    name: String,
    path: PathBuf,
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    /// Nothing is skipped: an ignored test has failed.
    ignored: u64,
}

/// What became of a test binary.
struct Ran {
    counts: Counts,
    failed: Vec<String>,
    text: String,
}

/// Runs all tests.
pub fn test() -> Result<()> {
    setup(Part::Test)?;
    crate::shell::authenticate()?;
    watch::listen_for_interrupt()?;
    let before = leftovers::find();
    let mut binaries = build()?;
    binaries.sort_by(|a, b| (a.tier, &a.name).cmp(&(b.tier, &b.name)));
    let (mut total, mut failed) = (Counts::default(), Vec::new());
    for binary in &binaries {
        let begun = std::time::Instant::now();
        let ran = run(binary)?;
        let Counts { passed, failed: bad, ignored } = ran.counts;
        let (tier, seconds) = (binary.tier.name(), begun.elapsed().as_secs());
        eprintln!("  {tier:<10} {:<16} {passed} passed, {} failed, {seconds} s", binary.name, bad + ignored);
        total.passed += passed;
        total.failed += bad + ignored;
        failed.extend(ran.failed.into_iter().map(|name| format!("{}::{name}", binary.name)));
        if ignored > 0 {
            failed.push(format!("{}: {ignored} tests are ignored", binary.name));
        }
    }
    for left in leftovers::find().into_iter().filter(|left| !before.contains(left)) {
        failed.push(format!("left behind: {left}"));
        total.failed += 1;
    }
    failed.iter().for_each(|name| println!("failed: {name}"));
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Builds every test binary of the workspace.
fn build() -> Result<Vec<Binary>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--exclude", "lb-ebpf", "--no-run", "--message-format=json"]);
    // End-to-end tests run the binary that a user would.
    crate::shell::run(cargo().args(["build", "--workspace", "--exclude", "lb-ebpf", "--bin", "lb"]))?;
    eprintln!("+ {}", typed(&command));
    let output = command.stderr(Stdio::inherit()).output().context("run cargo")?;
    ensure!(output.status.success(), "building the tests failed: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message| binary(&message))
        .collect())
}

/// The test binary that a message of cargo's tells of.
fn binary(message: &Value) -> Option<Binary> {
    if message["profile"]["test"] != true {
        return None;
    }
    let name = message["target"]["name"].as_str()?.to_owned();
    let is_integration = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Binary {
        tier: Tier::of(&name, is_integration),
        path: message["executable"].as_str()?.into(),
        directory: manifest.parent()?.to_owned(),
        name,
    })
}

fn run(binary: &Binary) -> Result<Ran> {
    let mut ran = execute(binary, &[])?;
    if ran.counts.failed == 0 {
        return Ok(ran);
    }
    println!("{}", ran.text);
    if !matches!(binary.tier, Tier::EndToEnd | Tier::Serial) {
        return Ok(ran);
    }
    // Real servers on a loaded machine: what fails beside others is tried once more, alone, and said to have been.
    for name in std::mem::take(&mut ran.failed) {
        let again = execute(binary, &["--exact", &name])?;
        if again.counts == (Counts { passed: 1, ..Counts::default() }) {
            eprintln!("  {} {name}: passed only at the second try, alone", binary.name);
            ran.counts.passed += 1;
            ran.counts.failed -= 1;
        } else {
            println!("{}", again.text);
            ran.failed.push(name);
        }
    }
    Ok(ran)
}

/// Runs a test binary; gives what it counted and what it printed.
fn execute(binary: &Binary, arguments: &[&str]) -> Result<Ran> {
    let mut command = privileged(&binary.path);
    command.args(threads(binary.tier)).args(arguments).current_dir(&binary.directory);
    let watched = watch::run(&mut command)?;
    let text = watched.text;
    let mut failed = failures(&text);
    let mut counts = counts(&text).unwrap_or_default();
    if let Some(hung) = watched.hung {
        // What ran to its end counts; the test that did not is the one that failed.
        counts = Counts { passed: finished(&text), failed: failed.len() as u64 + 1, ignored: 0 };
        failed.push(hung);
    } else if counts == Counts::default() && !text.contains("running 0 tests") {
        bail!("{} ended without a result ({}):\n{text}", binary.name, watched.status);
    }
    for left in watched.left {
        failed.push(format!("left behind: {left}"));
        counts.failed += 1;
    }
    if !watched.status.success() {
        counts.failed = counts.failed.max(1);
    }
    Ok(Ran { counts, failed, text })
}

/// How many tests passed, by libtest's lines `test NAME ... ok`.
fn finished(text: &str) -> u64 {
    text.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ... ok")).count() as u64
}

/// The tests that failed, by libtest's lines `test NAME ... FAILED`.
fn failures(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    text.lines().filter_map(name).collect()
}

/// Reads libtest's last line: `test result: ok. 3 passed; 0 failed; ...`.
fn counts(text: &str) -> Option<Counts> {
    let line = text.lines().rev().find(|line| line.starts_with("test result:"))?;
    let number = |word: &str| {
        let before = line.split(&format!(" {word}")).next()?;
        before.rsplit([' ', '.']).next()?.parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let text =
            "running 3 tests\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counts(text), Some(Counts { passed: 2, failed: 1, ignored: 0 }));
        assert_eq!(counts("running 3 tests\n"), None);
    }

    #[test]
    fn failed_tests_are_found_by_name() {
        let text = "test nat::a ... ok\ntest nat::b ... FAILED\n\nfailures:\n    nat::b\n";
        assert_eq!(failures(text), ["nat::b"]);
        assert_eq!(finished(text), 1);
    }

    #[test]
    fn names_say_the_tier() {
        assert_eq!(Tier::of("packets", true), Tier::Packets);
        assert_eq!(Tier::of("e2e", true), Tier::EndToEnd);
        assert_eq!(Tier::of("serial", true), Tier::Serial);
        assert_eq!(Tier::of("lb_common", false), Tier::Unit);
    }
}
