//! What was typed means: defaults filled in, what fits together only as a whole, the guards that need no look at the
//! host.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Config,
    problem::Place,
    reader::{At, Reader},
    typed::{Announce, TypedFile, TypedHealth, TypedService},
};
use crate::{
    Error,
    state::{
        Admin, BackendSpec, Exchange, GrpcCheck, HealthCheck, HttpCheck, Probe, Protocol, ServiceSpec, SettingsOptions,
        Source, TlsCheck, Vip, guards,
    },
};

/// The meaning of a whole file; everything that is wrong goes to the reader.
pub fn understand(reader: &Reader<'_>, typed: TypedFile) -> Config {
    let settings = settings(reader, &typed);
    let mut places = BTreeMap::new();
    let services: Vec<_> =
        typed.services.iter().map(|service| understand_service(reader, &typed, service, &mut places)).collect();
    together(reader, &typed.services, &services);
    let (log_level, shared) = (typed.bpf_log.map(|at| at.value), typed.shared.map(|at| at.value));
    Config { settings, log_level, shared, services, files: reader.files(), places }
}

fn settings(reader: &Reader<'_>, typed: &TypedFile) -> SettingsOptions {
    twice(reader, "interfaces", &typed.interfaces);
    twice(reader, "snat", &typed.snat);
    for at in typed.interfaces.iter().filter(|at| at.value == "lo") {
        let why = "lo is the loopback device: no client's packets come in there";
        reader.wrong(at.place, "interfaces", why, Some("the interface towards the clients".to_owned()));
    }
    for at in &typed.snat {
        if let Err(error) = guards::check_snat_alone(at.value) {
            reader.error(at.place, "snat", error);
        }
    }
    let announce = typed.announce.as_ref().and_then(|at| match &at.value {
        Announce::On(device) => Some(device.clone()),
        // Without interfaces in the file those of the command line count: an empty name stands for the first.
        Announce::First(true) => Some(typed.interfaces.first().map_or_else(String::new, |at| at.value.clone())),
        Announce::First(false) => None,
    });
    let most = u64::from(lb_common::flow::entry::MAX_RECORDS);
    let max_flows = typed.max_flows.as_ref().and_then(|at| match at.value {
        flows if (64..=most).contains(&flows) => u32::try_from(flows).ok(),
        flows => {
            reader.wrong(at.place, "max_flows", format!("{flows} is out of range"), Some(format!("64 to {most}")));
            None
        }
    });
    SettingsOptions {
        interfaces: typed.interfaces.iter().map(|at| at.value.clone()).collect(),
        xdp: typed.xdp.as_ref().map(|at| at.value),
        announce,
        snat: typed.snat.iter().map(|at| at.value).collect(),
        snat_ports: typed.snat_ports.as_ref().map(|at| at.value),
        max_flows,
        on_exit: typed.on_exit.as_ref().map(|at| at.value),
    }
}

fn twice<T: Ord + std::fmt::Display>(reader: &Reader<'_>, key: &str, all: &[At<T>]) {
    let mut seen = BTreeSet::new();
    for at in all.iter().filter(|at| !seen.insert(&at.value)) {
        reader.wrong(at.place, key, format!("{} is named twice", at.value), Some("name it once".to_owned()));
    }
}

