//! The vocabulary of product.md: parsing, printing, serde. Every word is printed as it is typed.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, discovery::SourceSpec};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($word $(| $alias)* => Ok(Self::$variant),)*
                    _ => Err(Error::usage(format!(concat!("'{}' is not ", $what), text))
                        .hint(concat!("one of:" $(, " ", $word)*))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// How packets reach the backend.
    Mode, "a mode" {
        /// Full NAT.
        Nat = "nat",
        /// Destination NAT.
        Dnat = "dnat",
        /// Direct return on layer 2.
        Dsr = "dsr",
        /// Direct return, IP in IP.
        Ipip = "ipip",
        /// Direct return, IP in UDP.
        Gue = "gue",
    }
}

words! {
    /// How a new connection picks a backend.
    Scheduler, "a scheduler" {
        /// Maglev hashing over the 5-tuple.
        Maglev = "maglev",
        /// Weighted round robin.
        RoundRobin = "round-robin" | "rr" | "wrr",
        /// Weighted least connections.
        LeastConn = "least-conn" | "lc" | "wlc",
        /// Maglev hashing over the client's address.
        SourceHash = "source-hash" | "sh",
        /// Weighted random.
        Random = "random",
    }
}

words! {
    /// What the operator wants of a backend.
    Admin, "an admin state" {
        /// In service.
        Ready = "ready",
        /// No new flows, old ones go on.
        Drain = "drain",
        /// No new flows, checks stop, live flows are reset.
        Maint = "maint",
    }
}

words! {
    /// What checks say of a backend.
    Health, "a health" {
        /// Answers.
        Up = "up",
        /// Does not.
        Down = "down",
        /// No verdict yet.
        Unknown = "unknown",
    }
}

words! {
    /// What happens to existing TCP flows of a backend that is down.
    OnDown, "an on-down policy" {
        /// Reset those that the backend no longer answers.
        Auto = "auto",
        /// Reset all.
        Reset = "reset",
        /// Keep all.
        Keep = "keep",
    }
}

words! {
    /// What happens to a new flow when no backend is usable.
    OnEmpty, "an on-empty policy" {
        /// RST, or port unreachable.
        Reject = "reject",
        /// Silence.
        Drop = "drop",
    }
}

words! {
    /// Which way a health check's probe goes.
    #[derive(Default)]
    Via, "a way of a health check" {
        /// To the backend's own address.
        #[default]
        Backend = "backend",
        /// To the VIP, by the backend's mode, as a client's packets go.
        Vip = "vip",
    }
}

words! {
    /// What an `attach` does when it ends.
    OnExit, "an on-exit policy" {
        /// Stop forwarding, remove every trace.
        Detach = "detach",
        /// Leave the data path running.
        Keep = "keep",
    }
}

words! {
    /// How the program is attached.
    XdpMode, "an XDP mode" {
        /// Native where the driver has it, else generic.
        Auto = "auto",
        /// In the driver.
        Native = "native",
        /// In the network stack.
        Generic = "generic",
    }
}

words! {
    /// Transport protocol.
    Protocol, "a protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Who stated an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `lb attach`'s flags.
    Flags,
    /// The command line, while running.
    Cli,
    /// The config file.
    File,
    /// A registry, by name.
    Registry(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags => f.pad("flags"),
            Self::Cli => f.pad("cli"),
            Self::File => f.pad("file"),
            Self::Registry(name) => f.pad(&format!("registry:{name}")),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "flags" => Ok(Self::Flags),
            "cli" => Ok(Self::Cli),
            "file" => Ok(Self::File),
            _ => match text.strip_prefix("registry:") {
                Some(name) if !name.is_empty() => Ok(Self::Registry(name.to_owned())),
                _ => {
                    Err(Error::usage(format!("'{text}' is not a source")).hint("one of: flags cli file registry:NAME"))
                }
            },
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(super) use serde_as_text;
serde_as_text!(Source, Vip);

/// Address, port and protocol that clients talk to: `10.0.0.10:80/tcp`, `[2001:db8::1]:53/udp`. Port 0: every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port; 0 = every port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", SocketAddr::new(self.address, self.port), self.protocol))
    }
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_vip(text, None)
    }
}

