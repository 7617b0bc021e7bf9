//! The desired state: what counts, and what each source has said ([`super::statements`]). Nothing here does I/O.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Admin, HealthCheck, IdleTimeouts, Mode, OnDown, OnEmpty, OnExit, Probe, Scheduler, Source, Vip, XdpMode,
    statements::Statements,
};
use crate::discovery::SourceSpec;

/// One server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Address and port.
    pub address: SocketAddr,
    /// 0..=65535; 0 takes no new flows.
    pub weight: u16,
    /// What the operator wants.
    pub admin: Admin,
    /// Who stated it.
    pub source: Source,
}

/// A service: VIPs, how they are served, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique name; by default the first VIP's text.
    pub name: String,
    /// One or more.
    pub vips: Vec<Vip>,
    /// How packets reach the backends.
    pub mode: Mode,
    /// How a new flow picks one.
    pub scheduler: Scheduler,
    /// Same client address, same backend, for this long.
    pub affinity: Option<Duration>,
    /// A backend that comes up takes a growing share of new flows for this long.
    #[serde(default)]
    pub slow_start: Option<Duration>,
    /// How backends are checked.
    pub health: HealthCheck,
    /// What happens to flows of a backend that is down.
    pub on_down: OnDown,
    /// What happens to new flows when nobody is usable.
    pub on_empty: OnEmpty,
    /// When silent flows end.
    #[serde(default)]
    pub idle: IdleTimeouts,
    /// Who stated it.
    pub source: Source,
    /// Sorted by address; no two of the same address.
    pub backends: Vec<BackendSpec>,
    /// Registries and files that find more backends; no two of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discovery: Vec<SourceSpec>,
}

/// `SERVICE OPTIONS` of the command line: what was typed; `None` = not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOptions {
    /// `--name`.
    pub name: Option<String>,
    /// `--mode`.
    pub mode: Option<Mode>,
    /// `--scheduler`.
    pub scheduler: Option<Scheduler>,
    /// `--affinity`; 0 = off.
    pub affinity: Option<Duration>,
    /// `--slow-start`; 0 = off.
    #[serde(default)]
    pub slow_start: Option<Duration>,
    /// `--health`.
    pub health: Option<Probe>,
    /// `--on-down`.
    pub on_down: Option<OnDown>,
    /// `--on-empty`.
    pub on_empty: Option<OnEmpty>,
    /// `--idle`; replaces only the timeouts that it names.
    #[serde(default)]
    pub idle: Option<IdleTimeouts>,
    /// The sources in `--backends`.
    #[serde(default)]
    pub discovery: Option<Vec<SourceSpec>>,
}

/// What a source says about the data plane itself; `None` or empty = not said. [`Settings`] says what each means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of `Settings`")]
pub struct SettingsOptions {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp: Option<XdpMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snat: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snat_ports: Option<(u16, u16)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flows: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exit: Option<OnExit>,
}

/// The data plane's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Interfaces, the first is the default for VIPs and announcements.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub xdp: XdpMode,
    /// Device that VIPs are put on, if they are.
    pub announce: Option<String>,
    /// Addresses for NAT besides the default.
    pub snat: Vec<IpAddr>,
    /// Lowest and highest port for NAT, if said.
    pub snat_ports: Option<(u16, u16)>,
    /// Size of the flow table.
    pub max_flows: u32,
    /// What ending an `attach` does.
    pub on_exit: OnExit,
}

/// Everything that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Desired {
    /// Number of this state; every accepted change makes a new one.
    pub generation: u64,
    /// The data plane's settings that count.
    pub settings: Settings,
    /// The services that count, by name.
    pub services: BTreeMap<String, ServiceSpec>,
    /// Who said what; the other two follow from it.
    pub statements: Statements,
}

impl Desired {
    /// What follows from the statements.
    #[must_use]
    pub fn new(generation: u64, statements: Statements) -> Self {
        Self { generation, settings: statements.settings(), services: statements.services(), statements }
    }
}

