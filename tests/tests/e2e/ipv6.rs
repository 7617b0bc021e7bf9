//! Mode `nat` over IPv6: the traffic, changes and neighbours that the other tests try over IPv4.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use lb_tests::e2e::{
    BALANCER6, MODES, Setup,
    clients::{Storm, connect, ping, ping_much, ping_udp},
    eventually, noise, vip, vip6,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

#[test]
fn requests_reach_all_backends_and_a_download_arrives_whole() {
    let big = noise(50_000_000);
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_nginx(8080, &[("big", &big)]).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list6(8080);
        let service = format!("--vip [{BALANCER6}]:80 --backends {list} --health http:/name");
        setup.attach(&format!("--xdp {mode} {service}")).unwrap();
        setup.wait_usable(2).unwrap();
        let name = || setup.curl("http://[fd66::1]/name").unwrap();
        assert_eq!((0..40).map(|_| name()).collect::<BTreeSet<_>>().len(), 2, "{mode}");
        assert!(setup.curl("http://[fd66::1]/big").unwrap() == big, "{mode}: the download differs");
        let status = setup.json("status").unwrap();
        assert!(status["services"][0]["bytes"]["out"].as_u64().unwrap() > 50_000_000, "{mode}: {status}");

        // Beside a service of the other family on the same port.
        setup.done(&format!("service add 10.66.0.1:80 --backends {} --wait=20s", setup.list(8080))).unwrap();
        setup.curl("http://10.66.0.1/name").unwrap();
        let list = setup.list6(7);
        setup.done(&format!("service add [{BALANCER6}]:7 --backends {list} --wait=20s")).unwrap();
        ping_much(&setup.client, vip6(7), &big[..10_000_000]).unwrap_or_else(|e| panic!("{mode}: {e:#}"));
        let done = Storm::begin(&setup.client, vip6(7), 3000, 8).wait().unwrap();
        assert_eq!((done.fine, &done.failures[..]), (3000, &[][..]), "{mode}");
    }
}

#[test]
fn udp_is_answered_by_the_vip() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_echo(5353).unwrap();
        let list = setup.list6(5353);
        setup.attach(&format!("--xdp {mode} --vip [{BALANCER6}]:53/udp --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        for length in [0, 1, 2, 3, 31, 512, 1451, 1452] {
            ping_udp(&setup.client, vip6(53), &noise(length))
                .unwrap_or_else(|e| panic!("{mode}, {length}: {e:#}: {}", setup.done("drops").unwrap()));
        }
        let [first, second] = [0, 1].map(|n| format!("conn count --backend [{}]:5353", setup.backends[n].address6));
        let spread = || [&first, &second].map(|count| setup.done(count).unwrap() != "0\n");
        let more = || ping_udp(&setup.client, vip6(53), b"more").is_ok() && spread() == [true, true];
        assert!(eventually(more), "{mode}: {:?}", spread());
    }
}

