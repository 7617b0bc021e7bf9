//! What was typed: the keys of a file as values with their places. What they mean together is in [`super::meaning`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use toml::{Spanned, de::DeTable};

use super::{
    keys,
    problem::Place,
    reader::{At, Reader, Section, Value},
};
use crate::{
    Error, Result,
    discovery::SourceSpec,
    state::{
        IdleTimeouts, Mode, OnDown, OnEmpty, OnExit, Payload, Scheduler, StatusSet, Via, Vip, XdpMode,
        idle::IDLE_STATES,
        typed::{parse_list, parse_ports},
    },
};

/// A file.
#[derive(Debug, Default)]
pub struct TypedFile {
    pub interfaces: Vec<At<String>>,
    pub xdp: Option<At<XdpMode>>,
    pub announce: Option<At<Announce>>,
    pub snat: Vec<At<IpAddr>>,
    pub snat_ports: Option<At<(u16, u16)>>,
    pub max_flows: Option<At<u64>>,
    pub on_exit: Option<At<OnExit>>,
    pub bpf_log: Option<At<u8>>,
    pub shared: Option<At<SourceSpec>>,
    pub idle: IdleTimeouts,
    pub services: Vec<TypedService>,
}

/// `announce`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announce {
    /// `true`: on the first interface; `false`: not at all.
    First(bool),
    /// On this device.
    On(String),
}

/// A `[[service]]`.
#[derive(Debug)]
pub struct TypedService {
    pub place: Place,
    pub name: Option<At<String>>,
    pub vips: Vec<At<Vip>>,
    pub mode: Option<At<Mode>>,
    pub scheduler: Option<At<Scheduler>>,
    pub affinity: Option<At<Duration>>,
    pub slow_start: Option<At<Duration>>,
    pub on_down: Option<At<OnDown>>,
    pub on_empty: Option<At<OnEmpty>>,
    pub idle: IdleTimeouts,
    pub backends: Vec<At<(SocketAddr, u16)>>,
    pub health: Option<TypedHealth>,
    pub discovery: Vec<At<SourceSpec>>,
}

/// A `[service.health]`.
#[derive(Debug)]
pub struct TypedHealth {
    /// Where each key stands.
    pub places: BTreeMap<&'static str, Place>,
    pub kind: Option<At<String>>,
    pub path: Option<At<String>>,
    pub host: Option<At<String>>,
    pub port: Option<At<u16>>,
    pub expect_status: Option<At<StatusSet>>,
    pub expect_body: Option<At<String>>,
    pub send: Option<At<Payload>>,
    pub expect: Option<At<Payload>>,
    pub service: Option<At<String>>,
    pub tls: Option<At<bool>>,
    pub server_name: Option<At<String>>,
    pub ca_file: Option<At<PathBuf>>,
    pub verify: Option<At<bool>>,
    pub via: Option<At<Via>>,
    pub interval: Option<At<Duration>>,
    pub timeout: Option<At<Duration>>,
    pub rise: Option<At<u32>>,
    pub fall: Option<At<u32>>,
}

/// Reads a whole file.
pub fn read(reader: &Reader<'_>, document: &Spanned<DeTable<'_>>) -> TypedFile {
    let top = Section::new(reader, &keys::FILE, document.get_ref(), &document.span());
    let each = |name| top.get(name).map(|value| value.each()).unwrap_or_default();
    TypedFile {
        interfaces: each("interfaces").iter().filter_map(|value| value.parse_by(interface)).collect(),
        xdp: top.get("xdp").and_then(|value| value.parse()),
        announce: top.get("announce").and_then(|value| announce(&value)),
        snat: each("snat").iter().filter_map(|value| value.parse_by(address)).collect(),
        snat_ports: top.get("snat_ports").and_then(|value| value.parse_by(parse_ports)),
        max_flows: top.get("max_flows").and_then(|value| value.size()),
        on_exit: top.get("on_exit").and_then(|value| value.parse()),
        bpf_log: top.get("bpf_log").and_then(|value| value.number()),
        shared: top.get("shared").and_then(|value| value.parse_by(super::sources::shared)),
        idle: top.get("idle").and_then(|value| value.table()).map(|section| idle(&section)).unwrap_or_default(),
        services: top.get("service").map(|value| value.tables()).unwrap_or_default().iter().map(service).collect(),
    }
}

