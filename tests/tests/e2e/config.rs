//! The config file: `lb check`, `lb daemon`, reloads, and how a file, flags and commands merge.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lb_tests::e2e::{
    Setup, connect, eventually, ping,
    servers::{Echo, Server},
    vip,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const WEB: &str = "interfaces = [\"eth0\"]\nmax_flows = 4096\n[[service]]\nname = \"web\"\nvip = \"10.66.0.1:7\"\n";

/// Writes the config file of a test, with these backends (by number) of its service.
fn write(setup: &Setup, backends: &[usize], more: &str) -> PathBuf {
    let list: Vec<_> = backends.iter().map(|n| format!("\"{}:7\"", setup.backends[*n].address)).collect();
    let path = setup.directory().join("lb.toml");
    fs::write(&path, format!("{WEB}backends = [{}]\n{more}", list.join(", "))).unwrap();
    path
}

fn daemon(setup: &Setup, file: &Path) -> Server {
    setup.start("", &format!("daemon --config {}", file.display())).unwrap()
}

fn reload(daemon: &Server) {
    daemon.signal(Signal::SIGHUP).unwrap();
}

/// "address source admin" of every backend of a service.
fn backends(setup: &Setup, service: &str) -> Vec<String> {
    let status = setup.json("status").unwrap();
    let services = status["services"].as_array().unwrap();
    let Some(service) = services.iter().find(|found| found["name"] == service) else { return Vec::new() };
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let line = |b: &Value| format!("{} {} {}", text(&b["address"]), text(&b["source"]), text(&b["admin"]));
    service["backends"].as_array().unwrap().iter().map(line).collect()
}

fn warnings(setup: &Setup) -> String {
    setup.json("status").unwrap()["warnings"].to_string()
}

#[test]
fn check_tells_all_errors_at_once_and_changes_nothing() {
    let setup = Setup::new(1, 1500).unwrap();
    let file = write(&setup, &[0], "");
    let right = setup.lb(&format!("check -f {}", file.display())).unwrap();
    assert_eq!(right.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&right.stdout).contains("right: 1 service, 1 backend"), "{right:?}");

    fs::write(&file, format!("{WEB}backends = [\"10.66.0.11\"]\nschedular = \"rr\"\n[service.health]\nrise = 0\n"))
        .unwrap();
    let wrong = setup.lb(&format!("check -f {}", file.display())).unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    for words in
        ["lb.toml:6:13: service.backends:", "the port is missing", "did you mean 'scheduler'?", ":9:8:", "3 errors"]
    {
        assert!(said.contains(words), "'{words}' is not in: {said}");
    }
    let json = setup.lb(&format!("check -f {} -o json", file.display())).unwrap();
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (json.status.code(), value["ok"].as_bool(), value["problems"][1]["line"].as_u64()),
        (Some(1), Some(false), Some(7))
    );

    // The shipped example is right on any host; what it names and is not here gets a warning.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/lb.example.toml");
    let said = setup.lb(&format!("check -f {example}")).unwrap();
    let warned = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(0), "{warned}");
    assert!(warned.contains("service.discovery.consul.token_file: /etc/lb/consul.token is not there"), "{warned}");

    // What only fits together as a whole is found too, and a file that is not there is named.
    let twice = "[[service]]\nname = \"b\"\nvip = \"10.66.0.11:7\"\n";
    let whole = write(&setup, &[0], twice);
    let said = setup.lb(&format!("check -f {}", whole.display())).unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("is a VIP"), "{said:?}");
    let missing = setup.lb("check -f /nonexistent.toml").unwrap();
    assert!(missing.status.code() == Some(1) && String::from_utf8_lossy(&missing.stderr).contains("/nonexistent.toml"));
    assert_eq!(setup.lb("check").unwrap().status.code(), Some(2));
}

