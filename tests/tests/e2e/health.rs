//! Health checks end to end: what real servers make of them, and what people read.

use std::{net::UdpSocket, path::Path};

use lb_tests::e2e::{
    Setup,
    checked::{nginx, wait_open},
    eventually,
    servers::{self, Server},
};
use lb_userspace::state::{Exchange, GrpcCheck, HttpCheck, Probe, Protocol, TlsCheck};

fn add(setup: &Setup, name: &str, vip: (u16, Protocol), port: u16, probe: &Probe) {
    let mut service = setup.service(name, vip, port);
    service.health.probe = probe.clone();
    setup.add_service(service).unwrap();
}

/// Waits until the first backend of a service has a verdict for a reason.
fn wait_health(setup: &Setup, service: &str, health: &str, reason: &str) {
    let seen = || {
        let all = setup.json("health").unwrap();
        all.as_array().unwrap().iter().find(|backend| backend["service"] == service).cloned().unwrap()
    };
    let right = || {
        let backend = seen();
        backend["health"] == health && backend["last_check"]["reason"] == reason
    };
    assert!(eventually(right), "{service}: not {health} for \"{reason}\": {}", seen());
}

/// A certificate for a backend's address, valid in 2020 only or until 2120, signed with its own key.
fn certificate(directory: &Path, address: &str, expired: bool) {
    std::fs::create_dir_all(directory).unwrap();
    let run = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        let output = command.args(arguments.split_whitespace()).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nserial = serial\nrand_serial = yes\nnew_certs_dir = .\n\
                  default_md = sha256\npolicy = any\ncopy_extensions = copy\n[any]\ncommonName = supplied\n";
    std::fs::write(directory.join("ca.cnf"), config).unwrap();
    std::fs::write(directory.join("index"), "").unwrap();
    run(&format!(
        "req -new -newkey rsa:2048 -nodes -keyout key.pem -subj /CN={address} -addext subjectAltName=IP:{address} -out request.pem"
    ));
    let end = if expired { "20200201000000Z" } else { "21200201000000Z" };
    run(&format!(
        "ca -batch -config ca.cnf -selfsign -keyfile key.pem -in request.pem -startdate 20200101000000Z -enddate {end} -notext -out cert.pem"
    ));
}

fn start_nginx(setup: &Setup, directory: &Path) -> Server {
    let place = directory.display();
    let blocks = format!(
        "server {{ listen 8443 ssl; ssl_certificate {place}/cert.pem; ssl_certificate_key {place}/key.pem;\n\
         location /up {{ return 200 'ready to serve'; }} location /busy {{ return 503; }} }}"
    );
    nginx(&setup.backends[0], 8443, directory, &blocks).unwrap()
}

#[test]
fn https_by_nginx() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let address = setup.backends[0].address.to_string();
    let directory = setup.directory().join("nginx");
    certificate(&directory, &address, true);
    let mut server = start_nginx(&setup, &directory);
    setup.attach("--xdp generic").unwrap();
    let http = |path: &str| HttpCheck::new(path);
    let verified = TlsCheck::new(None, Some(directory.join("cert.pem")), None);
    let other = TlsCheck { server_name: Some("other.example".into()), ..verified.clone() };
    let https = |http, tls| Probe::Https { http, tls };
    let leader = HttpCheck { expect_body: Some("leader".into()), ..http("/up") };
    let teapot = HttpCheck { expect_status: "418".parse().unwrap(), ..http("/up") };
    let ready = HttpCheck { expect_body: Some("ready".into()), expect_status: "200".parse().unwrap(), ..http("/up") };
    let services = [
        ("plain", https(http("/up"), TlsCheck::default()), "up", "ok"),
        ("busy", https(http("/busy"), TlsCheck::default()), "down", "HTTP 503"),
        ("ready", https(ready, TlsCheck::default()), "up", "ok"),
        ("leader", https(leader, TlsCheck::default()), "down", "HTTP 200, but the body has not \"leader\""),
        ("teapot", https(teapot, TlsCheck::default()), "down", "HTTP 200"),
        ("verified", https(http("/up"), verified), "down", "tls: certificate expired"),
        ("other", https(http("/up"), other), "down", "tls: certificate expired"),
    ];
    for (n, (name, probe, ..)) in (0..).zip(&services) {
        add(&setup, name, (4430 + n, Protocol::Tcp), 8443, probe);
    }
    for (name, _, health, reason) in &services {
        wait_health(&setup, name, health, reason);
    }
    server.kill();
    wait_health(&setup, "plain", "down", "connect: connection refused");

    // The set-up of TLS is kept for a minute; a new daemon reads the file anew.
    setup.kill_daemon().unwrap();
    certificate(&directory, &address, false);
    let _server = start_nginx(&setup, &directory);
    setup.attach("--xdp generic").unwrap();
    wait_health(&setup, "verified", "up", "ok");
    wait_health(&setup, "other", "down", "tls: certificate is not for other.example");
    wait_health(&setup, "plain", "up", "ok");
}

