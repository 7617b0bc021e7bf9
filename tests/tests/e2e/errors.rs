//! What is typed wrongly, or at the wrong time: every error says what, why and how to mend it, with the contract's
//! exit code, on standard error, in words and as JSON.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Output, Stdio},
};

use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use lb_tests::e2e::{Setup, connect, echo, eventually, ping};
use lb_userspace::dataplane::LAB_OBJECT;
use serde_json::Value;

/// What is typed, the exit code, words of the message, and words of the hint.
type Case = (&'static str, i32, &'static str, &'static str);

fn check(setup: &Setup, cases: &[Case]) {
    let mut wrong = Vec::new();
    for (line, code, message, hint) in cases {
        let words = setup.lb(line).unwrap();
        let text = String::from_utf8_lossy(&words.stderr).into_owned();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("lb: warning: ")).collect();
        let says = |begin: &str, part: &str| lines.iter().any(|line| line.starts_with(begin) && line.contains(part));
        let good = words.status.code() == Some(*code)
            && says("lb: ", message)
            && says("hint: ", hint)
            && lines.len() == 2
            && words.stdout.is_empty()
            && !text.contains("panicked");
        if !good {
            wrong.push(format!("lb {line}: {:?} {text}", words.status.code()));
        }
        let json = setup.lb(&format!("-o json {line}")).unwrap();
        if let Err(why) = check_json(&json, *code, message, hint) {
            wrong.push(format!("lb -o json {line}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// As JSON it is one value on the last line of standard error.
fn check_json(output: &Output, code: i32, message: &str, hint: &str) -> Result<(), String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let value: Value =
        serde_json::from_str(text.lines().last().unwrap_or("")).map_err(|error| format!("{error}: {text}"))?;
    let has = |field: &str, part: &str| value["error"][field].as_str().is_some_and(|words| words.contains(part));
    let kind = match code {
        2 => ["usage", "usage"],
        5 => ["refused", "refused"],
        _ => ["failed", "not-found"],
    };
    let good = output.status.code() == Some(code)
        && kind.iter().any(|kind| value["error"]["kind"] == *kind)
        && has("message", message)
        && has("hint", hint)
        && output.stdout.is_empty();
    if good { Ok(()) } else { Err(format!("{:?} {text}", output.status.code())) }
}

#[test]
fn words_that_make_no_sense_are_named() {
    let setup = Setup::new(0, 1500).unwrap();
    check(
        &setup,
        &[
            ("attach", 2, "INTERFACES", "--help"),
            ("attach eth0 --nonsense", 2, "--nonsense", "--help"),
            ("frobnicate", 2, "frobnicate", "--help"),
            ("-q -v status", 2, "--quiet", "--help"),
            ("attach eth0 eth0", 2, "named twice", "once"),
            ("attach eth0 --backends 10.66.0.11", 2, "have no port", "--vip"),
            ("attach eth0 --backends 10.66.0.300:80", 2, "10.66.0.300", "ADDR:PORT"),
            ("attach eth0 --backends 10.66.0.11:99999", 2, "'99999' is not a port", "ADDR:PORT"),
            ("attach eth0 --backends 10.66.0.11:80,", 2, "nothing there", "ADDR:PORT"),
            ("attach eth0 --backends 10.66.0.11:80,10.66.0.11:80=3", 2, "named twice", "once"),
            ("attach eth0 --backends 10.66.0.11:80=65536", 2, "'65536' is not a weight", "65535"),
            ("attach eth0 --backends 10.66.0.11:80=-1", 2, "'-1' is not a weight", "65535"),
            ("attach eth0 --backends 10.66.0.11:80,10.66.0.12:81", 2, "different ports", "--vip"),
            ("attach eth0 --vip 10.66.0.1 --backends 10.66.0.11:80", 2, "port is missing", "ADDR"),
            ("attach eth0 --vip 10.66.0.1:70000 --backends 10.66.0.11:80", 2, "'70000' is not a port", "ADDR"),
            ("attach eth0 --vip 10.66.0.1:80/sctp --backends 10.66.0.11:80", 2, "'sctp' is not a protocol", "udp"),
            ("attach eth0 --vip lb.example:80 --backends 10.66.0.11:80", 2, "'lb.example'", "ADDR"),
            ("attach eth0 --xdp fast", 2, "'fast'", "native"),
            ("attach eth0 --mode nta", 2, "'nta'", "nat"),
            ("attach eth0 --scheduler best", 2, "'best'", "maglev"),
            ("attach eth0 --health ftp", 2, "'ftp' is not a health check", "http"),
            ("attach eth0 --health http:up", 2, "must begin with '/'", "http"),
            ("attach eth0 --on-down maybe", 2, "'maybe'", "reset"),
            ("attach eth0 --on-empty fill", 2, "'fill'", "reject"),
            ("attach eth0 --on-exit explode", 2, "'explode'", "detach"),
            ("attach eth0 --affinity soon", 2, "'soon' is not a time", "30s"),
            ("attach eth0 --snat nowhere", 2, "nowhere", "--help"),
            ("attach eth0 --snat-ports 9-5", 2, "not a range of ports", "LO-HI"),
            ("attach eth0 --snat-ports 0-10", 2, "not a range of ports", "LO-HI"),
            ("attach eth0 --max-flows many", 2, "'many' is not a size", "256k"),
            ("attach eth0 --max-flows 5", 2, "--max-flows 5", "64"),
            ("attach eth0 --max-flows 4000000000", 2, "--max-flows 4000000000", "64"),
            ("attach eth0 --bpf-log 9", 2, "'9' is not a level", "(trace)"),
            ("backend drain", 2, "BACKENDS", "--help"),
            ("backend weight 10.66.0.11:80 70000", 2, "'70000' is not a weight", "65535"),
            ("backend weight 10.66.0.11:80", 2, "WEIGHT", "--help"),
            ("backend drain 10.66.0.11:80 --wait=soon", 2, "'soon' is not a time", "30s"),
            ("service add web", 2, "'web'", "ADDR"),
            ("service add 10.66.0.1:80 --wait=1x", 2, "'1x' is not a time", "30s"),
            ("conn list --client me", 2, "'me' is not an IP address", "without a port"),
            ("conn list --state asleep", 2, "asleep", "--help"),
            ("conn flush", 2, "every connection", "--all"),
        ],
    );
}

/// Runs `lb` without root's privileges.
fn nobody(setup: &Setup, line: &str) -> Output {
    let mut command = setup.balancer.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(setup.binary());
    command.env("LB_SOCKET", setup.directory().join("lb.sock")).env("LB_BPFFS", setup.bpffs());
    command.args(line.split(' ')).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_cannot_be_attached_is_refused_and_leaves_nothing() {
    let mut setup = Setup::two_armed(1, 1500).unwrap();
    let listener = setup.balancer.spawn(|| TcpListener::bind("0.0.0.0:8088").unwrap());
    let _listener = listener.join().unwrap().unwrap();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let name: &'static str = Box::leak(name.trim().to_owned().into_boxed_str());
    check(
        &setup,
        &[
            ("status", 1, "no daemon answers", "lb attach"),
            ("service list", 1, "no daemon answers", "lb attach"),
            ("backend add 10.66.0.11:80", 1, "no daemon answers", "lb attach"),
            ("conn count", 1, "no daemon answers", "lb attach"),
            ("detach", 1, "nothing is attached", "--bpffs"),
            ("detach eth0", 1, "nothing is attached", "--bpffs"),
            ("doctor eth9", 1, "interface eth9", "eth0"),
            ("attach eth9 --backends 10.66.0.11:80", 1, "interface eth9", "eth0"),
            ("attach lo --backends 10.66.0.11:80", 5, "loopback device", "clients"),
            ("attach eth0 --announce=eth9 --backends 10.66.0.11:80", 1, "--announce: interface eth9", "eth0"),
            ("attach eth0 --vip 127.0.0.1:80 --backends 10.66.0.11:80", 5, "127.0.0.1", "unicast"),
            ("attach eth0 --vip 0.0.0.0:80 --backends 10.66.0.11:80", 5, "0.0.0.0", "unicast"),
            ("attach eth0 --vip 224.0.0.1:80 --backends 10.66.0.11:80", 5, "224.0.0.1", "unicast"),
            ("attach eth0 --vip 255.255.255.255:80 --backends 10.66.0.11:80", 5, "255.255.255.255", "unicast"),
            ("attach eth0 --vip 10.66.0.1:0 --backends 10.66.0.11:80", 5, "every port", "--force"),
            ("attach eth0 --vip 8088 --backends 10.66.0.11:80", 5, name, "--force"),
            ("attach eth0 --vip 80 --vip 80 --backends 10.66.0.11:80", 5, "twice", "once"),
            ("attach eth0 --vip 80 --backends 127.0.0.1:80", 5, "loopback", "address of its own"),
            ("attach eth0 --vip 10.66.0.9:80 --backends 10.66.0.1:80", 5, "this host's own", "another host"),
            ("attach eth0 --backends 10.66.0.1:80", 5, "is a VIP", "own address"),
            ("attach eth0 --vip 80 --backends 0.0.0.0:80", 5, "0.0.0.0", "unicast"),
            ("attach eth0 --vip 80 --backends 224.0.0.9:80", 5, "224.0.0.9", "unicast"),
            ("attach eth0 --vip 80 --backends 10.77.0.1:80", 5, "no route", "ip route get"),
            ("attach eth0 --vip 80 --backends 10.67.0.11:80", 5, "eth1, which is not attached", "attach eth1"),
            ("attach eth0 --vip 80 --snat 10.66.0.77 --backends 10.66.0.11:80", 5, "does not own", "ip addr add"),
            ("attach eth0 --vip 80 --snat 127.0.0.1 --backends 10.66.0.11:80", 5, "--snat 127.0.0.1", "unicast"),
            ("--state-dir /dev/null attach eth0 --vip 80 --backends 10.66.0.11:80", 1, "/dev/null", "--state-dir"),
            ("--socket /dev/null attach eth0 --vip 80 --backends 10.66.0.11:80", 1, "no socket", "--socket"),
            ("--bpffs /dev/null/x attach eth0 --vip 80 --backends 10.66.0.11:80", 1, "/dev/null/x", "bpf"),
        ],
    );
    assert!(!setup.bpffs().exists() && !setup.directory().join("state").exists(), "a refused attach leaves nothing");

    // Somebody else's program.
    let (done, until) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let other = setup.balancer.spawn(move || {
        let mut object = Ebpf::load(LAB_OBJECT).unwrap();
        let program: &mut Xdp = object.program_mut("pass").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach("eth1", XdpMode::Skb).unwrap();
        tell.send(()).unwrap();
        let _ = until.recv();
    });
    told.recv().unwrap();
    let cases = [("attach eth1 --vip 80 --backends 10.67.0.11:80", 5, "name 'pass'", "xdp off")];
    check(&setup, &cases);
    drop(done);
    other.join().unwrap().unwrap();

    // Nobody's privileges.
    let refused = nobody(&setup, "attach eth0 --backends 10.66.0.11:80");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains("needs root\nhint: sudo lb attach"), "{text}");

    // The socket of a dead daemon is replaced, and a state file that cannot be read is named.
    setup.attach("eth1 --vip 80 --backends 10.67.0.11:80").unwrap();
    let refused = nobody(&setup, "status");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains("hint: "), "{text}");
    setup.kill_daemon().unwrap();
    assert!(setup.directory().join("lb.sock").exists());
    check(
        &setup,
        &[("attach eth0 eth1 --xdp native --vip 80 --backends 10.67.0.11:80", 5, "attached generic", "lb detach eth0")],
    );
    let state = setup.directory().join("state/state.json");
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, "{ oops").unwrap();
    check(&setup, &[("attach eth0 eth1 --vip 80 --backends 10.67.0.11:80", 1, "state.json", "sudo rm")]);
    std::fs::write(&state, good).unwrap();
    setup.attach("eth1 --vip 80 --backends 10.67.0.11:80").unwrap();
}

#[test]
fn a_running_daemon_refuses_what_makes_no_sense() {
    let mut setup = Setup::two_armed(1, 1500).unwrap();
    echo(&setup.client, 7).unwrap();
    setup.attach("--vip 7 --name web --health none --backends 10.66.0.2:7").unwrap();
    let mut stream = connect(&setup.client, (Ipv4Addr::new(10, 66, 0, 1), 7).into()).unwrap();
    ping(&mut stream, "a live flow").unwrap();
    assert!(eventually(|| setup.json("conn count").is_ok_and(|count| count == 1)));
    check(
        &setup,
        &[
            ("attach eth0 --backends 10.66.0.11:80", 5, "a daemon answers", "lb status"),
            (
                "--socket /run/lb-e2e-other.sock attach eth0 --backends 10.66.0.11:80",
                5,
                "another daemon has the data plane",
                "--socket",
            ),
            (
                "--socket /run/lb-e2e-other.sock --bpffs /sys/fs/bpf/lb-e2e-other --state-dir /run/lb-e2e-other attach eth0 --vip 81 --backends 10.66.0.11:80",
                5,
                "another instance of lb",
                "detach eth0",
            ),
            ("service show nope", 1, "service nope", "web"),
            ("service set nope --on-empty drop", 1, "service nope", "web"),
            ("service remove nope", 1, "service nope", "web"),
            ("service add 10.66.0.1:7", 5, "service web has it already", "one service"),
            ("service add 10.66.0.1:81 --name web", 5, "there is one of this name", "--name"),
            ("service add 10.66.0.2:81", 5, "a backend of service web", "no backend"),
            ("service set web --mode dsr", 5, "mode cannot change", "service"),
            ("backend add 10.66.0.2:7", 5, "has it already", "weight"),
            ("backend add 10.66.0.1:9", 5, "is a VIP", "own address"),
            ("backend add 127.0.0.1:9", 5, "loopback", "address"),
            ("backend add 10.67.0.11:9", 5, "eth1, which is not attached", "eth1"),
            ("backend add 10.66.0.12:9 10.77.0.1:9", 5, "no route", "ip route get"),
            ("backend add 10.66.0.12:9 -s nope", 1, "service nope", "web"),
            ("backend drain 10.66.0.77:1", 1, "not in service", "10.66.0.2:7"),
            ("backend ready 10.66.0.77:1", 1, "not in service", "10.66.0.2:7"),
            ("backend maint 10.66.0.77:1", 1, "not in service", "10.66.0.2:7"),
            ("backend remove 10.66.0.77:1", 1, "not in service", "10.66.0.2:7"),
            ("backend weight 10.66.0.77:1 3", 1, "not in service", "10.66.0.2:7"),
            ("backend remove 10.66.0.2:7", 5, "last usable backend", "--force"),
            ("backend list -s nope", 1, "service nope", "web"),
            ("conn list -s nope", 1, "service nope", "web"),
            ("detach eth7", 1, "eth7: not attached", "eth0"),
        ],
    );
    ping(&mut stream, "nothing of that did anything").unwrap();
    assert_eq!(setup.json("status").unwrap()["generation"], 1);

    // A wait that ends without its effect leaves the change.
    let waited = setup.lb("backend drain 10.66.0.2:7 --wait=100ms").unwrap();
    let text = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.status.code() == Some(4) && text.contains("the change stays"), "{text}");
    assert_eq!(setup.json("backend list").unwrap()[0]["admin"], "drain");
    assert!(setup.lb("service add 10.66.0.1:82 --name dns").unwrap().status.success());
    check(&setup, &[("backend add 10.66.0.12:9", 2, "several services", "-s NAME")]);
}
