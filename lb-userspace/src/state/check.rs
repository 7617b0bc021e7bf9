//! A service's health check: what is sent, what is expected, how often. The words are those of `[service.health]`.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Protocol, words::Via};
use crate::{Error, Result};

/// A service's health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is sent and expected.
    #[serde(flatten)]
    pub probe: Probe,
    /// Which way the probe goes.
    #[serde(default)]
    pub via: Via,
    /// Time between two checks of a backend whose verdict is settled.
    pub interval: Duration,
    /// Time a check may take, from its first packet to its last.
    pub timeout: Duration,
    /// Successes in a row that make a down backend up; at least 1.
    pub rise: u32,
    /// Failures in a row that make an up backend down; at least 1.
    pub fall: u32,
    /// Port to check instead of the backend's.
    pub port: Option<u16>,
}

/// What a health check sends and what it expects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Probe {
    /// TCP connect; with [`Exchange::expect`] also an answer.
    Tcp(Exchange),
    /// HTTP/1.1 GET.
    Http(HttpCheck),
    /// The same over TLS.
    Https {
        /// The request.
        #[serde(flatten)]
        http: HttpCheck,
        /// The connection.
        #[serde(flatten)]
        tls: TlsCheck,
    },
    /// A datagram. ICMP port unreachable is down; silence is up unless something is expected.
    Udp(Exchange),
    /// gRPC's own health service (`grpc.health.v1.Health/Check`).
    Grpc(GrpcCheck),
    /// No check: always up.
    None,
}

/// Bytes to send after connecting, and bytes that must be in the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exchange {
    /// What is sent; empty over TCP = nothing, over UDP = an empty datagram.
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    pub send: Payload,
    /// What must be found in the answer; empty = nothing is waited for.
    #[serde(default, skip_serializing_if = "Payload::is_empty")]
    pub expect: Payload,
}

/// An HTTP GET and what its answer must be; redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HttpCheck {
    /// Path and query, starting with `/`.
    pub path: String,
    /// The `Host` header; default: the VIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Statuses that are up.
    #[serde(default)]
    pub expect_status: StatusSet,
    /// What must be found in the first 64 KiB of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_body: Option<String>,
}

/// How a check's TLS connection is made.
///
/// Certificates are not verified unless that is asked for: a check asks "does it answer?", backends are named by
/// address and rarely have certificates for it, and nothing secret is sent. Naming a CA asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TlsCheck {
    /// The name that is asked for (SNI) and that the certificate must be for; default: `host`, else the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM file with the certificates that are trusted; default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether the certificate is verified.
    #[serde(default)]
    pub verify: bool,
}

/// A call of gRPC's health service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GrpcCheck {
    /// The gRPC service that is asked about; empty = the whole server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The `:authority`; default: the VIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Over TLS; otherwise HTTP/2 in clear text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsCheck>,
}

impl HealthCheck {
    /// product.md's defaults: a TCP connect for TCP, nothing for UDP.
    #[must_use]
    pub fn default_for(protocol: Protocol) -> Self {
        let probe = match protocol {
            Protocol::Tcp => Probe::tcp(),
            Protocol::Udp => Probe::None,
        };
        Self {
            probe,
            via: Via::Backend,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            port: None,
        }
    }
}

impl Probe {
    /// A plain TCP connect.
    #[must_use]
    pub fn tcp() -> Self {
        Self::Tcp(Exchange::default())
    }

    /// The word for `type`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Http(_) => "http",
            Self::Https { .. } => "https",
            Self::Udp(_) => "udp",
            Self::Grpc(_) => "grpc",
            Self::None => "none",
        }
    }
}

impl FromStr for Probe {
    type Err = Error;

