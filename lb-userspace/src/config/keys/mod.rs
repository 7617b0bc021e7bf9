//! Every key that a config file may have: the one list that the reader, the JSON Schema, the reference in
//! docs/configuration.md and "did you mean" are made from. [`health`] and [`discovery`] have the tables of their names.

mod discovery;
mod health;

use discovery::DISCOVERY;
use health::HEALTH;
pub use health::{health_key, health_types};

use crate::state::Scheduler;

/// A table of the file.
#[derive(Debug)]
pub struct Table {
    /// As in `[service.health]`; empty for the top of the file.
    pub path: &'static str,
    /// What it is about, in a sentence.
    pub help: &'static str,
    /// Its keys in the order of the documentation.
    pub keys: &'static [Key],
}

/// A key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What counts when it is left out, in words; empty = it must be there.
    pub default: &'static str,
    /// What it does, in a sentence or two.
    pub help: &'static str,
    /// A value as it is written in the file.
    pub example: &'static str,
    /// What people call it elsewhere.
    pub also: &'static [&'static str],
    /// Words of elsewhere that are taken as values too.
    pub aliases: &'static [&'static str],
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A number and a unit, from the first time to the second.
    Time(&'static str, &'static str),
    /// A number, or text with a unit of 1024.
    Size,
    /// A whole number in this range.
    Number(i64, i64),
    /// True or false.
    Flag,
    /// A list.
    List(&'static Kind),
    /// One, or a list.
    Some(&'static Kind),
    /// Any of these.
    Either(&'static [Kind]),
    /// A table.
    Table(&'static Table),
    /// A table, or a list of tables: `[[...]]`.
    Tables(&'static Table),
}

impl Table {
    /// The key of this name.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The whole name of a key of this table, written as TOML has it.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        let key = if is_bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// This table and those in it, each once.
    #[must_use]
    pub fn all(&'static self) -> Vec<&'static Self> {
        fn of(kind: &Kind, found: &mut Vec<&'static Table>) {
            match kind {
                Kind::List(inner) | Kind::Some(inner) => of(inner, found),
                Kind::Either(kinds) => kinds.iter().for_each(|kind| of(kind, found)),
                Kind::Table(table) | Kind::Tables(table) => {
                    if found.iter().all(|known| known.path != table.path) {
                        found.push(table);
                        table.keys.iter().for_each(|key| of(&key.kind, found));
                    }
                }
                Kind::Text | Kind::Word(_) | Kind::Time(..) | Kind::Size | Kind::Number(..) | Kind::Flag => {}
            }
        }
        let mut found = vec![self];
        self.keys.iter().for_each(|key| of(&key.kind, &mut found));
        found
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, example: &'static str, help: &'static str) -> Key {
    Key { name, kind, default, help, example, also: &[], aliases: &[] }
}

impl Key {
    const fn also(mut self, words: &'static [&'static str]) -> Self {
        self.also = words;
        self
    }

    const fn aliases(mut self, words: &'static [&'static str]) -> Self {
        self.aliases = words;
        self
    }
}

/// The top of the file.
pub static FILE: Table = Table {
    path: "",
    help: "The balancer itself. These keys stand at the top of the file, before the first `[..]` or `[[..]]`.",
    keys: &[
        key(
            "interfaces",
            Kind::Some(&Kind::Text),
            "those of the command line",
            r#"["eth0"]"#,
            "Interfaces that packets come in and leave by. The first is the one for announcements.",
        )
        .also(&["interface", "iface", "dev", "device"]),
        key(
            "xdp",
            Kind::Word(&["auto", "native", "generic"]),
            "auto",
            r#""native""#,
            "How the program is attached: in the driver, in the network stack, or whichever works.",
        ),
        key(
            "announce",
            Kind::Either(&[Kind::Flag, Kind::Text]),
            "false",
            r#""lo""#,
            "Put the VIPs on this device (true: the first interface) and tell the neighbours; taken away on detach.",
        ),
        key(
            "snat",
            Kind::Some(&Kind::Text),
            "none besides the route's own",
            r#"["10.0.0.8", "10.0.0.9"]"#,
            "More addresses that NAT may use towards the backends; each gives as many connections again.",
        ),
        key(
            "snat_ports",
            Kind::Text,
            "1024-65535 minus the host's own",
            r#""20000-29999""#,
            "Lowest and highest port that NAT may use.",
        )
        .also(&["ports"]),
        key(
            "max_flows",
            Kind::Size,
            "262144",
            r#""1M""#,
            "Size of the flow table, 64 to 4194303; its memory is reserved at start. A running data path keeps its size.",
        )
        .also(&["flows", "max_connections", "maxconn"]),
        key(
            "on_exit",
            Kind::Word(&["detach", "keep"]),
            "detach",
            r#""keep""#,
            "What ending `lb attach` does to the data path. `lb daemon` always leaves it running.",
        ),
        key(
            "bpf_log",
            Kind::Number(0, 5),
            "0",
            "3",
            "Level of the data path's own log: 0 is off, 5 says most. For debugging: it costs much.",
        ),
        key(
            "shared",
            Kind::Text,
            "none",
            r#""etcd:lb""#,
            "More services, shared by a fleet of balancers: `etcd:PREFIX[?addr=..]`; the keys under `PREFIX/config/` hold them.",
        )
        .also(&["fleet", "include"]),
        key(
            "idle",
            Kind::Table(&IDLE),
            "see below",
            r#"{ established = "1h" }"#,
            "Idle timeouts of services that have none of their own.",
        )
        .also(&["timeouts", "idle_timeouts"]),
        key("service", Kind::Tables(&SERVICE), "none", "", "A service; there may be many.").also(&[
            "services", "listen", "virtual_server", "frontend", "server",
        ]),
    ],
};

/// `[[service]]`.
pub static SERVICE: Table = Table {
    path: "service",
    help: "One service: VIPs, and who serves them. Written `[[service]]`, once for each.",
    keys: &[
        key("name", Kind::Text, "its first VIP", r#""web""#, "What it is called in commands and output.").also(&["id"]),
        key(
            "vip",
            Kind::Some(&Kind::Text),
            "",
            r#""10.0.0.10:80""#,
            "ADDR:PORT that clients talk to, or a list; `/udp` for UDP; IPv6 in brackets; port 0: every port, the backend keeps it.",
        )
        .also(&["vips", "listen", "bind", "address", "addr", "virtual_ip", "port"]),
        key(
            "mode",
            Kind::Word(&["nat", "dnat", "dsr", "ipip", "gue"]),
            "nat",
            r#""nat""#,
            "How packets reach the backends; see docs/modes.",
        )
        .also(&["method", "forward", "lb_kind"]),
        key(
            "scheduler",
            Kind::Word(&["maglev", "round-robin", "least-conn", "source-hash", "random"]),
            "maglev",
            r#""least-conn""#,
            "How a new connection picks a backend. The words of IPVS (rr, wrr, lc, wlc, sh) do too.",
        )
        .also(&["balance", "algorithm", "policy", "lb_algo"])
        .aliases(Scheduler::ALIASES),
        key(
            "affinity",
            Kind::Time("0s", "24d"),
            "off",
            r#""10m""#,
            "The same client address gets the same backend, until it has been silent for this long.",
        )
        .also(&["sticky", "persistence", "persistence_timeout", "session_affinity"]),
        key(
            "slow_start",
            Kind::Time("0s", "1d"),
            "off",
            r#""1m""#,
            "A backend that came up takes a growing share of new connections for this long.",
        )
        .also(&["slowstart", "warmup", "ramp_up"]),
        key(
            "on_down",
            Kind::Word(&["auto", "reset", "keep"]),
            "auto",
            r#""reset""#,
            "What happens to TCP connections of a backend that is down. auto: reset those that it no longer answers.",
        ),
        key(
            "on_empty",
            Kind::Word(&["reject", "drop"]),
            "reject",
            r#""drop""#,
            "What happens to a new connection when no backend is usable: refused at once, or silence.",
        ),
        key(
            "idle",
            Kind::Table(&SERVICE_IDLE),
            "that of the file",
            r#"{ udp = "30s" }"#,
            "Idle timeouts of this service's connections.",
        )
        .also(&["timeout", "timeouts", "idle_timeouts", "idle_timeout"]),
        key(
            "backends",
            Kind::List(&Kind::Either(&[Kind::Text, Kind::Table(&BACKEND)])),
            "none",
            r#"["10.0.0.2:8080", { address = "10.0.0.3:8080", weight = 2 }]"#,
            "The servers: `ADDR:PORT`, `ADDR:PORT=WEIGHT`, or a table.",
        )
        .also(&["backend", "servers", "server", "upstream", "real_server", "members", "targets"]),
        key("health", Kind::Table(&HEALTH), "TCP connect; none for UDP", "", "How the backends are checked.").also(&[
            "healthcheck", "health_check", "check",
        ]),
        key(
            "discovery",
            Kind::Table(&DISCOVERY),
            "none",
            "",
            "Where more backends come from, beside or instead of `backends`.",
        )
        .also(&["registry", "source", "sources"]),
    ],
};

static BACKEND: Table = Table {
    path: "service.backends",
    help: "One server, where its address alone does not say enough.",
    keys: &[
        key("address", Kind::Text, "", r#""10.0.0.3:8080""#, "ADDR:PORT.")
            .also(&["addr", "host", "ip", "server", "port"]),
        key("weight", Kind::Number(0, 65535), "1", "2", "Share of new connections; 0: takes none."),
    ],
};

static IDLE: Table = Table {
    path: "idle",
    help: "How long a connection may be silent before its record is given up, for services that do not say it themselves.",
    keys: &IDLE_KEYS,
};

static SERVICE_IDLE: Table = Table {
    path: "service.idle",
    help: "How long a connection of this service may be silent before its record is given up. What is left out is as in `[idle]`.",
    keys: &IDLE_KEYS,
};

static IDLE_KEYS: [Key; 5] = [
    key("syn", Kind::Time("1s", "24d"), "60s", r#""30s""#, "TCP before the handshake is complete."),
    key(
        "established",
        Kind::Time("1s", "24d"),
        "2h4m",
        r#""1h""#,
        "TCP established (RFC 5382); shorter when the table fills.",
    )
    .also(&["tcp"]),
    key("half_closed", Kind::Time("1s", "24d"), "5m", r#""1m""#, "TCP after one FIN."),
    key(
        "closed",
        Kind::Time("1s", "24d"),
        "30s",
        r#""10s""#,
        "TCP after both FINs or a RST; reclaimed at once when needed.",
    ),
    key("udp", Kind::Time("1s", "24d"), "2m", r#""30s""#, "UDP (RFC 4787)."),
];
