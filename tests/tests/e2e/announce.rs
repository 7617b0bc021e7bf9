//! `--announce`: VIPs on a device, neighbours that learn of it, and nothing left behind.

use lb_tests::e2e::{Setup, eventually};
use lb_userspace::lab::Host;
use serde_json::Value;

fn ip(host: &Host, arguments: &str) -> String {
    let output = host.command("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn has(host: &Host, device: &str, address: &str) -> bool {
    ip(host, &format!("-o addr show dev {device}")).contains(&format!(" {address} "))
}

fn mac_of(host: &Host) -> String {
    let links: Value = serde_json::from_str(&ip(host, "-j link show dev eth0")).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

#[test]
fn a_clients_arp_cache_follows_and_detach_takes_the_vip_away() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    // Another host has had the VIP, and the client knows its MAC address.
    let former = setup.backends[1].clone();
    ip(&former, "addr add 10.66.0.100/32 dev eth0");
    let asked = setup.client.command("curl").args(["-s", "--max-time", "1", "http://10.66.0.100/"]).output();
    assert_eq!(asked.unwrap().status.code(), Some(7), "the former host refuses");
    let known = || ip(&setup.client, "neigh show 10.66.0.100");
    assert!(known().contains(&mac_of(&former)), "{}", known());
    ip(&former, "addr del 10.66.0.100/32 dev eth0");

    let list = setup.list(8080);
    let attach = format!("--xdp generic --vip 10.66.0.100:80 --announce --backends {list}");
    setup.attach(&attach).unwrap();
    let known = || ip(&setup.client, "neigh show 10.66.0.100");
    assert!(eventually(|| known().contains(&mac_of(&setup.balancer))), "{}", known());
    setup.wait_usable(2).unwrap();
    setup.curl("http://10.66.0.100/name").unwrap();

    // A service that comes later, and one that goes.
    assert!(setup.lb(&format!("service add 10.66.0.101:80 --backends {list}")).unwrap().status.success());
    assert!(has(&setup.balancer, "eth0", "10.66.0.101/32"));
    assert!(setup.lb("service remove 10.66.0.101:80").unwrap().status.success());
    assert!(eventually(|| !has(&setup.balancer, "eth0", "10.66.0.101/32")), "gone when no flow names it");

    // Whoever comes after a crash knows whose the address is.
    setup.kill_daemon().unwrap();
    assert!(has(&setup.balancer, "eth0", "10.66.0.100/32"));
    setup.attach(&attach).unwrap();
    setup.kill_daemon().unwrap();
    assert!(setup.lb("detach").unwrap().status.success());
    assert!(!has(&setup.balancer, "eth0", "10.66.0.100/32"));
}

#[test]
fn an_address_that_was_there_before_stays() {
    let mut setup = Setup::new(1, 1500).unwrap();
    ip(&setup.balancer, "addr add 10.66.0.100/32 dev eth0");
    let list = setup.list(8080);
    setup.attach(&format!("--vip 10.66.0.100:80 --vip 10.66.0.102:80 --announce=lo --backends {list}")).unwrap();
    assert!(has(&setup.balancer, "lo", "10.66.0.102/32") && !has(&setup.balancer, "lo", "10.66.0.100/32"));
    assert!(setup.lb("detach").unwrap().status.success());
    assert!(eventually(|| !has(&setup.balancer, "lo", "10.66.0.102/32")));
    assert!(has(&setup.balancer, "eth0", "10.66.0.100/32"));
}

#[test]
fn a_vip_that_the_host_does_not_own_gets_a_warning_that_helps() {
    let setup = Setup::new(1, 1500).unwrap();
    let output =
        setup.lb(&format!("attach eth0 --vip 10.66.0.100:80 --dry-run --backends {}", setup.list(80))).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("sudo ip addr add 10.66.0.100/32 dev eth0"), "{error}");
    let output = setup.lb(&format!("attach eth0 --vip 10.66.0.100:80 --announce=eth9 --backends {}", setup.list(80)));
    let output = output.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("--announce: interface eth9"), "{error}");
}