    /// `--health`: `tcp`, `http[:PATH]`, `https[:PATH]`, `udp`, `grpc[:SERVICE]` or `none`.
    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let wrong = |why: String| Error::usage(why).hint("tcp, http[:PATH], https[:PATH], udp, grpc[:SERVICE] or none");
        let http = || {
            let path = rest.unwrap_or("/");
            if path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic()) {
                Ok(HttpCheck::new(path))
            } else {
                Err(wrong(format!("health '{text}': the path must begin with '/' and have no spaces")))
            }
        };
        match kind {
            "tcp" if rest.is_none() => Ok(Self::tcp()),
            "udp" if rest.is_none() => Ok(Self::Udp(Exchange::default())),
            "none" if rest.is_none() => Ok(Self::None),
            "http" => Ok(Self::Http(http()?)),
            "https" => Ok(Self::Https { http: http()?, tls: TlsCheck::default() }),
            "grpc" => Ok(Self::Grpc(GrpcCheck { service: rest.unwrap_or("").to_owned(), ..GrpcCheck::default() })),
            _ => Err(wrong(format!("'{text}' is not a health check"))),
        }
    }
}

impl HttpCheck {
    /// A GET of a path whose answer may be 200 to 399.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: path.to_owned(), host: None, expect_status: StatusSet::default(), expect_body: None }
    }
}

impl TlsCheck {
    /// What was said of it; unless `verify` is said, naming a CA asks for verification.
    #[must_use]
    pub fn new(server_name: Option<String>, ca_file: Option<PathBuf>, verify: Option<bool>) -> Self {
        let verify = verify.unwrap_or(ca_file.is_some());
        Self { server_name, ca_file, verify }
    }
}

/// Bytes, typed as text with escapes (`\r \n \t \0 \\ \xNN`) or as `hex:` and pairs of digits.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Payload(pub Vec<u8>);

impl Payload {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Text that only looks like a number in hexadecimal must not be read as one.
        if self.0.starts_with(b"hex:") {
            f.write_str("\\x68")?;
            return Self(self.0[1..].to_vec()).fmt(f);
        }
        for byte in &self.0 {
            match byte {
                b'\r' => f.write_str("\\r")?,
                b'\n' => f.write_str("\\n")?,
                b'\t' => f.write_str("\\t")?,
                b'\\' => f.write_str("\\\\")?,
                b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Payload {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(digits) = text.strip_prefix("hex:") {
            return from_hex(digits).map(Self);
        }
        let mut bytes = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            bytes.extend_from_slice(&rest.as_bytes()[..at]);
            let mut letters = rest[at + 1..].chars();
            match letters.next() {
                Some('r') => bytes.push(b'\r'),
                Some('n') => bytes.push(b'\n'),
                Some('t') => bytes.push(b'\t'),
                Some('0') => bytes.push(0),
                Some('\\') => bytes.push(b'\\'),
                Some('x') => {
                    let digits = letters.as_str().get(..2).ok_or_else(|| not_an_escape(&rest[at..]))?;
                    bytes.push(u8::from_str_radix(digits, 16).map_err(|_| not_an_escape(&rest[at..]))?);
                    letters.nth(1);
                }
                _ => return Err(not_an_escape(&rest[at..])),
            }
            rest = letters.as_str();
        }
        bytes.extend_from_slice(rest.as_bytes());
        Ok(Self(bytes))
    }
}

fn not_an_escape(at: &str) -> Error {
    Error::usage(format!("'{}' is not an escape", at.chars().take(4).collect::<String>()))
        .hint(r"\r \n \t \0 \\ \xNN; or the whole as hex:00ff..")
}

fn from_hex(digits: &str) -> Result<Vec<u8>> {
    let wrong = || Error::usage(format!("'hex:{digits}' is not pairs of hexadecimal digits")).hint("as in hex:00ff");
    let digits: Vec<u32> = digits
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    if !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    Ok(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// HTTP statuses: `200`, `200-299`, or several separated by commas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StatusSet(Vec<(u16, u16)>);

impl StatusSet {
    /// Whether a status is one of them.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(low, high)| (*low..=*high).contains(&status))
    }
}

impl Default for StatusSet {
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (low, high)) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "," })?;
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}-{high}")? }
        }
        Ok(())
    }
}

impl FromStr for StatusSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let range = |word: &str| {
            let (low, high) = word.split_once('-').unwrap_or((word, word));
            let (low, high) = (low.trim().parse::<u16>().ok()?, high.trim().parse::<u16>().ok()?);
            (100 <= low && low <= high && high <= 599).then_some((low, high))
        };
        let ranges = text.split(',').map(|word| {
            range(word.trim()).ok_or_else(|| {
                Error::usage(format!("'{}' is not an HTTP status or a range of them", word.trim()))
                    .hint("100 to 599, as in 200 or 200-299 or 200,204,301-302")
            })
        });
        ranges.collect::<Result<_>>().map(Self)
    }
}

