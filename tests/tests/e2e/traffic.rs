//! Every kind of traffic through mode `nat`, with clients and servers that never heard of lb.

use std::{collections::BTreeSet, net::UdpSocket, time::Duration};

use lb_tests::e2e::{
    MODES, Setup,
    clients::{Storm, Wrk, connect, ping, ping_udp},
    eventually, noise, servers, vip,
};
use lb_userspace::lab::Host;

#[test]
fn requests_reach_all_backends_and_a_download_arrives_whole() {
    let big = noise(50_000_000);
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        match mode {
            "native" => setup.serve_nginx(8080, &[("big", &big)]).unwrap(),
            _ => setup.serve_files(8080, &[("big", &big)]).unwrap(),
        }
        let list = setup.list(8080);
        setup.attach(&format!("--xdp {mode} --vip 80 --backends {list} --health http:/name")).unwrap();
        setup.wait_usable(2).unwrap();
        let names: BTreeSet<_> = (0..40).map(|_| setup.curl("http://10.66.0.1/name").unwrap()).collect();
        assert_eq!(names.len(), 2, "{mode}: {names:?}");
        assert!(setup.curl("http://10.66.0.1/big").unwrap() == big, "{mode}: the download differs");
        let status = setup.json("status").unwrap();
        assert_eq!(status["interfaces"][0]["xdp"], mode);
        assert!(status["services"][0]["bytes"]["out"].as_u64().unwrap() > 50_000_000);
    }
}

#[test]
fn a_thousand_connections_at_once() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_nginx(80, &[]).unwrap();
        let list = setup.list(80);
        setup.attach(&format!("--xdp {mode} --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let time = Duration::from_secs(5);
        let wrk = Wrk::begin(&setup.client, "http://10.66.0.1/name", 1000, time, false).unwrap();
        let open = || setup.done("conn count --state established").unwrap().trim().parse::<u32>().unwrap();
        assert!(eventually(|| open() >= 1000), "{mode}: {} connections", open());
        let seen = wrk.wait().unwrap();
        assert!(seen.errors == 0 && seen.requests > 1000, "{mode}: {seen:?}");
        let drops = setup.json("drops").unwrap();
        for reason in ["no-flow", "table-full", "ports-exhausted", "contended"] {
            let count =
                drops.as_array().unwrap().iter().find(|drop| drop["reason"] == reason).map(|drop| &drop["count"]);
            assert!(count.is_none_or(|count| count == 0), "{mode}: {drops:#}");
        }
    }
}

#[test]
fn ten_thousand_short_connections_and_none_fails() {
    for mode in MODES {
        let mut setup = Setup::new(3, 1500).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list(7);
        setup.attach(&format!("--xdp {mode} --backends {list}")).unwrap();
        setup.wait_usable(3).unwrap();
        let done = Storm::begin(&setup.client, vip(7), 10_000, 16).wait().unwrap();
        assert_eq!((done.fine, &done.failures[..]), (10_000, &[][..]), "{mode}");
        // None had to repeat a segment: the first repetition comes after a second.
        assert!(done.slowest < Duration::from_secs(3), "{mode}: {:?}", done.slowest);
    }
}

#[test]
fn udp_is_answered_by_the_vip() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_echo(5353).unwrap();
        let list = setup.list(5353);
        setup.attach(&format!("--xdp {mode} --vip 53/udp --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        for length in [0, 1, 2, 3, 31, 512, 1471, 1472] {
            ping_udp(&setup.client, vip(53), &noise(length)).unwrap_or_else(|e| panic!("{mode}, {length}: {e:#}"));
        }
        let [first, second] = [0, 1].map(|n| format!("conn count --backend {}:5353", setup.backends[n].address));
        let spread = || [&first, &second].map(|count| setup.done(count).unwrap() != "0\n");
        let more = || ping_udp(&setup.client, vip(53), b"more").is_ok() && spread() == [true, true];
        assert!(eventually(more), "{mode}: {:?}", spread());
    }
}

/// Asks for `name.test`; gives the address.
fn ask_dns(client: &Host) -> [u8; 4] {
    let answered = client.spawn(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(vip(53))?;
        let mut query = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x04name\x04test\0\0\x01\0\x01");
        socket.send(&query)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        std::io::Result::Ok(answer[..length].to_vec())
    });
    let answer = answered.join().unwrap().unwrap().unwrap();
    assert_eq!((&answer[..2], answer[7]), (&b"\xbe\xef"[..], 1), "one answer to this question: {answer:02x?}");
    *answer.last_chunk().unwrap()
}

#[test]
fn names_are_resolved_by_dnsmasq() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        for host in setup.backends.clone() {
            let server = servers::dnsmasq(&host, setup.directory()).unwrap();
            setup.keep(server);
        }
        setup.wait_listening(53).unwrap();
        let list = setup.list(53);
        setup.attach(&format!("--xdp {mode} --vip 53/udp --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let answers: BTreeSet<_> = (0..40).map(|_| ask_dns(&setup.client)).collect();
        let backends: BTreeSet<_> = setup.backends.iter().map(|host| host.address.octets()).collect();
        assert_eq!(answers, backends, "{mode}");
    }
}

/// A backend that is a client of its own VIP, and may be its own server.
#[test]
fn hairpin_a_backend_reaches_its_own_vip() {
    for mode in MODES {
        let mut setup = Setup::new(2, 1500).unwrap();
        setup.serve_echo(7).unwrap();
        let list = setup.list(7);
        setup.attach(&format!("--xdp {mode} --backends {list}")).unwrap();
        setup.wait_usable(2).unwrap();
        let mut streams = Vec::new();
        for n in 0..30 {
            let mut stream = connect(&setup.backends[0], vip(7)).unwrap_or_else(|e| panic!("{mode} {n}: {e:#}"));
            ping(&mut stream, "around the corner").unwrap_or_else(|e| panic!("{mode} {n}: {e:#}"));
            streams.push(stream);
        }
        for host in &setup.backends {
            let count = setup.done(&format!("conn count --backend {}:7", host.address)).unwrap();
            assert_ne!(count, "0\n", "{mode}: none of 30 reached {}", host.address);
        }
    }
}