#[test]
fn udp_by_dnsmasq() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let start = |setup: &Setup| {
        let server = servers::dnsmasq(&setup.backends[0], setup.directory()).unwrap();
        wait_open(&setup.backends[0], 53).unwrap();
        server
    };
    let mut server = start(&setup);
    setup.attach("--xdp generic").unwrap();
    // Identity 4242, recursion desired, one question: name.test, A, IN.
    let question = "hex:1092 0100 0001 0000 0000 0000 04 6e616d65 04 74657374 00 0001 0001";
    let probe =
        |expect: &str| Probe::Udp(Exchange { send: question.parse().unwrap(), expect: expect.parse().unwrap() });
    let services = [
        ("answers", probe("hex:0a42000b"), "up", "ok"),
        ("other", probe("hex:0a42000c"), "down", "udp: the answer has not what is expected"),
    ];
    for (n, (name, probe, ..)) in (0..).zip(&services) {
        add(&setup, name, (53 + n, Protocol::Udp), 53, probe);
    }
    for (name, _, health, reason) in &services {
        wait_health(&setup, name, health, reason);
    }
    server.kill();
    wait_health(&setup, "answers", "down", "udp: port unreachable");
    let _server = start(&setup);
    wait_health(&setup, "answers", "up", "ok");
}

#[test]
fn a_silent_udp_server_is_up_until_its_port_closes() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let place = (setup.backends[0].address, 5353);
    let socket = setup.backends[0].spawn(move || UdpSocket::bind(place)).join().unwrap().unwrap().unwrap();
    setup.attach("--xdp generic").unwrap();
    add(&setup, "silent", (53, Protocol::Udp), 5353, &"udp".parse().unwrap());
    wait_health(&setup, "silent", "up", "ok");
    drop(socket);
    wait_health(&setup, "silent", "down", "udp: port unreachable");
}

/// A real gRPC server whose health service says what is in a file.
const GRPC: &str = "
import grpc, sys, time
from concurrent import futures
place, file = sys.argv[1:]
def check(request, context):
    if request not in (b'', b'\\x0a\\x03api'):
        context.abort(grpc.StatusCode.NOT_FOUND, 'unknown')
    return bytes([8, int(open(file).read())])
handler = grpc.unary_unary_rpc_method_handler(check)
server = grpc.server(futures.ThreadPoolExecutor(4))
if len(open(file).read()) > 0:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('grpc.health.v1.Health', {'Check': handler}),))
server.add_insecure_port(place)
server.start()
server.wait_for_termination()
";

#[test]
fn grpc_by_pythons_server() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let status = setup.directory().join("status");
    let none = setup.directory().join("none");
    std::fs::write(&status, "1").unwrap();
    std::fs::write(&none, "").unwrap();
    let host = setup.backends[0].clone();
    let start = |port: u16, file: &Path| {
        let mut command = host.command("/usr/bin/python3");
        command.args(["-c", GRPC, &format!("{}:{port}", host.address)]).arg(file);
        let server = Server::start(&mut command, &file.with_extension("log")).unwrap();
        wait_open(&host, port).unwrap();
        server
    };
    let _servers = [start(50051, &status), start(50052, &none)];
    setup.attach("--xdp generic").unwrap();
    let probe = |service: &str| Probe::Grpc(GrpcCheck { service: service.into(), ..GrpcCheck::default() });
    let services = [
        ("whole", 50051, probe(""), "up", "ok"),
        ("api", 50051, probe("api"), "up", "ok"),
        ("nope", 50051, probe("nope"), "down", "grpc: NOT_FOUND: the server does not know this service"),
        ("none", 50052, probe(""), "down", "grpc: UNIMPLEMENTED: the server has no health service"),
    ];
    for (n, (name, port, probe, ..)) in (0..).zip(&services) {
        add(&setup, name, (100 + n, Protocol::Tcp), *port, probe);
    }
    for (name, _, _, health, reason) in &services {
        wait_health(&setup, name, health, reason);
    }
    std::fs::write(&status, "2").unwrap();
    wait_health(&setup, "whole", "down", "grpc: NOT_SERVING");
    std::fs::write(&status, "1").unwrap();
    wait_health(&setup, "whole", "up", "ok");
}

#[test]
fn services_share_a_probe_and_its_verdict() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    setup.attach("--xdp generic").unwrap();
    for (n, name) in (0..).zip(["one", "two", "three"]) {
        add(&setup, name, (80 + n, Protocol::Tcp), 8080, &Probe::tcp());
    }
    let probes = |setup: &Setup| {
        let metrics = setup.metrics().unwrap();
        metrics.lines().find_map(|line| line.strip_prefix("lb_health_probes ")).unwrap().to_owned()
    };
    assert_eq!(probes(&setup), "2", "three services, two servers");
    for name in ["one", "two", "three"] {
        wait_health(&setup, name, "up", "ok");
    }
    setup.kill_server(0).unwrap();
    for name in ["one", "two", "three"] {
        wait_health(&setup, name, "down", "connect: connection refused");
    }
    setup.done("service remove one").unwrap();
    assert_eq!(probes(&setup), "2");
    setup.done("service remove two").unwrap();
    setup.done("service remove three").unwrap();
    assert!(eventually(|| probes(&setup) == "0"), "nobody is left to be checked");
}
