//! What people type, on the command line and in files, as values: VIPs, backends, weights, times, sizes. Every error says
//! what is wrong and how it is written.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::words::{Protocol, Vip};
use crate::{Error, Result, discovery::SourceSpec};

/// Parses a VIP: `ADDR:PORT[/tcp|udp]`, and with a default address also `[:]PORT[/tcp|udp]`.
pub fn parse_vip(text: &str, default: Option<IpAddr>) -> Result<Vip> {
    const HINT: &str = "ADDR:PORT[/tcp|udp], as in 10.0.0.10:80 or [2001:db8::1]:53/udp";
    let (place, protocol) = match text.split_once('/') {
        Some((_, rest)) if rest.starts_with('/') => {
            return Err(Error::usage(format!("VIP '{text}': a URL, not an address and a port")).hint(HINT));
        }
        Some((_, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => {
            return Err(Error::usage(format!("VIP '{text}': one address, without the length of a prefix")).hint(HINT));
        }
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
    let fixed = if fixed.is_empty() {
        Vec::new()
    } else {
        parse_backends(&fixed.join(",")).map_err(|error| match fixed.iter().find_map(|word| hint_of_name(word)) {
            Some(hint) => Error { hint: Some(hint), ..error },
            None => error,
        })?
    };
    let sources = sources.into_iter().map(str::parse).collect::<Result<Vec<SourceSpec>>>()?;
    for (n, source) in sources.iter().enumerate() {
        if sources[..n].iter().any(|other| other.name == source.name) {
            return Err(Error::usage(format!("source {}: two of this name", source.name))
                .hint("one is enough; or give one another name: KIND:TARGET?name=NAME"));
        }
    }
    Ok(BackendList { fixed, sources })
}

/// What may be written in a list where `web:8080` or `consol:web` was.
fn hint_of_name(word: &str) -> Option<String> {
    let (host, rest) = word.split_once(':')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !host.starts_with(|c: char| c.is_ascii_alphabetic()) || !host.chars().all(is_name) {
        return None;
    }
    match rest.split('=').next()?.parse::<u16>() {
        Ok(port) => Some(format!("ADDR:PORT; or dns:{host}:{port}, which looks the name up and follows it")),
        Err(_) if rest.starts_with('/') => None,
        Err(_) => Some("ADDR:PORT; or a source: consul:.., dns:.., etcd:.., file:..".to_owned()),
    }
}

/// Why a text is not an address and a port.
fn why_not_a_place(text: &str) -> String {
    if text.is_empty() {
        return "nothing there".to_owned();
    }
    match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) if !text.starts_with('[') => {
            return "the port is missing (an IPv6 address stands in brackets before it)".to_owned();
        }
        Ok(_) => return "the port is missing".to_owned(),
        Err(_) if text.contains("://") => return "a URL, not an address and a port".to_owned(),
        Err(_) => {}
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
    use crate::state::Mode;

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

    #[test]
    fn names_of_hosts_and_of_unknown_sources_are_told_what_there_is() {
        let hint = |text: &str| parse_list(text).unwrap_err().hint.unwrap();
        assert!(hint("10.0.0.2:80,web1:80=2").contains("dns:web1:80"));
        assert!(hint("consol:web").contains("consul:.."));
        assert!(!hint("10.0.0.300:80").contains("dns:") && !hint("http://a:80").contains("dns:"));
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
            ("::1", "port is missing (an IPv6 address stands in brackets"),
            ("[2001:db8::1]", "port is missing"),
            ("http://10.0.0.1:80", "a URL"),
            ("10.0.0.1/24:80", "without the length of a prefix"),
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
            ("http://10.0.0.2:80", "a URL"),
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
}
