//! Backends from registries: real servers, the real `lb`, and everything that registries do to those who believe them.

use std::{fs, path::Path, process::Command};

use lb_tests::{
    e2e::{Setup, eventually, servers::Server},
    registry::{Consul, ConsulLike, Etcd, SILENCE, StandIn, instance},
};
use serde_json::{Value, json};

const URL: &str = "http://10.66.0.1/name";

/// A lab with web servers, and `lb` with these backends.
fn setup(backends: u8, prepare: impl FnOnce(&Setup) -> String) -> Setup {
    let mut setup = Setup::new(backends, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let source = prepare(&setup);
    setup.attach(&format!("--vip 80 --health http:/name --backends {source}")).unwrap();
    setup
}

/// Addresses of the backends, last byte each, with their weights.
fn backends(setup: &Setup) -> Vec<(u8, u64)> {
    let list = setup.json("backend list").unwrap();
    let last = |address: &str| address.split(['.', ':']).nth(3).and_then(|byte| byte.parse().ok()).unwrap_or(0);
    let backends = list.as_array().unwrap().iter();
    backends.map(|b| (last(b["address"].as_str().unwrap()), b["weight"].as_u64().unwrap())).collect()
}

fn wait_backends(setup: &Setup, wanted: &[(u8, u64)]) {
    assert!(eventually(|| backends(setup) == wanted), "{:?}, not {wanted:?}: {}", backends(setup), source(setup));
}

fn source(setup: &Setup) -> Value {
    setup.json("source list").unwrap()[0].clone()
}

fn wait_source(setup: &Setup, state: &str) {
    assert!(eventually(|| source(setup)["state"] == state), "not {state}: {}", source(setup));
}

fn answers(setup: &Setup) -> bool {
    setup.curl(URL).is_ok()
}

/// Where the web server of a backend is.
fn place(n: u8) -> String {
    format!("10.66.0.{n}:8080")
}

/// The same test for a real Consul and for the stand-in.
fn conformance(setup: &Setup, consul: &mut dyn ConsulLike) {
    wait_source(setup, "ok");
    assert!(setup.curl(URL).unwrap_err().to_string().contains("(7)"), "no instance: refused at once");
    consul.register(instance("a", &place(11), &["blue"])).unwrap();
    let mut heavy = instance("b", &place(12), &["blue", "new"]);
    heavy["Meta"] = json!({ "lb-weight": "3" });
    consul.register(heavy.clone()).unwrap();
    consul.register(instance("c", &place(13), &["green"])).unwrap();
    wait_backends(setup, &[(11, 1), (12, 3)]);
    setup.wait_usable(2).unwrap();
    assert!(answers(setup));
    let listed = setup.json("backend list").unwrap();
    assert_eq!(listed[0]["source"], "registry:consul:web/blue");

    consul.maintenance("b", true).unwrap();
    wait_backends(setup, &[(11, 1)]);
    consul.maintenance("b", false).unwrap();
    wait_backends(setup, &[(11, 1), (12, 3)]);

    consul.register(instance("odd", "127.0.0.1:80", &["blue"])).unwrap();
    consul.register(instance("nowhere", "10.66.0.13:0", &["blue"])).unwrap();
    let warned = |words: &str| source(setup)["warnings"].to_string().contains(words);
    assert!(eventually(|| warned("loopback") && warned("the port is missing")), "{}", source(setup));
    assert_eq!(backends(setup), [(11, 1), (12, 3)]);
    consul.deregister("odd").unwrap();
    consul.deregister("nowhere").unwrap();
    assert!(eventually(|| !warned("loopback") && !warned("the port is missing")), "{}", source(setup));

    // What leaves within a second counts together: the next one shall not.
    std::thread::sleep(std::time::Duration::from_millis(1200));

    // The same server under a fresh id, as apps do that make one at each start.
    consul.register(instance("a2", &place(11), &["blue"])).unwrap();
    consul.deregister("a").unwrap();
    setup.wait_usable(2).unwrap();

    consul.wipe().unwrap();
    wait_source(setup, "holding");
    assert_eq!(backends(setup), [(11, 1), (12, 3)], "an agent that lost its state takes nobody away");
    assert!(answers(setup));
    let status = setup.json("status").unwrap();
    assert!(status["warnings"].to_string().contains("lb source release"), "{}", status["warnings"]);
    consul.register(heavy).unwrap();
    assert!(eventually(|| source(setup)["held"].as_array().is_some_and(|held| held.len() == 1)));
    assert_eq!(backends(setup), [(11, 1), (12, 3)]);
    consul.register(instance("a3", &place(11), &["blue"])).unwrap();
    wait_source(setup, "ok");

    consul.deregister("a3").unwrap();
    wait_backends(setup, &[(12, 3)]);
    consul.deregister("b").unwrap();
    wait_source(setup, "holding");
    // Confirmed, but kept while the backend answers our own check.
    assert!(eventually(|| source(setup)["held"][0]["confirmed"] == true), "{}", source(setup));
    assert!(answers(setup) && backends(setup) == [(12, 3)]);
    let released = setup.lb("source release consul:web/blue").unwrap();
    assert!(String::from_utf8_lossy(&released.stdout).contains("1 held backend let go"));
    wait_backends(setup, &[]);
    assert!(eventually(|| setup.curl(URL).is_err_and(|error| error.to_string().contains("(7)"))));

    consul.register(instance("a", &place(11), &["blue"])).unwrap();
    setup.wait_usable(1).unwrap();
    consul.kill();
    wait_source(setup, "error");
    assert!(answers(setup) && backends(setup) == [(11, 1)], "a dead registry takes nobody away");
    let socket = setup.directory().join("lb.sock");
    let mut curl = Command::new("curl");
    let metrics = curl.args(["-s", "--unix-socket"]).arg(socket).arg("http://lb/metrics").output().unwrap().stdout;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    for line in ["lb_source_up{source=\"consul:web/blue\"", "lb_source_holding{source=\"consul:web/blue\""] {
        let found = metrics.lines().find(|found| found.starts_with(line)).unwrap_or_else(|| panic!("no {line}"));
        assert!(found.ends_with(" 0"), "{found}");
    }
}

#[test]
fn consul_conformance() {
    let setup = setup(3, |_| "consul:web?tag=blue&empty_hold=2s".to_owned());
    if Consul::binary().is_some() {
        conformance(&setup, &mut Consul::dev(&setup.balancer, &[]).unwrap());
    } else {
        conformance(&setup, &mut StandIn::new(&setup.balancer).unwrap());
    }
}

#[test]
fn consul_stand_in_conformance() {
    let setup = setup(3, |_| "consul:web?tag=blue&empty_hold=2s".to_owned());
    conformance(&setup, &mut StandIn::new(&setup.balancer).unwrap());
}

#[test]
fn consul_by_tag_over_all_services_and_ttl_expiry() {
    if Consul::binary().is_none() {
        return;
    }
    let setup = setup(3, |_| "consul:?tag=blue&name=blue".to_owned());
    let consul = Consul::dev(&setup.balancer, &[]).unwrap();
    let service = |name: &str, n: u8| {
        let mut service = instance(name, &place(n), &["blue"]);
        service["Name"] = json!(name);
        service
    };
    let mut dying = service("dying", 13);
    dying["Check"] = json!({ "TTL": "8s", "Status": "passing" });
    consul.register(service("api", 11)).unwrap();
    consul.register(dying).unwrap();
    consul.register(instance("other", &place(12), &["green"])).unwrap();
    wait_backends(&setup, &[(11, 1), (13, 1)]);
    // Nobody renews it.
    wait_backends(&setup, &[(11, 1)]);
    consul.register(service("webapp", 12)).unwrap();
    wait_backends(&setup, &[(11, 1), (12, 1)]);
    consul.deregister("api").unwrap();
    wait_backends(&setup, &[(12, 1)]);
    assert_eq!(setup.json("backend list").unwrap()[0]["source"], "registry:blue");
}

#[test]
fn consul_tokens_missing_renewed_and_deleted() {
    if Consul::binary().is_none() {
        return;
    }
    let lab = Setup::new(2, 1500).unwrap();
    let config = lab.directory().join("acl.hcl");
    let root = "4f10b9d5-2fa2-4a3c-b1a4-8e8d7a2c9c10";
    fs::write(
        &config,
        format!(
            "acl {{ enabled = true default_policy = \"deny\" tokens {{ master = \"{root}\" agent = \"{root}\" }} }}"
        ),
    )
    .unwrap();
    let arguments = ["-dev", "-bind", "127.0.0.1", "-config-file", config.to_str().unwrap()];
    let consul = Consul::on(&lab.balancer, "127.0.0.1", Some(root), &arguments).unwrap();
    consul.register(instance("a", &place(11), &[])).unwrap();
    let rules = json!({ "Name": "lb", "Rules": "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }" });
    consul.curl("PUT", "/v1/acl/policy", Some(&rules)).unwrap();
    let token = || -> (String, String) {
        let made = consul.curl("PUT", "/v1/acl/token", Some(&json!({ "Policies": [{ "Name": "lb" }] }))).unwrap();
        let made: Value = serde_json::from_str(&made).unwrap();
        (made["SecretID"].as_str().unwrap().to_owned(), made["AccessorID"].as_str().unwrap().to_owned())
    };
    let (first, accessor) = token();
    let file = lab.directory().join("token");
    fs::write(&file, &first).unwrap();
    let mut setup = lab;
    setup.serve_files(8080, &[]).unwrap();
    // Short questions, so that a deleted token is noticed.
    let options = format!("token_file={}&interval=1s&empty_hold=1s", file.display());
    setup.attach(&format!("--vip 80 --health http:/name --backends consul:web?{options}")).unwrap();
    setup.wait_usable(1).unwrap();

    // Without a token Consul answers 200 with an empty list.
    fs::write(&file, "").unwrap();
    wait_source(&setup, "holding");
    assert!(answers(&setup) && backends(&setup) == [(11, 1)]);
    fs::write(&file, &first).unwrap();
    wait_source(&setup, "ok");

    consul.curl("DELETE", &format!("/v1/acl/token/{accessor}"), None).unwrap();
    wait_source(&setup, "error");
    let error = source(&setup)["last_error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("403") && error.contains("ACL not found"), "{error}");
    assert!(answers(&setup) && backends(&setup) == [(11, 1)]);
    assert!(setup.json("status").unwrap()["warnings"].to_string().contains("ACL not found"));
    fs::write(&file, token().0).unwrap();
    wait_source(&setup, "ok");
}

#[test]
fn consul_without_a_leader_takes_nobody_away() {
    if Consul::binary().is_none() {
        return;
    }
    let setup = setup(2, |_| "consul:web?interval=1s,consul:web?stale=true&interval=1s&name=stale".to_owned());
    let server = |n: u8, more: &[&str]| {
        let (address, data) = (format!("127.0.0.{n}"), setup.directory().join(format!("consul{n}")));
        let node = format!("node{n}");
        let base = [
            "-server",
            "-bootstrap-expect",
            "2",
            "-bind",
            &address,
            "-node",
            &node,
            "-data-dir",
            data.to_str().unwrap(),
        ];
        Consul::unled(&setup.balancer, &address, None, &[&base, more].concat()).unwrap()
    };
    let mut first = server(1, &[]);
    let mut second = server(2, &["-retry-join", "127.0.0.1", "-retry-interval", "1s"]);
    first.wait().unwrap();
    first.register(instance("a", &place(11), &[])).unwrap();
    first.register(instance("b", &place(12), &[])).unwrap();
    setup.wait_usable(2).unwrap();
    second.kill();
    let state = |n: usize| setup.json("source list").unwrap()[n]["last_error"]["message"].to_string();
    assert!(eventually(|| state(0).contains("No cluster leader") || state(0).contains("500")), "{}", state(0));
    assert!(answers(&setup) && backends(&setup).len() == 2);
    second.start().unwrap();
    assert!(eventually(|| setup.json("source list").unwrap()[0]["state"] == "ok"));
    first.deregister("b").unwrap();
    wait_backends(&setup, &[(11, 1)]);
}

#[test]
fn etcd_leases_compaction_and_restart() {
    let lab = Setup::new(3, 1500).unwrap();
    let mut etcd = Etcd::new(&lab.balancer, lab.directory()).unwrap();
    etcd.put("lb/web/a", &place(11), None).unwrap();
    let mut setup = lab;
    setup.serve_files(8080, &[]).unwrap();
    setup.attach("--vip 80 --health http:/name --backends etcd:lb/web?empty_hold=1s").unwrap();
    setup.wait_usable(1).unwrap();
    etcd.put("lb/web/b", &format!("{{\"address\": \"{}\", \"weight\": 5}}", place(12)), None).unwrap();
    etcd.put("lb/web2/x", &place(13), None).unwrap();
    etcd.put("lb/web/odd", "not an address", None).unwrap();
    wait_backends(&setup, &[(11, 1), (12, 5)]);
    assert!(source(&setup)["warnings"].to_string().contains("key lb/web/odd left out"), "{}", source(&setup));
    etcd.delete("lb/web/odd").unwrap();

    let lease = etcd.post("/v3/lease/grant", &json!({ "TTL": 8 })).unwrap();
    etcd.put("lb/web/c", &place(13), lease["ID"].as_str()).unwrap();
    wait_backends(&setup, &[(11, 1), (12, 5), (13, 1)]);
    wait_backends(&setup, &[(11, 1), (12, 5)]);

    // While lb cannot hear, the history that it would go on from is compacted away.
    etcd.kill();
    wait_source(&setup, "error");
    assert!(answers(&setup) && backends(&setup).len() == 2, "a dead registry takes nobody away");
    etcd.start().unwrap();
    etcd.put("lb/web/b", &place(12), None).unwrap();
    let put = etcd.post("/v3/kv/range", &json!({ "key": "AA==" })).unwrap();
    etcd.post("/v3/kv/compaction", &json!({ "revision": put["header"]["revision"] })).unwrap();
    wait_source(&setup, "ok");
    wait_backends(&setup, &[(11, 1), (12, 1)]);

    etcd.delete("lb/web/a").unwrap();
    wait_backends(&setup, &[(12, 1)]);
    etcd.delete("lb/web/b").unwrap();
    wait_source(&setup, "holding");
    assert!(answers(&setup) && backends(&setup) == [(12, 1)]);
}

#[test]
fn dns_addresses_srv_and_a_server_that_is_gone() {
    let lab = Setup::new(3, 1500).unwrap();
    let hosts = lab.directory().join("hosts");
    let start = |more: &[&str]| {
        let mut command = lab.balancer.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
        ]);
        command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local-ttl=1", "--local=/example/"]);
        Server::start(command.arg(format!("--addn-hosts={}", hosts.display())).args(more), Path::new(SILENCE)).unwrap()
    };
    fs::write(&hosts, "10.66.0.11 web.example a.example\n10.66.0.12 web.example b.example\n").unwrap();
    let dnsmasq = start(&[
        "--srv-host=_http._tcp.example,b.example,8080,1,7",
        "--srv-host=_http._tcp.example,a.example,8080,2,1",
    ]);
    let mut setup = lab;
    setup.serve_files(8080, &[]).unwrap();
    setup.attach("--vip 80 --health http:/name --backends dns:web.example:8080?addr=127.0.0.1&empty_hold=1s").unwrap();
    setup.wait_usable(2).unwrap();
    let srv = setup.lb("service add 10.66.0.1:81 --backends dns:_http._tcp.example?addr=127.0.0.1:53").unwrap();
    assert!(srv.status.success(), "{}", String::from_utf8_lossy(&srv.stderr));
    let weighted = || setup.json("service show 10.66.0.1:81").unwrap()["backends"].clone();
    assert!(eventually(|| weighted()[0]["weight"] == 7), "the lowest priority, with its weight: {}", weighted());
    assert_eq!(weighted().as_array().unwrap().len(), 1);
    setup.lb("service remove 10.66.0.1:81").unwrap();

    let reload = || Command::new("kill").args(["-HUP", &dnsmasq.id().to_string()]).status().unwrap();
    fs::write(&hosts, "10.66.0.12 web.example\n10.66.0.13 web.example\n").unwrap();
    reload();
    wait_backends(&setup, &[(12, 1), (13, 1)]);
    fs::write(&hosts, "").unwrap();
    reload();
    wait_source(&setup, "holding");
    assert!(answers(&setup) && backends(&setup).len() == 2, "a name that is gone takes nobody away");
    fs::write(&hosts, "10.66.0.12 web.example\n10.66.0.13 web.example\n").unwrap();
    reload();
    wait_source(&setup, "ok");
    drop(dnsmasq);
    wait_source(&setup, "error");
    assert!(answers(&setup) && backends(&setup).len() == 2, "a server that is gone takes nobody away");
}

