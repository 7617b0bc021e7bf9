//! The network changes under the balancer: MAC addresses, gateways, interfaces.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use lb_tests::e2e::{BALANCER, Setup, connect, echo, eventually, ping};
use lb_userspace::{lab::Host, net};

fn ip(host: &Host, arguments: &str) {
    let output = host.command("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn vip(port: u16) -> SocketAddr {
    SocketAddr::from((BALANCER, port))
}

/// Gives a host's `eth0` another MAC address, which it tells its neighbours, as hosts do.
fn change_mac(host: &Host, last: u8) {
    ip(host, &format!("link set eth0 address 02:00:00:00:aa:{last:02x}"));
    let address = IpAddr::from(host.address);
    let told = host.spawn(move || {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        net::announce(index, [2, 0, 0, 0, 0xaa, last], address)
    });
    told.join().unwrap().unwrap().unwrap();
}

#[test]
fn rule_38_a_backends_new_mac_address_is_followed() {
    let mut setup = Setup::new(1, 1500).unwrap();
    echo(&setup.backends[0], 7).unwrap();
    setup.attach(&format!("--backends {} --health none", setup.list(7))).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "before").unwrap();
    change_mac(&setup.backends[0], 1);
    let begun = Instant::now();
    ping(&mut stream, "after").unwrap();
    // Well before anything is looked at anew; the client tries again after 200, 600 and 1 400 ms.
    assert!(begun.elapsed() < Duration::from_secs(2), "took {:?}", begun.elapsed());
}

#[test]
fn rule_38_another_gateway_is_followed() {
    let mut setup = Setup::new(2, 1500).unwrap();
    // The backend is an address behind one of two gateways, which both have it; only the first serves there.
    for gateway in &setup.backends {
        ip(gateway, "addr add 10.99.0.1/32 dev lo");
    }
    let listener = setup.backends[0].spawn(|| TcpListener::bind((Ipv4Addr::new(10, 99, 0, 1), 7)).unwrap());
    let _listener = listener.join().unwrap().unwrap();
    ip(&setup.balancer, "route add 10.99.0.0/24 via 10.66.0.11");
    setup.attach("--vip 7 --backends 10.99.0.1:7 --health none").unwrap();
    connect(&setup.client, vip(7)).unwrap();
    ip(&setup.balancer, "route replace 10.99.0.0/24 via 10.66.0.12");
    assert!(eventually(|| connect(&setup.client, vip(7)).is_err()), "the second gateway refuses");
    ip(&setup.balancer, "route replace 10.99.0.0/24 via 10.66.0.11");
    assert!(eventually(|| connect(&setup.client, vip(7)).is_ok()), "the first one is back");
}

fn warned(setup: &Setup, words: &str) -> bool {
    let status = setup.json("status").unwrap();
    status["warnings"].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains(words))
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    let mut setup = Setup::two_armed(1, 1500).unwrap();
    echo(&setup.backends[0], 7).unwrap();
    setup.attach(&format!("eth1 --vip 7 --backends {} --health none", setup.list(7))).unwrap();
    ping(&mut connect(&setup.client, vip(7)).unwrap(), "before").unwrap();
    ip(&setup.balancer, "link set eth1 down");
    assert!(eventually(|| warned(&setup, "eth1: the interface is down")));
    ip(&setup.balancer, "link set eth1 up");
    assert!(eventually(|| !warned(&setup, "eth1")));
    ping(&mut connect(&setup.client, vip(7)).unwrap(), "up again").unwrap();

    ip(&setup.balancer, "link del eth1");
    assert!(eventually(|| warned(&setup, "eth1: the interface is gone")));
    setup.plug("eth1", "inside", Ipv4Addr::new(10, 67, 0, 1)).unwrap();
    assert!(eventually(|| !warned(&setup, "eth1")), "{}", setup.json("status").unwrap()["warnings"]);
    let works = || connect(&setup.client, vip(7)).and_then(|mut stream| ping(&mut stream, "back")).is_ok();
    assert!(eventually(works));
    let link = setup.balancer.command("ip").args(["link", "show", "eth1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&link.stdout).contains("xdp"));
}