#[test]
fn a_reload_takes_all_of_a_file_or_nothing() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let file = write(&setup, &[0], "");
    let lb = daemon(&setup, &file);
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "before").unwrap();

    write(&setup, &[0, 1], "");
    reload(&lb);
    setup.wait_usable(2).unwrap();
    assert_eq!(backends(&setup, "web"), ["10.66.0.11:7 file ready", "10.66.0.12:7 file ready"]);
    let generation = setup.json("status").unwrap()["generation"].clone();

    // Wrong in form, wrong in meaning, wrong for this host: nothing changes, and it is said.
    let wrong = [
        ("mode = nat\n", "not TOML"),
        ("[service.health]\ntimeout = \"9s\"\n", "9s is longer than the interval"),
        ("colour = \"red\"\n", "no key 'colour'"),
        ("[[service]]\nname = \"ssh\"\nvip = \"10.66.0.1:7\"\n", "there twice"),
        ("[[service]]\nname = \"far\"\nvip = \"10.66.0.1:8\"\nbackends = [\"192.0.2.1:8\"]\n", "backend 192.0.2.1:8"),
    ];
    for (more, words) in wrong {
        write(&setup, &[0], more);
        reload(&lb);
        assert!(eventually(|| warnings(&setup).contains(words)), "{words}: {}", warnings(&setup));
        assert!(warnings(&setup).contains("was not taken over"));
        let status = setup.json("status").unwrap();
        assert_eq!((&status["generation"], status["services"].as_array().unwrap().len()), (&generation, 1));
        assert_eq!(backends(&setup, "web").len(), 2);
    }
    // Half-written, emptied, not text, a directory, gone: as editors and disks leave it.
    let half = fs::read(&file).unwrap();
    let broken: [(&[u8], &str); 3] =
        [(&half[..half.len() - 9], "not TOML"), (b"", "nothing is said here"), (b"\xff", "0xff is not UTF-8")];
    for (bytes, words) in broken {
        fs::write(&file, bytes).unwrap();
        reload(&lb);
        assert!(eventually(|| warnings(&setup).contains(words)), "{words}: {}", warnings(&setup));
    }
    fs::remove_file(&file).unwrap();
    reload(&lb);
    assert!(eventually(|| warnings(&setup).contains("No such file")), "{}", warnings(&setup));
    fs::create_dir(&file).unwrap();
    reload(&lb);
    assert!(eventually(|| warnings(&setup).contains("a directory")), "{}", warnings(&setup));
    fs::remove_dir(&file).unwrap();
    assert_eq!((setup.json("status").unwrap()["generation"].clone(), backends(&setup, "web").len()), (generation, 2));

    write(&setup, &[1], "");
    reload(&lb);
    assert!(eventually(|| backends(&setup, "web") == ["10.66.0.12:7 file ready"]));
    assert!(!warnings(&setup).contains("was not taken over"), "{}", warnings(&setup));
    ping(&mut stream, "the first backend left, its connection goes on").unwrap();

    lb.signal(Signal::SIGTERM).unwrap();
    assert!(lb.ended().unwrap().success());
    let said = setup.log();
    for words in ["colour", "not taken over; what stood before goes on", "read again", "the data path goes on"] {
        assert!(said.contains(words), "'{words}' is not in: {said}");
    }
    ping(&mut stream, "without a daemon").unwrap();
}

