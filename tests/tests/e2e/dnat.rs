//! Mode `dnat` with lb as the backends' gateway, set up as the documentation says; forwarding stays off.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_tests::e2e::{
    BALANCER6, CLIENT, MODES, Setup,
    checked::nginx,
    clients::{Storm, connect, ping, ping_much, ping_udp},
    direct::type_in,
    echo, eventually, noise, vip, vip6,
};

const DOCUMENT: &str = include_str!("../../../docs/modes/dnat.md");

/// The documentation's commands for a backend, with the lab's addresses; `wanted` says which.
fn documented(setup: &Setup, wanted: impl Fn(&str) -> bool) {
    let commands = DOCUMENT.split(['\n', '`']).filter_map(|line| line.strip_prefix("sudo "));
    let commands: Vec<_> = commands.filter(|line| line.starts_with("ip ") && wanted(line)).collect();
    assert!(!commands.is_empty());
    for host in &setup.backends {
        for command in &commands {
            let command = command.replace("10.0.1.1", "10.67.0.1").replace("fd00:1::1", "fd67::1");
            type_in(host, &command.replace("10.0.1.2", &host.address.to_string())).unwrap();
        }
    }
}

/// Two arms, servers that tell whom they see, and lb as their gateway.
fn ready(mode: &str, big: &[u8]) -> Setup {
    let mut setup = Setup::two_armed(2, 1500).unwrap();
    // Generic XDP cannot send on through another interface what TSO and GRO make.
    for host in setup.backends.iter().chain([&setup.client]) {
        assert!(host.command("ethtool").args(["-K", "eth0", "tso", "off"]).status().unwrap().success());
    }
    for device in ["eth0", "eth1"] {
        let off = setup.balancer.command("ethtool").args(["-K", device, "gro", "off"]).status().unwrap();
        assert!(mode != "generic" || off.success());
    }
    documented(&setup, |line| line.contains("default via") && !line.contains("table"));
    for host in setup.backends.clone() {
        let directory = setup.directory().join(format!("who-{}", host.address));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("big"), big).unwrap();
        let block = format!(
            "server {{ listen 8080; listen [::]:8080; root {}; default_type text/plain;\n\
             location /who {{ return 200 \"$remote_addr at $server_addr\"; }} }}",
            directory.display()
        );
        let server = nginx(&host, 8080, &directory, &block).unwrap();
        setup.keep(server);
    }
    setup.serve_echo(5353).unwrap();
    let service = format!("--vip 80 --mode dnat --backends {} --health http:/who", setup.list(8080));
    setup.attach(&format!("eth1 --xdp {mode} {service}")).unwrap();
    setup.wait_usable(2).unwrap();
    let list = setup.list6(8080);
    setup.done(&format!("service add [{BALANCER6}]:80 --mode dnat --backends {list} --wait=20s")).unwrap();
    setup
}

#[test]
fn servers_see_the_client_and_answer_through_lb() {
    let big = noise(20_000_000);
    for mode in MODES {
        let setup = ready(mode, &big);
        for (host, client) in [("10.66.0.1", CLIENT.to_string()), ("[fd66::1]", "fd66::2".to_owned())] {
            let who = || String::from_utf8(setup.curl(&format!("http://{host}/who")).unwrap()).unwrap();
            let seen: BTreeSet<_> = (0..40).map(|_| who()).collect();
            assert_eq!(seen.len(), 2, "{mode}: {seen:?}");
            assert!(seen.iter().all(|text| text.starts_with(&format!("{client} at "))), "{mode}: {seen:?}");
            assert!(setup.curl(&format!("http://{host}/big")).unwrap() == big, "{mode} {host}: the download differs");
        }
        for service in setup.json("status").unwrap()["services"].as_array().unwrap() {
            assert!(service["bytes"]["out"].as_u64() > Some(20_000_000), "{mode}: {service}");
            assert_eq!(service["mode"], "dnat");
        }
        let much = &big[..3_000_000];
        for (to, list) in [(vip(7), setup.list(5353)), (vip6(7), setup.list6(5353))] {
            let what = format!("{mode} {to}");
            setup.done(&format!("service add {to} --mode dnat --backends {list} --wait=20s")).unwrap();
            setup.done(&format!("service add {to}/udp --mode dnat --backends {list}")).unwrap();
            ping_much(&setup.client, to, much).unwrap_or_else(|error| panic!("{what}: {error:#}"));
            for length in [0, 1, 2, 513, 1452] {
                ping_udp(&setup.client, to, &noise(length)).unwrap_or_else(|e| panic!("{what} {length}: {e:#}"));
            }
            let done = Storm::begin(&setup.client, to, 1000, 8).wait().unwrap();
            assert_eq!((done.fine, &done.failures[..]), (1000, &[][..]), "{what}");
            let mut stream = connect(&setup.client, to).unwrap();
            ping(&mut stream, "here").unwrap();
            let from = stream.local_addr().unwrap().to_string();
            let conns = setup.json(&format!("conn list -s {to} --client {}", client_of(to))).unwrap();
            let conn = conns.as_array().unwrap().iter().find(|conn| conn["client"] == from.as_str()).unwrap();
            assert_eq!((&conn["snat"], &conn["state"]), (&from.as_str().into(), &"established".into()), "{conn}");
        }
    }
}

fn client_of(to: SocketAddr) -> String {
    if to.is_ipv4() { CLIENT.to_string() } else { "fd66::2".to_owned() }
}

/// Only the service's answers go by lb, by a rule of the backend's; and without any way the page says what one sees.
#[test]
fn a_rule_is_enough_and_without_it_connections_never_open() {
    let mut setup = Setup::two_armed(1, 1500).unwrap();
    echo(&setup.backends[0], 8080).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("eth1 --xdp native --vip 7 --mode dnat --backends {list}")).unwrap();
    setup.wait_usable(1).unwrap();
    let client = setup.client.clone();
    let opening = client.spawn(|| std::net::TcpStream::connect_timeout(&vip(7), std::time::Duration::from_secs(2)));
    let waits = || setup.done("conn count --state syn").unwrap() == "1\n";
    assert!(eventually(waits), "{}", setup.done("conn list").unwrap());
    assert!(opening.join().unwrap().unwrap().is_err());
    documented(&setup, |line| line.contains("table 100"));
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "by the rule").unwrap();
    // Everything that is not of a connection of lb's is not its business: no default route, no way.
    let route = Setup::ip(&setup.backends[0], "route show default").unwrap();
    assert_eq!(route, "");
}

/// The balancer's host is an ordinary router besides, if it is told to.
#[test]
fn backends_reach_others_through_the_balancers_host() {
    let setup = ready("native", b"");
    echo(&setup.client, 9).unwrap();
    Setup::ip(&setup.client, "route add 10.67.0.0/24 via 10.66.0.1").unwrap();
    Setup::sysctl(&setup.balancer, "net.ipv4.ip_forward=1").unwrap();
    let mut stream = connect(&setup.backends[0], (CLIENT, 9).into()).unwrap();
    ping(&mut stream, "out of the backends' network").unwrap();
    assert_eq!(setup.curl("http://10.66.0.1/who").unwrap()[..10], *b"10.66.0.2 ");
    assert_eq!(setup.done("conn count --client 10.67.0.11").unwrap(), "0\n");
}
