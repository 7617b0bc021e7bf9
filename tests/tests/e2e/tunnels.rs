//! Modes `ipip` and `gue` with real servers behind tunnels: all four combinations of inner and outer family.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use lb_tests::e2e::{
    BALANCER, BALANCER6, MODES, Setup,
    clients::{Storm, connect, ping, ping_much, ping_udp},
    eventually, noise,
    unwrap::{DEVICES, Unwrapper, settled},
};
use lb_userspace::state::Mode;
use serde_json::Value;

/// VIPs, and whether their backends are reached over IPv6.
const VIPS: [(&str, bool); 4] =
    [("10.66.0.101", false), ("fd66::102", false), ("10.66.0.103", true), ("fd66::104", true)];

fn overhead(mode: Mode, outer_v6: bool) -> usize {
    (if outer_v6 { 40 } else { 20 }) + if mode == Mode::Gue { 8 } else { 0 }
}

fn place(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// What is left of doctor's words where this kernel's devices are tuns, which are there already.
fn without_modules(command: &str) -> Option<String> {
    if command.starts_with("modprobe ") && !command.contains("&&")
        || command.contains(" fou ")
        || command.contains("tunnel change")
    {
        return None;
    }
    Some(command.split_once(" && ").map_or(command, |(_, rest)| rest).to_owned())
}

/// Puts ends of tunnels on the backends, does what doctor says, and serves.
fn make_ready(setup: &mut Setup, mode: Mode, files: &[(&str, &[u8])]) -> Vec<Unwrapper> {
    // As on distributions that filter strictly: doctor's commands have to cope with it.
    for host in &setup.backends {
        Setup::sysctl(host, "net.ipv4.conf.default.rp_filter=1").unwrap();
        Setup::sysctl(host, "net.ipv4.conf.all.rp_filter=1").unwrap();
    }
    let unwrappers: Vec<_> = setup.backends.iter().map(|host| Unwrapper::start(host, mode).unwrap()).collect();
    for host in &setup.backends {
        // What GRO merges a socket would be given as one packet.
        assert!(host.command("ethtool").args(["-K", "eth0", "gro", "off"]).status().unwrap().success());
    }
    setup.heed_doctor(without_modules).unwrap();
    setup.serve_nginx(80, files).unwrap();
    unwrappers
}

fn add(setup: &Setup, mode: Mode, vip: &str, outer_v6: bool, port: &str, health: &str) {
    let list = setup.addresses(outer_v6);
    let vip = if vip.contains(':') { format!("[{vip}]") } else { vip.to_owned() };
    setup.done(&format!("service add {vip}:{port} --mode {mode} --health {health} --backends {list}")).unwrap();
}

fn wait_up(setup: &Setup, wanted: usize) {
    let down = |health: &Value| health.as_array().unwrap().iter().filter(|backend| backend["health"] == "up").count();
    assert!(eventually(|| down(&setup.json("health").unwrap()) == wanted), "{}", setup.done("health").unwrap());
}

fn sum(setup: &Setup, of: &str) -> u64 {
    let status = setup.json("status").unwrap();
    status["services"].as_array().unwrap().iter().map(|service| service[of]["in"].as_u64().unwrap()).sum()
}

fn all_combinations(mode: Mode, xdp: &str) {
    let (big, much) = (noise(8_000_000), noise(2_000_000));
    let mut setup = Setup::new(2, 1500).unwrap();
    if xdp == "generic" {
        assert!(setup.balancer.command("ethtool").args(["-K", "eth0", "gro", "off"]).status().unwrap().success());
    }
    setup.attach(&format!("--xdp {xdp} --announce")).unwrap();
    for (vip, outer_v6) in VIPS {
        add(&setup, mode, vip, outer_v6, "80", "tcp");
        add(&setup, mode, vip, outer_v6, "7/tcp", "none");
        add(&setup, mode, vip, outer_v6, "7/udp", "none");
    }
    let unwrappers = make_ready(&mut setup, mode, &[("big", &big)]);
    for (vip, _) in VIPS {
        setup.serve_echo_at(vip.parse().unwrap(), 7).unwrap();
    }
    wait_up(&setup, 2 * 3 * VIPS.len());
    for (vip, outer_v6) in VIPS {
        let what = format!("{mode} {xdp} {vip}, IPv6 outside: {outer_v6}");
        let host = place(vip, 80).to_string();
        let names: BTreeSet<_> = (0..30).map(|_| setup.curl(&format!("http://{host}/name")).unwrap()).collect();
        assert_eq!(names.len(), 2, "{what}");
        let before = setup.carried().unwrap();
        assert!(setup.curl(&format!("http://{host}/big")).unwrap() == big, "{what}: the download differs");
        let carried = setup.carried().unwrap() - before;
        assert!(carried < 3_000_000, "{what}: the answer passed lb, which carried {carried} bytes");

        // Rule 23: full-size segments do not fit any more, and the client is told so.
        let to = place(vip, 7);
        ping_much(&setup.client, to, &much).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let left = 1500 - overhead(mode, outer_v6);
        let route = Setup::ip(&setup.client, &format!("route get {vip}")).unwrap();
        assert!(route.contains(&format!("mtu {left}")), "{what}: {route}");

        let most = left as u32 - if to.is_ipv4() { 28 } else { 48 };
        for length in [0, 1, 2, 513, most] {
            ping_udp(&setup.client, to, &noise(length)).unwrap_or_else(|e| panic!("{what}, {length}: {e:#}"));
        }
        let done = Storm::begin(&setup.client, to, 300, 4).wait().unwrap();
        assert_eq!((done.fine, &done.failures[..]), (300, &[][..]), "{what}");
    }
    // Rule 34: what arrived is what was counted, to the byte.
    let seen = settled(&unwrappers);
    let total = |of: fn(&lb_tests::e2e::unwrap::Seen) -> u64| seen.iter().map(of).sum::<u64>();
    assert_eq!(total(|seen| seen.packets), sum(&setup, "packets"), "{mode} {xdp}: packets");
    assert_eq!(total(|seen| seen.bytes), sum(&setup, "bytes"), "{mode} {xdp}: bytes");
    for seen in &seen {
        assert_eq!(seen.senders, [IpAddr::from(BALANCER), IpAddr::from(BALANCER6)].into(), "lb's own addresses");
    }
    // Which of the backends has the long packets is chance.
    let longest = seen.iter().map(|seen| seen.longest).max();
    assert_eq!(longest, Some(1500 - overhead(mode, false)), "{mode} {xdp}: the longest that fits was used");
    let drops = setup.json("drops").unwrap();
    let count = |reason: &str| {
        let found = drops.as_array().unwrap().iter().find(|drop| drop["reason"] == reason);
        found.map_or(0, |drop| drop["count"].as_u64().unwrap())
    };
    assert!(count("too-big") > 0 && count("next-hop-unknown") == 0 && count("helper-failed") == 0, "{drops:#}");
}

#[test]
fn ipip_in_all_four_combinations() {
    for xdp in MODES {
        all_combinations(Mode::Ipip, xdp);
    }
}

#[test]
fn gue_in_all_four_combinations() {
    for xdp in MODES {
        all_combinations(Mode::Gue, xdp);
    }
}

/// Backends on another network, and their answers by way of their own router.
#[test]
fn backends_behind_a_router() {
    for mode in [Mode::Ipip, Mode::Gue] {
        let mut setup = Setup::new(0, 1500).unwrap();
        setup.lab.switch("far").unwrap();
        let router = setup.lab.host("router", Ipv4Addr::new(10, 66, 0, 21), 1500).unwrap();
        setup.lab.plug(&router, "eth1", "far", Ipv4Addr::new(10, 68, 0, 1), 1500).unwrap();
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0"] {
            Setup::sysctl(&router, setting).unwrap();
        }
        for n in [1, 2] {
            let host = setup.lab.host_behind("far", &format!("b{n}"), Ipv4Addr::new(10, 68, 0, 10 + n), 1500).unwrap();
            Setup::ip(&host, "route add default via 10.68.0.1").unwrap();
            Setup::ip(&host, "-6 route add default via fd68::1").unwrap();
            setup.backends.push(host);
        }
        Setup::ip(&setup.balancer, "route add 10.68.0.0/24 via 10.66.0.21").unwrap();
        Setup::ip(&setup.balancer, "-6 route add fd68::/64 via fd66::21").unwrap();
        setup.attach("--xdp native --announce").unwrap();
        let vips = [("10.66.0.101", false), ("fd66::104", true)];
        for (vip, outer_v6) in vips {
            add(&setup, mode, vip, outer_v6, "80", "tcp");
            add(&setup, mode, vip, outer_v6, "7", "none");
        }
        let unwrappers = make_ready(&mut setup, mode, &[]);
        for (vip, _) in vips {
            setup.serve_echo_at(vip.parse().unwrap(), 7).unwrap();
        }
        wait_up(&setup, 8);
        for (vip, _) in vips {
            let host = place(vip, 80).to_string();
            let names: BTreeSet<_> = (0..30).map(|_| setup.curl(&format!("http://{host}/name")).unwrap()).collect();
            assert_eq!(names.len(), 2, "{mode} {vip}");
            ping_much(&setup.client, place(vip, 7), &noise(1_000_000))
                .unwrap_or_else(|e| panic!("{mode} {vip}: {e:#}"));
            let mut stream = connect(&setup.client, place(vip, 7)).unwrap();
            ping(&mut stream, "by way of the router").unwrap();
        }
        assert!(unwrappers.iter().all(|unwrapper| unwrapper.seen().packets > 0));

        // Behind the router the way is narrower than lb can know: the router tells lb, and lb the client.
        let narrow = "route change 10.68.0.0/24 dev eth1 proto kernel scope link src 10.68.0.1 mtu lock 1400";
        Setup::ip(&router, narrow).unwrap();
        Setup::ip(&router, "-6 route replace fd68::/64 dev eth1 proto kernel metric 256 mtu 1400").unwrap();
        for (vip, outer_v6) in vips {
            ping_much(&setup.client, place(vip, 7), &noise(500_000)).unwrap_or_else(|e| panic!("{mode} {vip}: {e:#}"));
            let route = Setup::ip(&setup.client, &format!("route get {vip}")).unwrap();
            assert!(route.contains(&format!("mtu {}", 1400 - overhead(mode, outer_v6))), "{mode} {vip}: {route}");
        }
    }
}