#[test]
fn files_are_followed_and_an_error_names_the_line() {
    let mut setup = Setup::new(3, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let path = setup.directory().join("web.list");
    fs::write(&path, format!("{}\n", place(11))).unwrap();
    setup.attach(&format!("--vip 80 --backends file:{}?empty_hold=1s,{}", path.display(), place(13))).unwrap();
    setup.wait_usable(2).unwrap();
    fs::write(&path, format!("{}=4 # new\n{}\n", place(12), place(11))).unwrap();
    wait_backends(&setup, &[(11, 1), (12, 4), (13, 1)]);
    fs::write(&path, format!("{}\n{}x\n", place(12), place(11))).unwrap();
    wait_source(&setup, "error");
    assert!(source(&setup)["last_error"]["message"].as_str().unwrap().contains("web.list:2: backend"));
    assert_eq!(backends(&setup).len(), 3);
    fs::write(&path, format!("{}\n", place(12))).unwrap();
    wait_backends(&setup, &[(12, 1), (13, 1)]);

    // What a source said goes when it is not asked any more; what others said stays.
    let set = setup.lb(&format!("service set 10.66.0.1:80 --backends {}", place(13))).unwrap();
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    wait_backends(&setup, &[(13, 1)]);
    assert_eq!(setup.json("source list").unwrap(), json!([]));
}

/// A daemon that is killed and started again goes on from the last good set, also while the registry is dead.
#[test]
fn the_last_good_set_survives_the_daemon() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let path = setup.directory().join("web.list");
    fs::write(&path, format!("{}\n{}\n", place(11), place(12))).unwrap();
    let attach = format!("--vip 80 --backends file:{}", path.display());
    setup.attach(&attach).unwrap();
    setup.wait_usable(2).unwrap();
    setup.kill_daemon().unwrap();
    fs::remove_file(&path).unwrap();
    setup.attach(&attach).unwrap();
    wait_source(&setup, "error");
    assert_eq!(backends(&setup), [(11, 1), (12, 1)]);
    assert!(answers(&setup));
}