#[test]
fn file_flags_and_commands_each_keep_what_they_said() {
    let setup = Setup::new(3, 1500).unwrap();
    let file = write(&setup, &[0, 1], "");
    let other = format!("--vip 10.66.0.1:8 --name other --backends {}:8", setup.backends[0].address);
    let lb = setup.start("", &format!("attach eth0 --config {} {other}", file.display())).unwrap();
    let third = setup.backends[2].address;
    assert!(setup.lb(&format!("backend add {third}:7 -s web")).unwrap().status.success());
    assert!(setup.lb("backend drain 10.66.0.11:7 -s web").unwrap().status.success());
    assert_eq!(
        backends(&setup, "web"),
        ["10.66.0.11:7 file drain", "10.66.0.12:7 file ready", "10.66.0.13:7 cli ready"]
    );
    assert_eq!(backends(&setup, "other"), ["10.66.0.11:8 flags ready"]);
    write(&setup, &[0], "");
    reload(&lb);
    let wanted = ["10.66.0.11:7 file drain", "10.66.0.13:7 cli ready"];
    assert!(eventually(|| backends(&setup, "web") == wanted), "{:?}", backends(&setup, "web"));
    assert_eq!(backends(&setup, "other"), ["10.66.0.11:8 flags ready"]);
    // The daemon is killed and started anew: the same again, and the running data path keeps its size.
    drop(lb);
    let lb = daemon(&setup, &file);
    assert_eq!(backends(&setup, "web"), wanted);
    assert_eq!(backends(&setup, "other"), ["10.66.0.11:8 flags ready"]);
    // What the operator removed stays away although the file states it.
    assert!(setup.lb("backend remove 10.66.0.11:7 -s web").unwrap().status.success());
    reload(&lb);
    assert!(eventually(|| warnings(&setup).contains("lb backend add 10.66.0.11:7")), "{}", warnings(&setup));
    assert_eq!(backends(&setup, "web"), ["10.66.0.13:7 cli ready"]);
}

#[test]
fn a_daemon_remembers_across_a_reboot_and_detach_forgets() {
    let setup = Setup::new(2, 1500).unwrap();
    let file = write(&setup, &[0, 1], "");
    let lb = daemon(&setup, &file);
    assert!(setup.lb("backend drain 10.66.0.11:7").unwrap().status.success());
    drop(lb);
    // A reboot takes the pins away, and leaves the state.
    lb_userspace::dataplane::pins::remove(setup.bpffs()).unwrap();
    let lb = daemon(&setup, &file);
    assert_eq!(backends(&setup, "web"), ["10.66.0.11:7 file drain", "10.66.0.12:7 file ready"]);
    assert!(setup.lb("detach").unwrap().status.success());
    assert!(lb.ended().unwrap().success());
    assert!(!setup.bpffs().exists(), "every trace is gone when detach says so");
    let _lb = daemon(&setup, &file);
    assert_eq!(backends(&setup, "web"), ["10.66.0.11:7 file ready", "10.66.0.12:7 file ready"]);
}

#[test]
fn one_writer_at_a_time() {
    let setup = Setup::new(1, 1500).unwrap();
    let file = write(&setup, &[0], "");
    let mut ending = Vec::new();
    for _ in 0..3 {
        ending.push(daemon(&setup, &file));
        let daemon = format!("daemon --config {}", file.display());
        let refused = setup.lb(&daemon).unwrap();
        assert_eq!(refused.status.code(), Some(5));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("answers on"), "{refused:?}");
        assert!(setup.lb("detach").unwrap().status.success());
        // At once: the next start waits for what is still ending.
    }
    let _lb = daemon(&setup, &file);
    // Another socket and state, the same pins.
    let elsewhere = setup.directory().join("elsewhere");
    let mut command = setup.command("", &format!("daemon --config {}", file.display()));
    command.env("LB_SOCKET", elsewhere.join("sock")).env("LB_STATE_DIR", elsewhere.join("state"));
    let refused = command.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(
        said.contains("another daemon has the data plane in") && said.contains(setup.bpffs().to_str().unwrap()),
        "{said}"
    );
    assert_eq!(backends(&setup, "web"), ["10.66.0.11:7 file ready"]);
}

