//! The config file and the daemon under load: nobody's connection notices.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lb_tests::e2e::{BALANCER, Setup, clients::Storm, eventually, vip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn config(setup: &Setup, backends: &[usize], scheduler: &str) {
    let list: Vec<_> = backends.iter().map(|n| format!("\"{}:7\"", setup.backends[*n].address)).collect();
    let text = format!(
        "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"{BALANCER}:7\"\n{scheduler}\nbackends = [{}]\n",
        list.join(", ")
    );
    fs::write(setup.directory().join("lb.toml"), text).unwrap();
}

fn lab() -> Setup {
    let mut setup = Setup::new(3, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    config(&setup, &[0, 1, 2], "");
    setup
}

#[test]
fn twenty_reloads_under_load_fail_nothing() {
    let setup = lab();
    let daemon = format!("daemon --config {}", setup.directory().join("lb.toml").display());
    let lb = setup.start("", &daemon).unwrap();
    setup.wait_usable(3).unwrap();
    let storm = Storm::begin(&setup.client, vip(7), u32::MAX, 4);
    // The first two stay; the third comes and goes, and some files are wrong.
    for round in 0..20 {
        match round % 4 {
            0 => config(&setup, &[0, 1], ""),
            1 => config(&setup, &[0, 1, 2], "on_down = \"keep\""),
            2 => config(&setup, &[0, 1, 2], "colour = \"red\""),
            _ => fs::write(setup.directory().join("lb.toml"), "").unwrap_or_default(),
        }
        if round % 4 == 3 {
            config(&setup, &[1, 0, 2], "idle = { udp = \"9s\" }");
        }
        lb.signal(Signal::SIGHUP).unwrap();
        let usable = if round % 4 == 0 { 2 } else { 3 };
        setup.wait_usable(usable).unwrap();
    }
    let done = storm.end().unwrap();
    assert!(done.failures.is_empty() && done.fine > 100, "{} fine, {:?}", done.fine, done.failures);
}

#[test]
fn a_daemon_killed_again_and_again_under_load_is_started_anew_and_fails_nothing() {
    let setup = lab();
    let file = setup.directory().join("lb.toml");
    let stop = Arc::new(AtomicBool::new(false));
    let pid = Arc::new(std::sync::Mutex::new(None::<u32>));
    // What a supervisor with Restart=always does.
    let supervisor = {
        let (stop, pid) = (stop.clone(), pid.clone());
        let mut command = setup.command("", &format!("daemon --config {}", file.display()));
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        std::thread::spawn(move || {
            let mut starts = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut child = command.spawn().unwrap();
                *pid.lock().unwrap() = Some(child.id());
                starts += 1;
                child.wait().unwrap();
            }
            starts
        })
    };
    setup.wait_usable(3).unwrap();
    let storm = Storm::begin(&setup.client, vip(7), u32::MAX, 4);
    let generation = setup.json("status").unwrap()["generation"].clone();
    for _ in 0..5 {
        let old = pid.lock().unwrap().take().unwrap();
        kill(Pid::from_raw(i32::try_from(old).unwrap()), Signal::SIGKILL).unwrap();
        assert!(eventually(|| pid.lock().unwrap().is_some()));
        let begun = Instant::now();
        assert!(eventually(|| setup.json("status").is_ok()), "no daemon answers");
        assert!(begun.elapsed() < Duration::from_secs(15));
        setup.wait_usable(3).unwrap();
    }
    let done = storm.end().unwrap();
    let after = setup.json("status").unwrap()["generation"].clone();
    stop.store(true, Ordering::Relaxed);
    let last = pid.lock().unwrap().unwrap();
    kill(Pid::from_raw(i32::try_from(last).unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(supervisor.join().unwrap(), 6);
    assert!(done.failures.is_empty() && done.fine > 100, "{} fine, {:?}", done.fine, done.failures);
    assert_eq!(generation, after, "the same file makes no new generation");
}
