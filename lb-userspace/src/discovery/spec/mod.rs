//! What a source of backends is. [`text`] is how it is written: `KIND:TARGET[?OPTION=VALUE&..]`, one word of
//! `--backends`; the config file's `[service.discovery]` comes to the same [`SourceSpec`].

mod text;

pub(crate) use text::encode;

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use super::http::{Http, Place};
use crate::{Error, Result, state::typed::parse_duration};

/// How long an empty answer after a full one is not believed.
pub const EMPTY_HOLD: Duration = Duration::from_secs(30);
/// More than this share of the backends leaving at once is not believed, percent.
pub const MASS: u8 = 50;
/// The time between two questions, or that one may wait for news: Consul waits ten minutes at most.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// What may be written before the colon.
pub const KINDS: [&str; 4] = ["consul", "dns", "etcd", "file"];

/// A source of backends of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceSpec {
    /// Unique in its service; its backends are shown with the source `registry:NAME`. See [`Wanted::name`] for the default.
    pub name: String,
    /// What is looked up, and in what sort of registry.
    pub wanted: Wanted,
    /// How, and how much it is trusted.
    pub options: SourceOptions,
}

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Instances that Consul knows.
    Consul(ConsulQuery),
    /// Addresses of a name (A and AAAA), with the port that they all have; or the targets of SRV records.
    Dns {
        /// The name, as it is written.
        name: String,
        /// `None`: SRV records.
        port: Option<u16>,
    },
    /// Values of the keys under a prefix of etcd.
    Etcd {
        /// Without the last slash.
        prefix: String,
    },
    /// Lines of a file.
    File {
        /// Absolute.
        path: PathBuf,
    },
}

/// Which instances of Consul's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConsulQuery {
    /// The service's name; `None`: every service that has the tags.
    pub service: Option<String>,
    /// Tags that an instance must have, all of them.
    pub tags: Vec<String>,
    /// Datacenter, if not the agent's own.
    pub dc: Option<String>,
    /// Namespace (Consul Enterprise).
    pub ns: Option<String>,
    /// Partition (Consul Enterprise).
    pub partition: Option<String>,
    /// Take instances in state `warning` too, with `Weights.Warning` (`passing=false`).
    pub warning: bool,
    /// Let any server answer, not only the leader.
    pub stale: bool,
}

/// How a source is asked, and how much it is trusted. `None`: the registry's own default or environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceOptions {
    /// Where the registry answers: `http(s)://HOST:PORT` (consul, etcd), `ADDR[:PORT]` (dns).
    pub addr: Option<String>,
    /// File with the access token (consul); read again when it changes.
    pub token_file: Option<PathBuf>,
    /// File with certificates of authorities that are trusted instead of the system's, PEM.
    pub ca: Option<PathBuf>,
    /// File with this client's certificate, PEM.
    pub cert: Option<PathBuf>,
    /// File with its key, PEM.
    pub key: Option<PathBuf>,
    /// The name that the registry's certificate must be for, if not the host of `addr`.
    pub server_name: Option<String>,
    /// Longest time between two questions (dns), or that one question may wait for news (consul).
    pub interval: Option<Duration>,
    /// An empty set after a full one is believed after this time and a fresh question.
    pub empty_hold: Duration,
    /// What happens then. `None`: keep while the service's health is checked, else reject.
    pub on_empty: Option<Vanish>,
    /// More than this share leaving at once is held like an empty set, percent; 100: never held.
    pub mass: u8,
    /// Weight of backends of which the registry says none.
    pub weight: u16,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            addr: None,
            token_file: None,
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            interval: None,
            empty_hold: EMPTY_HOLD,
            on_empty: None,
            mass: MASS,
            weight: 1,
        }
    }
}

/// What becomes of the last good set when the registry goes on saying that nobody is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vanish {
    /// It stays, until `lb source release`.
    Keep,
    /// It goes: new flows are rejected.
    Reject,
}

impl fmt::Display for Vanish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Reject => "reject",
        })
    }
}

impl FromStr for Vanish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "keep" => Ok(Self::Keep),
            "reject" => Ok(Self::Reject),
            _ => Err(Error::usage(format!("on_empty '{text}': not known")).hint("keep or reject")),
        }
    }
}