fn understand_service(
    reader: &Reader<'_>,
    file: &TypedFile,
    typed: &TypedService,
    places: &mut BTreeMap<String, Place>,
) -> ServiceSpec {
    // A service whose VIPs are wrong is read on all the same, for the sake of what else is wrong in it.
    let stand_in = Vip { address: [192, 0, 2, 1].into(), port: 1, protocol: Protocol::Tcp };
    let first = typed.vips.first().map_or(stand_in, |at| at.value);
    let mut service = ServiceSpec::new(first, Source::File);
    service.vips = typed.vips.iter().map(|at| at.value).collect();
    if let Some(name) = &typed.name {
        service.name.clone_from(&name.value);
    }
    service.mode = typed.mode.as_ref().map_or(service.mode, |at| at.value);
    service.scheduler = typed.scheduler.as_ref().map_or(service.scheduler, |at| at.value);
    service.affinity = typed.affinity.as_ref().map(|at| at.value).filter(|time| !time.is_zero());
    service.slow_start = typed.slow_start.as_ref().map(|at| at.value).filter(|time| !time.is_zero());
    service.on_down = typed.on_down.as_ref().map_or(service.on_down, |at| at.value);
    service.on_empty = typed.on_empty.as_ref().map_or(service.on_empty, |at| at.value);
    service.idle = typed.idle.or(file.idle);
    if let Some(typed) = &typed.health {
        service.health = health(reader, typed, first.protocol);
    }
    service.discovery = sources(reader, typed);
    service.backends = backends(reader, typed, &service);
    places.insert(format!("service {}", service.name), typed.place);
    places.extend(typed.vips.iter().map(|at| (format!("VIP {}", at.value), at.place)));
    places.extend(typed.backends.iter().map(|at| (format!("backend {}", at.value.0), at.place)));
    service
}

fn backends(reader: &Reader<'_>, typed: &TypedService, service: &ServiceSpec) -> Vec<BackendSpec> {
    let mut backends: BTreeMap<_, BackendSpec> = BTreeMap::new();
    for at in &typed.backends {
        let (address, weight) = (service.place(at.value.0), at.value.1);
        let spec = BackendSpec { address, weight, admin: Admin::Ready, source: Source::File };
        if backends.insert(address, spec).is_some() {
            let hint = Some("name it once, with its weight".to_owned());
            reader.wrong(at.place, "service.backends", format!("{address} is named twice"), hint);
        }
    }
    backends.into_values().collect()
}

fn sources(reader: &Reader<'_>, typed: &TypedService) -> Vec<crate::discovery::SourceSpec> {
    let mut names = BTreeSet::new();
    for at in typed.discovery.iter().filter(|at| !names.insert(at.value.name.as_str())) {
        let hint = Some("one is enough; or give one another name: name = \"..\"".to_owned());
        reader.wrong(at.place, "service.discovery", format!("two sources '{}'", at.value.name), hint);
    }
    typed.discovery.iter().map(|at| at.value.clone()).collect()
}

/// What fits together only as a whole.
fn together(reader: &Reader<'_>, typed: &[TypedService], services: &[ServiceSpec]) {
    let vips: BTreeSet<_> = services.iter().flat_map(|service| &service.vips).map(|vip| vip.address).collect();
    let mut names: BTreeMap<&str, (Place, bool)> = BTreeMap::new();
    let mut owners: BTreeMap<Vip, Place> = BTreeMap::new();
    for (typed, service) in typed.iter().zip(services) {
        let place = typed.name.as_ref().map_or(typed.place, |at| at.place);
        // Two without a name have the same VIP, which is told anyhow.
        if let Some((first, named)) = names.insert(&service.name, (place, typed.name.is_some()))
            && (named || typed.name.is_some())
        {
            let hint = Some("give each service a name of its own".to_owned());
            let message = format!("'{}' is the name of another service (line {})", service.name, first.line);
            reader.wrong(place, "service.name", message, hint);
        }
        for at in &typed.vips {
            if let Some(first) = owners.insert(at.value, at.place) {
                let message = format!("{} is there twice (line {} too)", at.value, first.line);
                reader.wrong(at.place, "service.vip", message, Some("one VIP belongs to one service".to_owned()));
            } else if let Err(error) = guards::check_vip_alone(at.value) {
                reader.error(at.place, "service.vip", error);
            }
        }
        for at in &typed.backends {
            if let Err(error) = guards::check_backend_alone(service, service.place(at.value.0), &vips) {
                reader.error(at.place, "service.backends", error);
            }
        }
        let via = typed.health.as_ref().and_then(|health| health.via.as_ref());
        if let (Some(via), Err(error)) = (via, guards::check_via(service)) {
            reader.error(via.place, "service.health.via", error);
        }
    }
}

