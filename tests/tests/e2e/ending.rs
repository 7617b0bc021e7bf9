//! How flows end: drain, maintenance, removal, idle timeouts; and what `--wait` says meanwhile.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use lb_tests::e2e::{Setup, checked::gate, connect, eventually, ping, vip};

/// Two backends that echo, a connection to one of them, and that one's address first.
fn setup() -> (Setup, TcpStream, [String; 2]) {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7000).unwrap();
    let list = setup.list(7000);
    setup.attach(&format!("--xdp generic --vip 7 --backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "begun").unwrap();
    let conns = setup.json("conn list").unwrap();
    let mine = conns[0]["backend"].as_str().unwrap().to_owned();
    let other = list.split(',').find(|address| **address != mine).unwrap().to_owned();
    (setup, stream, [mine, other])
}

/// Whether the connection is reset when the client next says something.
fn is_reset(stream: &mut TcpStream) -> bool {
    let read = stream.write_all(b"hello?").and_then(|()| stream.read(&mut [0; 64]));
    read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn drain_waits_until_the_last_flow_ends_and_shows_it() {
    let (setup, mut stream, [mine, other]) = setup();
    let late = setup.lb(&format!("backend drain {mine} --wait=300ms")).unwrap();
    assert_eq!(late.status.code(), Some(4));
    assert_eq!(setup.json("status").unwrap()["services"][0]["usable"], 1, "the change stays");
    let mut drain = setup.command("", &format!("backend drain {mine} --wait"));
    let mut waiting = drain.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "1 live flows");
    ping(&mut stream, "still there").unwrap();
    let conns = setup.json(&format!("conn list --backend {other}")).unwrap();
    assert_eq!(conns.as_array().unwrap().len(), 0);
    drop(stream);
    assert_eq!(said.next().unwrap().unwrap(), "0 live flows");
    assert!(waiting.wait().unwrap().success());
}

#[test]
fn maintenance_resets_flows_and_stops_checks() {
    let (setup, mut stream, [mine, _]) = setup();
    setup.done(&format!("backend maint {mine}")).unwrap();
    assert!(is_reset(&mut stream));
    let of = |setup: &Setup| {
        let health = setup.json("health").unwrap();
        health.as_array().unwrap().iter().find(|backend| backend["address"] == mine.as_str()).cloned().unwrap()
    };
    let backend = of(&setup);
    assert_eq!([&backend["admin"], &backend["health"]], ["maint", "unknown"]);
    assert_eq!(backend["usable"], false);
    setup.done(&format!("backend ready {mine} --wait=20s")).unwrap();
    assert_eq!(of(&setup)["health"], "up");
}

#[test]
fn removal_leaves_flows_alone_and_force_resets_them() {
    let (setup, mut stream, [mine, _]) = setup();
    let removed = setup.lb(&format!("backend remove {mine} --wait=300ms")).unwrap();
    assert_eq!(removed.status.code(), Some(4), "{}", String::from_utf8_lossy(&removed.stderr));
    ping(&mut stream, "still there").unwrap();
    setup.done(&format!("backend add {mine} --wait=20s")).unwrap();
    ping(&mut stream, "still there").unwrap();
    setup.done(&format!("backend remove {mine} --force")).unwrap();
    assert!(is_reset(&mut stream));
    let last = setup.json("backend list").unwrap()[0]["address"].as_str().unwrap().to_owned();
    setup.done(&format!("backend remove {last} --force --wait=20s")).unwrap();
}

#[test]
fn a_removed_backend_is_checked_until_its_last_flow_ends() {
    let mut setup = Setup::new(2, 1500).unwrap();
    let directory = setup.directory().to_owned();
    let mut gates: Vec<_> = setup.backends.iter().map(|host| gate(host, 7000, &directory).unwrap()).collect();
    let list = setup.list(7000);
    setup.attach(&format!("--xdp generic --vip 7 --backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    // A connection that the server, which is the gate itself, leaves open.
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    assert!(eventually(|| setup.json("conn list --state established").unwrap().as_array().unwrap().len() == 1));
    let mine = setup.json("conn list").unwrap()[0]["backend"].as_str().unwrap().to_owned();
    let at = setup.backends.iter().position(|host| mine.starts_with(&host.address.to_string())).unwrap();
    setup.done(&format!("backend remove {mine}")).unwrap();
    // The host vanishes: no FIN, no RST, no answer.
    Setup::ip(&setup.backends[at], "link set eth0 down").unwrap();
    gates[at].kill();
    assert!(
        eventually(|| {
            std::thread::sleep(Duration::from_millis(200));
            stream
                .write_all(b"x")
                .is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
        }),
        "reset after the verdict on a backend that is no longer listed"
    );
}

#[test]
fn idle_timeouts_are_the_services_own() {
    let (setup, mut stream, _) = setup();
    setup.done("service set 10.66.0.1:7 --idle established=1s --wait").unwrap();
    ping(&mut stream, "just now").unwrap();
    assert!(eventually(|| setup.json("conn count").unwrap() == 0), "over after a second");
    assert!(is_reset(&mut stream), "rule 12: a segment without a flow");
}
