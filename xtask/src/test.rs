//! `cargo xtask test`: every tier, then one line that says how many passed.
//!
//! Tests are built by cargo as the user, and their binaries run as root, because they load programs into the kernel
//! and make network namespaces. A tier that cannot run has failed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    setup::{Part, setup},
    shell::{cargo, output, privileged, typed},
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
}

/// Runs all tests.
pub fn test() -> Result<()> {
    setup(Part::Test)?;
    let before = leftovers();
    let mut binaries = build()?;
    binaries.sort_by(|a, b| (a.tier, &a.name).cmp(&(b.tier, &b.name)));
    let mut total = Counts::default();
    for binary in &binaries {
        let counts = run(binary)?;
        eprintln!(
            "  {:<10} {:<16} {} passed, {} failed",
            binary.tier.name(),
            binary.name,
            counts.passed,
            counts.failed
        );
        total.passed += counts.passed;
        total.failed += counts.failed;
    }
    for left in leftovers().into_iter().filter(|left| !before.contains(left)) {
        eprintln!("left behind: {left}");
        total.failed += 1;
    }
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
    crate::shell::run(cargo().args(["build", "--package", "lb-userspace", "--bin", "lb"]))?;
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

fn run(binary: &Binary) -> Result<Counts> {
    let (mut counts, text) = execute(binary, &[])?;
    if counts.failed == 0 {
        return Ok(counts);
    }
    println!("{text}");
    if !matches!(binary.tier, Tier::EndToEnd | Tier::Serial) {
        return Ok(counts);
    }
    // Real servers on a loaded machine: what fails beside others is tried once more, alone, and said to have been.
    for name in failures(&text) {
        let (again, text) = execute(binary, &["--exact", &name, "--test-threads=1"])?;
        if again == (Counts { passed: 1, failed: 0 }) {
            eprintln!("  {} {name}: passed only at the second try, alone", binary.name);
            counts = Counts { passed: counts.passed + 1, failed: counts.failed - 1 };
        } else {
            println!("{text}");
        }
    }
    Ok(counts)
}

/// Runs a test binary; gives what it counted and what it printed.
fn execute(binary: &Binary, arguments: &[&str]) -> Result<(Counts, String)> {
    let mut command = privileged(&binary.path);
    if binary.tier == Tier::Serial {
        command.arg("--test-threads=1");
    }
    command.args(arguments.iter().filter(|argument| binary.tier != Tier::Serial || !argument.starts_with("--test-")));
    let output = command.current_dir(&binary.directory).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("run {}", binary.path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(mut counts) = counts(&text) else {
        bail!("{} ended without a result ({}):\n{text}", binary.name, output.status);
    };
    if !output.status.success() {
        counts.failed = counts.failed.max(1);
    }
    Ok((counts, text))
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
    Some(Counts { passed: number("passed")?, failed: number("failed")? })
}

/// Network namespaces and pins of the project's labs whose process is gone.
fn leftovers() -> Vec<String> {
    let namespaces = output(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
    let namespaces = namespaces.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
    let pins = std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
    let pins = pins.map(|entry| entry.file_name().to_string_lossy().into_owned());
    namespaces
        .chain(pins)
        .filter(|name| maker(name).is_some_and(|pid| !Path::new("/proc").join(pid).exists()))
        .collect()
}

/// The number of the process that made a thing of this name: `lb-WHAT-PID-...`.
fn maker(name: &str) -> Option<&str> {
    let pid = name.strip_prefix("lb-")?.split('-').nth(1)?;
    pid.bytes().all(|byte| byte.is_ascii_digit()).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let text =
            "running 3 tests\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counts(text), Some(Counts { passed: 2, failed: 1 }));
        assert_eq!(counts("running 3 tests\n"), None);
    }

    #[test]
    fn failed_tests_are_found_by_name() {
        let text = "test nat::a ... ok\ntest nat::b ... FAILED\n\nfailures:\n    nat::b\n";
        assert_eq!(failures(text), ["nat::b"]);
    }

    #[test]
    fn names_say_who_made_them() {
        assert_eq!(maker("lb-lab-123-0-client"), Some("123"));
        assert_eq!(maker("lb-e2e-77-1"), Some("77"));
        assert_eq!(maker("lb-something-else"), None);
        assert_eq!(maker("cilium"), None);
    }

    #[test]
    fn names_say_the_tier() {
        assert_eq!(Tier::of("packets", true), Tier::Packets);
        assert_eq!(Tier::of("e2e", true), Tier::EndToEnd);
        assert_eq!(Tier::of("serial", true), Tier::Serial);
        assert_eq!(Tier::of("lb_common", false), Tier::Unit);
    }
}
