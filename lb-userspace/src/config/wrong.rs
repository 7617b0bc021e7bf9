//! Wrong files, and what is said of them: each message is enough to mend the file.

use super::Config;

/// A file that is right but for what `edit` adds to its service.
fn with(service: &str) -> String {
    format!("interfaces = [\"eth0\"]\n[[service]]\nvip = \"10.0.0.10:80\"\nbackends = [\"10.0.0.2:80\"]\n{service}\n")
}

fn health(keys: &str) -> String {
    with(&format!("[service.health]\n{keys}"))
}

fn consul(keys: &str) -> String {
    with(&format!("[service.discovery]\nconsul = {{ {keys} }}"))
}

/// What is wrong, as it is printed: "LINE:COLUMN: KEY: MESSAGE; HINT".
pub fn said(text: &str) -> Vec<String> {
    let problems = Config::parse("lb.toml", text).expect_err(text);
    let line = |problem: &super::Problem| {
        let line = problem.to_string();
        let line = line.strip_prefix("lb.toml:").unwrap_or(&line).to_owned();
        problem.hint.as_ref().map_or(line.clone(), |hint| format!("{line}; {hint}"))
    };
    problems.iter().map(line).collect()
}

/// A file, the place, and words that the message must have.
pub fn cases() -> Vec<(String, &'static str, &'static [&'static str])> {
    let mut cases = at_the_top();
    cases.extend(of_services());
    cases.extend(of_health());
    cases.extend(of_discovery());
    cases.extend(of_nothing());
    cases.extend(of_the_whole());
    cases
}

fn at_the_top() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        ("interfaces = [\"eth0\"".into(), "1:", &["not TOML"]),
        ("interfaces [\"eth0\"]".into(), "1:", &["not TOML"]),
        ("xdp = native".into(), "1:", &["not TOML", "text stands in quotes: xdp = \"native\""]),
        ("max_flows = 1M # big".into(), "1:", &["max_flows = \"1M\""]),
        ("xdp = \"native\nannounce = false".into(), "1:", &["not TOML"]),
        ("xdp = \"auto\"\nxdp = \"native\"".into(), "2:1:", &["'xdp' is there twice", "keep one"]),
        ("{\"interfaces\": [\"eth0\"]}".into(), "1:1:", &["not TOML", "JSON"]),
        ("interfaces: [eth0]".into(), "1:", &["not TOML", "YAML"]),
        ("[[service]]\nvip = []".into(), "2:7: service.vip:", &["the list is empty", "vip = \"10.0.0.10:80\""]),
        ("[[service]\nvip = \"10.0.0.1:80\"".into(), "1:", &["not TOML"]),
        ("interface = \"eth0\"".into(), "1:1: interface:", &["no key 'interface'", "did you mean 'interfaces'?"]),
        ("snat-ports = \"1-2\"".into(), "1:1: snat-ports:", &["did you mean 'snat_ports'?"]),
        ("frobnicate = 1".into(), "1:1: frobnicate:", &["no key 'frobnicate' at the top", "known here: interfaces"]),
        ("rise = 2".into(), "1:1: rise:", &["'rise' belongs in [service.health]"]),
        ("[services.web]\nvip = \"10.0.0.1:80\"".into(), "1:2: services:", &["[[service]]"]),
        ("[service]\nvip = \"10.0.0.1:80\"".into(), "1:", &["[service] is one table", "write [[service]]"]),
        ("service = \"web\"".into(), "1:11: service:", &["not a table"]),
        ("interfaces = 5".into(), "1:14: interfaces:", &["the number 5, not text", "interfaces = [\"eth0\"]"]),
        ("interfaces = [\"eth0\", \"eth0\"]".into(), "1:23: interfaces:", &["eth0 is named twice"]),
        ("interfaces = [\"an interface\"]".into(), "1:15: interfaces:", &["'an interface' cannot be the name"]),
        ("interfaces = [\"abcdefghijklmnop\"]".into(), "1:15: interfaces:", &["cannot be the name of an interface"]),
        ("xdp = \"natve\"".into(), "1:7: xdp:", &["'natve' is not an XDP mode", "did you mean 'native'?"]),
        ("xdp = true".into(), "1:7: xdp:", &["this is true, not text in quotes"]),
        ("announce = \"true\"".into(), "1:12: announce:", &["'true' in quotes is the name of a device"]),
        ("announce = 1".into(), "1:12: announce:", &["not text"]),
        ("snat = [\"10.0.0\"]".into(), "1:9: snat:", &["'10.0.0' is not an IP address"]),
        ("snat_ports = \"9-5\"".into(), "1:14: snat_ports:", &["not a range of ports", "LO-HI"]),
        ("max_flows = \"1T\"".into(), "1:13: max_flows:", &["'1T' is not a size", "1M"]),
        ("max_flows = 5".into(), "1:13: max_flows:", &["5 is out of range", "64 to"]),
        ("max_flows = -5".into(), "1:13: max_flows:", &["-5 is not a size"]),
        ("on_exit = \"stay\"".into(), "1:11: on_exit:", &["one of: detach keep"]),
        ("bpf_log = 9".into(), "1:11: bpf_log:", &["9 is out of range", "0 to 5"]),
        ("bpf_log = \"3\"".into(), "1:11: bpf_log:", &["the text \"3\", not a whole number"]),
        ("[idle]\nestablished = 7200".into(), "2:15: idle.established:", &["needs a unit", "\"7200s\""]),
        ("[idle]\nudp = \"0s\"".into(), "2:7: idle.udp:", &["out of range", "1s to 24d"]),
        ("[idle]\ntcp = \"1h\"".into(), "2:1: idle.tcp:", &["did you mean 'established'?"]),
    ]
}

