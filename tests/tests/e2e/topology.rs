//! Networks of several shapes: two arms, jumbo frames, backends behind routers, several balancers.

use std::{collections::BTreeSet, net::Ipv4Addr};

use lb_tests::e2e::{
    MODES, Setup,
    clients::{Storm, connect, ping},
    eventually, vip,
};

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
        setup.serve_nginx(8080, &[("big", &big)]).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list(8080);
        setup.attach(&format!("eth1 --xdp {mode} --vip 80 --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let names: BTreeSet<_> = (0..30).map(|_| setup.curl("http://10.66.0.1/name").unwrap()).collect();
        assert_eq!(names.len(), 2, "{mode}: {names:?}");
        assert!(setup.curl("http://10.66.0.1/big").unwrap() == big, "{mode}");
        let list = setup.list(7);
        setup.done(&format!("service add 10.66.0.1:7 --backends {list} --wait=20s")).unwrap();
        let done = Storm::begin(&setup.client, vip(7), 2000, 8).wait().unwrap();
        assert_eq!((done.fine, &done.failures[..]), (2000, &[][..]), "{mode}");
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
    let big = vec![7; 20_000_000];
    for mode in MODES {
        let mut setup = Setup::new(1, 9000).unwrap();
        setup.serve_nginx(8080, &[("big", &big)]).unwrap();
        let list = setup.list(8080);
        setup.attach(&format!("--xdp {mode} --vip 80 --backends {list}")).unwrap();
        setup.wait_usable(1).unwrap();
        assert!(setup.curl("http://10.66.0.1/big").unwrap() == big, "{mode}");
        let service = &setup.json("status").unwrap()["services"][0];
        let (bytes, packets) = (&service["bytes"]["out"], &service["packets"]["out"]);
        let average = bytes.as_u64().unwrap() / packets.as_u64().unwrap();
        assert!(average > 5000, "{mode}: frames of {average} bytes");
    }
}

/// A backend's network card is replaced while a connection is open.
#[test]
fn rule_38_a_backend_gets_another_mac() {
    for mode in MODES {
        let mut setup = Setup::new(1, 1500).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list(7);
        setup.attach(&format!("--xdp {mode} --backends {list}")).unwrap();
        setup.wait_usable(1).unwrap();
        let mut stream = connect(&setup.client, vip(7)).unwrap();
        ping(&mut stream, "before").unwrap();
        // As after a failover: whoever has the address now tells the neighbours.
        Setup::sysctl(&setup.backends[0], "net.ipv4.conf.eth0.arp_notify=1").unwrap();
        Setup::ip(&setup.backends[0], "link set eth0 address 02:00:00:00:00:77").unwrap();
        ping(&mut stream, "after").unwrap_or_else(|error| panic!("{mode}: {error:#}"));
        let mut fresh = connect(&setup.client, vip(7)).unwrap();
        ping(&mut fresh, "a new one").unwrap_or_else(|error| panic!("{mode}: {error:#}"));
    }
}

/// The way to a backend leads over another router while a connection is open.
#[test]
fn rule_38_a_backend_gets_another_gateway() {
    for mode in MODES {
        let mut setup = Setup::new(0, 1500).unwrap();
        setup.lab.switch("far").unwrap();
        for n in [1, 2] {
            let router = setup.lab.host(&format!("router{n}"), Ipv4Addr::new(10, 66, 0, 20 + n), 1500).unwrap();
            setup.lab.plug(&router, "eth1", "far", Ipv4Addr::new(10, 68, 0, n), 1500).unwrap();
            Setup::sysctl(&router, "net.ipv4.ip_forward=1").unwrap();
            Setup::sysctl(&router, "net.ipv4.conf.all.rp_filter=0").unwrap();
        }
        let backend = setup.lab.host_behind("far", "b1", Ipv4Addr::new(10, 68, 0, 11), 1500).unwrap();
        Setup::ip(&backend, "route add default via 10.68.0.1").unwrap();
        setup.backends.push(backend);
        Setup::ip(&setup.balancer, "route add 10.68.0.0/24 via 10.66.0.21").unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list(7);
        setup.attach(&format!("--xdp {mode} --backends {list}")).unwrap();
        setup.wait_usable(1).unwrap();
        let mut stream = connect(&setup.client, vip(7)).unwrap();
        ping(&mut stream, "by the first router").unwrap();
        Setup::ip(&setup.balancer, "route replace 10.68.0.0/24 via 10.66.0.22").unwrap();
        Setup::ip(&setup.backends[0], "route replace default via 10.68.0.2").unwrap();
        Setup::ip(&setup.balancer, "neigh flush to 10.66.0.21").unwrap();
        for n in 0..20 {
            ping(&mut stream, &format!("by the second router {n}")).unwrap_or_else(|e| panic!("{mode}: {e:#}"));
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // The first is not needed any more: nothing went on over it.
        let arrived = || connect(&setup.client, vip(7)).is_ok_and(|mut stream| ping(&mut stream, "new").is_ok());
        assert!(eventually(arrived), "{mode}");
    }
}

/// Two balancers on one host, each with an interface, a socket, a state and pins of its own.
#[test]
fn instances_side_by_side_do_not_know_of_each_other() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.lab.switch("inside").unwrap();
    setup.lab.plug(&setup.balancer, "eth1", "inside", Ipv4Addr::new(10, 67, 0, 1), 1500).unwrap();
    let other = setup.lab.host_behind("inside", "b2", Ipv4Addr::new(10, 67, 0, 12), 1500).unwrap();
    let other_client = setup.lab.host_behind("inside", "client2", Ipv4Addr::new(10, 67, 0, 2), 1500).unwrap();
    setup.backends.push(other);
    setup.serve_echo(7).unwrap();
    setup.attach("--vip 7 --backends 10.66.0.11:7").unwrap();
    let second = setup.start("second", "attach eth1 --vip 7 --backends 10.67.0.12:7").unwrap();
    let there = std::net::SocketAddr::from(([10, 67, 0, 1], 7));
    setup.wait_usable(1).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "the first").unwrap();
    let opened = || connect(&other_client, there).is_ok_and(|mut stream| ping(&mut stream, "the second").is_ok());
    assert!(eventually(opened));
    let taken = setup.command("third", "attach eth1 --vip 8 --backends 10.67.0.12:7").output().unwrap();
    let error = String::from_utf8_lossy(&taken.stderr);
    assert!(taken.status.code() == Some(5) && error.contains("another XDP program is attached"), "{error}");
    let output = setup.command("second", "detach").output().unwrap();
    assert!(output.status.success());
    assert!(second.ended().unwrap().success());
    assert!(!setup.pins("second").exists());
    ping(&mut stream, "the first goes on").unwrap();
    setup.wait_usable(1).unwrap();
}