super::words::serde_as_text!(Payload, StatusSet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_understood_and_saved_as_one_flat_table() {
        let words = ["tcp", "http", "http:/up?full=1", "https:/up", "udp", "grpc", "grpc:my.Service", "none"];
        for word in words {
            let probe: Probe = word.parse().unwrap();
            assert_eq!(probe.word(), word.split(':').next().unwrap());
            let check = HealthCheck { probe, ..HealthCheck::default_for(Protocol::Tcp) };
            let saved = serde_json::to_value(&check).unwrap();
            assert_eq!(saved["type"], check.probe.word());
            assert_eq!(serde_json::from_value::<HealthCheck>(saved).unwrap(), check, "{word}");
        }
        let full = Probe::Https {
            http: HttpCheck {
                path: "/up".into(),
                host: Some("api.example".into()),
                expect_status: "200,204".parse().unwrap(),
                expect_body: Some("ok".into()),
            },
            tls: TlsCheck::new(None, Some("/etc/ca.pem".into()), None),
        };
        let saved = serde_json::to_value(&full).unwrap();
        for (key, value) in
            [("path", "/up"), ("host", "api.example"), ("expect_status", "200,204"), ("expect_body", "ok")]
        {
            assert_eq!(saved[key], value);
        }
        assert_eq!(saved["verify"], true, "naming a CA asks for verification");
        assert_eq!(serde_json::from_value::<Probe>(saved).unwrap(), full);
    }

    #[test]
    fn what_an_earlier_version_saved_is_read() {
        let saved = r#"{"type":"tcp","interval":{"secs":2,"nanos":0},"timeout":{"secs":1,"nanos":0},"rise":2,"fall":3,"port":null}"#;
        assert_eq!(serde_json::from_str::<HealthCheck>(saved).unwrap(), HealthCheck::default_for(Protocol::Tcp));
    }

    #[test]
    fn wrong_checks_are_named() {
        for word in ["", "ftp", "tcp:80", "none:x", "http:up", "http:/a b", "udp:1"] {
            let error = word.parse::<Probe>().unwrap_err();
            assert!(error.message.contains(&format!("'{word}'")) && error.hint.is_some(), "{word}: {error}");
        }
    }

    #[test]
    fn bytes_are_printed_as_they_are_typed() {
        let cases: [(&str, &[u8]); 6] = [
            ("PING\\r\\n", b"PING\r\n"),
            ("a\\\\b\\t\\x00\\xff", b"a\\b\t\x00\xff"),
            ("", b""),
            ("hex:00 ff 10", b"\x00\xff\x10"),
            ("\\x68ex:00", b"hex:00"),
            ("\\0", b"\0"),
        ];
        for (text, bytes) in cases {
            let payload: Payload = text.parse().unwrap();
            assert_eq!(payload.0, bytes, "{text}");
            assert_eq!(payload.to_string().parse::<Payload>().unwrap(), payload, "{text}: {payload}");
        }
        assert_eq!("é".parse::<Payload>().unwrap().0, "é".as_bytes());
        for text in ["\\q", "\\", "\\x1", "\\xzz", "\\xé", "hex:0", "hex:zz"] {
            assert!(text.parse::<Payload>().unwrap_err().hint.is_some(), "{text}");
        }
    }

    #[test]
    fn statuses_are_numbers_and_ranges() {
        let set: StatusSet = "200, 301-302".parse().unwrap();
        assert_eq!([200, 201, 301, 302, 303].map(|status| set.contains(status)), [true, false, true, true, false]);
        assert_eq!(set.to_string(), "200,301-302");
        assert!(StatusSet::default().contains(399) && !StatusSet::default().contains(400));
        for text in ["", "2xx", "99", "600", "300-200", "200,"] {
            assert!(text.parse::<StatusSet>().unwrap_err().message.contains("is not an HTTP status"), "'{text}'");
        }
    }
}
