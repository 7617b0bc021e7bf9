//! Consul's HTTP API by blocking queries: one service, or all services that have some tags.
//!
//! Measured against Consul 1.8.7: an index is taken only from a 200 and may go backwards after a restart; another index
//! is not a change; `200 []` is also what a missing token and an agent with lost state say, which [`super::guard`] knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use data_encoding::BASE64;
use hyper::{HeaderMap, Method, StatusCode, header::HeaderValue};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Answered, Instance, Registry,
    http::{Http, Place, escape},
    spec::{ConsulQuery, SourceOptions},
};
use crate::{Error, Result, error::Context as _};

/// How long one question may wait for news unless the source says otherwise.
const WAIT: Duration = Duration::from_secs(60);
/// Time for an answer after that; the server itself adds up to a sixteenth of the wait.
const SLACK: Duration = Duration::from_secs(10);
/// Time that looking up a host name may take.
const LOOKUP: Duration = Duration::from_secs(2);
/// Pause of one of several questions after an error.
const PAUSE: Duration = Duration::from_millis(500);
/// An answer of a server that heard of its leader longer ago than this gets a warning, milliseconds.
const OLD_CONTACT: u64 = 30_000;
/// The key in a service's `Meta` that says its weight.
const WEIGHT_KEY: &str = "lb-weight";

/// How Consul is asked, whatever the question.
#[derive(Clone)]
struct Access {
    place: Place,
    token: Option<String>,
    token_file: Option<PathBuf>,
    auth: Option<String>,
    /// `&dc=..` and the like.
    scope: String,
    wait: Duration,
}

