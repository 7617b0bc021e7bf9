//! Changes of the desired state: what they mean. Which are refused is said in [`super::guards`].
//!
//! [`Desired::change`] is pure: it gives a whole new state or an error, never half of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{
    Admin, BackendSpec, Desired, ServiceOptions, ServiceSpec, Settings, Source, Vip,
    guards::{check_backend, check_service, vip_addresses},
};
use crate::{
    Error, Result,
    net::{Listener, RouteTo},
    reconcile::BackendKey,
};

/// Something that somebody wants changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// `lb attach`: settings, and what its flags say of one service.
    Attach {
        /// The data plane's settings.
        settings: Box<Settings>,
        /// The service that the flags describe.
        service: Option<Box<ServiceSpec>>,
    },
    /// `lb service add`.
    AddService {
        /// The new service.
        service: Box<ServiceSpec>,
    },
    /// `lb service set`.
    SetService {
        /// Its name or a VIP.
        service: String,
        /// What is to be different.
        options: Box<ServiceOptions>,
        /// The new list of backends, if it is to be replaced.
        backends: Option<Vec<(SocketAddr, u16)>>,
    },
    /// `lb service remove`.
    RemoveService {
        /// Its name or a VIP.
        service: String,
    },
    /// `lb backend add`.
    AddBackends {
        /// The service's name or a VIP; may be left out while there is one.
        service: Option<String>,
        /// Addresses and weights.
        backends: Vec<(SocketAddr, u16)>,
    },
    /// `lb backend remove`.
    RemoveBackends {
        /// As above.
        service: Option<String>,
        /// Which.
        backends: Vec<SocketAddr>,
    },
    /// `lb backend weight`.
    SetWeight {
        /// As above.
        service: Option<String>,
        /// Which.
        backend: SocketAddr,
        /// The new weight.
        weight: u16,
    },
    /// `lb backend drain|ready|maint`.
    SetAdmin {
        /// As above.
        service: Option<String>,
        /// Which.
        backends: Vec<SocketAddr>,
        /// The new admin state.
        admin: Admin,
    },
}

/// What guards look at; filled by the daemon.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Addresses that this host owns.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Sockets that listen on this host.
    pub listeners: Vec<Listener>,
    /// The host's own port range.
    pub local_port_range: (u16, u16),
    /// Attached interfaces, by index.
    pub attached: BTreeMap<u32, String>,
    /// Names of all interfaces, by index.
    pub interfaces: BTreeMap<u32, String>,
    /// Routes to the addresses of the change's backends; `None` = no route.
    pub routes: BTreeMap<IpAddr, Option<RouteTo>>,
    /// Live flows.
    pub flows: BTreeMap<BackendKey, u64>,
    /// Who takes new flows now.
    pub usable: BTreeMap<String, BTreeSet<SocketAddr>>,
}

/// What a change comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The new state.
    pub desired: Desired,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// What the change does, in sentences.
    pub summary: Vec<String>,
}

