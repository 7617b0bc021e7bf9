//! What came of it, as tables or JSON.

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use super::arguments::Output;
use crate::{
    api::{Backend, Drop, Service, SourceStatus, Status},
    doctor::{Finding, Level},
    say::line,
};

fn json(value: &impl Serialize) {
    line(&serde_json::json!(value).to_string());
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    table.add_rows(rows);
    line(&table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n"));
}

/// `lb status`.
pub fn status(status: &Status, out: Output) {
    if out == Output::Json {
        return json(status);
    }
    let interfaces: Vec<_> = status.interfaces.iter().map(|i| format!("{} ({})", i.name, i.xdp)).collect();
    line(&format!(
        "lb {}, generation {}, up {} s, on {}; {} of {} flows",
        status.version,
        status.generation,
        status.uptime_s,
        interfaces.join(", "),
        status.flows.active,
        status.flows.max
    ));
    for warning in &status.warnings {
        line(&format!("warning: {warning}"));
    }
    line("");
    services(&status.services, out);
    line("");
    let all: Vec<_> = status.services.iter().flat_map(|service| service.backends.clone()).collect();
    backends(&all, out);
}

/// `lb service list`.
pub fn services(services: &[Service], out: Output) {
    if out == Output::Json {
        return json(&services);
    }
    let rows = services.iter().map(|service| {
        [
            service.name.clone(),
            service.vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            service.mode.to_string(),
            service.scheduler.to_string(),
            format!("{}/{}", service.usable, service.backends.len()),
            service.flows.to_string(),
            service.packets.inward.to_string(),
            service.packets.out.to_string(),
            service.source.to_string(),
        ]
    });
    table(["SERVICE", "VIPS", "MODE", "SCHEDULER", "USABLE", "FLOWS", "PACKETS IN", "OUT", "SOURCE"], rows);
}

/// `lb service show`.
pub fn service(service: &Service, out: Output) {
    if out == Output::Json {
        return json(service);
    }
    services(std::slice::from_ref(service), out);
    line(&format!("\ntable {}\n", service.table_fingerprint));
    backends(&service.backends, out);
}

/// `lb backend list`.
pub fn backends(backends: &[Backend], out: Output) {
    if out == Output::Json {
        return json(&backends);
    }
    let rows = backends.iter().map(|backend| {
        [
            backend.address.to_string(),
            backend.service.clone(),
            backend.weight.to_string(),
            backend.admin.to_string(),
            backend.health.to_string(),
            if backend.usable { "yes" } else { "no" }.to_owned(),
            format!("{:.1}%", backend.share * 100.0),
            backend.flows.to_string(),
            backend.packets.inward.to_string(),
            backend.packets.out.to_string(),
            backend.source.to_string(),
        ]
    });
    let head =
        ["BACKEND", "SERVICE", "WEIGHT", "ADMIN", "HEALTH", "USABLE", "SHARE", "FLOWS", "PACKETS IN", "OUT", "SOURCE"];
    table(head, rows);
}

/// `lb health`.
pub fn health(status: &Status, out: Output) {
    let all: Vec<_> = status.services.iter().flat_map(|service| &service.backends).collect();
    if out == Output::Json {
        return json(&all);
    }
    let rows = all.iter().map(|backend| {
        let (at, took, reason) = backend.last_check.as_ref().map_or_else(
            || ("-".to_owned(), "-".to_owned(), "not checked".to_owned()),
            |check| (check.at.strftime("%FT%TZ").to_string(), format!("{} ms", check.took_ms), check.reason.clone()),
        );
        [backend.address.to_string(), backend.service.clone(), backend.health.to_string(), reason, took, at]
    });
    table(["BACKEND", "SERVICE", "HEALTH", "LAST CHECK", "TOOK", "AT"], rows);
}

/// `lb source list`.
pub fn sources(sources: &[SourceStatus], out: Output) {
    if out == Output::Json {
        return json(&sources);
    }
    let rows = sources.iter().map(|source| {
        let why = source.held.first().map_or_else(
            || "-".to_owned(),
            |held| {
                let kept = if held.confirmed { ", confirmed" } else { "" };
                format!("{} ({}, {} s ago{kept})", source.held.len(), held.reason, held.age_s)
            },
        );
        let error = source.last_error.as_ref().map_or_else(
            || "-".to_owned(),
            |error| if error.now { error.message.clone() } else { format!("{} (over)", error.message) },
        );
        [
            source.name.clone(),
            source.kind.clone(),
            source.service.clone(),
            source.state.clone(),
            match source.left_out {
                0 => source.backends.to_string(),
                left_out => format!("{} ({left_out} left out)", source.backends),
            },
            source.age_s.map_or_else(|| "-".to_owned(), |age| format!("{age} s")),
            why,
            error,
        ]
    });
    table(["SOURCE", "KIND", "SERVICE", "STATE", "BACKENDS", "AGE", "HELD", "LAST ERROR"], rows);
    for source in sources {
        source.warnings.iter().for_each(|warning| line(&format!("{}: {warning}", source.name)));
    }
}

/// `lb drops`.
pub fn drops(drops: &[Drop], out: Output) {
    if out == Output::Json {
        return json(&drops);
    }
    let rows = drops
        .iter()
        .filter(|drop| drop.count > 0)
        .map(|drop| [drop.reason.clone(), drop.count.to_string(), drop.help.clone()]);
    table(["REASON", "PACKETS", "WHAT IT MEANS"], rows);
}

/// `lb doctor`.
pub fn findings(findings: &[Finding], out: Output) {
    if out == Output::Json {
        return json(&findings);
    }
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        let fix = finding.fix.as_ref().map_or_else(String::new, |fix| format!("  ->  {fix}"));
        line(&format!("{mark}  {}: {}{fix}", finding.check, finding.text));
    }
}
