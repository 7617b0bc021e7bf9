//! etcd v3 through its JSON gateway: a prefix is listed at a revision and watched from the next one.
//!
//! Each key under the prefix is one backend; its value is `ADDR:PORT[=WEIGHT]` or `{"address", "weight", "tags", "meta"}`.
//! A lease that expires is a delete. When the watched revision is compacted, or nothing is heard for a while, the
//! prefix is listed again.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::BASE64;
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Method, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{
    Answered, Instance, Registry,
    http::{Http, Place},
    spec::SourceOptions,
    written::{Written, of_text},
};
use crate::{Error, Result, error::Context as _};

/// Longest that a question may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Without news for this long, the prefix is listed again: a watch may die without a word.
const QUIET: Duration = Duration::from_secs(20);

/// The keys under a prefix, followed.
pub struct Keys {
    prefix: String,
    http: Http,
    /// Values by key, at the last revision heard of.
    keys: BTreeMap<String, String>,
    watch: Option<Stream>,
}

/// See the module.
pub struct Etcd {
    keys: Keys,
    weight: u16,
}

/// A watch: chunks of lines of JSON.
struct Stream {
    body: Incoming,
    rest: Vec<u8>,
}

/// Numbers are texts in the gateway's JSON.
#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Header {
    revision: String,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Line {
    result: Option<Watched>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Watched {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    /// `PUT` is not written.
    #[serde(default, rename = "type")]
    kind: String,
    kv: Pair,
}

impl Keys {
    /// Of a prefix; nothing is asked yet.
    ///
    /// # Errors
    /// The address makes no sense.
    pub fn new(prefix: &str, options: &SourceOptions) -> Result<Self> {
        let SourceOptions { addr, ca, cert, key, server_name, .. } = options.clone();
        let place = Place {
            url: addr.unwrap_or_else(|| "http://127.0.0.1:2379".to_owned()),
            port: 2379,
            ca,
            cert,
            key,
            server_name,
            unverified: false,
        };
        // The slash ends the name: the keys of `web` are not those of `web2`.
        Ok(Self { prefix: format!("{prefix}/"), http: Http::new(place)?, keys: BTreeMap::new(), watch: None })
    }

    /// All keys with their values: at once when nothing was heard yet or `fresh`, else when there may be news.
    ///
    /// # Errors
    /// In words, why there is no answer.
    pub async fn next(&mut self, fresh: bool) -> Result<&BTreeMap<String, String>> {
        if fresh || self.watch.is_none() {
            self.list().await?;
            return Ok(&self.keys);
        }
        match self.wait().await {
            Ok(true) => {}
            Ok(false) => self.list().await?,
            Err(error) => {
                self.watch = None;
                return Err(error);
            }
        }
        Ok(&self.keys)
    }

    async fn post(&mut self, path: &str, body: &serde_json::Value) -> Result<super::http::Answer> {
        let body = serde_json::to_vec(body).context("write the request")?;
        let answer = self.http.ask(Method::POST, path, &HeaderMap::new(), body, ANSWER).await;
        let answer = answer.map_err(|error| Error { message: format!("etcd: {}", error.message), ..error })?;
        if answer.status != StatusCode::OK {
            let status = answer.status.as_u16();
            let text = answer.text(ANSWER).await?;
            self.http.forget();
            return Err(Error::failed(format!(
                "etcd: {status}: {}",
                text.trim().chars().take(200).collect::<String>()
            )));
        }
        Ok(answer)
    }

    /// Lists the prefix and watches it from the next revision on.
    async fn list(&mut self) -> Result<()> {
        self.watch = None;
        let (key, range_end) = (BASE64.encode(self.prefix.as_bytes()), BASE64.encode(&after(self.prefix.as_bytes())));
        let answer = self.post("/v3/kv/range", &json!({ "key": key, "range_end": range_end })).await?;
        let range: Range = serde_json::from_str(&answer.text(ANSWER).await?).map_err(|error| odd(&error))?;
        let revision: u64 =
            range.header.revision.parse().map_err(|_| Error::failed("etcd: a revision that is no number"))?;
        self.keys =
            range.kvs.into_iter().map(|pair| Ok((text(&pair.key)?, text(&pair.value)?))).collect::<Result<_>>()?;
        let watch = json!({ "create_request": {
            "key": key, "range_end": range_end, "start_revision": (revision + 1).to_string(),
        }});
        let answer = self.post("/v3/watch", &watch).await?;
        // This connection is the watch's own from now on.
        self.http.forget();
        self.watch = Some(Stream { body: answer.body, rest: Vec::new() });
        Ok(())
    }

    /// Waits for events; true if there were some that count, false when the prefix is to be listed again.
    async fn wait(&mut self) -> Result<bool> {
        let Some(stream) = &mut self.watch else { return Ok(false) };
        loop {
            while let Some(end) = stream.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = stream.rest.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let line: Line = serde_json::from_slice(&line).map_err(|error| odd(&error))?;
                let Some(watched) = line.result else {
                    return Err(Error::failed(format!("etcd: the watch ended: {}", line.error.unwrap_or_default())));
                };
                if watched.canceled {
                    return Ok(false);
                }
                let news = !watched.events.is_empty();
                for event in watched.events {
                    let key = text(&event.kv.key)?;
                    if event.kind == "DELETE" {
                        self.keys.remove(&key);
                    } else {
                        self.keys.insert(key, text(&event.kv.value)?);
                    }
                }
                if news {
                    return Ok(true);
                }
            }
            match timeout(QUIET, stream.body.frame()).await {
                Err(_) => return Ok(false),
                Ok(None) => return Err(Error::failed("etcd: the watch ended")),
                Ok(Some(frame)) => {
                    let frame = frame.map_err(|error| Error::failed(format!("etcd: the watch broke off: {error}")))?;
                    stream.rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
            }
        }
    }
}

impl Etcd {
    /// A prefix with its options.
    ///
    /// # Errors
    /// The address makes no sense.
    pub fn new(prefix: &str, options: &SourceOptions) -> Result<Self> {
        Ok(Self { keys: Keys::new(prefix, options)?, weight: options.weight })
    }
}

impl Registry for Etcd {
    async fn next(&mut self, fresh: bool) -> Result<Answered> {
        let mut answered = Answered::default();
        for (key, value) in self.keys.next(fresh).await? {
            match instance(value, self.weight) {
                Ok((address, instance)) => {
                    if answered.set.insert(address, instance).is_some() {
                        answered.warnings.push(format!("{address} is there twice, {key} is one"));
                    }
                }
                Err(why) => answered.warnings.push(format!("key {key} left out: {why}")),
            }
        }
        Ok(answered)
    }
}

fn instance(value: &str, weight: u16) -> Result<(std::net::SocketAddr, Instance), String> {
    let said = if value.trim_start().starts_with('{') {
        serde_json::from_str::<Written>(value).map_err(|error| error.to_string())?.meaning(weight)
    } else {
        of_text(value, weight)
    };
    said.map_err(|error| error.message)
}

/// The first key after all that begin with a prefix.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn text(base64: &str) -> Result<String> {
    let bytes = BASE64.decode(base64.as_bytes()).map_err(|error| Error::failed(format!("etcd: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn odd(error: &serde_json::Error) -> Error {
    Error::failed(format!("etcd: an answer that makes no sense: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(after(b"web/"), b"web0");
        assert_eq!(after(b"a\xff"), b"b");
        assert_eq!(after(b"\xff"), [0]);
    }

    #[test]
    fn values_are_texts_or_json() {
        let read = |value: &str| instance(value, 5).map(|(address, i)| (address.to_string(), i.weight));
        assert_eq!(read("10.0.0.1:80"), Ok(("10.0.0.1:80".to_owned(), 5)));
        assert_eq!(read("10.0.0.1:80=2\n"), Ok(("10.0.0.1:80".to_owned(), 2)));
        assert_eq!(read(r#"{"address": "10.0.0.1:80", "weight": 9}"#), Ok(("10.0.0.1:80".to_owned(), 9)));
        assert!(read("web:80").unwrap_err().contains("'web'"));
        assert!(read("{}").unwrap_err().contains("address"));
    }
}
