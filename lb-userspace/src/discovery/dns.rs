//! DNS: the addresses of a name (A and AAAA), or the targets of SRV records.
//!
//! Asked again when the records' time to live is over, between 1 s (Consul says 0) and 60 s. Over UDP with EDNS, and
//! over TCP when an answer is cut off. No records, and no such name, are an empty answer, which [`super::guard`] does not
//! believe at once; SERVFAIL and silence are errors.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, Record, RecordType},
};
use tokio::time::{Instant, sleep_until};

use super::{Answered, Instance, Registry, guard::Set, spec::SourceOptions};
use crate::{Error, Result, error::Context as _};

/// Bounds of the time between two questions.
const FLOOR: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(60);
/// Time that a server has for an answer, and how often it is asked.
const ANSWER: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Bytes of an answer over UDP that are taken; it fits a packet of 1280 bytes.
const EDNS: u16 = 1232;

/// See the module.
pub struct Dns {
    name: String,
    port: Option<u16>,
    server: Option<SocketAddr>,
    weight: u16,
    longest: Duration,
    due: Option<Instant>,
}

impl Dns {
    /// A name; `port`: of all its addresses, else SRV records say.
    #[must_use]
    pub fn new(name: &str, port: Option<u16>, options: &SourceOptions) -> Self {
        let server =
            |text: &String| text.parse().ok().or_else(|| text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 53)));
        Self {
            name: name.to_owned(),
            port,
            // The specification has checked that it is one of the two.
            server: options.addr.as_ref().and_then(server),
            weight: options.weight,
            longest: options.interval.unwrap_or(CAP).max(FLOOR),
            due: None,
        }
    }

    /// Made anew for every question: nothing is remembered, and the system's settings may have changed.
    fn resolver(&self) -> Result<TokioResolver> {
        let mut builder = match self.server {
            None => Resolver::builder_tokio().context("dns: /etc/resolv.conf")?,
            Some(server) => {
                let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
                (udp.port, tcp.port) = (server.port(), server.port());
                let server = NameServerConfig::new(server.ip(), true, vec![udp, tcp]);
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        (options.timeout, options.attempts, options.cache_size) = (ANSWER, ATTEMPTS, 0);
        (options.edns0, options.edns_payload_len) = (true, EDNS);
        builder.build().context("dns")
    }
}

/// Records, or none because there are none; with the shortest time to live.
async fn ask(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<(Vec<Record>, Duration)> {
    match resolver.lookup(name, kind).await {
        Ok(found) => {
            let records = found.answers().to_vec();
            let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
            Ok((records, Duration::from_secs(u64::from(ttl))))
        }
        Err(error) if error.is_no_records_found() => Ok((Vec::new(), FLOOR)),
        Err(error) => Err(Error::failed(format!("dns: {name} {kind}: {}", words(&error)))),
    }
}

fn words(error: &NetError) -> String {
    match error {
        NetError::Timeout => "no answer".to_owned(),
        _ => error.to_string(),
    }
}

/// Addresses of a name, whether one of both questions failed, and the shortest time to live.
async fn addresses(resolver: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, bool, Duration)> {
    let (four, six) = tokio::join!(ask(resolver, name, RecordType::A), ask(resolver, name, RecordType::AAAA));
    let partial = four.is_err() || six.is_err();
    let (found, ttl) = match (four, six) {
        (Err(error), Err(_)) => return Err(error),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
        // A family without records has no time to live that means anything.
        (Ok((four, a)), Ok((six, b))) => match (four.is_empty(), six.is_empty()) {
            (false, true) => (four, a),
            (true, false) => (six, b),
            _ => ([four, six].concat(), a.min(b)),
        },
    };
    let ips = found.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok((ips.collect(), partial, ttl))
}

/// Targets by priority.
type Targets = BTreeMap<u16, Vec<(String, u16, u16)>>;

impl Dns {
    async fn look(&self) -> Result<(Answered, Duration)> {
        let resolver = self.resolver()?;
        if let Some(port) = self.port {
            let (ips, partial, ttl) = addresses(&resolver, &self.name).await?;
            let set = ips.into_iter().map(|ip| (SocketAddr::new(ip, port), Instance::of_weight(self.weight)));
            return Ok((Answered { set: set.collect(), partial, warnings: Vec::new() }, ttl));
        }
        let (records, mut ttl) = ask(&resolver, &self.name, RecordType::SRV).await?;
        let mut targets = Targets::new();
        for record in &records {
            if let RData::SRV(srv) = &record.data
                && !srv.target.is_root()
            {
                let target = (srv.target.to_string(), srv.port, srv.weight);
                targets.entry(srv.priority).or_default().push(target);
            }
        }
        let mut answered = Answered::default();
        for group in targets.values() {
            for (target, port, weight) in group {
                match addresses(&resolver, target).await {
                    Ok((ips, partial, time)) => {
                        if ips.is_empty() {
                            answered.warnings.push(format!("target {target} has no address"));
                        } else {
                            ttl = ttl.min(time);
                        }
                        answered.partial |= partial;
                        put(&mut answered.set, &ips, *port, *weight);
                    }
                    Err(error) => {
                        answered.partial = true;
                        answered.warnings.push(error.message);
                    }
                }
            }
            // The lowest priority that has a target; the others are for when it has none.
            if !answered.set.is_empty() || answered.partial {
                break;
            }
        }
        Ok((answered, ttl))
    }
}

/// A weight of 0 means "few", not "none" (RFC 2782).
fn put(set: &mut Set, ips: &[IpAddr], port: u16, weight: u16) {
    set.extend(ips.iter().map(|ip| (SocketAddr::new(*ip, port), Instance::of_weight(weight.max(1)))));
}

impl Registry for Dns {
    async fn next(&mut self, fresh: bool) -> Result<Answered> {
        if let Some(due) = self.due
            && !fresh
        {
            sleep_until(due).await;
        }
        self.due = None;
        let (answered, ttl) = self.look().await?;
        self.due = Some(Instant::now() + ttl.clamp(FLOOR, self.longest));
        Ok(answered)
    }
}