impl Wanted {
    /// The word before the colon.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Consul(_) => "consul",
            Self::Dns { .. } => "dns",
            Self::Etcd { .. } => "etcd",
            Self::File { .. } => "file",
        }
    }

    /// What is asked for, as `lb source list` shows it.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Consul(query) => query.service.clone().unwrap_or_default(),
            Self::Dns { name, port: Some(port) } => format!("{name}:{port}"),
            Self::Dns { name, port: None } => name.clone(),
            Self::Etcd { prefix } => prefix.clone(),
            Self::File { path } => path.display().to_string(),
        }
    }

    /// A source's name unless it is given one: `KIND:TARGET`, with Consul's tags after slashes (`consul:web/blue`,
    /// `consul:any/blue` over all services).
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Consul(query) => {
                let service = query.service.as_deref().map_or_else(|| "any".to_owned(), encode);
                let tags: String = query.tags.iter().map(|tag| format!("/{}", encode(tag))).collect();
                format!("consul:{service}{tags}")
            }
            _ => format!("{}:{}", self.kind(), encode(&self.target())),
        }
    }
}

impl SourceSpec {
    /// A source with defaults.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self { name: wanted.name(), wanted, options: SourceOptions::default() }
    }

    /// Whether a word of a list of backends is a source: it begins with a kind and a colon.
    #[must_use]
    pub fn is_source(text: &str) -> bool {
        text.split_once(':').is_some_and(|(kind, _)| KINDS.contains(&kind))
    }

    /// Sets an option by its name; `wrong` names the place in errors.
    fn set(&mut self, key: &str, value: &str, wrong: &str) -> Result<()> {
        let options = &mut self.options;
        let text = || Some(value.to_owned());
        let yes = || match value {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(Error::usage(format!("{wrong}: {key}={value}: neither true nor false"))),
        };
        match (key, &mut self.wanted) {
            ("name", _) => value.clone_into(&mut self.name),
            ("tag", Wanted::Consul(query)) => query.tags.push(value.to_owned()),
            ("dc", Wanted::Consul(query)) => query.dc = text(),
            ("ns", Wanted::Consul(query)) => query.ns = text(),
            ("partition", Wanted::Consul(query)) => query.partition = text(),
            ("passing", Wanted::Consul(query)) => query.warning = !yes()?,
            ("stale", Wanted::Consul(query)) => query.stale = yes()?,
            ("token_file", Wanted::Consul(_)) => options.token_file = Some(absolute(value, wrong)?),
            ("addr", Wanted::Dns { .. }) => {
                let fine = value.parse::<IpAddr>().is_ok() || value.parse::<std::net::SocketAddr>().is_ok();
                if !fine {
                    return Err(Error::usage(format!("{wrong}: addr={value}: not the address of a DNS server"))
                        .hint("ADDR or ADDR:PORT, as in addr=127.0.0.1:8600"));
                }
                options.addr = text();
            }
            ("addr", Wanted::Consul(_) | Wanted::Etcd { .. }) => options.addr = text(),
            ("ca", Wanted::Consul(_) | Wanted::Etcd { .. }) => options.ca = Some(absolute(value, wrong)?),
            ("cert", Wanted::Consul(_) | Wanted::Etcd { .. }) => options.cert = Some(absolute(value, wrong)?),
            ("key", Wanted::Consul(_) | Wanted::Etcd { .. }) => options.key = Some(absolute(value, wrong)?),
            ("server_name", Wanted::Consul(_) | Wanted::Etcd { .. }) => options.server_name = text(),
            ("interval", Wanted::Consul(_) | Wanted::Dns { .. }) => {
                options.interval = Some(duration(key, value, wrong)?);
            }
            ("empty_hold", _) => options.empty_hold = duration(key, value, wrong)?,
            ("on_empty", _) => {
                options.on_empty = Some(
                    value
                        .parse()
                        .map_err(|error: Error| Error { message: format!("{wrong}: {}", error.message), ..error })?,
                );
            }
            ("mass", _) => {
                let percent = value.trim_end_matches('%').parse().ok().filter(|percent| *percent <= 100);
                options.mass = percent.ok_or_else(|| {
                    Error::usage(format!("{wrong}: mass={value}: not a share")).hint("percent, from 0 to 100")
                })?;
            }
            ("weight", _) => {
                options.weight = value.parse().map_err(|_| {
                    Error::usage(format!("{wrong}: weight={value}: not a weight")).hint("a number from 0 to 65535")
                })?;
            }
            _ => {
                return Err(Error::usage(format!("{wrong}: {} sources have no option '{key}'", self.wanted.kind()))
                    .hint(format!("it has: {}", option_names(&self.wanted))));
            }
        }
        Ok(())
    }

    /// What fits together only as a whole.
    ///
    /// # Errors
    /// Names what is missing or too much.
    pub fn check(&self) -> Result<()> {
        let wrong = |why: &str, fix: &str| Err(Error::usage(format!("source '{}': {why}", self.name)).hint(fix));
        if self.name.is_empty() || self.name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return wrong("its name is empty or has spaces", "name=NAME without spaces");
        }
        if self.options.cert.is_some() != self.options.key.is_some() {
            return wrong("a certificate needs its key, and a key its certificate", "give both cert and key");
        }
        if let (Some(url), Wanted::Consul(_) | Wanted::Etcd { .. }) = (&self.options.addr, &self.wanted) {
            let place = Place { url: url.clone(), ..Place::default() };
            Http::new(place)
                .map_err(|error| Error { message: format!("source '{}': {}", self.name, error.message), ..error })?;
        }
        if self.options.interval.is_some_and(|interval| !INTERVALS.contains(&interval)) {
            return wrong("its interval is out of range", "1s to 10m");
        }
        match &self.wanted {
            Wanted::Dns { name, .. } if !is_domain(name) => wrong(
                "that is not the name of a host",
                "labels of 1 to 63 letters, digits, '-' and '_', with dots between them",
            ),
            Wanted::Dns { name, port: Some(_) } if name.contains("._tcp.") || name.contains("._udp.") => {
                wrong("SRV records have their own ports", "leave the port out")
            }
            Wanted::Consul(query) if query.service.is_none() && query.tags.is_empty() => wrong(
                "neither a service nor a tag",
                "consul:SERVICE, consul:SERVICE?tag=TAG, or consul:?tag=TAG for every service with the tag",
            ),
            Wanted::Dns { name, port: None } if !name.starts_with('_') => wrong(
                "the port is missing",
                "dns:NAME:PORT for addresses (A, AAAA), dns:_SERVICE._tcp.NAME for SRV records",
            ),
            Wanted::Dns { port: Some(0), .. } => wrong("port 0", "the port that the servers listen on"),
            Wanted::Etcd { prefix } if prefix.is_empty() => wrong("the prefix is missing", "etcd:PREFIX/SERVICE"),
            Wanted::File { path } if !path.is_absolute() => {
                wrong("a relative path means another file in another directory", "file:/absolute/path")
            }
            _ => Ok(()),
        }
    }
}

/// Names of the options that a source of this sort has.
#[must_use]
pub const fn option_names(wanted: &Wanted) -> &'static str {
    match wanted {
        Wanted::Consul(_) => {
            "name tag dc ns partition passing stale addr token_file ca cert key server_name interval empty_hold on_empty mass weight"
        }
        Wanted::Dns { .. } => "name addr interval empty_hold on_empty mass weight",
        Wanted::Etcd { .. } => "name addr ca cert key server_name empty_hold on_empty mass weight",
        Wanted::File { .. } => "name empty_hold on_empty mass weight",
    }
}

/// Whether a name can stand in DNS (RFC 1035, section 2.3.4, and what registries have in names).
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(is_label)
}

fn absolute(value: &str, wrong: &str) -> Result<PathBuf> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::usage(format!("{wrong}: '{value}' is not an absolute path")).hint("begin with /"))
}

fn duration(key: &str, value: &str, wrong: &str) -> Result<Duration> {
    parse_duration(value)
        .map_err(|error| Error { message: format!("{wrong}: {key}={value}: {}", error.message), ..error })
}