impl ServiceSpec {
    /// A service of one VIP with product.md's defaults, no backends, and the VIP's text as its name.
    #[must_use]
    pub fn new(vip: Vip, source: Source) -> Self {
        Self {
            name: vip.to_string(),
            vips: vec![vip],
            mode: Mode::Nat,
            scheduler: Scheduler::Maglev,
            affinity: None,
            slow_start: None,
            health: HealthCheck::default_for(vip.protocol),
            on_down: OnDown::Auto,
            on_empty: OnEmpty::Reject,
            idle: IdleTimeouts::default(),
            source,
            backends: Vec::new(),
            discovery: Vec::new(),
        }
    }
}

impl ServiceOptions {
    /// What is said here, and for the rest what is said in `other`.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let Self { name, mode, scheduler, affinity, slow_start, health, on_down, on_empty, idle, discovery } = self;
        Self {
            name: name.or_else(|| other.name.clone()),
            mode: mode.or(other.mode),
            scheduler: scheduler.or(other.scheduler),
            affinity: affinity.or(other.affinity),
            slow_start: slow_start.or(other.slow_start),
            health: health.or_else(|| other.health.clone()),
            on_down: on_down.or(other.on_down),
            on_empty: on_empty.or(other.on_empty),
            idle: idle.map(|idle| idle.or(other.idle.unwrap_or_default())).or(other.idle),
            discovery: discovery.or_else(|| other.discovery.clone()),
        }
    }

    /// Puts what is said into a service.
    pub fn apply(&self, service: &mut ServiceSpec) {
        let Self { name, mode, scheduler, affinity, slow_start, health, on_down, on_empty, idle, discovery } = self;
        if let Some(name) = name {
            service.name.clone_from(name);
        }
        if let Some(probe) = health {
            service.health.probe = probe.clone();
        }
        service.mode = mode.unwrap_or(service.mode);
        service.scheduler = scheduler.unwrap_or(service.scheduler);
        service.affinity = affinity.or(service.affinity).filter(|time| !time.is_zero());
        service.slow_start = slow_start.or(service.slow_start).filter(|time| !time.is_zero());
        service.on_down = on_down.unwrap_or(service.on_down);
        service.on_empty = on_empty.unwrap_or(service.on_empty);
        service.idle = idle.unwrap_or_default().or(service.idle);
        if let Some(sources) = discovery {
            service.discovery.clone_from(sources);
        }
    }
}

impl SettingsOptions {
    /// What is said here, and for the rest what is said in `other`.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let Self { interfaces, xdp, announce, snat, snat_ports, max_flows, on_exit } = self;
        Self {
            interfaces: if interfaces.is_empty() { other.interfaces.clone() } else { interfaces },
            xdp: xdp.or(other.xdp),
            announce: announce.or_else(|| other.announce.clone()),
            snat: if snat.is_empty() { other.snat.clone() } else { snat },
            snat_ports: snat_ports.or(other.snat_ports),
            max_flows: max_flows.or(other.max_flows),
            on_exit: on_exit.or(other.on_exit),
        }
    }
}

impl From<SettingsOptions> for Settings {
    fn from(said: SettingsOptions) -> Self {
        let default = Self::default();
        let SettingsOptions { interfaces, xdp, announce, snat, snat_ports, max_flows, on_exit } = said;
        // An empty name stands for the first interface.
        let announce =
            announce.and_then(|device| if device.is_empty() { interfaces.first().cloned() } else { Some(device) });
        Self {
            interfaces,
            xdp: xdp.unwrap_or(default.xdp),
            announce,
            snat,
            snat_ports,
            max_flows: max_flows.unwrap_or(default.max_flows),
            on_exit: on_exit.unwrap_or(default.on_exit),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            xdp: XdpMode::Auto,
            announce: None,
            snat: Vec::new(),
            snat_ports: None,
            max_flows: lb_common::maps::DEFAULT_MAX_FLOWS,
            on_exit: OnExit::Detach,
        }
    }
}
