//! What a source of backends is, and how it is written: `KIND:TARGET[?OPTION=VALUE&..]`, one word of `--backends`.
//!
//! The config file's `[service.discovery]` comes to the same [`SourceSpec`].

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::http::{Http, Place};
use crate::{Error, Result, state::words::parse_duration};

/// How long an empty answer after a full one is not believed.
pub const EMPTY_HOLD: Duration = Duration::from_secs(30);
/// More than this share of the backends leaving at once is not believed, percent.
pub const MASS: u8 = 50;
/// What may be written before the colon.
pub const KINDS: [&str; 4] = ["consul", "dns", "etcd", "file"];
/// Longest target or value.
const LONGEST: usize = 512;

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
                return Err(Error::usage(format!("{wrong}: a {} source has no option '{key}'", self.wanted.kind()))
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
        match &self.wanted {
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

impl FromStr for SourceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = format!("source '{text}'");
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
        let target = decode(target, &wrong)?;
        let wanted = match kind {
            "consul" => Wanted::Consul(ConsulQuery {
                service: Some(target).filter(|t| !t.is_empty()),
                ..ConsulQuery::default()
            }),
            "dns" => dns(&target, &wrong)?,
            "etcd" => Wanted::Etcd { prefix: target.trim_end_matches('/').to_owned() },
            "file" => Wanted::File { path: target.into() },
            _ => {
                return Err(Error::usage(format!("{wrong}: '{kind}' is not a kind of registry"))
                    .hint(format!("one of: {}", KINDS.join(" "))));
            }
        };
        let mut source = Self { name: String::new(), wanted, options: SourceOptions::default() };
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value, &wrong)?;
            let may_be_empty = matches!(key, "passing" | "stale");
            if value.is_empty() && !may_be_empty {
                return Err(Error::usage(format!("{wrong}: '{key}' has no value")).hint(format!("{key}=VALUE")));
            }
            if key != "tag" && seen.contains(&key) {
                return Err(Error::usage(format!("{wrong}: '{key}' is there twice")).hint("say it once"));
            }
            seen.push(key);
            source.set(key, &value, &wrong)?;
        }
        if source.name.is_empty() {
            source.name = source.wanted.name();
        }
        source.check()?;
        Ok(source)
    }
}

fn dns(target: &str, wrong: &str) -> Result<Wanted> {
    let Some((name, port)) = target.rsplit_once(':') else {
        return Ok(Wanted::Dns { name: target.to_owned(), port: None });
    };
    let port = port.parse().map_err(|_| {
        Error::usage(format!("{wrong}: '{port}' is not a port")).hint("dns:NAME:PORT, as in dns:web.example:8080")
    })?;
    if name.is_empty() {
        return Err(Error::usage(format!("{wrong}: the name is missing")).hint("dns:NAME:PORT"));
    }
    Ok(Wanted::Dns { name: name.to_owned(), port: Some(port) })
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.wanted.kind(), encode(&self.wanted.target()))?;
        let mut pairs: Vec<(&str, String)> = Vec::new();
        if self.name != self.wanted.name() {
            pairs.push(("name", self.name.clone()));
        }
        if let Wanted::Consul(query) = &self.wanted {
            pairs.extend(query.tags.iter().map(|tag| ("tag", tag.clone())));
            let named = [("dc", &query.dc), ("ns", &query.ns), ("partition", &query.partition)];
            pairs.extend(named.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))));
            if query.warning {
                pairs.push(("passing", "false".to_owned()));
            }
            if query.stale {
                pairs.push(("stale", "true".to_owned()));
            }
        }
        let SourceOptions {
            addr,
            token_file,
            ca,
            cert,
            key,
            server_name,
            interval,
            empty_hold,
            on_empty,
            mass,
            weight,
        } = &self.options;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let time = |time: Duration| format!("{}ms", time.as_millis());
        let said = [
            ("addr", addr.clone()),
            ("token_file", path(token_file)),
            ("ca", path(ca)),
            ("cert", path(cert)),
            ("key", path(key)),
            ("server_name", server_name.clone()),
            ("interval", interval.map(time)),
            ("empty_hold", Some(*empty_hold).filter(|hold| *hold != EMPTY_HOLD).map(time)),
            ("on_empty", on_empty.map(|what| what.to_string())),
            ("mass", Some(*mass).filter(|mass| *mass != MASS).map(|mass| mass.to_string())),
            ("weight", Some(*weight).filter(|weight| *weight != 1).map(|weight| weight.to_string())),
        ];
        pairs.extend(said.into_iter().filter_map(|(key, value)| Some((key, value?))));
        for (n, (key, value)) in pairs.iter().enumerate() {
            write!(f, "{}{key}={}", if n == 0 { '?' } else { '&' }, encode(value))?;
        }
        Ok(())
    }
}