fn interface(text: &str) -> Result<String> {
    if text.contains(',') {
        let names: Vec<_> = text.split(',').map(|name| format!("{:?}", name.trim())).collect();
        return Err(Error::usage(format!("'{text}' is several interfaces in one text"))
            .hint(format!("a list: [{}]", names.join(", "))));
    }
    // IFNAMSIZ, with its zero byte; and what the kernel's dev_valid_name() refuses.
    let is_odd = |c: char| c.is_whitespace() || matches!(c, '/' | ':');
    if text.len() > 15 || matches!(text, "." | "..") || text.contains(is_odd) {
        return Err(Error::usage(format!("'{text}' cannot be the name of an interface")).hint("see `ip link`"));
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::usage(format!("'{text}' is not an IP address")).hint("as in \"10.0.0.8\""))
}

fn announce(value: &Value<'_>) -> Option<At<Announce>> {
    if value.raw().is_bool() {
        return value.flag().map(|at| At { value: Announce::First(at.value), place: at.place });
    }
    let device = value.parse_by(interface)?;
    if matches!(device.value.as_str(), "true" | "false" | "yes" | "no") {
        value.wrong(
            format!("'{}' in quotes is the name of a device", device.value),
            Some("announce = true, announce = false, or announce = \"DEV\"".to_owned()),
        );
        return None;
    }
    Some(At { value: Announce::On(device.value), place: device.place })
}

fn idle(section: &Section<'_>) -> IdleTimeouts {
    let mut timeouts = IdleTimeouts::default();
    for state in IDLE_STATES {
        let Some(time) = section.get(state).and_then(|value| value.time()) else { continue };
        if let Err(error) = timeouts.set(state, time.value) {
            section.reader.error(time.place, &section.path_of(state), error);
        }
    }
    timeouts
}

fn service(section: &Section<'_>) -> TypedService {
    let vips = section.required("vip").map(|value| value.each()).unwrap_or_default();
    TypedService {
        place: section.place,
        name: section.get("name").and_then(|value| value.parse_by(name)),
        vips: vips.iter().filter_map(Value::parse).collect(),
        mode: section.get("mode").and_then(|value| value.parse()),
        scheduler: section.get("scheduler").and_then(|value| value.parse()),
        affinity: section.get("affinity").and_then(|value| value.time()),
        slow_start: section.get("slow_start").and_then(|value| value.time()),
        on_down: section.get("on_down").and_then(|value| value.parse()),
        on_empty: section.get("on_empty").and_then(|value| value.parse()),
        idle: section.get("idle").and_then(|value| value.table()).map(|section| idle(&section)).unwrap_or_default(),
        ..backends(section)
    }
}

fn name(text: &str) -> Result<String> {
    if text.is_empty() || text.len() > 128 || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::usage(format!("'{text}' cannot be a name")).hint("1 to 128 characters without spaces"));
    }
    Ok(text.to_owned())
}

/// Who serves: fixed backends, registries, and how they are checked.
fn backends(section: &Section<'_>) -> TypedService {
    let mut fixed = Vec::new();
    let mut sources = Vec::new();
    for value in section.get("backends").map(|value| value.list()).unwrap_or_default() {
        if value.raw().is_table() {
            fixed.extend(value.table().and_then(|table| backend(&table)));
        } else if let Some(list) = value.parse_by(parse_list) {
            let place = list.place;
            fixed.extend(list.value.fixed.into_iter().map(|value| At { value, place }));
            sources.extend(list.value.sources.into_iter().map(|value| At { value, place }));
        }
    }
    if let Some(discovery) = section.get("discovery").and_then(|value| value.table()) {
        sources.extend(super::sources::read(&discovery));
    }
    TypedService {
        place: section.place,
        name: None,
        vips: Vec::new(),
        mode: None,
        scheduler: None,
        affinity: None,
        slow_start: None,
        on_down: None,
        on_empty: None,
        idle: IdleTimeouts::default(),
        backends: fixed,
        health: section.get("health").and_then(|value| value.table()).map(|section| health(&section)),
        discovery: sources,
    }
}