fn of_services() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        ("[[service]]\nname = \"web\"".into(), "1:1: service.vip:", &["missing", "vip = \"10.0.0.10:80\""]),
        ("[[service]]\nvip = \"10.0.0.10\"".into(), "2:7: service.vip:", &["port is missing"]),
        ("[[service]]\nvip = \"web:80\"".into(), "2:7: service.vip:", &["names are not looked up"]),
        ("[[service]]\nvip = \"10.0.0.10:80/sctp\"".into(), "2:7: service.vip:", &["'sctp' is not a protocol"]),
        ("[[service]]\nvip = \"127.0.0.1:80\"".into(), "2:7: service.vip:", &["not an address that clients can reach"]),
        ("[[service]]\nvip = [\"10.0.0.1:1\", \"10.0.0.1:1\"]".into(), "2:22: service.vip:", &["there twice (line 2"]),
        ("[[service]]\nlisten = \"10.0.0.10:80\"".into(), "2:1: service.listen:", &["did you mean 'vip'?"]),
        (with("[[service]]\nvip = \"10.0.0.10:80/tcp\""), "6:7: service.vip:", &["there twice (line 3"]),
        (with("name = \"a\"\n[[service]]\nname = \"a\"\nvip = \"10.0.0.10:81\""), "7:8: service.name:", &["(line 5)"]),
        (with("name = \"my web\""), "5:8: service.name:", &["'my web' cannot be a name", "without spaces"]),
        (with("schedular = \"maglev\""), "5:1: service.schedular:", &["did you mean 'scheduler'?"]),
        (with("scheduler = \"maglv\""), "5:13: service.scheduler:", &["did you mean 'maglev'?", "round-robin"]),
        (with("balance = \"rr\""), "5:1: service.balance:", &["did you mean 'scheduler'?"]),
        (with("mode = \"NAT\""), "5:8: service.mode:", &["did you mean 'nat'?"]),
        (with("affinity = 600"), "5:12: service.affinity:", &["needs a unit", "affinity = \"600s\""]),
        (with("affinity = \"10 minutes\""), "5:12: service.affinity:", &["'10 minutes' is not a time", "10m"]),
        (with("on_down = \"kill\""), "5:11: service.on_down:", &["one of: auto reset keep"]),
        (with("on_empty = [\"drop\"]"), "5:12: service.on_empty:", &["a list, not text"]),
        (with("interfaces = [\"eth1\"]"), "5:1: service.interfaces:", &["belongs at the top of the file"]),
        (with("interval = \"2s\""), "5:1: service.interval:", &["belongs in [service.health]"]),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackend = []".into(),
            "3:1: service.backend:",
            &["did you mean 'backends'?"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = \"10.0.0.2:1\"".into(),
            "3:12: service.backends:",
            &["not a list"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"10.0.0.2\"]".into(),
            "3:13: service.backends:",
            &["port is missing"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"b:1\"]".into(),
            "3:13: service.backends:",
            &["'b' is not an IP"],
        ),
        ("[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [8080]".into(), "3:13: service.backends:", &["the number 8080"]),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"127.0.0.1:1\"]".into(),
            "3:13: service.backends:",
            &["loopback"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"10.0.0.9:2\"]".into(),
            "3:13: service.backends:",
            &["is a VIP"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"10.0.0.2:1=x\"]".into(),
            "3:13: service.backends:",
            &["'x' is not a weight"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [\"10.0.0.2:1\", \"10.0.0.2:1\"]".into(),
            "3:27: service.backends:",
            &["named twice"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [{ adress = \"10.0.0.2:1\" }]".into(),
            "3:15: service.backends.adress:",
            &["did you mean 'address'?"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [{ weight = 2 }]".into(),
            "3:13: service.backends.address:",
            &["missing"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [{ address = \"10.0.0.2:1\", weight = 70000 }]".into(),
            "3:48: service.backends.weight:",
            &["0 to 65535"],
        ),
        (
            "[[service]]\nvip=\"10.0.0.9:1\"\nbackends = [{ address = \"10.0.0.2:1=3\", weight = 2 }]".into(),
            "3:25: service.backends.address:",
            &["the weight is there twice"],
        ),
        (with("[service.idle]\nestablished = \"1y\""), "6:15: service.idle.established:", &["'1y' is not a time"]),
    ]
}

fn of_health() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        (with("health = \"http\""), "5:10: service.health:", &["not a table", "[service.health]"]),
        (health("type = \"htp\""), "6:8: service.health.type:", &["did you mean 'http'?"]),
        (health("type = \"http:/up\""), "6:8: service.health.type:", &["type = \"http\" and path = \"/up\""]),
        (
            health("path = \"/up\""),
            "6:1: service.health.path:",
            &["the default, has no 'path'", "goes with http, https"],
        ),
        (health("type = \"http\"\npath = \"up\""), "7:8: service.health.path:", &["begins with '/'"]),
        (health("type = \"http\"\nsend = \"x\""), "7:1: service.health.send:", &["goes with tcp, udp"]),
        (health("type = \"http\"\nexpect_status = 99"), "7:17: service.health.expect_status:", &["100 to 599"]),
        (
            health("type = \"http\"\nexpect_status = \"2xx\""),
            "7:17: service.health.expect_status:",
            &["'2xx' is not", "200-299"],
        ),
        (
            health("type = \"grpc\"\nca_file = \"/ca.pem\""),
            "7:1: service.health.ca_file:",
            &["needs TLS", "tls = true"],
        ),
        (health("type = \"https\"\nca_file = \"ca.pem\""), "7:11: service.health.ca_file:", &["not an absolute path"]),
        (health("type = \"https\"\nverify = \"yes\""), "7:10: service.health.verify:", &["true or false"]),
        (health("send = 'a\\q'"), "6:8: service.health.send:", &["is not an escape"]),
        (health("interval = 2"), "6:12: service.health.interval:", &["needs a unit", "\"2s\""]),
        (health("interval = \"1ms\""), "6:12: service.health.interval:", &["1ms is out of range", "100ms to 1d"]),
        (health("timeout = \"0s\""), "6:11: service.health.timeout:", &["0s is out of range"]),
        (health("rise = 0"), "6:8: service.health.rise:", &["out of range", "1 to"]),
        (health("fall = 1.5"), "6:8: service.health.fall:", &["the number 1.5, not a whole number"]),
        (health("port = 70000"), "6:8: service.health.port:", &["1 to 65535"]),
        (health("intervall = \"2s\""), "6:1: service.health.intervall:", &["did you mean 'interval'?"]),
        (health("via = \"direct\""), "6:7: service.health.via:", &["one of: backend vip"]),
        (health("scheduler = \"rr\""), "6:1: service.health.scheduler:", &["belongs in [[service]]"]),
    ]
}

fn of_discovery() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        (with("[service.discovery]\nconsol = \"x\""), "6:1: service.discovery.consol:", &["did you mean 'consul'?"]),
        (with("[service.discovery]\nconsul = 1"), "6:10: service.discovery.consul:", &["the number 1, not text"]),
        (consul("tags = [\"a\"]"), "6:12: service.discovery.consul.tags:", &["did you mean 'tag'?"]),
        (consul(""), "6:10: service.discovery.consul:", &["neither a service nor a tag", "tag = \"api\""]),
        (
            consul("service = \"a\", addr = \"ftp://x\""),
            "6:34: service.discovery.consul.addr:",
            &["'ftp' is not spoken"],
        ),
        (
            consul("service = \"a\", on_empty = \"kep\""),
            "6:38: service.discovery.consul.on_empty:",
            &["keep or reject"],
        ),
        (
            consul("service = \"a\", token_file = \"t\""),
            "6:40: service.discovery.consul.token_file:",
            &["not an absolute path"],
        ),
        (consul("service = \"a\", stale = \"no\""), "6:35: service.discovery.consul.stale:", &["true or false"]),
        (consul("service = \"a\", empty_hold = 30"), "6:40: service.discovery.consul.empty_hold:", &["needs a unit"]),
        (with("[service.discovery.dns]\nhost = \"web.example\""), "5:", &["the port is missing", "port = 8080"]),
        (with("[service.discovery.dns]\nport = 80"), "5:", &["service.discovery.dns.host: missing"]),
        (with("[service.discovery.file]\npath = \"web\""), "6:8: service.discovery.file.path:", &["absolute"]),
        (with("discovery = { file = [\"/a\", \"/a\"] }"), "5:29: service.discovery:", &["two sources 'file:/a'"]),
    ]
}

/// Empty texts, lists and files.
fn of_nothing() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        (String::new(), "1:1:", &["nothing is said here", "interfaces ="]),
        ("# lb's file\n\n".into(), "1:1:", &["nothing is said here"]),
        ("= 5".into(), "1:1:", &["not TOML"]),
        ("xdp = “native”".into(), "1:7:", &["not TOML", "plain quotes: xdp = \"native\""]),
        ("interfaces = []".into(), "1:14: interfaces:", &["the list is empty", "or leave the key out"]),
        ("interfaces = [\"\"]".into(), "1:15: interfaces:", &["nothing in the quotes", "[\"eth0\"]"]),
        ("interfaces = \"eth0,eth1\"".into(), "1:14: interfaces:", &["several", "[\"eth0\", \"eth1\"]"]),
        ("interfaces = [\"..\"]".into(), "1:15: interfaces:", &["cannot be the name"]),
        ("interfaces = [\"lo\"]".into(), "1:15: interfaces:", &["loopback device", "towards the clients"]),
        ("snat = []".into(), "1:8: snat:", &["the list is empty"]),
        ("max_flows = 1.5".into(), "1:13: max_flows:", &["the number 1.5, not a whole number"]),
        ("shared = \"etcd:\"".into(), "1:10: shared:", &["the prefix is missing", "etcd:PREFIX[?addr=..]"]),
        ("[health]\ntype = \"tcp\"".into(), "1:2: health:", &["write [service.health], below its [[service]]"]),
        ("\"a b\" = 1".into(), "1:1: \"a b\":", &["there is no key 'a b'"]),
        (health("type = \"http\"\nhost = \"\""), "7:8: service.health.host:", &["nothing in the quotes"]),
        (health("type = \"http\"\nhost = \"a\\nX: b\""), "7:8: service.health.host:", &["not the name of a host"]),
        (health("type = \"https\"\nserver_name = \"a b\""), "7:15: service.health.server_name:", &["not the name"]),
        (with("[service.discovery]\nconsul = []"), "6:10: service.discovery.consul:", &["the list is empty"]),
        (consul("service = \"a\", tag = []"), "6:33: service.discovery.consul.tag:", &["the list is empty"]),
        (consul("service = \"a\", name = \"\""), "6:34: service.discovery.consul.name:", &["nothing in the quotes"]),
        (with("[service.discovery]\netcd = \"\""), "6:8: service.discovery.etcd:", &["nothing in the quotes"]),
    ]
}

/// What does not fit together, or is too much.
fn of_the_whole() -> Vec<(String, &'static str, &'static [&'static str])> {
    vec![
        ("snat = [\"10.0.0.8\", \"10.0.0.8\"]".into(), "1:21: snat:", &["10.0.0.8 is named twice"]),
        ("snat = \"127.0.0.1\"".into(), "1:8: snat:", &["not an address that backends can answer to"]),
        ("[[service]]\nvip = \"http://10.0.0.9:1\"".into(), "2:7: service.vip:", &["a URL", "ADDR:PORT"]),
        ("[[service]]\nvip = \"[2001:db8::1]\"".into(), "2:7: service.vip:", &["the port is missing"]),
        (
            with("[[service]]\nname = \"10.0.0.10:80/tcp\"\nvip = \"10.0.0.10:81\""),
            "6:8: service.name:",
            &["the name of another service (line 2)"],
        ),
        (
            "[[service]]\nvip = \"10.0.0.9:1\"\nbackends = [\"[fd00::2]:1\"]".into(),
            "3:13: service.backends:",
            &["IPv6, but VIP 10.0.0.9:1/tcp is IPv4"],
        ),
        (
            "[[service]]\nvip = \"10.0.0.9:1\"\nmode = \"dsr\"\nbackends = [\"10.0.0.2\", \"10.0.0.2:1\"]".into(),
            "4:25: service.backends:",
            &["10.0.0.2:1 is named twice"],
        ),
        (
            "[[service]]\nvip = \"10.0.0.9:1\"\nbackends = [{ address = \"10.0.0.2:1\", port = 1 }]".into(),
            "3:39: service.backends.port:",
            &["did you mean 'address'?"],
        ),
        (
            "[[service]]\nvip = \"10.0.0.9:1\"\nbackends = [\"consol:web\"]".into(),
            "3:13: service.backends:",
            &["'consol'", "consul:.."],
        ),
        (with("scheduler = \"ip_hash\""), "5:13: service.scheduler:", &["did you mean 'source-hash'?"]),
        (with("affinity = \"100d\""), "5:12: service.affinity:", &["100d is out of range", "0s to 24d"]),
        (health("timeout = \"5s\""), "6:11: service.health.timeout:", &["5s is longer than the interval, 2s"]),
        (health("interval = \"2d\""), "6:12: service.health.interval:", &["out of range", "100ms to 1d"]),
        (health("via = \"vip\""), "6:7: service.health.via:", &["in mode 'nat' backends do not have the VIP"]),
        (consul("service = \"a\", interval = \"0s\""), "6:38: service.discovery.consul.interval:", &["1s to 10m"]),
        (consul("service = \"a\", cert = \"/c\""), "6:34: service.discovery.consul.cert:", &["needs its key"]),
        (
            with("[service.discovery.consul]\nservice = \"a\"\naddr = \"http://h:99999\""),
            "7:8: service.discovery.consul.addr:",
            &["'99999' is not a port"],
        ),
        (
            with("[service.discovery]\ndns = { host = \"a..b\", port = 80 }"),
            "6:7: service.discovery.dns:",
            &["not the name of a host"],
        ),
        (
            with("[service.discovery]\ndns = { host = \"_http._tcp.a\", port = 80 }"),
            "6:7: service.discovery.dns:",
            &["SRV records have their own ports"],
        ),
        (
            with("[service.discovery]\netcd = { prefix = \"a\", interval = \"1s\" }"),
            "6:24: service.discovery.etcd.interval:",
            &["known here: name prefix"],
        ),
    ]
}

#[test]
fn every_wrong_file_gets_one_message_that_says_where_what_and_how_to_mend_it() {
    let cases = cases();
    assert!(cases.len() >= 120, "{}", cases.len());
    let mut failed = Vec::new();
    for (text, place, words) in cases {
        let said = said(&text);
        let fine = said.len() == 1 && said[0].starts_with(place) && words.iter().all(|word| said[0].contains(word));
        if !fine {
            failed.push(format!("{text}\n  wanted {place} {words:?}\n  said   {said:#?}\n"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn all_errors_of_a_file_are_told_at_once_in_its_order() {
    let text = "interface = \"eth0\"\nmax_flows = 1\n[[service]]\nvip = \"nope\"\nbackends = [\"127.0.0.1:80\", \"10.0.0.2\"]\n\
                mode = \n[service.health]\ntype = \"ftp\"\nrise = 0\n";
    let said = said(text);
    let lines: Vec<_> = said.iter().map(|line| line.split(':').next().unwrap_or("")).collect();
    assert_eq!(lines, ["1", "2", "4", "5", "5", "6", "8", "9"], "{said:#?}");
}
