//! Mode `dsr` with real servers that have the VIP on their loopback, set up as `lb doctor` and the documentation say.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_tests::e2e::{
    MODES, Setup,
    clients::{Storm, connect, ping, ping_udp},
    direct::type_in,
    eventually, noise,
};
use lb_userspace::{lab::Host, state::Mode};

const DOCUMENT: &str = include_str!("../../../docs/modes/dsr.md");
/// The VIPs, and the same as in a URL.
const VIPS: [(&str, &str); 2] = [("10.66.0.100", "10.66.0.100"), ("fd66::100", "[fd66::100]")];

fn mac(host: &Host) -> String {
    let links: serde_json::Value = serde_json::from_str(&Setup::ip(host, "-j link show dev eth0").unwrap()).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

/// A lab whose backends are ready for VIPs of both families at port 80, served by nginx.
fn ready(mode: &str, files: &[(&str, &[u8])]) -> Setup {
    let mut setup = Setup::new(2, 1500).unwrap();
    let (v4, v6) = (setup.addresses(false), setup.addresses(true));
    setup.attach(&format!("--xdp {mode} --mode dsr --vip 10.66.0.100:80 --announce --backends {v4}")).unwrap();
    setup.done(&format!("service add [fd66::100]:80 --mode dsr --backends {v6}")).unwrap();
    setup.done(&format!("service add 10.66.0.100:8080 --mode dsr --health none --backends {v4}")).unwrap();
    let needs = setup.needs(setup.backends[0].address.into()).unwrap();
    assert_eq!(needs.len(), 2, "what two services need is said once: {needs:?}");
    setup.done("service remove 10.66.0.100:8080").unwrap();
    setup.heed_doctor(|command| Some(command.to_owned())).unwrap();
    setup.serve_nginx(80, files).unwrap();
    for service in ["10.66.0.100:80/tcp", "[fd66::100]:80/tcp"] {
        let up = || {
            let health = setup.json("health").unwrap();
            let of = |backend: &&serde_json::Value| backend["service"] == service && backend["health"] == "up";
            health.as_array().unwrap().iter().filter(of).count()
        };
        assert!(eventually(|| up() == 2), "{mode} {service}: {}", setup.done("health").unwrap());
    }
    setup
}

#[test]
fn servers_answer_clients_directly() {
    let big = noise(20_000_000);
    for mode in MODES {
        let setup = ready(mode, &[("big", &big)]);
        for (n, (vip, host)) in VIPS.into_iter().enumerate() {
            let what = format!("{mode} {vip}");
            let names: BTreeSet<_> = (0..40).map(|_| setup.curl(&format!("http://{host}/name")).unwrap()).collect();
            assert_eq!(names.len(), 2, "{what}");
            let before = setup.carried().unwrap();
            assert!(setup.curl(&format!("http://{host}/big")).unwrap() == big, "{what}: the download differs");
            let carried = setup.carried().unwrap() - before;
            assert!(carried < 4_000_000, "{what}: the answer passed lb, which carried {carried} bytes");

            let service = &setup.json("status").unwrap()["services"][n];
            let (packets, bytes) = (&service["packets"], &service["bytes"]);
            assert!(packets["in"].as_u64() > Some(200) && packets["out"] == 0 && bytes["out"] == 0, "{service}");
            assert_eq!(service["mode"], "dsr");
            // Nobody but lb says that it has the VIP.
            for _ in 0..5 {
                Setup::ip(&setup.client, "neigh flush dev eth0").unwrap();
                setup.curl(&format!("http://{host}/name")).unwrap();
                let known = Setup::ip(&setup.client, &format!("neigh show {vip}")).unwrap();
                assert!(known.contains(&mac(&setup.balancer)), "{what}: {known}");
            }
        }
        let drops = setup.json("drops").unwrap();
        for reason in ["no-flow", "too-big", "too-big-dropped", "next-hop-unknown"] {
            let count = drops.as_array().unwrap().iter().find(|drop| drop["reason"] == reason);
            assert!(count.is_none_or(|drop| drop["count"] == 0), "{mode}: {drops:#}");
        }
    }
}

#[test]
fn echoes_by_tcp_and_udp_and_none_fails() {
    for mode in MODES {
        let mut setup = ready(mode, &[]);
        for (vip, host) in VIPS {
            setup.serve_echo_at(vip.parse().unwrap(), 7).unwrap();
            let list = setup.addresses(vip.contains(':'));
            for protocol in ["tcp", "udp"] {
                let service = format!("{host}:7/{protocol} --mode dsr --health none --backends {list}");
                setup.done(&format!("service add {service}")).unwrap();
            }
            let to: SocketAddr = format!("{host}:7").parse().unwrap();
            for length in [0, 1, 2, 512, 1452] {
                ping_udp(&setup.client, to, &noise(length)).unwrap_or_else(|e| panic!("{mode}, {length}: {e:#}"));
            }
            let done = Storm::begin(&setup.client, to, 1000, 8).wait().unwrap();
            assert_eq!((done.fine, &done.failures[..]), (1000, &[][..]), "{mode} {vip}");
            for backend in list.split(',') {
                let written = if vip.contains(':') { format!("[{backend}]") } else { backend.to_owned() };
                let count = setup.done(&format!("conn count -s {host}:7/tcp --backend {written}:7")).unwrap();
                assert_ne!(count, "0\n", "{mode}: no flow of {backend}");
            }
        }
    }
}

/// The pages' commands, with the lab's addresses in the place of theirs.
#[test]
fn the_documentation_says_all_that_a_backend_needs() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_nginx(80, &[]).unwrap();
    let typed = |line: &str| line.strip_prefix("sudo ").map(str::to_owned);
    let commands: Vec<_> = DOCUMENT.lines().filter_map(typed).collect();
    let (lb, needed): (Vec<_>, Vec<_>) = commands.iter().partition(|command| command.starts_with("lb "));
    assert_eq!((lb.len(), needed.len()), (1, 3), "{commands:?}");
    for command in needed {
        let command = command.replace("10.0.0.10", VIPS[0].0).replace("fd00::10", VIPS[1].0);
        for host in &setup.backends {
            type_in(host, &command).unwrap();
        }
    }
    let attach = lb[0].strip_prefix("lb attach eth0 ").unwrap().replace("10.0.0.10", VIPS[0].0);
    let attach = attach.replace("10.0.0.2,10.0.0.3", &setup.addresses(false));
    setup.attach(&attach).unwrap();
    setup.wait_usable(2).unwrap();
    let list = setup.addresses(true);
    setup.done(&format!("service add [fd66::100]:80 --mode dsr --backends {list} --wait=20s")).unwrap();
    for (_, host) in VIPS {
        Setup::ip(&setup.client, "neigh flush dev eth0").unwrap();
        let names: BTreeSet<_> = (0..40).map(|_| setup.curl(&format!("http://{host}/name")).unwrap()).collect();
        assert_eq!(names.len(), 2, "{host}");
    }
}

