//! A backend goes down: what becomes of its flows, and of new ones.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use lb_tests::e2e::{
    Setup,
    checked::{gate, ticker, whoami},
    connect, eventually, ping,
    servers::Server,
    vip,
};
use lb_userspace::state::{OnDown, Probe, Protocol};

/// A service whose backends are down when their *gates* (port 9000) are killed, while they serve on (port 7000).
fn gated(setup: &mut Setup, protocol: Protocol, on_down: OnDown) -> Vec<Server> {
    let directory = setup.directory().to_owned();
    let gates = setup.backends.iter().map(|host| gate(host, 9000, &directory).unwrap()).collect();
    setup.attach("--xdp generic").unwrap();
    let mut service = setup.service("web", (7, protocol), 7000);
    service.on_down = on_down;
    service.health.probe = Probe::tcp();
    service.health.port = Some(9000);
    setup.add_service(service).unwrap();
    setup.wait_usable(setup.backends.len() as u64).unwrap();
    gates
}

/// Connections to the first backend, and none to others: one that is idle, and one in which the backend talks.
fn idle_and_ticking(setup: &Setup) -> (TcpStream, TcpStream) {
    let [first, second] = [0, 1].map(|n| format!("{}:7000", setup.backends[n].address));
    setup.done(&format!("backend drain {second}")).unwrap();
    let (mut idle, mut ticking) = (connect(&setup.client, vip(7)).unwrap(), connect(&setup.client, vip(7)).unwrap());
    ping(&mut idle, "idle").unwrap();
    ticking.write_all(b"tick").unwrap();
    setup.done(&format!("backend ready {second} --wait=20s")).unwrap();
    let count = setup.json(&format!("conn count --backend {first}")).unwrap();
    assert_eq!(count, 2);
    (idle, ticking)
}

/// Waits until the first backend is down, and then for some more of its ticks.
fn fall(setup: &Setup, gate: &mut Server, ticking: &mut TcpStream) {
    gate.kill();
    setup.wait_usable(1).unwrap();
    // What is in the socket's buffer already was sent before.
    let mut ticks = [0; 4096];
    ticking.set_nonblocking(true).unwrap();
    while ticking.read(&mut ticks).is_ok() {}
    ticking.set_nonblocking(false).unwrap();
    let mut seen = 0;
    while seen < 10 {
        match ticking.read(&mut ticks) {
            Ok(length) if length > 0 => seen += length,
            _ => return,
        }
    }
}

/// Sends a word; whether the connection is reset.
fn is_reset(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    for _ in 0..20 {
        let sent = stream.write_all(b"hello?");
        let read = sent.and_then(|()| stream.read(&mut bytes));
        match read {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset || error.kind() == ErrorKind::BrokenPipe,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn with_policy(on_down: OnDown) -> (bool, bool) {
    let mut setup = Setup::new(2, 1500).unwrap();
    for host in &setup.backends {
        ticker(host, 7000).unwrap();
    }
    let mut gates = gated(&mut setup, Protocol::Tcp, on_down);
    let (mut idle, mut ticking) = idle_and_ticking(&setup);
    fall(&setup, &mut gates[0], &mut ticking);
    (is_reset(&mut idle), is_reset(&mut ticking))
}

#[test]
fn auto_resets_only_what_the_backend_no_longer_serves() {
    assert_eq!(with_policy(OnDown::Auto), (true, false));
}

#[test]
fn reset_resets_all() {
    assert_eq!(with_policy(OnDown::Reset), (true, true));
}

#[test]
fn keep_keeps_all() {
    assert_eq!(with_policy(OnDown::Keep), (false, false));
}

#[test]
fn udp_moves_at_once() {
    let mut setup = Setup::new(2, 1500).unwrap();
    for host in &setup.backends {
        whoami(host, 7000).unwrap();
    }
    let mut gates = gated(&mut setup, Protocol::Udp, OnDown::Keep);
    let socket = setup.client.spawn(|| UdpSocket::bind("0.0.0.0:0")).join().unwrap().unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(vip(7)).unwrap();
    let ask = || {
        socket.send(b"who?").unwrap();
        let mut name = [0; 64];
        let length = socket.recv(&mut name).unwrap();
        String::from_utf8_lossy(&name[..length]).into_owned()
    };
    let first = ask();
    assert!((0..10).all(|_| ask() == first), "one flow, one backend");
    let at = setup.backends.iter().position(|host| host.address.to_string() == first).unwrap();
    gates[at].kill();
    setup.wait_usable(1).unwrap();
    assert_ne!(ask(), first, "the first datagram after the verdict");
}

#[test]
fn when_all_are_down_the_last_to_fall_serve_on() {
    let mut setup = Setup::new(2, 1500).unwrap();
    for host in &setup.backends {
        ticker(host, 7000).unwrap();
    }
    let mut gates = gated(&mut setup, Protocol::Tcp, OnDown::Reset);
    gates[0].kill();
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "on the second").unwrap();
    gates[1].kill();
    let all_down = || {
        let health = setup.json("health").unwrap();
        health.as_array().unwrap().iter().all(|backend| backend["health"] == "down")
    };
    assert!(eventually(all_down));
    let backends = setup.json("backend list").unwrap();
    assert_eq!([&backends[0]["usable"], &backends[1]["usable"]], [false, true], "the second fell last");
    ping(&mut stream, "not reset meanwhile").unwrap();
    let mut new = connect(&setup.client, vip(7)).unwrap();
    ping(&mut new, "new ones too").unwrap();
}

#[test]
fn a_new_daemon_takes_over_the_verdicts() {
    let mut setup = Setup::new(2, 1500).unwrap();
    for host in &setup.backends {
        ticker(host, 7000).unwrap();
    }
    let mut gates = gated(&mut setup, Protocol::Tcp, OnDown::Auto);
    gates[0].kill();
    setup.wait_usable(1).unwrap();
    setup.kill_daemon().unwrap();
    setup.attach("--xdp generic").unwrap();
    // At once, before the first check has come back.
    let health = setup.json("health").unwrap();
    assert_eq!([&health[0]["health"], &health[1]["health"]], ["down", "up"]);
    assert_eq!([&health[0]["usable"], &health[1]["usable"]], [false, true]);
}
