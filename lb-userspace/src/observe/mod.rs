//! Metrics in Prometheus' text format.

use std::fmt::Write as _;

use crate::api::{Drop, Status};

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
    text.0
}

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