#[test]
fn connections_outlive_changes_and_the_daemon() {
    let mut setup = ready("native", &[]);
    for (vip, host) in VIPS {
        setup.serve_echo_at(vip.parse().unwrap(), 7).unwrap();
        let list = setup.addresses(vip.contains(':'));
        let service = format!("{host}:7");
        setup.done(&format!("service add {service} --mode dsr --health none --backends {list}")).unwrap();
        let to = service.parse().unwrap();
        let mut streams: Vec<_> = (0..20).map(|_| connect(&setup.client, to).unwrap()).collect();
        let first = if vip.contains(':') {
            format!("[{}]:7", setup.backends[0].address6)
        } else {
            format!("{}:7", setup.backends[0].address)
        };
        setup.done(&format!("backend drain {first} -s {service}")).unwrap();
        let counted = format!("conn count -s {service} --backend {first}");
        let count = |setup: &Setup| setup.done(&counted).unwrap();
        let before = count(&setup);
        assert_ne!(before, "0\n");
        for stream in streams.iter_mut().take(20) {
            ping(stream, "while it drains").unwrap();
            ping(&mut connect(&setup.client, to).unwrap(), "a new one").unwrap();
        }
        assert_eq!(count(&setup), before, "a drained backend takes no new connections");
        setup.kill_daemon().unwrap();
        for stream in &mut streams {
            ping(stream, "without a daemon").unwrap();
        }
        ping(&mut connect(&setup.client, to).unwrap(), "a new one without a daemon").unwrap();
        // Whoever takes over knows every backend again, of either family.
        setup.attach("--xdp native --announce").unwrap();
        assert_eq!(count(&setup), before);
        let status = setup.json("status").unwrap();
        assert_eq!(status["warnings"], serde_json::json!([]));
        let conns = setup.json(&format!("conn list -s {service} --backend {first}")).unwrap();
        let conn = &conns[0];
        assert_eq!((&conn["vip"], &conn["backend"]), (&service.clone().into(), &first.clone().into()), "{conn}");
        assert_eq!((&conn["state"], &conn["packets"]["out"]), (&"established".into(), &0.into()), "{conn}");
        assert!(conn["packets"]["in"].as_u64() > Some(2), "{conn}");
        setup.done(&format!("backend maint {first} -s {service}")).unwrap();
        let alive = streams.iter_mut().filter_map(|stream| ping(stream, "in maintenance").ok()).count();
        assert_eq!(
            alive,
            20 - before.trim().parse::<usize>().unwrap(),
            "those of the backend in maintenance are reset"
        );
    }
}

