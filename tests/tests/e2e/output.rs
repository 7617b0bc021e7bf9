//! What is printed: shapes of JSON, quiet and plain, dry runs that change nothing.

use lb_tests::e2e::{Setup, eventually};
use serde_json::Value;

fn keys(value: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(value.get(key).is_some(), "'{key}' is missing in {value}");
    }
}

#[test]
fn a_reader_who_has_read_enough_is_no_error() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(80);
    setup.attach(&format!("--backends {list}")).unwrap();
    for command in ["status", "backend list", "status -o json", "doctor eth0"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = setup.command("", command).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "lb {command} | true: {:?} {said}", output.status);
    }
}

#[test]
fn json_has_the_contracts_shapes() {
    let mut setup = Setup::new(1, 1500).unwrap();
    setup.serve_files(8080, &[]).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--xdp generic --vip 80 --backends {list}")).unwrap();
    setup.wait_usable(1).unwrap();
    setup.curl("http://10.66.0.1/name").unwrap();
    assert!(eventually(|| setup.json("health").is_ok_and(|health| health[0]["last_check"]["ok"] == true)));

    let status = setup.json("status").unwrap();
    keys(&status, &["version", "generation", "layout", "uptime_s", "interfaces", "services", "flows", "warnings"]);
    keys(&status["interfaces"][0], &["name", "xdp", "mac", "mtu", "program_id"]);
    keys(&status["flows"], &["active", "max"]);
    let service = [
        "name",
        "vips",
        "mode",
        "scheduler",
        "source",
        "usable",
        "flows",
        "packets",
        "bytes",
        "table_fingerprint",
        "backends",
    ];
    keys(&status["services"][0], &service);
    keys(&setup.json("service list").unwrap()[0], &service);
    let name = status["services"][0]["name"].as_str().unwrap();
    keys(&setup.json(&format!("service show {name}")).unwrap(), &service);
    assert_eq!(status["services"][0]["vips"], serde_json::json!(["10.66.0.1:80/tcp"]));
    let backend = [
        "service",
        "address",
        "weight",
        "admin",
        "health",
        "usable",
        "source",
        "flows",
        "share",
        "packets",
        "bytes",
        "last_check",
    ];
    for list in ["backend list", "health"] {
        let list = setup.json(list).unwrap();
        keys(&list[0], &backend);
        keys(&list[0]["last_check"], &["at", "ok", "took_ms", "reason"]);
        keys(&list[0]["packets"], &["in", "out"]);
    }
    let conns = setup.json("conn list").unwrap();
    let conn = ["proto", "client", "vip", "backend", "snat", "service", "state", "idle_s", "age_s", "packets"];
    conns.as_array().unwrap().iter().for_each(|one| keys(one, &conn));
    assert!(setup.json("conn count").unwrap().is_u64());
    keys(&setup.json("drops").unwrap()[0], &["reason", "count", "help"]);
    let findings = setup.json("doctor eth0").unwrap();
    findings.as_array().unwrap().iter().for_each(|finding| keys(finding, &["level", "check", "text"]));
    assert!(findings.as_array().unwrap().iter().any(|finding| finding["check"] == "eth0"), "{findings}");
    let changed = setup.json(&format!("backend weight {list} 5")).unwrap();
    keys(&changed, &["generation", "summary", "warnings"]);
    assert_eq!(setup.json("detach").unwrap(), serde_json::json!(["eth0"]));
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut setup = Setup::new(2, 1500).unwrap();
    let [first, second] = [0, 1].map(|n| format!("{}:8080", setup.backends[n].address));
    let attach = format!("attach eth0 --vip 80 --health none --backends {first}");
    let output = setup.lb(&format!("{attach} --dry-run")).unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("nothing was changed"));
    let value: Value =
        serde_json::from_slice(&setup.lb(&format!("-o json {attach} --dry-run")).unwrap().stdout).unwrap();
    keys(&value, &["generation", "summary", "warnings"]);
    assert!(!setup.bpffs().exists() && !setup.directory().join("state").exists());

    setup.attach(&format!("--vip 80 --health none --backends {first}")).unwrap();
    let before = setup.json("backend list").unwrap();
    let steps = [
        format!("backend add {second}"),
        format!("backend weight {first} 9"),
        format!("backend drain {first}"),
        format!("backend maint {first}"),
        format!("backend remove {first}"),
        "service set 10.66.0.1:80 --on-empty drop".to_owned(),
        "service remove 10.66.0.1:80".to_owned(),
        "service add 10.66.0.1:81".to_owned(),
    ];
    for step in steps {
        let output = setup.lb(&format!("{step} --dry-run")).unwrap();
        assert!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{step}: it says what it would do");
    }
    assert_eq!(setup.json("status").unwrap()["generation"], 1);
    assert_eq!(setup.json("backend list").unwrap(), before);
}

#[test]
fn quiet_is_quiet_and_nothing_is_coloured() {
    let mut setup = Setup::new(1, 1500).unwrap();
    let list = setup.list(8080);
    setup.attach(&format!("--vip 80 --health none --backends {list}")).unwrap();
    let output = setup.lb(&format!("-q backend weight {list} 3")).unwrap();
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let output = setup.lb(&format!("backend weight {list} 4")).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("weight 3 -> 4"), "{output:?}");
    for line in ["status", "service list", "backend list", "health", "drops", "conn list", "doctor"] {
        let output = setup.lb(line).unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}");
        assert!(!output.stdout.contains(&0x1b), "{line}: escape sequences without a terminal");
    }
}
