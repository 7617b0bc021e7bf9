//! Mode `nat` end to end: real clients and servers in network namespaces, the real `lb`.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_tests::e2e::{BALANCER, Setup, connect, echo, ping};

const MODES: [&str; 2] = ["native", "generic"];

fn vip(port: u16) -> SocketAddr {
    SocketAddr::from((BALANCER, port))
}

#[test]
fn requests_reach_all_backends_and_a_download_arrives_whole() {
    let big: Vec<u8> = (0..50_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_files(8080, &[("big", &big)]).unwrap();
        let list = setup.list(8080);
        setup.attach(&format!("--xdp {mode} --vip 80 --backends {list} --health http:/name")).unwrap();
        setup.wait_usable(2).unwrap();
        let names: BTreeSet<_> = (0..40).map(|_| setup.curl("http://10.66.0.1/name").unwrap()).collect();
        assert_eq!(names.len(), 2, "{mode}: {names:?}");
        assert!(setup.curl("http://10.66.0.1/big").unwrap() == big, "{mode}: the download differs");
        let status = setup.json("status").unwrap();
        assert_eq!(status["interfaces"][0]["xdp"], mode);
        assert!(status["services"][0]["packets"]["out"].as_u64().unwrap() > 100);
    }
}

#[test]
fn two_interfaces_with_forwarding_off() {
    let big = vec![9; 20_000_000];
    for mode in MODES {
        let mut setup = Setup::two_armed(2, 1500).unwrap();
        let forwarding = setup.balancer.command("sysctl").args(["-n", "net.ipv4.ip_forward"]).output().unwrap();
        assert_eq!(forwarding.stdout, b"0\n");
        // Generic XDP meets what TSO made of the far end's writes, and cannot send that on through another interface.
        for host in setup.backends.iter().chain([&setup.client]) {
            assert!(host.command("ethtool").args(["-K", "eth0", "tso", "off"]).status().unwrap().success());
        }
        setup.serve_files(8080, &[("big", &big)]).unwrap();
        let list = setup.list(8080);
        setup.attach(&format!("eth1 --xdp {mode} --vip 80 --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let names: BTreeSet<_> = (0..30).map(|_| setup.curl("http://10.66.0.1/name").unwrap()).collect();
        assert_eq!(names.len(), 2, "{mode}: {names:?}");
        assert!(setup.curl("http://10.66.0.1/big").unwrap() == big, "{mode}");
    }
}

#[test]
fn an_interface_that_is_not_attached_is_named() {
    let setup = Setup::two_armed(1, 1500).unwrap();
    let output = setup.lb(&format!("attach eth0 --vip 80 --backends {}", setup.list(8080))).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("through eth1, which is not attached: replies would bypass lb"), "{error}");
}

#[test]
fn jumbo_frames_pass() {
    let big = vec![7; 5_000_000];
    let mut setup = Setup::new(1, 9000).unwrap();
    setup.serve_files(8080, &[("big", &big)]).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp native --vip 80 --backends {list}")).unwrap();
    setup.wait_usable(1).unwrap();
    assert!(setup.curl("http://10.66.0.1/big").unwrap() == big);
}

#[test]
fn udp_is_answered_by_the_vip() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        for host in &setup.backends {
            echo(host, 5353).unwrap();
        }
        let list = setup.list(5353);
        setup.attach(&format!("--xdp {mode} --vip 53/udp --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let answered = setup.client.spawn(|| {
            (0..50).all(|n: u8| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
                socket.connect(vip(53)).unwrap();
                socket.send(&[n; 32]).unwrap();
                let mut back = [0; 64];
                socket.recv(&mut back).is_ok_and(|length| back[..length] == [n; 32])
            })
        });
        assert!(answered.join().unwrap().unwrap(), "{mode}");
    }
}