#[test]
fn a_backend_without_its_device_gets_nothing_through() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.attach("--xdp native --announce").unwrap();
    add(&setup, Mode::Ipip, "10.66.0.101", false, "80", "none");
    let _unwrappers = make_ready(&mut setup, Mode::Ipip, &[]);
    setup.curl("http://10.66.0.101/name").unwrap();
    Setup::ip(&setup.backends[0], &format!("link set {} down", DEVICES[0])).unwrap();
    let curl = ["-s", "--max-time", "2", "http://10.66.0.101/name"];
    assert_eq!(setup.client.command("curl").args(curl).status().unwrap().code(), Some(28), "nobody answers");
}

/// `via = "vip"`: a tunnel without an end shows, in all combinations.
#[test]
fn a_check_by_way_of_the_vip_goes_through_the_tunnel() {
    for mode in [Mode::Ipip, Mode::Gue] {
        let mut setup = Setup::new(1, 1500).unwrap();
        setup.attach("--xdp native --announce").unwrap();
        let names = VIPS.map(|(vip, _)| format!("{}/tcp", place(vip, 80)));
        for ((_, outer_v6), name) in VIPS.iter().zip(&names) {
            setup.add_checked_via_vip(name, mode, *outer_v6, "http:/name").unwrap();
        }
        let unwrappers = make_ready(&mut setup, mode, &[]);
        let backend = |outer_v6| -> IpAddr {
            let host = &setup.backends[0];
            if outer_v6 { host.address6.into() } else { host.address.into() }
        };
        for ((vip, outer_v6), name) in VIPS.iter().zip(&names) {
            setup.wait_verdict(name, backend(*outer_v6), "up", "ok").unwrap();
            setup.curl(&format!("http://{}/name", place(vip, 80))).unwrap();
        }
        assert!(unwrappers[0].seen().packets > 0);
        for device in DEVICES {
            Setup::ip(&setup.backends[0], &format!("link set {device} down")).unwrap();
        }
        for ((_, outer_v6), name) in VIPS.iter().zip(&names) {
            let question = "does the backend have the VIP?";
            setup.wait_verdict(name, backend(*outer_v6), "down", question).unwrap();
        }
    }
}
