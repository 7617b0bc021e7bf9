//! Instances as Consul tells of them, and the set that they come to.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::timeout;

use super::watch::Told;
use crate::discovery::{Answered, Instance};

/// Time that looking up a host name may take.
const LOOKUP: Duration = Duration::from_secs(2);
/// An answer of a server that heard of its leader longer ago than this gets a warning, milliseconds.
const OLD_CONTACT: u64 = 30_000;
/// The key in a service's `Meta` that says its weight.
const WEIGHT_KEY: &str = "lb-weight";

/// An element of `/v1/health/service/NAME`; only what is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
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
pub(super) type Names = BTreeMap<String, IpAddr>;

/// The set that entries come to; what cannot be used is said.
pub(super) async fn decode(told: Told<Vec<Entry>>, weight: u16, names: &mut Names) -> Answered {
    let mut answered = Answered { partial: !told.leader, ..Answered::default() };
    if told.contact > OLD_CONTACT {
        answered.warnings.push(format!("this server last heard of its leader {} s ago", told.contact / 1000));
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
                answered.warnings.push(format!("instance {} left out: {why}", service.id));
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
                    "instance {}: {WEIGHT_KEY}={} is not a weight (0 to 65535); {stated} counts",
                    service.id, meta[WEIGHT_KEY]
                ));
                stated
            }
            None => stated,
        };
        let instance = Instance { weight, tags: service.tags.unwrap_or_default(), meta };
        // Apps often register anew under another id: one address is one backend, with the larger weight.
        if let Some(other) = by.insert(address, service.id.clone()) {
            answered.warnings.push(format!("{address} is registered twice, as {other} and {}", service.id));
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn set(json: &str) -> (Vec<(String, u16)>, Vec<String>) {
        let told = Told { body: serde_json::from_str(json).unwrap(), leader: true, contact: 0 };
        let answered = decode(told, 1, &mut Names::new()).await;
        (answered.set.into_iter().map(|(address, i)| (address.to_string(), i.weight)).collect(), answered.warnings)
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