#[test]
fn a_supervisor_is_told_how_things_stand() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let file = write(&setup, &[0], "");
    let path = setup.directory().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let next = |wanted: &str| {
        let mut bytes = [0; 500];
        for _ in 0..500 {
            let length = supervisor.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
        panic!("500 messages without {wanted}");
    };
    let daemon = format!("daemon --config {}", file.display());
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let lb = setup.start_in("", &daemon, &environment).unwrap();
    assert!(next("READY=1").contains("STATUS=1 service, "));
    next("WATCHDOG=1");
    next("STATUS=1 service, 1 of 1 backends take new connections");
    reload(&lb);
    let reloading = next("RELOADING=1");
    let micros: u64 = reloading.split_once("MONOTONIC_USEC=").unwrap().1.parse().unwrap();
    assert!(micros > 0);
    assert!(!next("READY=1").contains("errors"));
    fs::write(&file, "nonsense").unwrap();
    reload(&lb);
    next("RELOADING=1");
    assert!(next("READY=1").contains("the config file has errors, see lb status"));
    lb.signal(Signal::SIGTERM).unwrap();
    next("STOPPING=1");
    assert!(lb.ended().unwrap().success());
}

#[test]
fn systemd_understands_its_unit() {
    let setup = Setup::new(0, 1500).unwrap();
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/lb.service")).unwrap();
    let path = setup.directory().join("lb.service");
    let here = unit.replace("/usr/bin/lb", setup.binary().to_str().unwrap());
    assert!(here != unit && here.contains("Type=notify") && here.contains("ExecReload="));
    fs::write(&path, here).unwrap();
    let Ok(said) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else {
        eprintln!("\n*** NO systemd-analyze: packaging/lb.service is not verified ***\n");
        return;
    };
    let words = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && !words.contains("lb.service"), "{words}");
}

#[test]
fn a_start_with_a_wrong_file_changes_nothing_and_says_where() {
    let setup = Setup::new(1, 1500).unwrap();
    let file = write(&setup, &[0], "[service.health]\ntype = \"htp\"\n");
    for command in ["daemon", "attach"] {
        let output = setup.lb(&format!("{command} --config {}", file.display())).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("lb.toml:8:8: service.health.type: 'htp'") && said.contains("did you mean 'http'?"),
            "{said}"
        );
        assert!(!setup.bpffs().exists());
    }
    // Interfaces may come from the file, and must come from somewhere.
    let file = write(&setup, &[0], "");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("interfaces = [\"eth0\"]\n", "")).unwrap();
    let output = setup.lb(&format!("daemon --config {}", file.display())).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no interface is named"), "{output:?}");
    let _lb = setup.start("", &format!("attach eth0 --config {}", file.display())).unwrap();
    assert_eq!(backends(&setup, "web"), ["10.66.0.11:7 file ready"]);
}

#[test]
fn a_slow_start_grows_to_a_whole_share_and_can_be_turned_off() {
    let setup = Setup::new(2, 1500).unwrap();
    let _first = Echo::start(&setup.backends[0], setup.backends[0].address, 7).unwrap();
    let file = write(&setup, &[0, 1], "slow_start = \"5s\"\n");
    let _daemon = daemon(&setup, &file);
    setup.wait_usable(1).unwrap();
    let share = || setup.json("backend list").unwrap()[1]["share"].as_f64().unwrap();
    assert_eq!(share(), 0.0, "it is down");
    let mut second = Echo::start(&setup.backends[1], setup.backends[1].address, 7).unwrap();
    setup.wait_usable(2).unwrap();
    let begun = share();
    assert!(begun > 0.05 && begun < 0.4, "just up: {begun}");
    assert!(eventually(|| (share() - 0.5).abs() < 0.01), "in the end: {}", share());

    setup.done("service set web --slow-start 15s").unwrap();
    second.stop();
    setup.wait_usable(1).unwrap();
    let _second = Echo::start(&setup.backends[1], setup.backends[1].address, 7).unwrap();
    setup.wait_usable(2).unwrap();
    assert!(share() < 0.4, "again: {}", share());
    setup.done("service set web --slow-start 0s").unwrap();
    assert!(eventually(|| (share() - 0.5).abs() < 0.01), "off: {}", share());
}
