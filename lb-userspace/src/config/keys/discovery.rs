//! Keys of `[service.discovery]` and of its tables.

use super::{Key, Kind, Table, key};

pub(super) static DISCOVERY: Table = Table {
    path: "service.discovery",
    help: "Where more backends come from; each may be one, or a list. The rules and limits are in docs/registries.md.",
    keys: &[
        key(
            "consul",
            Kind::Some(&Kind::Either(&[Kind::Text, Kind::Table(&CONSUL)])),
            "none",
            r#"{ service = "api-service", tag = "api" }"#,
            "Instances that Consul knows; as text: `SERVICE[?OPTION=VALUE&..]`.",
        ),
        key(
            "dns",
            Kind::Some(&Kind::Either(&[Kind::Text, Kind::Table(&DNS)])),
            "none",
            r#""_http._tcp.example.org""#,
            "Addresses of a name, or targets of SRV records; as text: `NAME:PORT` or `_SERVICE._tcp.NAME`.",
        ),
        key(
            "etcd",
            Kind::Some(&Kind::Either(&[Kind::Text, Kind::Table(&ETCD)])),
            "none",
            r#"{ prefix = "lb/web", addr = "http://10.0.0.9:2379" }"#,
            "Values of the keys under a prefix of etcd; as text: `PREFIX`.",
        ),
        key(
            "file",
            Kind::Some(&Kind::Either(&[Kind::Text, Kind::Table(&FILE_SOURCE)])),
            "none",
            r#""/etc/lb/web.backends""#,
            "Lines of a file, read again when it changes; as text: its absolute path.",
        ),
    ],
};

const NAME: Key = key("name", Kind::Text, "KIND:TARGET", r#""main""#, "What the source is called: `registry:NAME`.");
const ADDR: Key =
    key("addr", Kind::Text, "the registry's own default", r#""http://10.0.0.9:8500""#, "Where the registry answers.")
        .also(&["address", "url", "server", "endpoint", "endpoints"]);
const ETCD_ADDR: Key = Key { example: r#""http://10.0.0.9:2379""#, ..ADDR };
const CA: Key =
    key("ca", Kind::Text, "the system's", r#""/etc/lb/ca.pem""#, "Trusted certificates, PEM.").also(&["ca_file"]);
const CERT: Key =
    key("cert", Kind::Text, "none", r#""/etc/lb/lb.pem""#, "This client's certificate, PEM.").also(&["cert_file"]);
const CERT_KEY: Key = key("key", Kind::Text, "none", r#""/etc/lb/lb.key""#, "Its key, PEM.").also(&["key_file"]);
const SERVER_NAME: Key = key(
    "server_name",
    Kind::Text,
    "the host of addr",
    r#""consul.example.org""#,
    "The name in the registry's certificate.",
);
const EMPTY_HOLD: Key = key(
    "empty_hold",
    Kind::Time("0s", "1d"),
    "30s",
    r#""1m""#,
    "How long an empty answer after a full one is not believed.",
);
const ON_EMPTY: Key = key(
    "on_empty",
    Kind::Word(&["keep", "reject"]),
    "keep while health is checked, else reject",
    r#""keep""#,
    "What becomes of the last good set then.",
);
const MASS: Key =
    key("mass", Kind::Number(0, 100), "50", "80", "More than this percentage leaving at once is not believed either.");
const WEIGHT: Key =
    key("weight", Kind::Number(0, 65535), "1", "10", "Weight of backends of which the registry says none.");

static CONSUL: Table = Table {
    path: "service.discovery.consul",
    help: "Consul. The CONSUL_* environment variables count where a key is left out.",
    keys: &[
        NAME,
        key("service", Kind::Text, "every service with the tags", r#""api-service""#, "The service's name in Consul."),
        key("tag", Kind::Some(&Kind::Text), "none", r#""api""#, "Tags that an instance must have, all of them.")
            .also(&["tags"]),
        key("dc", Kind::Text, "the agent's", r#""east""#, "Datacenter.").also(&["datacenter"]),
        key("ns", Kind::Text, "none", r#""team""#, "Namespace (Consul Enterprise).").also(&["namespace"]),
        key("partition", Kind::Text, "none", r#""a""#, "Partition (Consul Enterprise)."),
        key(
            "passing",
            Kind::Flag,
            "true",
            "false",
            "Only instances whose checks in Consul pass; false: those that warn too.",
        ),
        key("stale", Kind::Flag, "false", "true", "Any server may answer, not only the leader."),
        ADDR,
        key(
            "token_file",
            Kind::Text,
            "none",
            r#""/etc/lb/consul.token""#,
            "File with the access token; read again when it changes.",
        )
        .also(&["token"]),
        CA,
        CERT,
        CERT_KEY,
        SERVER_NAME,
        key("interval", Kind::Time("1s", "10m"), "60s", r#""30s""#, "Longest time that one question waits for news.")
            .also(&["wait"]),
        EMPTY_HOLD,
        ON_EMPTY,
        MASS,
        WEIGHT,
    ],
};

static DNS: Table = Table {
    path: "service.discovery.dns",
    help: "DNS.",
    keys: &[
        NAME,
        key(
            "host",
            Kind::Text,
            "",
            r#""web.example.org""#,
            "The name that is looked up; `_SERVICE._tcp.NAME` for SRV records.",
        )
        .also(&["query", "domain", "record", "hostname"]),
        key("port", Kind::Number(1, 65535), "that of the SRV records", "8080", "The port that all addresses have."),
        key("addr", Kind::Text, "those of /etc/resolv.conf", r#""127.0.0.1:8600""#, "The server that is asked.")
            .also(&["server", "resolver", "nameserver"]),
        key(
            "interval",
            Kind::Time("1s", "10m"),
            "the TTL, at most 60s",
            r#""5s""#,
            "Longest time between two questions.",
        ),
        EMPTY_HOLD,
        ON_EMPTY,
        MASS,
        WEIGHT,
    ],
};

static ETCD: Table = Table {
    path: "service.discovery.etcd",
    help: "etcd, version 3.",
    keys: &[
        NAME,
        key("prefix", Kind::Text, "", r#""lb/web""#, "What the keys begin with.").also(&["key_prefix", "path"]),
        ETCD_ADDR,
        CA,
        CERT,
        CERT_KEY,
        SERVER_NAME,
        EMPTY_HOLD,
        ON_EMPTY,
        MASS,
        WEIGHT,
    ],
};

static FILE_SOURCE: Table = Table {
    path: "service.discovery.file",
    help: "A file.",
    keys: &[
        NAME,
        key("path", Kind::Text, "", r#""/etc/lb/web.backends""#, "Absolute path.").also(&["file", "filename"]),
        EMPTY_HOLD,
        ON_EMPTY,
        MASS,
        WEIGHT,
    ],
};