#[test]
fn a_connection_lives_through_every_change() {
    let mut setup = Setup::new(3, 1500).unwrap();
    for host in &setup.backends {
        echo(host, 7000).unwrap();
    }
    let [first, second, third] = [0, 1, 2].map(|n| format!("{}:7000", setup.backends[n].address));
    let attach = format!("--xdp native --vip 7 --backends {first}");
    setup.attach(&attach).unwrap();
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "begun").unwrap();
    let steps = [
        format!("backend add {second} {third} --wait=10s"),
        format!("backend weight {first} 9"),
        format!("backend drain {first}"),
        format!("backend remove {third}"),
    ];
    for step in steps {
        let output = setup.lb(&step).unwrap();
        assert!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
        ping(&mut stream, &step).unwrap();
    }
    let waited = setup.lb(&format!("backend drain {first} --wait=300ms")).unwrap();
    assert_eq!(waited.status.code(), Some(4), "a live flow is left");

    setup.kill_daemon().unwrap();
    ping(&mut stream, "without a daemon").unwrap();
    let mut fresh = connect(&setup.client, vip(7)).unwrap();
    ping(&mut fresh, "a new one, without a daemon").unwrap();

    setup.attach(&attach).unwrap();
    ping(&mut stream, "adopted").unwrap();
    let backend = &setup.json("backend list").unwrap()[0];
    assert_eq!((&backend["admin"], &backend["flows"]), (&"drain".into(), &1.into()), "the admin state persists");
    drop(stream);
    let waited = setup.lb(&format!("backend drain {first} --wait=10s")).unwrap();
    assert!(waited.status.success(), "no flow is left: {}", String::from_utf8_lossy(&waited.stderr));
    ping(&mut fresh, "still there").unwrap();
}

#[test]
fn after_a_verdict_no_new_connection_fails() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp generic --vip 80 --backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    setup.kill_server(0).unwrap();
    setup.wait_usable(1).unwrap();
    for _ in 0..30 {
        setup.curl("http://10.66.0.1/name").unwrap();
    }
    let health = setup.json("health").unwrap();
    assert_eq!(health[0]["last_check"]["reason"], "connect: connection refused");
}

#[test]
fn nobody_usable_is_refused_at_once() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp generic --vip 80 --backends {list}")).unwrap();
    let refused = || setup.curl("http://10.66.0.1/").is_err_and(|error| error.to_string().contains("(7)"));
    assert!(lb_tests::e2e::eventually(refused), "curl's exit code 7: connection refused");
}

#[test]
fn detach_leaves_no_trace_with_and_without_a_daemon() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    for killed in [false, true] {
        setup.attach(&format!("--vip 80 --backends {list}")).unwrap();
        assert!(setup.bpffs().exists());
        if killed {
            setup.kill_daemon().unwrap();
        }
        let output = setup.lb("detach").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(lb_tests::e2e::eventually(
            || !setup.bpffs().exists() && !setup.directory().join("lb.sock").exists() || killed
        ));
        let link = setup.balancer.command("ip").args(["link", "show", "eth0"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&link.stdout).contains("xdp"), "killed: {killed}");
    }
}

/// What is typed, the exit code, and words that the error must have.
#[test]
fn wrong_requests_get_errors_one_can_act_on() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    let before = [
        ("status", 1, "no daemon answers"),
        ("detach", 1, "nothing is attached"),
        ("attach eth9 --backends 10.66.0.11:80", 1, "interface eth9"),
        ("attach lo --backends 10.66.0.11:80", 5, "loopback device"),
        ("attach eth0 --backends 10.66.0.11:80,10.66.0.11:81", 2, "different ports"),
        ("attach eth0 --backends 10.66.0.1:80", 5, "is a VIP"),
        ("attach eth0 --vip 10.66.0.9:80 --backends 10.66.0.1:80", 5, "this host's own"),
        ("attach eth0 --vip 10.66.0.9:80 --backends 127.0.0.1:80", 5, "loopback"),
        ("attach eth0 --backends 10.77.0.1:80", 5, "no route"),
        ("attach eth0 --mode dsr --backends 10.66.0.11:80", 2, "mode 'dsr'"),
        ("attach eth0 --max-flows 5 --backends 10.66.0.11:80", 2, "--max-flows 5"),
    ];
    let check = |setup: &Setup, cases: &[(&str, i32, &str)]| {
        for (line, code, words) in cases {
            let output = setup.lb(line).unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(*code), "{line}: {error}");
            assert!(error.contains(words) && error.starts_with("lb: "), "{line}: {error}");
            assert!(error.contains("\nhint: ") && !error.contains("backtrace"), "{line}: {error}");
        }
    };
    check(&setup, &before);
    assert!(!setup.bpffs().exists(), "a refused attach leaves nothing");
    setup.attach(&format!("--vip 80 --backends {list}")).unwrap();
    check(
        &setup,
        &[
            ("attach eth0 --backends 10.66.0.11:80", 5, "a daemon answers"),
            ("backend add 10.66.0.11:8080", 5, "has it already"),
            ("backend drain 10.66.0.77:1", 1, "not in service"),
            ("service show nope", 1, "service nope"),
            ("service add 10.66.0.1:80", 5, "there is one of this name"),
            ("service set 10.66.0.1:80 --mode dsr", 5, "mode cannot change"),
            ("conn flush", 2, "every connection"),
            ("detach eth7", 1, "eth7: not attached"),
        ],
    );
}