#[test]
fn two_interfaces_with_forwarding_off() {
    let big = noise(20_000_000);
    for mode in MODES {
        let mut setup = Setup::two_armed(2, 1500).unwrap();
        let forwarding = setup.balancer.command("sysctl").args(["-n", "net.ipv6.conf.all.forwarding"]).output();
        assert_eq!(forwarding.unwrap().stdout, b"0\n");
        for host in setup.backends.iter().chain([&setup.client]) {
            assert!(host.command("ethtool").args(["-K", "eth0", "tso", "off"]).status().unwrap().success());
        }
        setup.serve_nginx(8080, &[("big", &big)]).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list6(8080);
        setup.attach(&format!("eth1 --xdp {mode} --vip [{BALANCER6}]:80 --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let names: BTreeSet<_> = (0..30).map(|_| setup.curl("http://[fd66::1]/name").unwrap()).collect();
        assert_eq!(names.len(), 2, "{mode}: {names:?}");
        assert!(setup.curl("http://[fd66::1]/big").unwrap() == big, "{mode}");
        let list = setup.list6(7);
        setup.done(&format!("service add [{BALANCER6}]:7 --backends {list} --wait=20s")).unwrap();
        let done = Storm::begin(&setup.client, vip6(7), 1000, 8).wait().unwrap();
        assert_eq!((done.fine, &done.failures[..]), (1000, &[][..]), "{mode}");
    }
}

#[test]
fn backends_come_fall_and_leave() {
    let mut setup = Setup::new(3, 1500).unwrap();
    let latecomer = setup.backends.pop().unwrap();
    setup.serve_files(8080, &[]).unwrap();
    setup.backends.push(latecomer);
    setup.serve_echo(7).unwrap();
    let list = setup.list6(7);
    let last = format!("[{}]:7", setup.backends[2].address6);
    let first_two = list.strip_suffix(&format!(",{last}")).unwrap();
    setup.attach(&format!("--vip [{BALANCER6}]:7 --backends {first_two}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut streams: Vec<_> = (0..20).map(|_| connect(&setup.client, vip6(7)).unwrap()).collect();
    setup.done(&format!("backend add {last}=3 --wait=20s")).unwrap();
    streams.extend((0..20).map(|_| connect(&setup.client, vip6(7)).unwrap()));
    for (n, stream) in streams.iter_mut().enumerate() {
        ping(stream, &format!("still there {n}")).unwrap();
    }
    let count = |filter: &str| setup.done(&format!("conn count {filter}")).unwrap().trim().parse::<u32>().unwrap();
    assert_eq!(count("--client fd66::2"), 40);
    assert!(count(&format!("--backend {last}")) > 0);
    let conn = &setup.json("conn list --limit 1").unwrap()[0];
    assert_eq!((&conn["vip"], &conn["proto"]), (&"[fd66::1]:7".into(), &"tcp".into()), "{conn}");
    assert!(conn["client"].as_str().unwrap().starts_with("[fd66::2]:"), "{conn}");
    let table = setup.done("conn list").unwrap();
    assert!(table.contains("[fd66::2]:") && table.contains(&last), "{table}");

    setup.done(&format!("backend drain {last}")).unwrap();
    let before = count(&format!("--backend {last}"));
    for _ in 0..20 {
        connect(&setup.client, vip6(7)).unwrap();
    }
    assert_eq!(count(&format!("--backend {last}")), before, "a drained backend takes no new connections");

    // A port that nobody serves: its backends are down, and the client is told at once.
    setup.done(&format!("service add [{BALANCER6}]:9 --backends {}", setup.list6(9))).unwrap();
    let health = || setup.json("health").unwrap().as_array().unwrap().clone();
    let refused = |backend: &serde_json::Value| backend["last_check"]["reason"] == "connect: connection refused";
    assert!(eventually(|| health().iter().filter(|b| refused(b)).count() == 3), "{:?}", health());
    assert!(eventually(|| connect(&setup.client, vip6(9)).is_err()));
}

/// Two interfaces of different MTUs.
#[test]
fn rule_23_a_client_is_told_that_its_packets_are_too_big() {
    let much = noise(3_000_000);
    for mode in MODES {
        let mut setup = Setup::two_armed(1, 1500).unwrap();
        for (host, device) in [(&setup.balancer, "eth1"), (&setup.backends[0], "eth0")] {
            Setup::ip(host, &format!("link set {device} mtu 1400")).unwrap();
        }
        for device in ["eth0", "eth1"] {
            let gro_off = setup.balancer.command("ethtool").args(["-K", device, "gro", "off"]).status();
            assert!(gro_off.unwrap().success());
        }
        setup.serve_echo(7).unwrap();
        let list = setup.list6(7);
        setup.attach(&format!("eth1 --xdp {mode} --vip [{BALANCER6}]:7 --backends {list}")).unwrap();
        setup.done(&format!("service add 10.66.0.1:7 --backends {} --wait=20s", setup.list(7))).unwrap();
        setup.done(&format!("service add [{BALANCER6}]:7/udp --backends {list}")).unwrap();
        for to in [vip6(7), vip(7)] {
            ping_much(&setup.client, to, &much).unwrap_or_else(|e| panic!("{mode} {to}: {e:#}"));
        }
        // The first datagram is lost; the kernel has learned by the second, and fragments.
        let _ = ping_udp_once(&setup, 1452);
        assert!(eventually(|| learned(&setup)), "{mode}: {}", route(&setup));
        let drops = setup.json("drops").unwrap();
        let told = drops.as_array().unwrap().iter().find(|drop| drop["reason"] == "too-big");
        assert!(told.is_some_and(|drop| drop["count"].as_u64() > Some(0)), "{mode}: {drops}");
    }
}

fn ping_udp_once(setup: &Setup, length: usize) -> std::io::Result<()> {
    let sent = setup.client.spawn(move || {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.connect(vip6(7))?;
        socket.send(&vec![7; length]).map(drop)
    });
    sent.join().unwrap().unwrap()
}

fn route(setup: &Setup) -> String {
    Setup::ip(&setup.client, "-6 route get fd66::1").unwrap()
}

fn learned(setup: &Setup) -> bool {
    route(setup).contains("mtu 1400")
}

#[test]
fn rule_19_the_vip_answers_pings() {
    for mode in MODES {
        let mut setup = Setup::new(1, 1500).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list6(7);
        // The host does not have the VIP: nobody but lb can answer for it.
        setup.attach(&format!("--xdp {mode} --vip [fd66::100]:7 --backends {list}")).unwrap();
        Setup::ip(&setup.client, "-6 route add fd66::100/128 via fd66::1").unwrap();
        echo_request(&setup, b"over the balancer").unwrap_or_else(|error| panic!("{mode}: {error:#}"));
        let mut stream = connect(&setup.client, "[fd66::100]:7".parse().unwrap()).unwrap();
        ping(&mut stream, "by way of the balancer's address").unwrap();
    }
}

/// Sends an echo request to the VIP and waits for its reply, whose checksum the kernel looks at.
fn echo_request(setup: &Setup, word: &'static [u8]) -> anyhow::Result<()> {
    Setup::sysctl(&setup.client, "net.ipv4.ping_group_range=0 0")?;
    let asked = setup.client.spawn(move || -> std::io::Result<Vec<u8>> {
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), SockProtocol::IcmpV6)?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect("[fd66::100]:0")?;
        socket.send(&[&[128, 0, 0, 0, 0, 0, 0, 1], word].concat())?;
        let mut reply = vec![0; 1500];
        let length = socket.recv(&mut reply)?;
        reply.truncate(length);
        Ok(reply)
    });
    let reply = asked.join().expect("a thread")??;
    anyhow::ensure!(reply[0] == 129 && &reply[8..] == word, "{reply:02x?}");
    Ok(())
}

#[test]
fn a_clients_neighbour_cache_follows_an_announced_vip() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_nginx(8080, &[]).unwrap();
    let former = setup.backends[1].clone();
    Setup::ip(&former, "addr add fd66::100/128 dev eth0 nodad").unwrap();
    let asked = setup.client.command("curl").args(["-s", "--max-time", "2", "http://[fd66::100]/"]).output();
    assert_eq!(asked.unwrap().status.code(), Some(7), "the former host refuses");
    let known = || Setup::ip(&setup.client, "neigh show fd66::100").unwrap();
    let mac = |host| {
        let links = Setup::ip(host, "-j link show dev eth0").unwrap();
        let links: serde_json::Value = serde_json::from_str(&links).unwrap();
        links[0]["address"].as_str().unwrap().to_owned()
    };
    assert!(known().contains(&mac(&former)), "{}", known());
    Setup::ip(&former, "addr del fd66::100/128 dev eth0").unwrap();

    let list = setup.list6(8080);
    setup.attach(&format!("--xdp generic --vip [fd66::100]:80 --announce --backends {list}")).unwrap();
    let known = || Setup::ip(&setup.client, "neigh show fd66::100").unwrap();
    assert!(eventually(|| known().contains(&mac(&setup.balancer))), "{}", known());
    setup.wait_usable(2).unwrap();
    setup.curl("http://[fd66::100]/name").unwrap();
    assert!(setup.lb("detach").unwrap().status.success());
    let has = || Setup::ip(&setup.balancer, "-o addr show dev eth0").unwrap().contains("fd66::100/");
    assert!(eventually(|| !has()));
}

/// Neighbour discovery goes on while the program is attached, and a backend's new address is followed.
#[test]
fn rule_22_and_38_neighbours_are_found_and_followed() {
    for mode in MODES {
        let mut setup = Setup::two_armed(1, 1500).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list6(7);
        setup.attach(&format!("eth1 --xdp {mode} --vip [{BALANCER6}]:7 --backends {list}")).unwrap();
        setup.wait_usable(1).unwrap();
        let mut stream = connect(&setup.client, vip6(7)).unwrap();
        ping(&mut stream, "before").unwrap();
        let backend = &setup.backends[0];
        Setup::sysctl(backend, "net.ipv6.conf.eth0.ndisc_notify=1").unwrap();
        Setup::ip(backend, "link set eth0 address 02:00:00:00:00:77").unwrap();
        ping(&mut stream, "after").unwrap_or_else(|error| panic!("{mode}: {error:#}"));
        let host = setup.lab.host_behind("inside", "b9", Ipv4Addr::new(10, 67, 0, 19), 1500).unwrap();
        setup.backends.push(host);
        setup.serve_echo(9).unwrap();
        setup.done(&format!("service add [{BALANCER6}]:9 --backends [fd67::19]:9 --wait=20s")).unwrap();
        ping(&mut connect(&setup.client, vip6(9)).unwrap(), "a new neighbour").unwrap();
    }
}
