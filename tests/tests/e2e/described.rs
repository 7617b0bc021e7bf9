//! What a config file says of registries: `[service.discovery]`, and services that a fleet shares.

use std::fs;

use lb_tests::{
    e2e::{Setup, eventually, servers::Server},
    registry::{Consul, ConsulLike as _, Etcd, instance},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const TOP: &str = "interfaces = [\"eth0\"]\n";
const WEB: &str =
    "[[service]]\nname = \"web\"\nvip = \"10.66.0.1:80\"\nhealth = { type = \"http\", path = \"/name\" }\n";

fn lab(backends: u8) -> Setup {
    let mut setup = Setup::new(backends, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    setup
}

fn write(setup: &Setup, text: &str) {
    fs::write(setup.directory().join("lb.toml"), text).unwrap();
}

fn daemon(setup: &Setup) -> Server {
    setup.start("", &format!("daemon --config {}", setup.directory().join("lb.toml").display())).unwrap()
}

/// "address source" of every backend.
fn backends(setup: &Setup) -> Vec<String> {
    let list = setup.json("backend list").unwrap();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    list.as_array().unwrap().iter().map(|b| format!("{} {}", text(&b["address"]), text(&b["source"]))).collect()
}

fn wait_backends(setup: &Setup, wanted: &[&str]) {
    assert!(eventually(|| backends(setup) == wanted), "{:?}: {}", backends(setup), sources(setup));
}

fn sources(setup: &Setup) -> Value {
    setup.json("source list").unwrap()
}

fn wait_state(setup: &Setup, state: &str) {
    assert!(eventually(|| sources(setup)[0]["state"] == state), "{}", sources(setup));
}

#[test]
fn discovery_in_a_config_file_is_followed_and_a_reload_changes_it() {
    if Consul::binary().is_none() {
        return;
    }
    let setup = lab(3);
    let consul = Consul::dev(&setup.balancer, &[]).unwrap();
    consul.register(instance("a", "10.66.0.11:8080", &["blue"])).unwrap();
    consul.register(instance("b", "10.66.0.12:8080", &["green"])).unwrap();
    let discovery = |what: &str| format!("{TOP}{WEB}[service.discovery]\n{what}\n");
    write(&setup, &discovery("consul = { service = \"web\", tag = \"blue\" }"));
    let daemon = daemon(&setup);
    wait_backends(&setup, &["10.66.0.11:8080 registry:consul:web/blue"]);
    setup.wait_usable(1).unwrap();
    assert_eq!(setup.curl("http://10.66.0.1/name").unwrap(), b"10.66.0.11");

    write(&setup, &discovery("consul = { service = \"web\", tag = \"green\", name = \"g\" }"));
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_backends(&setup, &["10.66.0.12:8080 registry:g"]);

    write(&setup, &discovery("consul = { service = \"web\", tagg = \"green\" }"));
    daemon.signal(Signal::SIGHUP).unwrap();
    let warned = |words: &str| setup.json("status").unwrap()["warnings"].to_string().contains(words);
    assert!(eventually(|| warned("service.discovery.consul.tagg")), "a wrong file is told of");
    assert_eq!(backends(&setup), ["10.66.0.12:8080 registry:g"]);

    let list = setup.directory().join("list");
    fs::write(&list, "10.66.0.13:8080=3\n").unwrap();
    let two = format!("consul = \"web\"\nfile = {{ path = \"{}\", name = \"l\" }}", list.display());
    write(&setup, &discovery(&two));
    daemon.signal(Signal::SIGHUP).unwrap();
    let all =
        ["10.66.0.11:8080 registry:consul:web", "10.66.0.12:8080 registry:consul:web", "10.66.0.13:8080 registry:l"];
    wait_backends(&setup, &all);
    assert_eq!(setup.json("backend list").unwrap()[2]["weight"], 3);

    write(&setup, &format!("{TOP}{WEB}backends = [\"10.66.0.13:8080\"]\n"));
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_backends(&setup, &["10.66.0.13:8080 file"]);
    assert_eq!(sources(&setup), json!([]));
}

#[test]
fn services_in_etcd_are_shared_by_balancers_and_held_when_they_vanish() {
    let setup = lab(3);
    let mut etcd = Etcd::new(&setup.balancer, setup.directory()).unwrap();
    let web = |backend: &str| format!("{WEB}backends = [\"{backend}:8080\"]\n");
    let other = "[[service]]\nname = \"other\"\nvip = \"10.66.0.1:81\"\nbackends = [\"10.66.0.13:8080\"]\n";
    etcd.put("lb/config/web", &web("10.66.0.11"), None).unwrap();
    write(&setup, &format!("{TOP}shared = \"etcd:lb\"\n"));
    let mut first = daemon(&setup);
    wait_backends(&setup, &["10.66.0.11:8080 registry:etcd:lb/config"]);
    setup.wait_usable(1).unwrap();
    assert_eq!(setup.curl("http://10.66.0.1/name").unwrap(), b"10.66.0.11");
    assert_eq!(setup.json("service show web").unwrap()["source"], "registry:etcd:lb/config");

    etcd.put("lb/config/web", &web("10.66.0.12"), None).unwrap();
    wait_backends(&setup, &["10.66.0.12:8080 registry:etcd:lb/config"]);
    etcd.put("lb/config/more", other, None).unwrap();
    assert!(eventually(|| backends(&setup).len() == 2));

    etcd.put("lb/config/web", &web("10.66.0.12").replace("vip", "vipp"), None).unwrap();
    let warned = |words: &str| sources(&setup)[0]["warnings"].to_string().contains(words);
    assert!(eventually(|| warned("lb/config/web:3:1: service.vipp")), "{}", sources(&setup));
    assert_eq!(backends(&setup).len(), 2, "a key with an error keeps what it said");
    etcd.put("lb/config/web", &web("10.66.0.12"), None).unwrap();
    etcd.put("lb/config/third", &other.replace("other", "third"), None).unwrap();
    assert!(eventually(|| warned("not taken over") && warned("10.66.0.1:81")), "{}", sources(&setup));
    assert_eq!(backends(&setup).len(), 2, "what a guard refuses changes nothing");
    etcd.delete("lb/config/third").unwrap();
    assert!(eventually(|| !warned("not taken over")), "{}", sources(&setup));
    wait_state(&setup, "ok");

    etcd.delete("lb/config/more").unwrap();
    assert!(eventually(|| backends(&setup).len() == 1), "one of two may go");
    etcd.delete("lb/config/web").unwrap();
    wait_state(&setup, "holding");
    assert_eq!(setup.curl("http://10.66.0.1/name").unwrap(), b"10.66.0.12", "the last one stays");
    etcd.kill();
    first.kill();
    let second = daemon(&setup);
    wait_state(&setup, "error");
    assert_eq!(backends(&setup).len(), 1, "a new daemon beside a dead registry goes on from what stood before");
    etcd.start().unwrap();
    wait_state(&setup, "holding");
    assert!(setup.done("source release etcd:lb/config").unwrap().contains("1 held"));
    wait_backends(&setup, &[]);

    etcd.put("lb/config/more", other, None).unwrap();
    assert!(eventually(|| backends(&setup).len() == 1));
    write(&setup, TOP);
    second.signal(Signal::SIGHUP).unwrap();
    assert!(eventually(|| setup.json("service list").unwrap() == json!([])), "nobody shares anything any more");
    assert_eq!(sources(&setup), json!([]));
}

/// Waits until a source warns of something.
fn warned(setup: &Setup, words: &str) {
    let has = || sources(setup)[0]["warnings"].to_string().contains(words);
    assert!(eventually(has), "no '{words}': {}", sources(setup));
}

/// Who answers at the VIP.
fn answer(setup: &Setup) -> Vec<u8> {
    setup.curl("http://10.66.0.1/name").unwrap()
}

/// Apps that do everything wrong: what they do to themselves, they do to nobody else.
#[test]
fn apps_that_misbehave_with_consul_harm_only_themselves() {
    if Consul::binary().is_none() {
        return;
    }
    let mut setup = lab(3);
    let consul = Consul::dev(&setup.balancer, &[]).unwrap();
    consul.register(instance("good", "10.66.0.11:8080", &[])).unwrap();
    setup.attach("--vip 80 --health http:/name --backends consul:web?empty_hold=1s").unwrap();
    setup.wait_usable(1).unwrap();
    consul.register(instance("host", "nowhere.example:8080", &[])).unwrap();
    warned(&setup, "'nowhere.example' is a host name that is not found");
    consul.register(instance("zero", "10.66.0.12:0", &[])).unwrap();
    warned(&setup, "the port is missing");
    consul.register(instance("own", "10.66.0.1:8080", &[])).unwrap();
    warned(&setup, "10.66.0.1:8080: the address is a VIP");
    consul.register(instance("multi", "224.0.0.1:8080", &[])).unwrap();
    warned(&setup, "224.0.0.1");
    consul.register(instance("again", "10.66.0.11:8080", &[])).unwrap();
    warned(&setup, "is registered twice");
    let mut odd = instance("odd", "10.66.0.12:8080", &[]);
    odd["Meta"] = json!({ "lb-weight": "heavy" });
    consul.register(odd).unwrap();
    warned(&setup, "lb-weight=heavy is not a weight");
    let mut nothing = instance("nothing", "10.66.0.13:8080", &[]);
    nothing["Meta"] = json!({ "lb-weight": "0" });
    consul.register(nothing).unwrap();
    wait_backends(
        &setup,
        &[
            "10.66.0.11:8080 registry:consul:web",
            "10.66.0.12:8080 registry:consul:web",
            "10.66.0.13:8080 registry:consul:web",
        ],
    );
    // Three are taken; what stands for nothing is counted apart, and gone soon after it left.
    let count = |field: &str| sources(&setup)[0][field].as_u64();
    assert_eq!((count("backends"), count("left_out")), (Some(3), Some(3)), "{}", sources(&setup));
    assert!(setup.done("source list").unwrap().contains("3 (3 left out)"));
    for id in ["zero", "own", "multi"] {
        consul.deregister(id).unwrap();
    }
    assert!(eventually(|| count("left_out") == Some(0)), "{}", sources(&setup));
    assert_eq!((count("backends"), sources(&setup)[0]["state"].clone()), (Some(3), json!("ok")));
    setup.wait_usable(2).unwrap();
    for _ in 0..20 {
        assert!(answer(&setup) != b"10.66.0.13", "a weight of 0 takes no new connections");
    }
    // One that comes and goes all the time: no request of the others fails.
    for _ in 0..15 {
        consul.deregister("odd").unwrap();
        answer(&setup);
        consul.register(instance("odd", "10.66.0.12:8080", &[])).unwrap();
        answer(&setup);
    }
    setup.wait_usable(2).unwrap();
    // One that dies without a word: Consul believes in it, our own check does not.
    setup.kill_server(1).unwrap();
    setup.wait_usable(1).unwrap();
    for _ in 0..10 {
        assert_eq!(answer(&setup), b"10.66.0.11");
    }
    assert_eq!(backends(&setup).len(), 3, "Consul still names it");
}
