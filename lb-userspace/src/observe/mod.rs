//! Metrics in Prometheus' text format.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use lb_common::maps::Refusals;

use crate::{
    api::{Backend, Drop, Service, SourceStatus, Status},
    health::Totals,
    reconcile::BackendKey,
    state::Health,
};

/// What metrics are made of, besides the status.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Packets by reason.
    pub reasons: Vec<Drop>,
    /// Probes that run; backends that share one count once.
    pub probes: u64,
    /// Tables of services that were built and put in place.
    pub table_builds: u64,
    /// New flows that services refused.
    pub refusals: BTreeMap<String, Refusals>,
    /// Checks of backends.
    pub checks: BTreeMap<BackendKey, Totals>,
}

/// The metrics of a status and of what else was measured.
#[must_use]
pub fn metrics(status: &Status, measured: &Measured) -> String {
    let mut text = Text(String::new());
    text.head("lb_info", "gauge", "Version of lb and of the maps' layout.");
    text.value("lb_info", &[("version", &status.version), ("layout", &status.layout.to_string())], 1);
    text.head("lb_packets_total", "counter", "Packets by the reason of their verdict.");
    for reason in &measured.reasons {
        text.value("lb_packets_total", &[("reason", &reason.reason)], reason.count);
    }
    let whole = [
        ("lb_uptime_seconds", "gauge", "Time since the daemon started.", status.uptime_s),
        ("lb_interfaces", "gauge", "Interfaces that the data path runs on.", status.interfaces.len() as u64),
        ("lb_flows", "gauge", "Live flows.", status.flows.active),
        ("lb_flows_max", "gauge", "Records of the flow table.", status.flows.max),
        ("lb_generation", "gauge", "Number of the desired state.", status.generation),
        ("lb_warnings", "gauge", "Warnings in `lb status`.", status.warnings.len() as u64),
        (
            "lb_table_builds_total",
            "counter",
            "Tables of services that were built and put in place.",
            measured.table_builds,
        ),
        ("lb_health_probes", "gauge", "Health checks that run; backends that share one count once.", measured.probes),
    ];
    for (name, kind, help, value) in whole {
        text.head(name, kind, help);
        text.value(name, &[], value);
    }
    services(&mut text, status, &measured.refusals);
    backends(&mut text, status, &measured.checks);
    sources(&mut text, &status.sources);
    text.0
}

fn services(text: &mut Text, status: &Status, refusals: &BTreeMap<String, Refusals>) {
    let families: [ServiceFamily; 7] = [
        ("lb_service_backends", "gauge", "Backends.", |s| s.backends.len() as u64),
        ("lb_service_usable_backends", "gauge", "Backends that take new flows.", |s| s.usable as u64),
        ("lb_service_flows", "gauge", "Live flows of a service.", |s| s.flows),
        ("lb_service_packets_in_total", "counter", "Packets from clients.", |s| s.packets.inward),
        ("lb_service_packets_out_total", "counter", "Packets from backends.", |s| s.packets.out),
        ("lb_service_bytes_in_total", "counter", "Layer-3 bytes from clients.", |s| s.bytes.inward),
        ("lb_service_bytes_out_total", "counter", "Layer-3 bytes from backends.", |s| s.bytes.out),
    ];
    for (name, kind, help, value) in families {
        text.head(name, kind, help);
        for service in &status.services {
            text.value(name, &[("service", &service.name)], value(service));
        }
    }
    text.head("lb_service_refused_total", "counter", "New flows that were refused.");
    for (service, refused) in refusals {
        let Refusals { no_backend, no_port, table_full } = *refused;
        for (reason, count) in [("no-backend", no_backend), ("no-port", no_port), ("table-full", table_full)] {
            text.value("lb_service_refused_total", &[("service", service), ("reason", reason)], count);
        }
    }
}

fn backends(text: &mut Text, status: &Status, checks: &BTreeMap<BackendKey, Totals>) {
    let families: [Family; 9] = [
        ("lb_backend_up", "gauge", "Whether the last verdict was up.", |b| u64::from(b.health == Health::Up)),
        ("lb_backend_down", "gauge", "Whether the last verdict was down.", |b| u64::from(b.health == Health::Down)),
        ("lb_backend_usable", "gauge", "Whether it takes new flows.", |b| u64::from(b.usable)),
        ("lb_backend_weight", "gauge", "Weight.", |b| u64::from(b.weight)),
        ("lb_backend_flows", "gauge", "Live flows of a backend.", |b| b.flows),
        ("lb_backend_packets_in_total", "counter", "Packets from clients.", |b| b.packets.inward),
        ("lb_backend_packets_out_total", "counter", "Packets from the backend.", |b| b.packets.out),
        ("lb_backend_bytes_in_total", "counter", "Layer-3 bytes from clients.", |b| b.bytes.inward),
        ("lb_backend_bytes_out_total", "counter", "Layer-3 bytes from the backend.", |b| b.bytes.out),
    ];
    let all = || status.services.iter().flat_map(|service| &service.backends);
    for (name, kind, help, value) in families {
        text.head(name, kind, help);
        for backend in all() {
            let labels = [("service", backend.service.as_str()), ("backend", &backend.address.to_string())];
            text.value(name, &labels, value(backend));
        }
    }
    text.head("lb_backend_check_seconds", "gauge", "Time that the last check took.");
    for backend in all() {
        if let Some(last) = &backend.last_check {
            let labels = [("service", backend.service.as_str()), ("backend", &backend.address.to_string())];
            text.value("lb_backend_check_seconds", &labels, last.took_ms as f64 / 1000.0);
        }
    }
    text.head("lb_backend_checks_total", "counter", "Checks by their result.");
    for (key, Totals { ok, failed }) in checks {
        for (result, count) in [("ok", ok), ("failed", failed)] {
            let backend = key.address.to_string();
            let labels = [("service", key.service.as_str()), ("backend", &backend), ("result", result)];
            text.value("lb_backend_checks_total", &labels, count);
        }
    }
}

