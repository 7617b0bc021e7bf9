//! The shapes of JSON that other people's scripts read: no field goes away, and none changes its kind.

use lb_tests::e2e::{Setup, connect, eventually, ping, vip};
use serde_json::Value;

/// A field's path and the kind of its value.
fn has(value: &Value, fields: &[(&str, &str)]) {
    for (path, kind) in fields {
        let found = path.split('.').try_fold(value, |value, key| match key.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(key),
        });
        let found = found.unwrap_or_else(|| panic!("{path} is missing in {value:#}"));
        let is = match found {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "object",
        };
        assert_eq!(is, *kind, "{path} in {value:#}");
    }
}

const SERVICE: [(&str, &str); 14] = [
    ("name", "string"),
    ("vips.0", "string"),
    ("mode", "string"),
    ("scheduler", "string"),
    ("source", "string"),
    ("usable", "number"),
    ("flows", "number"),
    ("packets.in", "number"),
    ("packets.out", "number"),
    ("bytes.in", "number"),
    ("bytes.out", "number"),
    ("table_fingerprint", "string"),
    ("backends.0.address", "string"),
    ("backends.1.address", "string"),
];

const BACKEND: [(&str, &str); 17] = [
    ("service", "string"),
    ("address", "string"),
    ("weight", "number"),
    ("admin", "string"),
    ("health", "string"),
    ("usable", "bool"),
    ("source", "string"),
    ("flows", "number"),
    ("share", "number"),
    ("packets.in", "number"),
    ("packets.out", "number"),
    ("bytes.in", "number"),
    ("bytes.out", "number"),
    ("last_check.at", "string"),
    ("last_check.ok", "bool"),
    ("last_check.took_ms", "number"),
    ("last_check.reason", "string"),
];

#[test]
fn every_shape_has_its_fields() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let list = setup.list(7);
    setup.attach(&format!("--backends {list}")).unwrap();
    setup.wait_usable(2).unwrap();
    let mut stream = connect(&setup.client, vip(7)).unwrap();
    ping(&mut stream, "hello").unwrap();

    let status = setup.json("status").unwrap();
    let fields = [
        ("version", "string"),
        ("generation", "number"),
        ("layout", "number"),
        ("uptime_s", "number"),
        ("interfaces.0.name", "string"),
        ("interfaces.0.xdp", "string"),
        ("interfaces.0.mac", "string"),
        ("interfaces.0.mtu", "number"),
        ("interfaces.0.program_id", "number"),
        ("flows.active", "number"),
        ("flows.max", "number"),
        ("warnings", "list"),
    ];
    has(&status, &fields);
    has(&status["services"][0], &SERVICE);
    has(&setup.json("service list").unwrap()[0], &SERVICE);
    has(&setup.json(&format!("service show {}", status["services"][0]["name"].as_str().unwrap())).unwrap(), &SERVICE);
    has(&setup.json("backend list").unwrap()[0], &BACKEND);
    has(&setup.json("health").unwrap()[1], &BACKEND);
    let conn = [
        ("0.proto", "string"),
        ("0.client", "string"),
        ("0.vip", "string"),
        ("0.backend", "string"),
        ("0.snat", "string"),
        ("0.service", "string"),
        ("0.state", "string"),
        ("0.idle_s", "number"),
        ("0.age_s", "number"),
        ("0.packets.in", "number"),
        ("0.packets.out", "number"),
    ];
    let conns = setup.json("conn list").unwrap();
    has(&conns, &conn);
    assert_eq!(conns[0]["service"], status["services"][0]["name"]);
    has(&setup.json("drops").unwrap(), &[("0.reason", "string"), ("0.count", "number"), ("0.help", "string")]);

    let wrong = setup.lb("service show nope -o json").unwrap();
    let error: Value = serde_json::from_slice(&wrong.stderr).unwrap();
    has(&error, &[("error.kind", "string"), ("error.message", "string"), ("error.hint", "string")]);
}

#[test]
fn connections_are_found_by_what_is_asked() {
    let mut setup = Setup::new(2, 1500).unwrap();
    setup.serve_echo(7).unwrap();
    let [first, second] = [0, 1].map(|n| format!("{}:7", setup.backends[n].address));
    setup.attach(&format!("--name one --backends {first}")).unwrap();
    setup.done(&format!("service add 10.66.0.1:8 --name two --backends {first},{second} --wait=20s")).unwrap();
    let both = || setup.json("status").unwrap()["services"].as_array().unwrap().iter().all(|s| s["usable"] != 0);
    assert!(eventually(both));
    let mut open = Vec::new();
    for port in [7, 7, 8, 8, 8, 8] {
        let mut stream = connect(&setup.client, vip(port)).unwrap();
        ping(&mut stream, "hello").unwrap();
        open.push(stream);
    }
    let count = |filter: &str| setup.json(&format!("conn count {filter}")).unwrap().as_u64().unwrap();
    let listed = |filter: &str| setup.json(&format!("conn list {filter}")).unwrap().as_array().unwrap().len() as u64;
    let (to_first, to_second) = (count(&format!("--backend {first}")), count(&format!("--backend {second}")));
    assert_eq!((to_first + to_second, count("-s one"), count("-s two")), (6, 2, 4));
    assert_eq!(count(&format!("-s two --backend {first}")), to_first - 2);
    for (filter, found) in [
        ("", 6),
        ("-s one", 2),
        ("-s 10.66.0.1:8", 4),
        ("--client 10.66.0.2", 6),
        ("--client 10.66.0.3", 0),
        ("--state established", 6),
        ("--state udp", 0),
        ("--limit 3", 3),
    ] {
        assert_eq!((count(filter), listed(filter)), (found, found), "{filter}");
    }
    let table = setup.done("conn list -s one").unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    let wrong = setup.lb("conn list --state open").unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("'open'"));
    // Removed, its flows go on: they are still found by its name, and nobody else's are waited for.
    let removed = setup.lb("service remove one --wait=300ms").unwrap();
    assert_eq!(removed.status.code(), Some(4));
    assert_eq!(count("-s one"), 2);
    open.drain(..2);
    assert!(eventually(|| count("") == 4));
    setup.done("conn flush -s two").unwrap();
    let conns = setup.json("conn list").unwrap();
    let states: Vec<_> = conns.as_array().unwrap().iter().map(|conn| conn["state"].clone()).collect();
    assert_eq!(states, ["reset"; 4]);
}