/// Parses a VIP: `ADDR:PORT[/tcp|udp]`, and with a default address also `[:]PORT[/tcp|udp]`.
pub fn parse_vip(text: &str, default: Option<IpAddr>) -> Result<Vip> {
    const HINT: &str = "ADDR:PORT[/tcp|udp], as in 10.0.0.10:80 or [2001:db8::1]:53/udp";
    let (place, protocol) = match text.split_once('/') {
        Some((place, protocol)) => (place, protocol.parse()?),
        None => (text, Protocol::Tcp),
    };
    if let Ok(place) = place.parse::<SocketAddr>() {
        return Ok(Vip { address: place.ip(), port: place.port(), protocol });
    }
    let port = place.strip_prefix(':').unwrap_or(place);
    match (port.parse::<u16>(), default) {
        (Ok(port), Some(address)) => Ok(Vip { address, port, protocol }),
        (Ok(_), None) => Err(Error::usage(format!("VIP '{text}': the address is missing")).hint(HINT)),
        _ => Err(Error::usage(format!("VIP '{text}': {}", why_not_a_place(place))).hint(HINT)),
    }
}

/// Parses a backend: `ADDR:PORT[=WEIGHT]`; the weight is 1 unless said. Without a port it is 0: the VIP's, in modes
/// that have it so.
pub fn parse_backend(text: &str) -> Result<(SocketAddr, u16)> {
    const HINT: &str = "ADDR:PORT[=WEIGHT], as in 10.0.0.2:8080 or 10.0.0.2:8080=5";
    let (place, weight) = match text.split_once('=') {
        Some((place, weight)) => (
            place,
            parse_weight(weight)
                .map_err(|error| Error { message: format!("backend '{text}': {}", error.message), ..error })?,
        ),
        None => (text, 1),
    };
    let address = parse_place(place).map_err(|why| Error::usage(format!("backend '{text}': {why}")).hint(HINT))?;
    Ok((address, weight))
}

/// Parses the address of a backend that is there: `ADDR:PORT`, or without a port as above.
pub fn parse_server(text: &str) -> Result<SocketAddr> {
    parse_place(text).map_err(|why| {
        Error::usage(format!("backend '{text}': {why}")).hint("ADDR:PORT, as `lb backend list` shows it")
    })
}

/// An address with a port, or without one, which is then 0; or why it is neither.
fn parse_place(place: &str) -> std::result::Result<SocketAddr, String> {
    match place.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => return Err("0 is no server's port".to_owned()),
        Ok(address) => return Ok(address),
        Err(_) => {}
    }
    let alone = place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(place);
    alone.parse().map(|ip| SocketAddr::new(ip, 0)).map_err(|_| why_not_a_place(place))
}

/// Parses a weight.
pub fn parse_weight(text: &str) -> Result<u16> {
    text.parse().map_err(|_| Error::usage(format!("'{text}' is not a weight")).hint("a number from 0 to 65535"))
}

/// Parses the address of a client.
pub fn parse_client(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| {
        Error::usage(format!("'{text}' is not an IP address")).hint("without a port, as in 192.0.2.1 or 2001:db8::1")
    })
}

/// Parses a number of things.
pub fn parse_count(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::usage(format!("'{text}' is not a number")).hint("a whole number, as in 100"))
}

/// Parses a number of flows, also with a unit of 1024.
pub fn parse_flows(text: &str) -> Result<u32> {
    let size = parse_size(text)?;
    u32::try_from(size).map_err(|_| Error::usage(format!("'{text}' are too many flows")).hint("64 to 4194303"))
}

/// Levels of the data path's own log, by number.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Parses a level of the data path's own log: its word, or its number.
pub fn parse_log_level(text: &str) -> Result<u8> {
    let number = text.parse().ok().filter(|&number: &usize| number < LOG_LEVELS.len());
    let level = number.or_else(|| LOG_LEVELS.iter().position(|&word| word == text));
    level.and_then(|level| u8::try_from(level).ok()).ok_or_else(|| {
        Error::usage(format!("'{text}' is not a level of the log"))
            .hint("0 (off), 1 (error), 2 (warn), 3 (info), 4 (debug) or 5 (trace)")
    })
}