impl Change {
    /// Addresses of the backends that it brings.
    #[must_use]
    pub fn backends(&self) -> Vec<SocketAddr> {
        let of = |service: &ServiceSpec| service.backends.iter().map(|backend| backend.address).collect();
        match self {
            Self::Attach { service: Some(service), .. } | Self::AddService { service } => of(service),
            Self::AddBackends { backends, .. } | Self::SetService { backends: Some(backends), .. } => {
                backends.iter().map(|(address, _)| *address).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Desired {
    /// The service of this name or with this VIP; without a name, the only one.
    pub fn service(&self, wanted: Option<&str>) -> Result<&ServiceSpec> {
        let names = || self.services.keys().cloned().collect::<Vec<_>>().join(" ");
        let Some(wanted) = wanted else {
            let mut all = self.services.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => {
                    Err(Error::not_found("there is no service").hint("lb service add VIP --backends ADDR:PORT,.."))
                }
                _ => Err(Error::usage("there are several services: which one?")
                    .hint(format!("-s NAME, one of: {}", names()))),
            };
        };
        let vip = wanted.parse::<Vip>().ok();
        let found = self
            .services
            .get(wanted)
            .or_else(|| self.services.values().find(|service| vip.is_some_and(|vip| service.vips.contains(&vip))));
        found.ok_or_else(|| {
            let known =
                if self.services.is_empty() { "there is none yet".to_owned() } else { format!("known: {}", names()) };
            Error::not_found(format!("service {wanted}: there is none of this name or VIP")).hint(known)
        })
    }

    fn service_mut(&mut self, wanted: Option<&str>) -> Result<&mut ServiceSpec> {
        let name = self.service(wanted)?.name.clone();
        self.services.get_mut(&name).ok_or_else(|| Error::not_found(format!("service {name}: gone")))
    }

    /// The state after a change, or why it is refused. `force` overrides the guards that may be overridden.
    pub fn change(&self, change: &Change, facts: &Facts, force: bool) -> Result<Outcome> {
        let mut next = Outcome { desired: self.clone(), warnings: Vec::new(), summary: Vec::new() };
        next.desired.generation += 1;
        match change {
            Change::Attach { settings, service } => attach(&mut next, settings, service.as_deref(), facts, force)?,
            Change::AddService { service } => {
                if self.services.contains_key(&service.name) {
                    return Err(Error::refused(format!("service {}: there is one of this name", service.name))
                        .hint("`lb service set` changes it; or choose another --name"));
                }
                check_service(self, service, facts, force, &mut next.warnings)?;
                next.summary.push(format!("{}: new, {} backends", service.name, service.backends.len()));
                next.desired.services.insert(service.name.clone(), (**service).clone());
            }
            Change::SetService { service, options, backends } => {
                set_service(&mut next, service, options, backends.as_deref(), facts)?;
            }
            Change::RemoveService { service } => {
                let name = self.service(Some(service))?.name.clone();
                let flows: u64 =
                    facts.flows.iter().filter(|(key, _)| key.service == name).map(|(_, flows)| flows).sum();
                next.desired.services.remove(&name);
                next.summary.push(format!("{name}: removed; {flows} flows {}", go_on(force)));
            }
            Change::AddBackends { service, backends } => add_backends(&mut next, service.as_deref(), backends, facts)?,
            Change::RemoveBackends { service, backends } => {
                remove_backends(&mut next, service.as_deref(), backends, facts, force)?;
            }
            Change::SetWeight { service, backend, weight } => {
                let service = next.desired.service_mut(service.as_deref())?;
                let old = std::mem::replace(&mut find(service, *backend)?.weight, *weight);
                next.summary.push(format!("{backend}: weight {old} -> {weight}; known flows stay"));
            }
            Change::SetAdmin { service, backends, admin } => {
                let service = next.desired.service_mut(service.as_deref())?;
                let name = service.name.clone();
                for address in backends {
                    find(service, *address)?.admin = *admin;
                    let flows = flows_of(facts, &name, *address);
                    next.summary.push(match admin {
                        Admin::Ready => format!("{address}: ready for new flows"),
                        Admin::Drain => format!("{address}: drains; its {flows} flows go on, new ones go elsewhere"),
                        Admin::Maint => format!("{address}: in maintenance; its {flows} flows are reset"),
                    });
                }
            }
        }
        Ok(next)
    }
}

const fn go_on(force: bool) -> &'static str {
    if force { "are reset" } else { "go on until they end" }
}

fn flows_of(facts: &Facts, service: &str, address: SocketAddr) -> u64 {
    facts.flows.get(&BackendKey { service: service.to_owned(), address }).copied().unwrap_or(0)
}

fn find(service: &mut ServiceSpec, address: SocketAddr) -> Result<&mut BackendSpec> {
    let name = service.name.clone();
    let known = service.backends.iter().map(|backend| backend.address.to_string()).collect::<Vec<_>>().join(" ");
    service.backends.iter_mut().find(|backend| backend.address == address).ok_or_else(|| {
        let known = if known.is_empty() { "it has no backends".to_owned() } else { format!("it has: {known}") };
        Error::not_found(format!("backend {address}: not in service {name}")).hint(known)
    })
}

/// A statement of the flags replaces what the flags said before; admin states persist.
fn attach(
    next: &mut Outcome,
    settings: &Settings,
    service: Option<&ServiceSpec>,
    facts: &Facts,
    force: bool,
) -> Result<()> {
    next.desired.settings = settings.clone();
    let before: Vec<_> = next.desired.services.values().filter(|old| old.source == Source::Flags).cloned().collect();
    let Some(service) = service else { return Ok(()) };
    for old in &before {
        next.desired.services.remove(&old.name);
    }
    let mut merged = service.clone();
    if let Some(old) = before.iter().find(|old| old.name == service.name) {
        for backend in &mut merged.backends {
            if let Some(known) = old.backends.iter().find(|known| known.address == backend.address) {
                backend.admin = known.admin;
            }
        }
        let others = old.backends.iter().filter(|known| known.source != Source::Flags);
        let new: Vec<_> =
            others.filter(|known| merged.backends.iter().all(|b| b.address != known.address)).cloned().collect();
        merged.backends.extend(new);
        merged.backends.sort_by_key(|backend| backend.address);
    }
    check_service(&next.desired, &merged, facts, force, &mut next.warnings)?;
    next.summary.push(format!("{}: {} backends", merged.name, merged.backends.len()));
    next.desired.services.insert(merged.name.clone(), merged);
    Ok(())
}

fn set_service(
    next: &mut Outcome,
    wanted: &str,
    options: &ServiceOptions,
    backends: Option<&[(SocketAddr, u16)]>,
    facts: &Facts,
) -> Result<()> {
    let old = next.desired.service(Some(wanted))?.clone();
    let mut new = old.clone();
    if options.mode.is_some_and(|mode| mode != old.mode) {
        return Err(Error::refused(format!("service {}: its mode cannot change while it lives", old.name))
            .hint("add a service in the new mode, then remove this one"));
    }
    if let Some(name) = &options.name {
        new.name.clone_from(name);
    }
    new.scheduler = options.scheduler.unwrap_or(old.scheduler);
    new.affinity = options.affinity.or(old.affinity).filter(|time| !time.is_zero());
    new.on_down = options.on_down.unwrap_or(old.on_down);
    new.on_empty = options.on_empty.unwrap_or(old.on_empty);
    if let Some(probe) = &options.health {
        new.health.probe = probe.clone();
    }
    if let Some(backends) = backends {
        let admin = |address| old.backends.iter().find(|b| b.address == address).map_or(Admin::Ready, |b| b.admin);
        new.backends = backends
            .iter()
            .map(|(address, weight)| BackendSpec {
                address: *address,
                weight: *weight,
                admin: admin(*address),
                source: Source::Cli,
            })
            .collect();
        new.backends.sort_by_key(|backend| backend.address);
    }
    next.desired.services.remove(&old.name);
    if next.desired.services.contains_key(&new.name) {
        return Err(Error::refused(format!("service {}: there is one of this name", new.name)));
    }
    check_service(&next.desired, &new, facts, true, &mut next.warnings)?;
    next.summary.push(format!("{}: changed; known flows stay", new.name));
    next.desired.services.insert(new.name.clone(), new);
    Ok(())
}

fn add_backends(
    next: &mut Outcome,
    service: Option<&str>,
    backends: &[(SocketAddr, u16)],
    facts: &Facts,
) -> Result<()> {
    let vips: BTreeSet<IpAddr> = vip_addresses(&next.desired);
    let service = next.desired.service_mut(service)?;
    for (address, weight) in backends {
        if service.backends.iter().any(|backend| backend.address == *address) {
            return Err(Error::refused(format!("backend {address}: service {} has it already", service.name))
                .hint(format!("`lb backend weight {address} N` changes its weight")));
        }
        check_backend(*address, &vips, facts)?;
        service.backends.push(BackendSpec {
            address: *address,
            weight: *weight,
            admin: Admin::Ready,
            source: Source::Cli,
        });
        next.summary.push(format!("{address}: added; takes new flows once it is up"));
    }
    service.backends.sort_by_key(|backend| backend.address);
    Ok(())
}

fn remove_backends(
    next: &mut Outcome,
    service: Option<&str>,
    backends: &[SocketAddr],
    facts: &Facts,
    force: bool,
) -> Result<()> {
    let service = next.desired.service_mut(service)?;
    for address in backends {
        find(service, *address)?;
    }
    let usable = facts.usable.get(&service.name);
    let last =
        usable.is_some_and(|usable| !usable.is_empty() && usable.iter().all(|address| backends.contains(address)));
    let flows: u64 = backends.iter().map(|address| flows_of(facts, &service.name, *address)).sum();
    if last && flows > 0 && !force {
        return Err(Error::refused(format!(
            "service {}: this removes its last usable backend, with {flows} live flows",
            service.name
        ))
        .hint("add another backend first, or --force"));
    }
    for address in backends {
        let flows = flows_of(facts, &service.name, *address);
        next.summary.push(format!("{address}: removed; its {flows} flows {}", go_on(force)));
    }
    service.backends.retain(|backend| !backends.contains(&backend.address));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        state::{Mode, Protocol, Scheduler},
    };

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn service(vip: &str, backends: &[&str]) -> Box<ServiceSpec> {
        let mut service = ServiceSpec::new(vip.parse().unwrap(), Source::Flags);
        service.backends = backends
            .iter()
            .map(|text| BackendSpec { address: address(text), weight: 1, admin: Admin::Ready, source: Source::Flags })
            .collect();
        Box::new(service)
    }

    fn facts() -> Facts {
        let route = |ifindex| Some(RouteTo { ifindex, source: None, gateway: None, local: false });
        Facts {
            host_addresses: [IpAddr::from([10, 0, 0, 1]), IpAddr::from([127, 0, 0, 1])].into(),
            listeners: vec![Listener {
                address: IpAddr::from([0, 0, 0, 0]),
                port: 22,
                protocol: Protocol::Tcp,
                process: Some("sshd (pid 7)".into()),
            }],
            local_port_range: (32768, 60999),
            attached: [(2, "eth0".to_owned())].into(),
            interfaces: [(2, "eth0".to_owned()), (3, "eth1".to_owned())].into(),
            routes: [
                (IpAddr::from([10, 0, 0, 2]), route(2)),
                (IpAddr::from([10, 0, 9, 9]), route(3)),
                (IpAddr::from([8, 8, 8, 8]), None),
            ]
            .into(),
            ..Facts::default()
        }
    }

    fn web() -> Desired {
        let change = Change::AddService { service: service("10.0.0.1:80", &["10.0.0.2:80", "10.0.0.3:80"]) };
        Desired::default().change(&change, &facts(), false).unwrap().desired
    }

    fn refused(change: &Change) -> Error {
        web().change(change, &facts(), false).expect_err("this must be refused")
    }

    #[test]
    fn every_refusal_says_what_and_how_to_mend_it() {
        let add = |text: &str| Change::AddBackends { service: None, backends: vec![(address(text), 1)] };
        let vip = |text: &str| Change::AddService { service: service(text, &[]) };
        let cases = [
            (add("127.0.0.1:80"), Kind::Refused, "loopback"),
            (add("10.0.0.1:8080"), Kind::Refused, "is a VIP"),
            (add("10.0.0.2:80"), Kind::Refused, "has it already"),
            (add("10.0.0.4:0"), Kind::Refused, "port 0"),
            (add("224.0.0.1:80"), Kind::Refused, "not the address of a server"),
            (add("0.0.0.0:80"), Kind::Refused, "not the address of a server"),
            (add("8.8.8.8:80"), Kind::Refused, "no route"),
            (add("10.0.9.9:80"), Kind::Refused, "through eth1, which is not attached"),
            (add("[2001:db8::1]:80"), Kind::Usage, "IPv6"),
            (vip("10.0.0.1:80"), Kind::Refused, "there is one of this name"),
            (vip("10.0.0.1:22"), Kind::Refused, "sshd (pid 7) listens"),
            (vip("10.0.0.1:0"), Kind::Refused, "every port"),
            (vip("127.0.0.1:80"), Kind::Refused, "not an address that clients can reach"),
            (vip("[2001:db8::1]:80"), Kind::Usage, "IPv6"),
            (Change::RemoveService { service: "nope".into() }, Kind::NotFound, "service nope"),
            (
                Change::RemoveBackends { service: None, backends: vec![address("10.0.0.9:80")] },
                Kind::NotFound,
                "not in service",
            ),
            (
                Change::SetWeight { service: None, backend: address("10.0.0.9:80"), weight: 1 },
                Kind::NotFound,
                "not in service",
            ),
        ];
        for (change, kind, words) in cases {
            let error = refused(&change);
            assert!(
                error.kind == kind && error.message.contains(words) && error.hint.is_some(),
                "{change:?}: {error:?}"
            );
        }
    }

    #[test]
    fn what_is_not_there_yet_is_refused_not_ignored() {
        let mut tunnel = service("10.0.0.1:81", &[]);
        tunnel.mode = Mode::Ipip;
        let mut turns = service("10.0.0.1:81", &[]);
        turns.scheduler = Scheduler::RoundRobin;
        for service in [tunnel, turns] {
            assert_eq!(refused(&Change::AddService { service }).kind, Kind::Usage);
        }
    }

    #[test]
    fn several_addresses_are_all_or_none() {
        let backends = vec![(address("10.0.0.5:80"), 1), (address("127.0.0.1:80"), 1)];
        refused(&Change::AddBackends { service: None, backends });
    }

    #[test]
    fn the_last_usable_backend_with_flows_needs_force() {
        let mut facts = facts();
        let name = "10.0.0.1:80/tcp".to_owned();
        facts.usable.insert(name.clone(), [address("10.0.0.2:80")].into());
        facts.flows.insert(BackendKey { service: name, address: address("10.0.0.2:80") }, 3);
        let change = Change::RemoveBackends { service: None, backends: vec![address("10.0.0.2:80")] };
        let error = web().change(&change, &facts, false).unwrap_err();
        assert!(error.message.contains("last usable") && error.hint.unwrap().contains("--force"));
        assert!(web().change(&change, &facts, true).unwrap().summary[0].contains("3 flows are reset"));
    }

    #[test]
    fn a_statement_of_the_flags_replaces_only_what_the_flags_said() {
        let attach = |backends: &[&str]| Change::Attach {
            settings: Box::default(),
            service: Some(service("10.0.0.1:80", backends)),
        };
        let (first, facts) = (attach(&["10.0.0.2:80", "10.0.0.3:80"]), facts());
        let mut state = Desired::default().change(&first, &facts, false).unwrap().desired;
        let more = Change::AddBackends { service: None, backends: vec![(address("10.0.0.7:80"), 5)] };
        state = state.change(&more, &facts, false).unwrap().desired;
        let drain = Change::SetAdmin { service: None, backends: vec![address("10.0.0.2:80")], admin: Admin::Drain };
        state = state.change(&drain, &facts, false).unwrap().desired;
        state = state.change(&attach(&["10.0.0.2:80", "10.0.0.4:80"]), &facts, false).unwrap().desired;
        let backends: Vec<_> =
            state.service(None).unwrap().backends.iter().map(|b| (b.address.to_string(), b.admin)).collect();
        let wanted = [("10.0.0.2:80", Admin::Drain), ("10.0.0.4:80", Admin::Ready), ("10.0.0.7:80", Admin::Ready)];
        assert_eq!(backends, wanted.map(|(address, admin)| (address.to_owned(), admin)));
        assert_eq!(state.generation, 4);
    }

    #[test]
    fn a_service_is_found_by_name_by_vip_and_by_being_the_only_one() {
        let state = web();
        for wanted in [Some("10.0.0.1:80/tcp"), Some("10.0.0.1:80"), None] {
            assert_eq!(state.service(wanted).unwrap().name, "10.0.0.1:80/tcp");
        }
        let two = Change::AddService { service: service("10.0.0.1:81", &[]) };
        let error = state.change(&two, &facts(), false).unwrap().desired.service(None).unwrap_err();
        assert!(error.hint.unwrap().contains("10.0.0.1:81/tcp"));
    }
}