fn sources(text: &mut Text, sources: &[SourceStatus]) {
    let families: [SourceFamily; 10] = [
        ("lb_source_up", "gauge", "Whether the last question was answered.", |s| {
            u64::from(s.age_s.is_some() && s.last_error.as_ref().is_none_or(|error| !error.now))
        }),
        ("lb_source_age_seconds", "gauge", "Time since the last answer.", |s| s.age_s.unwrap_or(0)),
        ("lb_source_backends", "gauge", "Backends that the source states and its service has.", |s| s.backends as u64),
        (
            "lb_source_left_out_backends",
            "gauge",
            "Backends that the source states and its service has not, refused or removed by the operator.",
            |s| s.left_out as u64,
        ),
        (
            "lb_source_held_backends",
            "gauge",
            "Backends that the registry does not name any more, but that stay.",
            |s| s.held.len() as u64,
        ),
        ("lb_source_holding", "gauge", "Whether removals are held.", |s| u64::from(!s.held.is_empty())),
        ("lb_source_warnings", "gauge", "Entries of the last answer that were left out or are odd.", |s| {
            s.warnings.len() as u64
        }),
        ("lb_source_answers_total", "counter", "Answers.", |s| s.answers),
        ("lb_source_errors_total", "counter", "Questions without an answer.", |s| s.errors),
        ("lb_source_changes_total", "counter", "Changes of what is balanced.", |s| s.changes),
    ];
    for (name, kind, help, value) in families {
        text.head(name, kind, help);
        for source in sources {
            let labels = [("source", source.name.as_str()), ("service", &source.service), ("kind", &source.kind)];
            text.value(name, &labels, value(source));
        }
    }
}

/// The same of a source.
type SourceFamily = (&'static str, &'static str, &'static str, fn(&SourceStatus) -> u64);

/// Name, kind, help and value of a metric that every backend has.
type Family = (&'static str, &'static str, &'static str, fn(&Backend) -> u64);

/// The same of a service.
type ServiceFamily = (&'static str, &'static str, &'static str, fn(&Service) -> u64);

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", quote(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::{Both, LastCheck};

    fn status() -> Status {
        let address = "10.0.0.2:80".parse().unwrap();
        let backend = Backend {
            service: "a \"quoted\\name\"".into(),
            address,
            weight: 3,
            admin: crate::state::Admin::Ready,
            health: Health::Up,
            usable: true,
            source: crate::state::Source::Cli,
            flows: 7,
            share: 1.0,
            packets: Both { inward: 1, out: 2 },
            bytes: Both { inward: 3, out: 4 },
            last_check: Some(LastCheck { at: jiff::Timestamp::UNIX_EPOCH, ok: true, took_ms: 12, reason: "ok".into() }),
        };
        let service = serde_json::json!({
            "name": backend.service, "vips": ["10.0.0.1:80/tcp"], "mode": "nat", "scheduler": "maglev", "source": "cli",
            "usable": 1, "flows": 7, "packets": {"in": 1, "out": 2}, "bytes": {"in": 3, "out": 4},
            "table_fingerprint": "00", "backends": [backend],
        });
        serde_json::from_value(serde_json::json!({
            "version": "1.2.3", "generation": 5, "layout": 1, "uptime_s": 9, "interfaces": [], "services": [service],
            "flows": {"active": 7, "max": 100}, "warnings": ["w"], "sources": [],
        }))
        .unwrap()
    }

    /// Reads the text as Prometheus does (its exposition format 0.0.4); every sample's name and labels.
    fn parse(text: &str) -> Vec<(String, String)> {
        let (mut kinds, mut family, mut samples) = (BTreeSet::new(), String::new(), Vec::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(help.ends_with('.'), "{line}");
                family = name.to_owned();
                assert!(kinds.insert(family.clone()), "{name} twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                assert_eq!(name, family, "samples of a family stand together");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(labels.ends_with('}'), "{line}");
                samples.push((name.to_owned(), labels.trim_end_matches('}').to_owned()));
            }
        }
        let all: BTreeSet<_> = samples.iter().collect();
        assert_eq!(all.len(), samples.len(), "a series twice");
        samples
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let key = BackendKey { service: "a \"quoted\\name\"".into(), address: "10.0.0.2:80".parse().unwrap() };
        let measured = Measured {
            reasons: vec![Drop { reason: "forwarded".into(), count: 8, help: String::new() }],
            probes: 1,
            table_builds: 2,
            refusals: [(key.service.clone(), Refusals { no_backend: 1, no_port: 2, table_full: 3 })].into(),
            checks: [(key, Totals { ok: 5, failed: 6 })].into(),
        };
        let text = metrics(&status(), &measured);
        let samples = parse(&text);
        let quoted = r#"service="a \"quoted\\name\"""#;
        let wanted = [
            ("lb_packets_total", r#"reason="forwarded""#.to_owned()),
            ("lb_flows", String::new()),
            ("lb_service_refused_total", format!("{quoted},reason=\"no-port\"")),
            ("lb_backend_checks_total", format!("{quoted},backend=\"10.0.0.2:80\",result=\"failed\"")),
            ("lb_backend_check_seconds", format!("{quoted},backend=\"10.0.0.2:80\"")),
        ];
        for (name, labels) in wanted {
            assert!(samples.contains(&(name.to_owned(), labels.clone())), "{name}{{{labels}}}: {text}");
        }
        assert!(text.contains("\nlb_backend_check_seconds{") && text.contains(" 0.012\n"), "{text}");
    }
}