/// `via = "vip"`: what checks at the backend's own address do not find out.
#[test]
fn a_backend_without_the_vip_is_down_and_says_why() {
    const QUESTION: &str = "does the backend have the VIP?";
    for (xdp, announce) in [("native", "--announce"), ("generic", "")] {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_nginx(80, &[]).unwrap();
        setup.attach(&format!("--xdp {xdp} {announce}")).unwrap();
        if announce.is_empty() {
            // Nobody else has the VIPs: the host's stack would reset what it knows nothing of.
            Setup::ip(&setup.client, "route add 10.66.0.100/32 via 10.66.0.1").unwrap();
            Setup::ip(&setup.client, "-6 route add fd66::100/128 via fd66::1").unwrap();
        }
        for (vip, host) in VIPS {
            let v6 = vip.contains(':');
            let of = |n: usize| -> IpAddr {
                let host: &Host = &setup.backends[n];
                if v6 { host.address6.into() } else { host.address.into() }
            };
            let (web, tcp) = (format!("{host}:80/tcp"), format!("{host}:81/tcp"));
            setup.add_checked_via_vip(&web, Mode::Dsr, v6, "http:/name").unwrap();
            let needs = setup.needs(of(0)).unwrap();
            for command in &needs {
                type_in(&setup.backends[0], command).unwrap();
            }
            setup.wait_verdict(&web, of(0), "up", "ok").unwrap();
            setup.wait_verdict(&web, of(1), "down", QUESTION).unwrap();
            for _ in 0..20 {
                let name = setup.curl(&format!("http://{host}/name")).unwrap();
                assert_eq!(name, setup.backends[0].address.to_string().as_bytes(), "{xdp}: only who has the VIP");
            }
            for command in &needs {
                type_in(&setup.backends[1], command).unwrap();
            }
            setup.wait_verdict(&web, of(1), "up", "ok").unwrap();
            let names: BTreeSet<_> = (0..40).map(|_| setup.curl(&format!("http://{host}/name")).unwrap()).collect();
            assert_eq!(names.len(), 2, "{xdp} {vip}");

            // A port that nobody serves on the VIP is another matter.
            setup.add_checked_via_vip(&tcp, Mode::Dsr, v6, "tcp").unwrap();
            setup.wait_verdict(&tcp, of(0), "down", "connection refused").unwrap();
            setup.serve_echo_at(vip.parse().unwrap(), 81).unwrap();
            let of = |n: usize| -> IpAddr {
                let host: &Host = &setup.backends[n];
                if v6 { host.address6.into() } else { host.address.into() }
            };
            setup.wait_verdict(&tcp, of(0), "up", "ok").unwrap();
            Setup::ip(&setup.backends[1], &format!("addr del {vip}/{} dev lo", if v6 { 128 } else { 32 })).unwrap();
            setup.wait_verdict(&tcp, of(1), "down", QUESTION).unwrap();
            setup.wait_verdict(&web, of(1), "down", QUESTION).unwrap();
            setup.wait_verdict(&web, of(0), "up", "ok").unwrap();
        }
        let failed = || {
            let metrics = setup.metrics().unwrap();
            let place = |line: &str| [".11:80\"", "::11]:80\""].iter().any(|backend| line.contains(backend));
            let mine = |line: &&str| {
                line.starts_with("lb_backend_checks_total{") && line.contains("result=\"failed\"") && place(line)
            };
            metrics.lines().filter(mine).map(str::to_owned).collect::<Vec<_>>()
        };
        // None of a good backend's checks fails: nobody resets them, and no port is taken twice.
        let before = failed();
        assert_eq!(before.len(), 2, "of both families: {before:?}");
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert_eq!(failed(), before, "{xdp}");
        let drops = setup.json("drops").unwrap();
        let strays = drops.as_array().unwrap().iter().find(|drop| drop["reason"] == "no-flow");
        assert!(
            strays.is_none_or(|drop| drop["count"] == 0),
            "answers to checks are for none of lb's flows: {drops:#}"
        );
        let left = setup.backends[0].command("ss").args(["-Htn", "state", "established", "sport", "=", ":80"]).output();
        let left = String::from_utf8_lossy(&left.unwrap().stdout).lines().count();
        assert!(left <= 4, "{xdp}: checks leave {left} connections behind");
    }
}