/// Parses a list of backends, separated by commas; none may be there twice.
pub fn parse_backends(text: &str) -> Result<Vec<(SocketAddr, u16)>> {
    let mut backends: Vec<(SocketAddr, u16)> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let (address, weight) = parse_backend(word)?;
        if backends.iter().any(|(other, _)| *other == address) {
            return Err(Error::usage(format!("backend {address}: named twice")).hint("name it once, with its weight"));
        }
        backends.push((address, weight));
    }
    Ok(backends)
}

/// What `--backends` says: addresses, and sources that find more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendList {
    /// Addresses with their weights.
    pub fixed: Vec<(SocketAddr, u16)>,
    /// Registries and files.
    pub sources: Vec<SourceSpec>,
}

/// Parses a list of backends and sources, separated by commas; none may be there twice.
pub fn parse_list(text: &str) -> Result<BackendList> {
    let (sources, fixed): (Vec<_>, Vec<_>) =
        text.split(',').map(str::trim).partition(|word| SourceSpec::is_source(word));
    let fixed = if fixed.is_empty() { Vec::new() } else { parse_backends(&fixed.join(","))? };
    let sources = sources.into_iter().map(str::parse).collect::<Result<Vec<SourceSpec>>>()?;
    for (n, source) in sources.iter().enumerate() {
        if sources[..n].iter().any(|other| other.name == source.name) {
            return Err(Error::usage(format!("source {}: two of this name", source.name))
                .hint("one is enough; or give one another name: KIND:TARGET?name=NAME"));
        }
    }
    Ok(BackendList { fixed, sources })
}

/// Why a text is not an address and a port.
fn why_not_a_place(text: &str) -> String {
    if text.is_empty() {
        return "nothing there".to_owned();
    }
    if text.parse::<IpAddr>().is_ok() {
        return "the port is missing".to_owned();
    }
    match text.rsplit_once(':') {
        Some((host, port)) if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => {
            format!("'{port}' is not a port (0 to 65535)")
        }
        Some((host, _)) => format!("'{host}' is not an IP address (names are not looked up)"),
        None => format!("'{text}' is not an address and a port"),
    }
}

/// Parses a time: numbers with units, as in `500ms`, `30s`, `10m`, `2h4m`, `1d`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let wrong =
        || Error::usage(format!("'{text}' is not a time")).hint("numbers with units: 500ms, 30s, 10m, 2h4m, 1d");
    let (mut rest, mut sum) = (text, 0_u64);
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = &rest[digits..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        sum = number.checked_mul(millis).and_then(|part| sum.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[digits + unit.len()..];
        if rest.is_empty() {
            return Ok(Duration::from_millis(sum));
        }
    }
}