impl Serialize for SourceSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SourceSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes that cannot stand for themselves: those that end a word, a target or a value.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b',' | b'%' | b'&' | b'?' | b'+' | b'#' | 0..=32 | 127.. => out.push_str(&format!("%{byte:02x}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

/// RFC 3986, section 2.1: `%` and two hexadecimal digits for a byte.
fn decode(text: &str, wrong: &str) -> Result<String> {
    let bad = |why: &str| {
        Error::usage(format!("{wrong}: {why}")).hint("%2c is a comma, %26 an ampersand, %25 a percent sign")
    };
    if text.len() > LONGEST {
        return Err(bad("too long"));
    }
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
        let [Some(high), Some(low)] = digits else { return Err(bad("after % come two hexadecimal digits")) };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| bad("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_printed_as_they_are_typed() {
        let words = [
            "consul:api-service",
            "consul:api-service?tag=api&tag=blue&dc=east&passing=false&stale=true",
            "consul:?tag=api",
            "consul:web?name=web&addr=https://10.0.0.9:8501&token_file=/etc/lb/token&ca=/a&cert=/b&key=/c&server_name=x",
            "dns:_http._tcp.example",
            "dns:web.example:8080?addr=127.0.0.1:8600&interval=5000ms",
            "etcd:lb/web?addr=http://10.0.0.9:2379&empty_hold=1000ms&on_empty=keep&mass=80&weight=10",
            "file:/etc/lb/web.list?on_empty=reject",
            "file:/etc/lb/a%2cb%20c",
        ];
        for word in words {
            let source: SourceSpec = word.parse().unwrap();
            assert_eq!(source.to_string(), word);
            let json = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::from_str::<SourceSpec>(&json).unwrap(), source);
        }
    }

    #[test]
    fn a_source_has_a_name_unless_it_is_given_one() {
        let names = [
            ("consul:api-service", "consul:api-service"),
            ("consul:api?tag=a&tag=b", "consul:api/a/b"),
            ("consul:?tag=a", "consul:any/a"),
            ("dns:web.example:80", "dns:web.example:80"),
            ("etcd:lb/web/", "etcd:lb/web"),
            ("file:/x?name=list", "list"),
        ];
        for (word, name) in names {
            assert_eq!(word.parse::<SourceSpec>().unwrap().name, name);
        }
    }

    #[test]
    fn what_is_a_source_and_what_an_address() {
        assert!(SourceSpec::is_source("dns:web:80") && SourceSpec::is_source("consul:"));
        assert!(!SourceSpec::is_source("10.0.0.1:80") && !SourceSpec::is_source("[fd00::1]:80=3"));
    }

    /// What was typed, and a word that the error must have to be of use.
    #[test]
    fn wrong_words_are_named() {
        let cases = [
            ("zookeeper:x", "'zookeeper' is not a kind"),
            ("consul:", "neither a service nor a tag"),
            ("consul:web?tag=", "'tag' has no value"),
            ("consul:web?tags=a", "no option 'tags'"),
            ("consul:web?passing=maybe", "neither true nor false"),
            ("consul:web?token_file=token", "not an absolute path"),
            ("consul:web?dc=a&dc=b", "'dc' is there twice"),
            ("consul:web?cert=/a", "needs its key"),
            ("consul:web?name=a%20b", "has spaces"),
            ("dns:web.example", "the port is missing"),
            ("dns:web.example:http", "'http' is not a port"),
            ("dns:web.example:0", "port 0"),
            ("dns::80", "the name is missing"),
            ("dns:web:80?tag=a", "a dns source has no option 'tag'"),
            ("dns:web:80?addr=resolver.example", "not the address of a DNS server"),
            ("consul:web?addr=ftp://10.0.0.9", "'ftp' is not spoken here"),
            ("etcd:lb/web?addr=http://10.0.0.9:port", "'port' is not a port"),
            ("etcd:", "the prefix is missing"),
            ("file:web.list", "relative path"),
            ("file:/x?mass=101", "not a share"),
            ("file:/x?empty_hold=30", "is not a time"),
            ("file:/x?weight=70000", "not a weight"),
            ("file:/x?on_empty=panic", "on_empty 'panic'"),
            ("file:/%zz", "two hexadecimal digits"),
        ];
        for (word, text) in cases {
            let error = word.parse::<SourceSpec>().unwrap_err();
            assert!(error.message.contains(text), "{word}: {error:?}");
        }
    }
}
