//! Metrics in Prometheus' text format.

use std::fmt::Write as _;

use crate::api::{Drop, SourceStatus, Status};

/// The metrics of a status and of the packets by reason.
#[must_use]
pub fn metrics(status: &Status, reasons: &[Drop]) -> String {
    let mut text = Text(String::new());
    text.head("lb_packets_total", "counter", "Packets by the reason of their verdict.");
    for reason in reasons {
        text.value("lb_packets_total", &[("reason", &reason.reason)], reason.count);
    }
    text.head("lb_flows", "gauge", "Live flows.");
    text.value("lb_flows", &[], status.flows.active);
    text.head("lb_flows_max", "gauge", "Records of the flow table.");
    text.value("lb_flows_max", &[], status.flows.max);
    text.head("lb_generation", "gauge", "Number of the desired state.");
    text.value("lb_generation", &[], status.generation);
    text.head("lb_service_usable_backends", "gauge", "Backends that take new flows.");
    for service in &status.services {
        text.value("lb_service_usable_backends", &[("service", &service.name)], service.usable as u64);
    }
    let families: [Family; 7] = [
        ("lb_backend_up", "gauge", "Whether the last verdict was up.", |b| {
            u64::from(b.health == crate::state::Health::Up)
        }),
        ("lb_backend_weight", "gauge", "Weight.", |b| u64::from(b.weight)),
        ("lb_backend_flows", "gauge", "Live flows of a backend.", |b| b.flows),
        ("lb_backend_packets_in_total", "counter", "Packets from clients.", |b| b.packets.inward),
        ("lb_backend_packets_out_total", "counter", "Packets from the backend.", |b| b.packets.out),
        ("lb_backend_bytes_in_total", "counter", "Layer-3 bytes from clients.", |b| b.bytes.inward),
        ("lb_backend_bytes_out_total", "counter", "Layer-3 bytes from the backend.", |b| b.bytes.out),
    ];
    for (name, kind, help, value) in families {
        text.head(name, kind, help);
        for backend in status.services.iter().flat_map(|service| &service.backends) {
            let labels = [("service", backend.service.as_str()), ("backend", &backend.address.to_string())];
            text.value(name, &labels, value(backend));
        }
    }
    sources(&mut text, &status.sources);
    text.0
}

fn sources(text: &mut Text, sources: &[SourceStatus]) {
    let families: [SourceFamily; 9] = [
        ("lb_source_up", "gauge", "Whether the last question was answered.", |s| {
            u64::from(s.age_s.is_some() && s.last_error.as_ref().is_none_or(|error| !error.now))
        }),
        ("lb_source_age_seconds", "gauge", "Time since the last answer.", |s| s.age_s.unwrap_or(0)),
        ("lb_source_backends", "gauge", "Backends in the set that counts.", |s| s.backends as u64),
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
type Family = (&'static str, &'static str, &'static str, fn(&crate::api::Backend) -> u64);

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", quote(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}