fn health(reader: &Reader<'_>, typed: &TypedHealth, protocol: Protocol) -> HealthCheck {
    let default = HealthCheck::default_for(protocol);
    let word = typed.kind.as_ref().map_or_else(|| default.probe.word(), |at| at.value.as_str());
    for (key, place) in &typed.places {
        let of = super::keys::health_types(key);
        if !of.is_empty() && !of.contains(&word) {
            let hint = format!("'{key}' goes with {}", of.join(", "));
            let said = if typed.kind.is_some() {
                format!("type = \"{word}\"")
            } else {
                format!("type \"{word}\", the default,")
            };
            reader.wrong(*place, &format!("service.health.{key}"), format!("{said} has no '{key}'"), Some(hint));
        }
    }
    if word == "grpc" && !typed.tls.as_ref().is_some_and(|at| at.value) {
        for key in ["server_name", "ca_file", "verify"] {
            if let Some(place) = typed.places.get(key) {
                let hint = Some("add tls = true".to_owned());
                reader.wrong(*place, &format!("service.health.{key}"), format!("'{key}' needs TLS"), hint);
            }
        }
    }
    let interval = typed.interval.as_ref().map_or(default.interval, |at| at.value);
    // Said, it must fit into the interval; not said, it does.
    let timeout = typed.timeout.as_ref().map_or_else(|| default.timeout.min(interval), |at| at.value);
    if let Some(at) = typed.timeout.as_ref().filter(|_| timeout > interval) {
        let message =
            format!("{timeout:?} is longer than the interval, {interval:?}: the next check would begin before");
        let hint = Some(format!("at most {interval:?}, or a longer interval"));
        reader.wrong(at.place, "service.health.timeout", message, hint);
    }
    HealthCheck {
        probe: probe(typed, word),
        via: typed.via.as_ref().map_or(default.via, |at| at.value),
        interval,
        timeout,
        rise: typed.rise.as_ref().map_or(default.rise, |at| at.value),
        fall: typed.fall.as_ref().map_or(default.fall, |at| at.value),
        port: typed.port.as_ref().map(|at| at.value),
    }
}

fn probe(typed: &TypedHealth, word: &str) -> Probe {
    let value = |at: &Option<At<String>>| at.as_ref().map(|at| at.value.clone());
    let http = || HttpCheck {
        path: value(&typed.path).unwrap_or_else(|| "/".to_owned()),
        host: value(&typed.host),
        expect_status: typed.expect_status.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        expect_body: value(&typed.expect_body),
    };
    let tls = || {
        TlsCheck::new(
            value(&typed.server_name),
            typed.ca_file.as_ref().map(|at| at.value.clone()),
            typed.verify.as_ref().map(|at| at.value),
        )
    };
    let exchange = || Exchange {
        send: typed.send.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        expect: typed.expect.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
    };
    match word {
        "http" => Probe::Http(http()),
        "https" => Probe::Https { http: http(), tls: tls() },
        "udp" => Probe::Udp(exchange()),
        "grpc" => Probe::Grpc(GrpcCheck {
            service: value(&typed.service).unwrap_or_default(),
            host: value(&typed.host),
            tls: typed.tls.as_ref().is_some_and(|at| at.value).then(tls),
        }),
        "none" => Probe::None,
        _ => Probe::Tcp(exchange()),
    }
}

/// A guard's refusal with the place in the file that it is about, where that is known.
#[must_use]
pub fn located(file: &str, config: &Config, error: Error) -> Error {
    let found = config.places.iter().find(|(what, _)| error.message.starts_with(&format!("{what}:")));
    match found {
        Some((_, place)) => {
            Error { message: format!("{file}:{}:{}: {}", place.line, place.column, error.message), ..error }
        }
        None => error,
    }
}