/// Parses a size: a number, or one with a unit of 1024 (`64k`, `1M`, `2G`).
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || Error::usage(format!("'{text}' is not a size")).hint("a number, or with a unit: 262144, 256k, 1M");
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// Parses a range of ports: `LO-HI`.
pub fn parse_ports(text: &str) -> Result<(u16, u16)> {
    let wrong = || Error::usage(format!("'{text}' is not a range of ports")).hint("LO-HI, as in 20000-29999");
    let (low, high) = text.split_once('-').ok_or_else(wrong)?;
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if 0 < low && low <= high => Ok((low, high)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vips_are_printed_as_they_are_typed() {
        for text in ["10.0.0.10:80/tcp", "10.0.0.10:0/udp", "[2001:db8::1]:53/udp"] {
            assert_eq!(text.parse::<Vip>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.10:80".parse::<Vip>().unwrap().protocol, Protocol::Tcp);
        let default = Some(IpAddr::from([192, 0, 2, 1]));
        for text in ["80", ":80", "80/tcp", "192.0.2.1:80"] {
            assert_eq!(parse_vip(text, default).unwrap().to_string(), "192.0.2.1:80/tcp", "{text}");
        }
    }

    #[test]
    fn sources_stand_beside_addresses() {
        let list = parse_list("10.0.0.2:80=3, consul:web?tag=a,10.0.0.3:80,dns:_http._tcp.example").unwrap();
        assert_eq!(list.fixed.len(), 2);
        let names: Vec<_> = list.sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(names, ["consul:web/a", "dns:_http._tcp.example"]);
        assert!(parse_list("file:/x").unwrap().fixed.is_empty());
    }

    #[test]
    fn backends_have_weight_one_unless_said() {
        assert_eq!(parse_backend("10.0.0.2:80").unwrap().1, 1);
        assert_eq!(parse_backend("10.0.0.2:80=0").unwrap().1, 0);
        assert_eq!(parse_backends("10.0.0.2:80,10.0.0.3:80=65535").unwrap().len(), 2);
        for (text, address) in [("10.0.0.2=3", "10.0.0.2:0"), ("::2", "[::2]:0"), ("[::2]=3", "[::2]:0")] {
            assert_eq!(parse_backend(text).unwrap().0.to_string(), address);
        }
    }

    /// What was typed, and a word that the error must have to be of use.
    #[test]
    fn wrong_words_are_named() {
        let vips = [
            ("", "nothing"),
            ("10.0.0.1", "port is missing"),
            ("10.0.0.1:x", "'x' is not a port"),
            ("10.0.0.1:70000", "'70000' is not a port"),
            ("example.org:80", "names are not looked up"),
            ("10.0.0.1:80/sctp", "'sctp' is not a protocol"),
            ("80", "address is missing"),
            ("::1", "port is missing"),
        ];
        for (text, word) in vips {
            let error = text.parse::<Vip>().unwrap_err();
            assert!(error.message.contains(word) && error.hint.is_some(), "'{text}': {error:?}");
        }
        let backends = [
            ("10.0.0.2:80=70000", "'70000' is not a weight"),
            ("10.0.0.2:80=-1", "'-1' is not a weight"),
            ("10.0.0.2:80=", "'' is not a weight"),
            ("", "nothing there"),
            ("10.0.0.2:80,10.0.0.2:80=2", "named twice"),
            ("10.0.0.2:80,", "nothing there"),
            ("web1:80", "'web1'"),
            ("10.0.0.2:80,dns:web", "the port is missing"),
            ("consul:web,consul:web", "two of this name"),
        ];
        for (text, word) in backends {
            let error = parse_list(text).unwrap_err();
            assert!(error.message.contains(word) && error.hint.is_some(), "'{text}': {error:?}");
        }
        for text in [
            "",
            "5",
            "ms",
            "1w",
            "-1s",
            "1.5s",
            "2h4",
            "h2m",
            "1h ",
            "1h-2m",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).unwrap_err().message.contains("is not a time"), "'{text}'");
        }
        for (time, millis) in [("90s", 90_000), ("2h4m", 7_440_000), ("1m500ms", 60_500), ("0s", 0), ("0s5ms", 5)] {
            assert_eq!(parse_duration(time).unwrap(), Duration::from_millis(millis), "{time}");
        }
        for text in ["", "k", "1.5M", "-1", "1T", "0x10", "99999999999999999999", "18446744073709551615k"] {
            assert!(parse_size(text).unwrap_err().message.contains("is not a size"), "'{text}'");
        }
        assert_eq!(["7", "64k", "1M"].map(|size| parse_size(size).unwrap()), [7, 65_536, 1_048_576]);
        assert!("nta".parse::<Mode>().unwrap_err().hint.unwrap().contains("nat"));
    }

    #[test]
    fn ipvs_words_are_understood() {
        assert_eq!("wlc".parse::<Scheduler>().unwrap(), Scheduler::LeastConn);
        assert_eq!("rr".parse::<Scheduler>().unwrap().to_string(), "round-robin");
    }

    #[test]
    fn sources_are_printed_as_they_are_typed() {
        for text in ["flags", "cli", "file", "registry:consul"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert!("registry:".parse::<Source>().is_err());
    }
}