impl Access {
    /// What the source says, else what the environment variables say that every tool of Consul's obeys.
    fn new(query: &ConsulQuery, options: &SourceOptions, env: impl Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|text| !text.is_empty());
        let path = |said: &Option<PathBuf>, name: &str| said.clone().or_else(|| env(name).map(PathBuf::from));
        let truth = |name: &str| env(name).map(|text| matches!(text.as_str(), "1" | "true"));
        let mut url =
            options.addr.clone().or_else(|| env("CONSUL_HTTP_ADDR")).unwrap_or_else(|| "127.0.0.1:8500".into());
        if !url.contains("://") && truth("CONSUL_HTTP_SSL") == Some(true) {
            url = format!("https://{url}");
        }
        let namespace = query.ns.clone().or_else(|| env("CONSUL_NAMESPACE"));
        let partition = query.partition.clone().or_else(|| env("CONSUL_PARTITION"));
        let mut scope = String::new();
        for (key, value) in [("dc", &query.dc), ("ns", &namespace), ("partition", &partition)] {
            if let Some(value) = value {
                scope.push_str(&format!("&{key}={}", escape(value)));
            }
        }
        if query.stale {
            scope.push_str("&stale");
        }
        let said = options.token_file.clone();
        Self {
            place: Place {
                url,
                port: 8500,
                ca: path(&options.ca, "CONSUL_CACERT"),
                cert: path(&options.cert, "CONSUL_CLIENT_CERT"),
                key: path(&options.key, "CONSUL_CLIENT_KEY"),
                server_name: options.server_name.clone().or_else(|| env("CONSUL_TLS_SERVER_NAME")),
                unverified: truth("CONSUL_HTTP_SSL_VERIFY") == Some(false)
                    || env("CONSUL_HTTP_SSL_VERIFY").is_some_and(|text| text == "0"),
            },
            token: if said.is_some() { None } else { env("CONSUL_HTTP_TOKEN") },
            token_file: said.or_else(|| env("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from)),
            auth: env("CONSUL_HTTP_AUTH"),
            scope,
            wait: options.interval.unwrap_or(WAIT),
        }
    }

    /// The token's file is read for every question: it is renewed while lb runs.
    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(
                fs::read_to_string(path)
                    .context(format_args!("Consul's token file {}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
            (None, None) => None,
        };
        let value = |text: &str| {
            let mut value =
                HeaderValue::from_str(text).map_err(|_| Error::failed("Consul's token has odd characters"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            headers.insert("x-consul-token", value(&token)?);
        }
        if let Some(auth) = &self.auth {
            headers.insert("authorization", value(&format!("Basic {}", BASE64.encode(auth.as_bytes())))?);
        }
        Ok(headers)
    }
}

/// One blocking question, asked again and again.
struct Watch {
    access: Access,
    http: Http,
    path: String,
    index: u64,
}

/// A decoded answer and what its headers say.
struct Told<T> {
    body: T,
    leader: bool,
    contact: u64,
}

impl Watch {
    /// `path` may have a query of its own after a `?`.
    fn new(access: Access, path: String) -> Result<Self> {
        Ok(Self { http: Http::new(access.place.clone())?, access, path, index: 0 })
    }

    /// After an error it asks without an index: a server that began anew would wait for an index of the old one.
    async fn next<T: DeserializeOwned>(&mut self, fresh: bool) -> Result<Told<T>> {
        let index = std::mem::take(&mut self.index);
        self.ask(if fresh { 0 } else { index }, fresh).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, before: u64, fresh: bool) -> Result<Told<T>> {
        let (wait, scope) = (self.access.wait, &self.access.scope);
        let blocking = match before {
            0 => String::new(),
            index => format!("&index={index}&wait={}ms", wait.as_millis()),
        };
        let consistent = if fresh && !scope.contains("&stale") { "&consistent" } else { "" };
        let more = format!("{scope}{blocking}{consistent}");
        let path = match self.path.contains('?') {
            true => format!("{}{more}", self.path),
            false => format!("{}?{}", self.path, more.trim_start_matches('&')),
        };
        let within = if before == 0 { SLACK } else { wait + wait / 16 + SLACK };
        let answer = self.http.ask(Method::GET, &path, &self.access.headers()?, Vec::new(), within).await;
        let answer = answer.map_err(|error| Error { message: format!("consul: {}", error.message), ..error })?;
        let number = |name: &str| answer.header(name).and_then(|text| text.parse::<u64>().ok());
        let index = number("x-consul-index");
        let (status, leader) = (answer.status, answer.header("x-consul-knownleader") != Some("false"));
        let contact = number("x-consul-lastcontact").unwrap_or(0);
        let text = answer.text(SLACK).await?;
        if status != StatusCode::OK {
            let said = text.trim().chars().take(200).collect::<String>();
            let error = Error::failed(format!("consul: {}: {said}", status.as_u16()));
            return Err(match status {
                StatusCode::FORBIDDEN => error.hint("the token is not known or may not read; see token_file"),
                _ => error,
            });
        }
        let body = serde_json::from_str(&text)
            .map_err(|error| Error::failed(format!("consul: an answer that makes no sense: {error}")))?;
        // An index that goes backwards is of a server that began anew: ask it without one.
        self.index = match index {
            Some(index) if index >= before => index.max(1),
            _ => 0,
        };
        Ok(Told { body, leader, contact })
    }
}

/// An element of `/v1/health/service/NAME`; only what is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
    warning: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

/// Host names that were looked up, with their last good address.
type Names = BTreeMap<String, IpAddr>;

/// The set that entries come to; what cannot be used is said.
async fn decode(told: Told<Vec<Entry>>, weight: u16, names: &mut Names) -> Answered {
    let mut answered = Answered { partial: !told.leader, ..Answered::default() };
    if told.contact > OLD_CONTACT {
        answered.warnings.push(format!("consul: this server last heard of its leader {} s ago", told.contact / 1000));
    }
    let mut by: BTreeMap<SocketAddr, String> = BTreeMap::new();
    for Entry { node, service, checks } in told.body {
        let status = |wanted: &str| checks.iter().flatten().any(|check| check.status == wanted);
        // Without `passing=1` everything is told.
        if status("critical") || status("maintenance") {
            continue;
        }
        let host = if service.address.is_empty() { &node.address } else { &service.address };
        let ip = match address_of(host, names).await {
            Ok(ip) => ip,
            Err(why) => {
                answered.warnings.push(format!("consul: instance {} left out: {why}", service.id));
                continue;
            }
        };
        let address = SocketAddr::new(ip, service.port);
        let stated = match service.weights {
            Some(weights) if status("warning") => weights.warning,
            Some(weights) if weights.passing > 1 => weights.passing,
            _ => weight,
        };
        let meta = service.meta.unwrap_or_default();
        let weight = match meta.get(WEIGHT_KEY).map(|text| text.parse()) {
            Some(Ok(weight)) => weight,
            Some(Err(_)) => {
                answered.warnings.push(format!(
                    "consul: instance {}: {WEIGHT_KEY}={} is not a weight (0 to 65535); {stated} counts",
                    service.id, meta[WEIGHT_KEY]
                ));
                stated
            }
            None => stated,
        };
        let instance = Instance { weight, tags: service.tags.unwrap_or_default(), meta };
        // Apps often register anew under another id: one address is one backend, with the larger weight.
        if let Some(other) = by.insert(address, service.id.clone()) {
            answered.warnings.push(format!("consul: {address} is registered twice, as {other} and {}", service.id));
        }
        let known = answered.set.get(&address).map_or(0, |known| known.weight);
        if !answered.set.contains_key(&address) || weight > known {
            answered.set.insert(address, instance);
        }
    }
    answered
}

/// An address, or that of a host name; a name that cannot be looked up now keeps its last address.
async fn address_of(host: &str, names: &mut Names) -> Result<IpAddr, String> {
    if host.is_empty() {
        return Err("it has no address, and neither has its node".to_owned());
    }
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let looked = timeout(LOOKUP, tokio::net::lookup_host((host, 0))).await;
    let found = match looked {
        Ok(Ok(found)) => found.map(|place| place.ip()).min(),
        Ok(Err(_)) | Err(_) => None,
    };
    match (found, names.get(host)) {
        (Some(ip), _) => {
            names.insert(host.to_owned(), ip);
            Ok(ip)
        }
        (None, Some(known)) => Ok(*known),
        (None, None) => Err(format!("its address '{host}' is a host name that is not found")),
    }
}

fn service_path(service: &str, query: &ConsulQuery) -> String {
    let passing = if query.warning { "passing=false" } else { "passing=1" };
    let tags: String = query.tags.iter().map(|tag| format!("&tag={}", escape(tag))).collect();
    format!("/v1/health/service/{}?{passing}{tags}", escape(service))
}

/// See the module.
pub struct Consul {
    query: ConsulQuery,
    access: Access,
    weight: u16,
    names: Names,
    one: Option<Watch>,
    any: Option<Any>,
}

impl Consul {
    /// A query with its options; the environment fills what they leave open.
    #[must_use]
    pub fn new(query: ConsulQuery, options: &SourceOptions) -> Self {
        let access = Access::new(&query, options, |name| std::env::var(name).ok());
        Self { query, access, weight: options.weight, names: Names::new(), one: None, any: None }
    }

    async fn one(&mut self, service: &str, fresh: bool) -> Result<Answered> {
        let watch = match &mut self.one {
            Some(watch) => watch,
            empty => empty.insert(Watch::new(self.access.clone(), service_path(service, &self.query))?),
        };
        let told = watch.next(fresh).await?;
        Ok(decode(told, self.weight, &mut self.names).await)
    }
}

impl Registry for Consul {
    async fn next(&mut self, fresh: bool) -> Result<Answered> {
        if let Some(service) = self.query.service.clone() {
            return self.one(&service, fresh).await;
        }
        if fresh {
            self.any = None;
        }
        let any = match &mut self.any {
            Some(any) => any,
            empty => empty.insert(Any::new(self.query.clone(), self.access.clone(), self.weight)),
        };
        any.next().await
    }
}

/// What one of several questions came to: of the catalog (no name), or of a service.
enum News {
    Catalog(Result<BTreeSet<String>>),
    Service(String, Result<Answered>),
}

/// By name: who asks, and the last answer.
type Services = BTreeMap<String, (JoinHandle<()>, Option<Answered>)>;

/// Every service that has the tags: the catalog is watched, and each service in it.
struct Any {
    query: ConsulQuery,
    access: Access,
    weight: u16,
    tell: UnboundedSender<News>,
    told: UnboundedReceiver<News>,
    catalog: JoinHandle<()>,
    services: Option<Services>,
    failing: BTreeMap<String, Error>,
}

impl Any {
    fn new(query: ConsulQuery, access: Access, weight: u16) -> Self {
        let (tell, told) = unbounded_channel();
        let catalog = tokio::spawn(watch_catalog(access.clone(), query.tags.clone(), tell.clone()));
        Self { query, access, weight, tell, told, catalog, services: None, failing: BTreeMap::new() }
    }

    async fn next(&mut self) -> Result<Answered> {
        loop {
            let Some(news) = self.told.recv().await else { return Err(Error::failed("consul: nobody asks any more")) };
            self.take(news);
            while let Ok(news) = self.told.try_recv() {
                self.take(news);
            }
            if let Some(error) = self.failing.values().next() {
                return Err(error.clone());
            }
            let Some(services) = &self.services else { continue };
            let Some(all) = services.values().map(|(_, last)| last.as_ref()).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let mut whole = Answered::default();
            for answered in all {
                whole.set.extend(answered.set.clone());
                whole.partial |= answered.partial;
                whole.warnings.extend(answered.warnings.clone());
            }
            return Ok(whole);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Catalog(Ok(names)) => {
                self.failing.remove("");
                let mut services = self.services.take().unwrap_or_default();
                services.retain(|name, (task, _)| {
                    let stays = names.contains(name);
                    if !stays {
                        task.abort();
                        self.failing.remove(name);
                    }
                    stays
                });
                for name in names {
                    services.entry(name.clone()).or_insert_with(|| {
                        let work = watch_service(
                            name,
                            self.query.clone(),
                            self.access.clone(),
                            self.weight,
                            self.tell.clone(),
                        );
                        (tokio::spawn(work), None)
                    });
                }
                self.services = Some(services);
            }
            News::Catalog(Err(error)) => {
                self.failing.insert(String::new(), error);
            }
            News::Service(name, answer) => {
                // One that was let go may have had a last word.
                let Some((_, last)) = self.services.as_mut().and_then(|services| services.get_mut(&name)) else {
                    return;
                };
                match answer {
                    Ok(answered) => {
                        self.failing.remove(&name);
                        *last = Some(answered);
                    }
                    Err(error) => {
                        self.failing.insert(name, error);
                    }
                }
            }
        }
    }
}

impl Drop for Any {
    fn drop(&mut self) {
        self.catalog.abort();
        self.services.iter().flatten().for_each(|(_, (task, _))| task.abort());
    }
}

async fn watch_catalog(access: Access, tags: Vec<String>, tell: UnboundedSender<News>) {
    let mut watch = match Watch::new(access, "/v1/catalog/services".to_owned()) {
        Ok(watch) => watch,
        Err(error) => return drop(tell.send(News::Catalog(Err(error)))),
    };
    let mut last = None;
    loop {
        let told = watch.next::<BTreeMap<String, Option<Vec<String>>>>(false).await;
        let names = told.map(|told| {
            let has = |of: &Option<Vec<String>>| tags.iter().all(|tag| of.iter().flatten().any(|other| other == tag));
            told.body.into_iter().filter(|(_, of)| has(of)).map(|(name, _)| name).collect::<BTreeSet<_>>()
        });
        let failed = names.is_err();
        // The catalog's index moves with every registration: only other names are news.
        let news = failed || last.as_ref() != names.as_ref().ok();
        last = names.as_ref().ok().cloned();
        if news && tell.send(News::Catalog(names)).is_err() {
            return;
        }
        if failed {
            sleep(PAUSE).await;
        }
    }
}

async fn watch_service(name: String, query: ConsulQuery, access: Access, weight: u16, tell: UnboundedSender<News>) {
    let mut watch = match Watch::new(access, service_path(&name, &query)) {
        Ok(watch) => watch,
        Err(error) => return drop(tell.send(News::Service(name, Err(error)))),
    };
    let mut names = Names::new();
    loop {
        let answer = match watch.next(false).await {
            Ok(told) => Ok(decode(told, weight, &mut names).await),
            Err(error) => Err(error),
        };
        let failed = answer.is_err();
        if tell.send(News::Service(name.clone(), answer)).is_err() {
            return;
        }
        if failed {
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{SourceSpec, Wanted};

    fn access(word: &str, env: &[(&str, &str)]) -> Access {
        let source: SourceSpec = word.parse().unwrap();
        let Wanted::Consul(query) = &source.wanted else { panic!("{word}") };
        let find = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Access::new(query, &source.options, find)
    }

    async fn set(json: &str) -> (Vec<(String, u16)>, Vec<String>) {
        let told = Told { body: serde_json::from_str(json).unwrap(), leader: true, contact: 0 };
        let answered = decode(told, 1, &mut Names::new()).await;
        (answered.set.into_iter().map(|(address, i)| (address.to_string(), i.weight)).collect(), answered.warnings)
    }

    #[test]
    fn the_variables_of_consuls_own_tools_are_obeyed_and_the_source_overrules_them() {
        let env = [
            ("CONSUL_HTTP_ADDR", "10.0.0.9:8501"),
            ("CONSUL_HTTP_SSL", "true"),
            ("CONSUL_HTTP_TOKEN", "t"),
            ("CONSUL_NAMESPACE", "n"),
        ];
        let from_env = access("consul:web", &env);
        assert_eq!((from_env.place.url.as_str(), from_env.scope.as_str()), ("https://10.0.0.9:8501", "&ns=n"));
        assert_eq!(from_env.headers().unwrap()["x-consul-token"], "t");
        let said = access("consul:web?addr=http://c:1&dc=east%20a&stale=true&token_file=/nowhere", &env);
        assert_eq!((said.place.url.as_str(), said.scope.as_str()), ("http://c:1", "&dc=east%20a&ns=n&stale"));
        assert!(said.headers().unwrap_err().message.contains("/nowhere"), "the file counts, not the variable");
        let bare = access("consul:web", &[("CONSUL_HTTP_SSL_VERIFY", "false")]);
        assert_eq!((bare.place.url.as_str(), bare.scope.as_str()), ("127.0.0.1:8500", ""));
        assert!(bare.place.unverified && bare.headers().unwrap().is_empty());
    }

    #[test]
    fn questions_are_asked_as_consul_understands_them() {
        let source: SourceSpec = "consul:my web?tag=a b&tag=c".replace(' ', "%20").parse().unwrap();
        let Wanted::Consul(query) = &source.wanted else { panic!() };
        assert_eq!(service_path("my web", query), "/v1/health/service/my%20web?passing=1&tag=a%20b&tag=c");
    }

    #[tokio::test]
    async fn odd_registrations_are_used_or_refused_loudly() {
        let (found, warnings) = set(
            r#"[
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "a", "Address": "", "Port": 80, "Meta": null, "Tags": null}},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "b", "Address": "10.0.0.2", "Port": 80, "Weights": {"Passing": 10, "Warning": 1}}},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "c", "Address": "10.0.0.2", "Port": 80, "Meta": {"lb-weight": "70"}}},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "d", "Address": "10.0.0.3", "Port": 80, "Meta": {"lb-weight": "much"}}},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "e", "Address": "nowhere.invalid", "Port": 80}},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "f", "Address": "10.0.0.4", "Port": 80, "Weights": {"Passing": 10, "Warning": 2}}, "Checks": [{"Status": "warning"}]},
            {"Node": {"Address": "10.0.0.1"}, "Service": {"ID": "g", "Address": "10.0.0.5", "Port": 80}, "Checks": [{"Status": "critical"}]}
            ]"#,
        )
        .await;
        let wanted = [("10.0.0.1:80", 1), ("10.0.0.2:80", 70), ("10.0.0.3:80", 1), ("10.0.0.4:80", 2)];
        assert_eq!(found, wanted.map(|(address, weight)| (address.to_owned(), weight)));
        for words in ["registered twice, as b and c", "lb-weight=much is not a weight", "instance e left out"] {
            assert!(warnings.iter().any(|warning| warning.contains(words)), "{words}: {warnings:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_for_once_keeps_its_address() {
        let mut names = Names::from([("nowhere.invalid".to_owned(), IpAddr::from([10, 0, 0, 7]))]);
        assert_eq!(address_of("nowhere.invalid", &mut names).await, Ok(IpAddr::from([10, 0, 0, 7])));
        assert!(address_of("", &mut names).await.is_err());
    }
}