fn backend(section: &Section<'_>) -> Option<At<(SocketAddr, u16)>> {
    let weight = section.get("weight").map_or(Some(1), |value| value.number::<u16>().map(|at| at.value));
    let address = section.required("address")?;
    let (at, said) = (address.text()?, section.get("weight").is_some());
    if said && at.value.contains('=') {
        address.wrong("the weight is there twice", Some("either \"ADDR:PORT=WEIGHT\" or weight = N".to_owned()));
        return None;
    }
    let parsed = address.parse_by(crate::state::typed::parse_backend)?;
    let (backend, typed) = parsed.value;
    Some(At { value: (backend, if said { weight? } else { typed }), place: parsed.place })
}

fn health(section: &Section<'_>) -> TypedHealth {
    let text = |name| section.get(name).and_then(|value| value.text());
    let payload = |name| section.get(name).and_then(|value| value.parse());
    let time = |name| section.get(name).and_then(|value| value.time());
    let count = |name| section.get(name).and_then(|value| value.number());
    let flag = |name| section.get(name).and_then(|value| value.flag());
    let places = section.names().filter_map(|(name, place)| Some((keys::health_key(name)?, place)));
    TypedHealth {
        places: places.collect(),
        kind: section.get("type").and_then(|value| value.parse_by(kind)),
        path: section.get("path").and_then(|value| value.parse_by(get_path)),
        host: section.get("host").and_then(|value| value.parse_by(host)),
        port: section.get("port").and_then(|value| value.number()),
        expect_status: section.get("expect_status").and_then(|value| statuses(&value)),
        expect_body: text("expect_body"),
        send: payload("send"),
        expect: payload("expect"),
        service: text("service"),
        tls: flag("tls"),
        server_name: section.get("server_name").and_then(|value| value.parse_by(host)),
        ca_file: section.get("ca_file").and_then(|value| value.path_of_file()),
        verify: flag("verify"),
        via: section.get("via").and_then(|value| value.parse()),
        interval: time("interval"),
        timeout: time("timeout"),
        rise: count("rise"),
        fall: count("fall"),
    }
}

fn kind(text: &str) -> Result<String> {
    const KINDS: [&str; 6] = ["tcp", "http", "https", "udp", "grpc", "none"];
    if KINDS.contains(&text) {
        return Ok(text.to_owned());
    }
    let wrong = Error::usage(format!("'{text}' is not a type of health check"));
    match text.split_once(':') {
        Some((kind @ ("http" | "https"), path)) => {
            Err(wrong.hint(format!("in a file: type = \"{kind}\" and path = \"{path}\"")))
        }
        _ => Err(wrong.hint(format!("one of: {}", KINDS.join(" ")))),
    }
}

/// What stands in a header, or names a TLS server.
fn host(text: &str) -> Result<String> {
    if text.chars().all(|c| c.is_ascii_graphic() && c != '/') {
        return Ok(text.to_owned());
    }
    Err(Error::usage(format!("{text:?} is not the name of a host")).hint("as in \"www.example.org\""))
}

fn get_path(text: &str) -> Result<String> {
    if text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(Error::usage(format!("'{text}' is not a path"))
        .hint("it begins with '/' and has no spaces, as in \"/healthz\""))
}

fn statuses(value: &Value<'_>) -> Option<At<StatusSet>> {
    if value.raw().is_integer() {
        let status = value.number::<u16>()?;
        let set = status.value.to_string().parse().ok()?;
        return Some(At { value: set, place: status.place });
    }
    value.parse()
}
