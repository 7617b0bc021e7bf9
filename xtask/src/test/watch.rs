//! Running a test binary: in a process group of its own, with a limit on its silence, and an end to it on Ctrl-C.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::leftovers;
use crate::shell::{privileged, typed};

/// Longest time in which no test of a binary ends.
const SILENCE: Duration = Duration::from_secs(300);
/// Time to end by itself after a signal.
const GRACE: Duration = Duration::from_secs(5);

/// Ctrl-C was pressed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What became of a binary.
pub struct Watched {
    pub status: ExitStatus,
    /// What it printed.
    pub text: String,
    /// Processes that it left.
    pub left: Vec<String>,
    /// The tests that did not end, if it had to be killed.
    pub hung: Option<String>,
}

/// From now on Ctrl-C does not end this process: [`run`] looks after it.
pub fn listen_for_interrupt() -> Result<()> {
    extern "C" fn note(_: nix::libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(Signal::SIGINT, SigHandler::Handler(note)) }.context("watch for Ctrl-C")?;
    Ok(())
}

/// Runs a test binary to its end, or until no test has ended for too long.
pub fn run(command: &mut Command) -> Result<Watched> {
    let directory = std::env::temp_dir().join(format!("lb-tests-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    command.env("TMPDIR", &directory).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let watched = watch(command);
    // Root's files may be in it.
    let _ = privileged("rm").arg("-rf").arg(&directory).status();
    watched
}

/// Runs something whose output is for the terminal; nothing of it is left behind when it ends, also by Ctrl-C.
pub fn show(command: &mut Command) -> Result<ExitStatus> {
    listen_for_interrupt()?;
    let directory = std::env::temp_dir().join(format!("lb-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    command.env("TMPDIR", &directory).process_group(0).stdin(Stdio::null());
    let ended = wait(command);
    // Root's files may be in it.
    let _ = privileged("rm").arg("-rf").arg(&directory).status();
    if INTERRUPTED.load(Ordering::Relaxed) {
        std::process::exit(130);
    }
    ended
}

fn wait(command: &mut Command) -> Result<ExitStatus> {
    let mut child = command.spawn().with_context(|| format!("run {}", typed(command)))?;
    let group = child.id();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            eprintln!("interrupted: cleaning up");
            end(group);
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    end(group);
    leftovers::remove();
    Ok(status)
}

fn watch(command: &mut Command) -> Result<Watched> {
    let mut child = command.spawn().with_context(|| format!("run {}", typed(command)))?;
    let mut pipe = child.stdout.take().context("its standard output")?;
    let text = Arc::new(Mutex::new((String::new(), Instant::now())));
    let writer = Arc::clone(&text);
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut bytes) {
            let Ok(mut text) = writer.lock() else { return };
            text.0.push_str(&String::from_utf8_lossy(&bytes[..length]));
            text.1 = Instant::now();
        }
    });
    let extra = std::env::var("LB_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (group, limit) = (child.id(), SILENCE + Duration::from_secs(extra));
    let mut hung = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            eprintln!("interrupted: ending the tests");
            end(group);
            child.wait()?;
            leftovers::remove();
            std::process::exit(130);
        }
        let silent = text.lock().map(|text| text.1.elapsed()).unwrap_or_default();
        if silent > limit && hung.is_none() {
            let names = running(&text.lock().map(|text| text.0.clone()).unwrap_or_default());
            eprintln!("no test has ended for {silent:?}; running: {names}");
            hung = Some(format!("{names} (did not end in {silent:?})"));
            end(group);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // Whoever holds the other end of the pipe is about to be ended.
    let left = if hung.is_some() { Vec::new() } else { leftovers::processes(group) };
    if hung.is_some() || !left.is_empty() {
        end(group);
        leftovers::remove();
    }
    let _ = reader.join();
    let text = text.lock().map(|text| text.0.clone()).unwrap_or_default();
    Ok(Watched { status, text, left, hung })
}

/// Ends a process group: politely, so that what is attached is detached, then for good.
fn end(group: u32) {
    for (signal, grace) in [("-INT", GRACE), ("-KILL", Duration::from_millis(200))] {
        let _ = privileged("kill").args([signal, "--", &format!("-{group}")]).stderr(Stdio::null()).status();
        let begun = Instant::now();
        while begun.elapsed() < grace && !leftovers::processes(group).is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The tests that have begun and not ended, as far as libtest tells: it names those that take over a minute, and a
/// test that runs alone before it begins.
fn running(text: &str) -> String {
    let over = |line: &str| Some(line.strip_prefix("test ")?.split_once(" has been running for over")?.0.to_owned());
    let ended = |name: &str| {
        text.lines().any(|line| line.starts_with(&format!("test {name} ... ")) && line.len() > name.len() + 10)
    };
    let mut names: Vec<_> = text.lines().filter_map(over).filter(|name| !ended(name)).collect();
    let last = text.lines().last().filter(|_| !text.ends_with('\n'));
    names.extend(last.and_then(|line| Some(line.strip_prefix("test ")?.strip_suffix(" ... ")?.to_owned())));
    if names.is_empty() { "unknown tests".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_hangs_is_named() {
        let beside = "test a ... ok\ntest b has been running for over 60 seconds\ntest c has been running for over 60 seconds\ntest c ... ok\n";
        assert_eq!(running(beside), "b");
        assert_eq!(running("running 2 tests\ntest a ... ok\ntest b ... "), "b");
        assert_eq!(running("running 2 tests\n"), "unknown tests");
    }

    #[test]
    fn output_and_status_are_kept() {
        let watched = run(Command::new("sh").args(["-c", "echo said; exit 3"])).unwrap();
        assert_eq!((watched.text.as_str(), watched.status.code()), ("said\n", Some(3)));
        assert_eq!((watched.left.len(), watched.hung), (0, None));
    }

    #[test]
    fn what_is_left_running_is_found_and_ended() {
        let begun = Instant::now();
        let watched = run(
            Command::new("sh").args(["-c", "sleep 600 & until grep -q sleep /proc/$!/comm; do :; done; echo left"])
        )
        .unwrap();
        assert_eq!(watched.left.len(), 1, "{:?}", watched.left);
        assert!(watched.left[0].ends_with("(sleep)") && begun.elapsed() < Duration::from_secs(60));
    }
}
