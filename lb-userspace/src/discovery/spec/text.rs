//! A source as text: parsed, printed, and what of it is written as `%XX`.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ConsulQuery, EMPTY_HOLD, KINDS, MASS, SourceOptions, SourceSpec, Wanted};
use crate::{Error, Result};

/// Longest target or value.
const LONGEST: usize = 512;

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
            ("dns:web:80?tag=a", "dns sources have no option 'tag'"),
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
