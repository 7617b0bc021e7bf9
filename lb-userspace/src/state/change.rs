//! Changes of the desired state: what they mean. Which are refused is said in [`super::guards`].
//!
//! [`Desired::change`] is pure: it gives a whole new state or an error, never half of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{
    Admin, BackendSpec, Desired, ServiceOptions, ServiceSpec, SettingsOptions, Source, Vip,
    guards::{check, check_backend, vip_addresses},
    statements::{ServiceStatement, Statement, Statements},
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
        /// What they say of the data plane; what they do not say stays as flags said it before.
        settings: Box<SettingsOptions>,
        /// The service that the flags describe; without one the former stays.
        service: Option<Box<ServiceSpec>>,
    },
    /// A source states all that it has to say: what it said before and does not say now is withdrawn.
    Restate {
        /// Who speaks.
        source: Source,
        /// What it says of the data plane.
        settings: Box<SettingsOptions>,
        /// Its services with their backends.
        services: Vec<ServiceSpec>,
    },
    /// A registry states the whole set of backends that it knows of a service. Those that it does not name any more
    /// take no new flows, while known ones go on; one that comes back resumes. Backends that cannot be are left out
    /// with a warning.
    Snapshot {
        /// The service's name.
        service: String,
        /// Which registry.
        source: Source,
        /// Addresses and weights.
        backends: Vec<(SocketAddr, u16)>,
    },
    /// A registry is not asked any more: what it said of a service is withdrawn.
    Withdraw {
        /// The service's name; it may be gone.
        service: String,
        /// Which registry.
        source: Source,
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
    /// Those that lb put there itself: they are the host's only because they are VIPs.
    pub announced: BTreeSet<IpAddr>,
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
        let of = |service: &ServiceSpec| service.backends.iter().map(|backend| backend.address).collect::<Vec<_>>();
        match self {
            Self::Attach { service: Some(service), .. } | Self::AddService { service } => of(service),
            Self::Restate { services, .. } => services.iter().flat_map(of).collect(),
            Self::AddBackends { backends, .. }
            | Self::SetService { backends: Some(backends), .. }
            | Self::Snapshot { backends, .. } => backends.iter().map(|(address, _)| *address).collect(),
            _ => Vec::new(),
        }
    }
}

/// A change under way.
struct Draft<'a> {
    /// What stands.
    now: &'a Desired,
    facts: &'a Facts,
    force: bool,
    statements: Statements,
    warnings: Vec<String>,
    /// Sentences; when there are none, the difference is told.
    summary: Vec<String>,
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

    /// The state after a change, or why it is refused; the same state if it changes nothing. `force` overrides the
    /// guards that may be overridden.
    pub fn change(&self, change: &Change, facts: &Facts, force: bool) -> Result<Outcome> {
        let change = &change.placed(self);
        let statements = self.statements.clone();
        let mut draft = Draft { now: self, facts, force, statements, warnings: Vec::new(), summary: Vec::new() };
        match change {
            Change::Attach { settings, service } => draft.attach(settings, service.as_deref()),
            Change::Restate { source, settings, services } => draft.restate(source, settings, services)?,
            Change::Snapshot { service, source, backends } => draft.snapshot(service, source, backends)?,
            Change::Withdraw { service, source } => {
                draft.statements.state(source.clone(), service, ServiceStatement::default());
            }
            Change::AddService { service } => draft.add_service(service)?,
            Change::SetService { service, options, backends } => {
                draft.set_service(service, options, backends.as_deref())?;
            }
            Change::RemoveService { service } => draft.remove_service(service)?,
            Change::AddBackends { service, backends } => draft.add_backends(service.as_deref(), backends)?,
            Change::RemoveBackends { service, backends } => draft.remove_backends(service.as_deref(), backends)?,
            Change::SetWeight { service, backend, weight } => {
                draft.set_weight(service.as_deref(), *backend, *weight)?;
            }
            Change::SetAdmin { service, backends, admin } => draft.set_admin(service.as_deref(), backends, *admin)?,
        }
        draft.finish()
    }
}

impl Draft<'_> {
    fn finish(mut self) -> Result<Outcome> {
        self.statements.tidy();
        let mut desired = Desired::new(self.now.generation + 1, self.statements);
        if desired.statements == self.now.statements && desired.services == self.now.services {
            desired.generation = self.now.generation;
        }
        check(self.now, &desired, self.facts, self.force, &mut self.warnings)?;
        if self.summary.is_empty() {
            self.summary = difference(self.now, &desired, self.facts, self.force);
        }
        Ok(Outcome { desired, warnings: self.warnings, summary: self.summary })
    }

    /// What is typed to start counts against what the operator removed before.
    fn attach(&mut self, settings: &SettingsOptions, service: Option<&ServiceSpec>) {
        let before = self.statements.of(&Source::Flags);
        // How an ended attach was to end says nothing of this one.
        let adopted = SettingsOptions { on_exit: None, ..before.settings };
        let mut services = before.services;
        if let Some(service) = service {
            services = [(service.name.clone(), service.clone().into())].into();
            self.statements.allow(&service.name, service.backends.iter().map(|backend| backend.address));
        }
        self.statements.restate(Source::Flags, Statement { settings: settings.clone().or(&adopted), services });
    }

    fn restate(&mut self, source: &Source, settings: &SettingsOptions, services: &[ServiceSpec]) -> Result<()> {
        let mut stated: BTreeMap<String, ServiceStatement> = BTreeMap::new();
        for service in services {
            if stated.insert(service.name.clone(), service.clone().into()).is_some() {
                return Err(Error::usage(format!("service {}: named twice", service.name))
                    .hint("give each service a name of its own"));
            }
            let mut addresses = BTreeSet::new();
            if let Some(twice) = service.backends.iter().find(|backend| !addresses.insert(backend.address)) {
                return Err(Error::usage(format!(
                    "service {}: backend {} is named twice",
                    service.name, twice.address
                ))
                .hint("name it once, with its weight"));
            }
        }
        self.warn_overruled(source, services);
        self.statements.restate(source.clone(), Statement { settings: settings.clone(), services: stated });
        Ok(())
    }

    /// Says where the operator's word stands against what is stated.
    fn warn_overruled(&mut self, source: &Source, services: &[ServiceSpec]) {
        for service in services {
            let name = &service.name;
            let Some(word) = self.statements.word(name) else { continue };
            if word.removed {
                self.warnings.push(format!(
                    "service {name}: `lb service remove` stands against the {source}; `lb service add` brings it back"
                ));
                continue;
            }
            let mut set = service.clone();
            word.options.apply(&mut set);
            set.name.clone_from(name);
            if set != *service {
                self.warnings.push(format!(
                    "service {name}: what `lb service set` said stands against the {source}; set it again to change it"
                ));
            }
            for backend in &service.backends {
                let Some(word) = word.backends.get(&backend.address) else { continue };
                let address = backend.address;
                if word.removed {
                    self.warnings.push(format!(
                        "{address}: `lb backend remove` stands against the {source}; `lb backend add {address}` brings it back"
                    ));
                } else if let Some(weight) = word.weight.filter(|weight| *weight != backend.weight) {
                    self.warnings.push(format!(
                        "{address}: weight {weight} of `lb backend weight` stands against the {source}'s {}",
                        backend.weight
                    ));
                }
            }
        }
    }

    fn snapshot(&mut self, service: &str, source: &Source, backends: &[(SocketAddr, u16)]) -> Result<()> {
        let service = self.now.service(Some(service))?;
        let vips = vip_addresses(self.now);
        let mut said = self.statements.of(source).services.remove(&service.name).unwrap_or_default();
        let known = std::mem::take(&mut said.backends);
        for (address, weight) in backends {
            let checked =
                if known.contains_key(address) { Ok(()) } else { check_backend(service, *address, &vips, self.facts) };
            match checked {
                Ok(()) => {
                    said.backends.insert(*address, *weight);
                }
                Err(error) => self.warnings.push(format!("{source}: {error}")),
            }
        }
        self.statements.state(source.clone(), &service.name, said);
        Ok(())
    }

    fn add_service(&mut self, service: &ServiceSpec) -> Result<()> {
        if self.now.services.contains_key(&service.name) {
            return Err(Error::refused(format!("service {}: there is one of this name", service.name))
                .hint("`lb service set` changes it; or choose another --name"));
        }
        self.summary.push(format!("{}: new, {} backends", service.name, service.backends.len()));
        self.statements.allow(&service.name, service.backends.iter().map(|backend| backend.address));
        self.statements.state(Source::Cli, &service.name, service.clone().into());
        Ok(())
    }

    fn set_service(
        &mut self,
        wanted: &str,
        options: &ServiceOptions,
        backends: Option<&[(SocketAddr, u16)]>,
    ) -> Result<()> {
        let old = self.now.service(Some(wanted))?;
        let mut options = options.clone();
        let name = options.name.take().unwrap_or_else(|| old.name.clone());
        if name != old.name {
            if self.now.services.contains_key(&name) {
                return Err(
                    Error::refused(format!("service {name}: there is one of this name")).hint("choose another --name")
                );
            }
            if options.mode.is_some_and(|mode| mode != old.mode) {
                return Err(Error::refused(format!("service {}: its mode cannot change while it lives", old.name))
                    .hint("add a service in the new mode, then remove this one"));
            }
            self.statements.rename(&old.name, &name);
        }
        self.statements.set_options(&name, &options);
        if let Some(backends) = backends {
            // What registries say is theirs to withdraw; which registries are asked is in the options.
            let listed = old.backends.iter().filter(|old| !matches!(old.source, Source::Registry(_)));
            for gone in listed.filter(|old| backends.iter().all(|(address, _)| *address != old.address)) {
                self.statements.remove_backend(&name, gone.address);
            }
            for (address, weight) in backends {
                match old.backends.iter().find(|old| old.address == *address) {
                    Some(old) if old.weight == *weight => {}
                    Some(_) => self.statements.backend_word(&name, *address).weight = Some(*weight),
                    None => self.state_backend(&name, *address, *weight),
                }
            }
        }
        self.summary.push(format!("{name}: changed; known flows stay"));
        Ok(())
    }

    /// The operator wants a backend, with a weight.
    fn state_backend(&mut self, service: &str, address: SocketAddr, weight: u16) {
        let mut said = self.statements.of(&Source::Cli).services.remove(service).unwrap_or_default();
        said.backends.insert(address, weight);
        self.statements.allow(service, [address]);
        self.statements.state(Source::Cli, service, said);
        if self.statements.claims(service, address).len() > 1 {
            self.statements.backend_word(service, address).weight = Some(weight);
        }
    }

    fn remove_service(&mut self, service: &str) -> Result<()> {
        let name = self.now.service(Some(service))?.name.clone();
        let flows: u64 = self.facts.flows.iter().filter(|(key, _)| key.service == name).map(|(_, flows)| flows).sum();
        self.statements.remove_service(&name);
        self.summary.push(format!("{name}: removed; {flows} flows {}", go_on(self.force)));
        Ok(())
    }

    fn add_backends(&mut self, service: Option<&str>, backends: &[(SocketAddr, u16)]) -> Result<()> {
        let service = self.now.service(service)?;
        for (address, weight) in backends {
            if service.backends.iter().any(|backend| backend.address == *address) {
                return Err(Error::refused(format!("backend {address}: service {} has it already", service.name))
                    .hint(format!("`lb backend weight {address} N` changes its weight")));
            }
            self.state_backend(&service.name, *address, *weight);
            self.summary.push(format!("{address}: added; takes new flows once it is up"));
        }
        Ok(())
    }

    fn remove_backends(&mut self, service: Option<&str>, backends: &[SocketAddr]) -> Result<()> {
        let service = self.now.service(service)?;
        for address in backends {
            find(service, *address)?;
        }
        let usable = self.facts.usable.get(&service.name);
        let last =
            usable.is_some_and(|usable| !usable.is_empty() && usable.iter().all(|address| backends.contains(address)));
        let flows: u64 = backends.iter().map(|address| flows_of(self.facts, &service.name, *address)).sum();
        if last && flows > 0 && !self.force {
            return Err(Error::refused(format!(
                "service {}: this removes its last usable backend, with {flows} live flows",
                service.name
            ))
            .hint("add another backend first, or --force"));
        }
        for address in backends {
            let flows = flows_of(self.facts, &service.name, *address);
            self.summary.push(format!("{address}: removed; its {flows} flows {}", go_on(self.force)));
            self.statements.remove_backend(&service.name, *address);
            // Flags are typed anew by a person; a file and a registry go on saying it by themselves.
            let claims = self.statements.claims(&service.name, *address);
            if let Some(source) = claims.iter().find(|source| **source != Source::Flags) {
                self.warnings.push(format!(
                    "{address}: {source} states it still; it stays out until `lb backend add`, or until {source} has withdrawn it and states it anew"
                ));
            }
        }
        Ok(())
    }

    fn set_weight(&mut self, service: Option<&str>, backend: SocketAddr, weight: u16) -> Result<()> {
        let service = self.now.service(service)?;
        let old = find(service, backend)?.weight;
        self.statements.backend_word(&service.name, backend).weight = Some(weight);
        self.summary.push(format!("{backend}: weight {old} -> {weight}; known flows stay"));
        Ok(())
    }

    fn set_admin(&mut self, service: Option<&str>, backends: &[SocketAddr], admin: Admin) -> Result<()> {
        let service = self.now.service(service)?;
        for address in backends {
            find(service, *address)?;
            self.statements.backend_word(&service.name, *address).admin = admin;
            let flows = flows_of(self.facts, &service.name, *address);
            self.summary.push(match admin {
                Admin::Ready => format!("{address}: ready for new flows"),
                Admin::Drain => format!("{address}: drains; its {flows} flows go on, new ones go elsewhere"),
                Admin::Maint => format!("{address}: in maintenance; its {flows} flows are reset"),
            });
        }
        Ok(())
    }
}

/// What a change does, in sentences.
fn difference(old: &Desired, new: &Desired, facts: &Facts, force: bool) -> Vec<String> {
    let mut summary = Vec::new();
    for (name, service) in &old.services {
        if !new.services.contains_key(name) {
            let flows: u64 = service.backends.iter().map(|backend| flows_of(facts, name, backend.address)).sum();
            summary.push(format!("{name}: removed; {flows} flows {}", go_on(force)));
        }
    }
    for (name, service) in &new.services {
        let Some(before) = old.services.get(name) else {
            summary.push(format!("{name}: new, {} backends", service.backends.len()));
            continue;
        };
        let has = |service: &ServiceSpec, address| service.backends.iter().any(|b| b.address == address);
        for gone in before.backends.iter().filter(|backend| !has(service, backend.address)) {
            let flows = flows_of(facts, name, gone.address);
            summary.push(format!("{name}: {} removed; its {flows} flows {}", gone.address, go_on(force)));
        }
        for backend in &service.backends {
            match before.backends.iter().find(|old| old.address == backend.address) {
                None => summary.push(format!("{name}: {} added; takes new flows once it is up", backend.address)),
                Some(old) if old.weight != backend.weight => {
                    summary.push(format!("{name}: {} weight {} -> {}", backend.address, old.weight, backend.weight));
                }
                Some(_) => {}
            }
        }
        let bare = |service: &ServiceSpec| ServiceSpec { backends: Vec::new(), ..service.clone() };
        if bare(before) != bare(service) {
            summary.push(format!("{name}: changed; known flows stay"));
        }
    }
    if summary.is_empty() {
        summary.push(if old.settings == new.settings { "nothing changes" } else { "settings changed" }.to_owned());
    }
    summary
}

const fn go_on(force: bool) -> &'static str {
    if force { "are reset" } else { "go on until they end" }
}

fn flows_of(facts: &Facts, service: &str, address: SocketAddr) -> u64 {
    facts.flows.get(&BackendKey { service: service.to_owned(), address }).copied().unwrap_or(0)
}

fn find(service: &ServiceSpec, address: SocketAddr) -> Result<&BackendSpec> {
    service.backends.iter().find(|backend| backend.address == address).ok_or_else(|| {
        let known = service.backends.iter().map(|backend| backend.address.to_string()).collect::<Vec<_>>().join(" ");
        let known = if known.is_empty() { "it has no backends".to_owned() } else { format!("it has: {known}") };
        Error::not_found(format!("backend {address}: not in service {}", service.name)).hint(known)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        state::{Mode, Protocol},
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
        let route = |ifindex| Some(RouteTo { ifindex, source: None, gateway: None, local: false, mtu: None });
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
            (add("10.0.0.4:0"), Kind::Usage, "port is missing"),
            (add("224.0.0.1:80"), Kind::Refused, "not the address of a server"),
            (add("0.0.0.0:80"), Kind::Refused, "not the address of a server"),
            (add("8.8.8.8:80"), Kind::Refused, "no route"),
            (add("10.0.9.9:80"), Kind::Refused, "through eth1, which is not attached"),
            (add("[2001:db8::1]:80"), Kind::Refused, "IPv6, but VIP"),
            (vip("10.0.0.1:80"), Kind::Refused, "there is one of this name"),
            (vip("10.0.0.1:22"), Kind::Refused, "sshd (pid 7) listens"),
            (vip("10.0.0.1:0"), Kind::Refused, "every port"),
            (vip("127.0.0.1:80"), Kind::Refused, "not an address that clients can reach"),
            (vip("[::1]:80"), Kind::Refused, "not an address that clients can reach"),
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
        let mut by_vip = service("10.0.0.1:81", &[]);
        by_vip.health.via = crate::state::Via::Vip;
        assert_eq!(refused(&Change::AddService { service: by_vip }).kind, Kind::Usage);
    }

    #[test]
    fn a_router_in_front_of_a_dnat_backend_is_warned_of() {
        let mut facts = facts();
        let gateway = Some("10.0.0.254".parse().unwrap());
        let route = RouteTo { ifindex: 2, source: None, gateway, local: false, mtu: None };
        facts.routes.insert("10.9.0.2".parse().unwrap(), Some(route));
        for (mode, warned) in [(Mode::Dnat, true), (Mode::Nat, false)] {
            let mut added = service("10.0.0.1:81", &["10.9.0.2:80"]);
            added.mode = mode;
            let outcome = web().change(&Change::AddService { service: added }, &facts, false).unwrap();
            let text = outcome.warnings.join("; ");
            assert_eq!(text.contains("router 10.0.0.254"), warned, "{mode}: {text}");
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

    fn change(state: &Desired, change: &Change) -> Desired {
        state.change(change, &facts(), false).unwrap().desired
    }

    fn file(backends: &[&str]) -> Change {
        let mut service = *service("10.0.0.1:80", backends);
        service.name = "web".into();
        Change::Restate { source: Source::File, settings: Box::default(), services: vec![service] }
    }

    fn consul(backends: &[&str]) -> Change {
        let backends = backends.iter().map(|text| (address(text), 10)).collect();
        Change::Snapshot { service: "web".into(), source: Source::Registry("consul".into()), backends }
    }

    /// "address source" of every backend.
    fn listed(state: &Desired) -> Vec<String> {
        let backends = state.services.values().flat_map(|service| &service.backends);
        backends.map(|backend| format!("{} {}", backend.address, backend.source)).collect()
    }

    #[test]
    fn a_backend_of_two_sources_stays_until_both_have_withdrawn_it() {
        let state = change(&Desired::default(), &file(&["10.0.0.2:80"]));
        let state = change(&state, &consul(&["10.0.0.2:80", "10.0.0.3:80"]));
        assert_eq!(listed(&state), ["10.0.0.2:80 file", "10.0.0.3:80 registry:consul"]);
        let without = change(&state, &file(&[]));
        assert_eq!(listed(&without), ["10.0.0.2:80 registry:consul", "10.0.0.3:80 registry:consul"]);
        assert_eq!(listed(&change(&state, &consul(&[]))), ["10.0.0.2:80 file"]);
    }

    #[test]
    fn a_backend_that_comes_back_has_its_admin_state_and_its_weight() {
        let state = change(&Desired::default(), &file(&[]));
        let state = change(&state, &consul(&["10.0.0.2:80"]));
        let backend = address("10.0.0.2:80");
        let drain = Change::SetAdmin { service: None, backends: vec![backend], admin: Admin::Drain };
        let state = change(&state, &drain);
        let state = change(&state, &Change::SetWeight { service: None, backend, weight: 7 });
        let state = change(&change(&state, &consul(&[])), &consul(&["10.0.0.2:80"]));
        let back = &state.service(None).unwrap().backends[0];
        assert_eq!((back.admin, back.weight), (Admin::Drain, 7));
        let removed = change(&state, &Change::RemoveBackends { service: None, backends: vec![backend] });
        let state = change(&change(&removed, &consul(&[])), &consul(&["10.0.0.2:80"]));
        let anew = &state.service(None).unwrap().backends[0];
        assert_eq!((anew.admin, anew.weight), (Admin::Ready, 10), "removing forgets");
    }

    #[test]
    fn what_the_operator_removed_stays_removed_when_the_file_is_read_again() {
        let state = change(&Desired::default(), &file(&["10.0.0.2:80", "10.0.0.3:80"]));
        let remove = Change::RemoveBackends { service: None, backends: vec![address("10.0.0.2:80")] };
        let outcome = state.change(&remove, &facts(), false).unwrap();
        assert!(outcome.warnings[0].contains("file states it still"), "{:?}", outcome.warnings);
        let again = outcome.desired.change(&file(&["10.0.0.2:80", "10.0.0.3:80"]), &facts(), false).unwrap();
        assert_eq!(listed(&again.desired), ["10.0.0.3:80 file"]);
        assert!(again.warnings[0].contains("lb backend add 10.0.0.2:80"), "{:?}", again.warnings);
        assert_eq!(again.desired, outcome.desired, "the same file changes nothing");
        let add = Change::AddBackends { service: None, backends: vec![(address("10.0.0.2:80"), 9)] };
        let state = change(&again.desired, &add);
        assert_eq!(state.service(None).unwrap().backends[0].weight, 9);
        // Now it is the operator's too.
        assert_eq!(listed(&change(&state, &file(&["10.0.0.3:80"]))), ["10.0.0.2:80 cli", "10.0.0.3:80 file"]);
        let remove = Change::RemoveService { service: "web".into() };
        let state = change(&state, &remove);
        assert!(change(&state, &file(&["10.0.0.2:80"])).services.is_empty());
        let without = Change::Restate { source: Source::File, settings: Box::default(), services: vec![] };
        assert_eq!(listed(&change(&change(&state, &without), &file(&["10.0.0.2:80"]))), ["10.0.0.2:80 file"]);
    }

    #[test]
    fn what_the_operator_set_stands_against_the_file_and_is_said() {
        let state = change(&Desired::default(), &file(&["10.0.0.2:80"]));
        let options = ServiceOptions { on_down: Some(crate::state::OnDown::Keep), ..ServiceOptions::default() };
        let set = Change::SetService { service: "web".into(), options: Box::new(options), backends: None };
        let state = change(&state, &set);
        let weight = Change::SetWeight { service: None, backend: address("10.0.0.2:80"), weight: 5 };
        let again = change(&state, &weight).change(&file(&["10.0.0.2:80"]), &facts(), false).unwrap();
        let service = again.desired.service(None).unwrap();
        assert_eq!((service.on_down, service.backends[0].weight), (crate::state::OnDown::Keep, 5));
        assert_eq!(again.warnings.len(), 2, "{:?}", again.warnings);
    }

    #[test]
    fn a_registrys_impossible_backend_is_left_out_and_said() {
        let state = change(&Desired::default(), &file(&[]));
        let outcome = state.change(&consul(&["10.0.0.2:80", "127.0.0.1:80", "10.0.0.1:80"]), &facts(), false).unwrap();
        assert_eq!(listed(&outcome.desired), ["10.0.0.2:80 registry:consul"]);
        assert_eq!(outcome.warnings.len(), 2, "{:?}", outcome.warnings);
        let same = outcome.desired.change(&consul(&["10.0.0.2:80"]), &facts(), false).unwrap();
        assert_eq!(same.desired.generation, outcome.desired.generation, "no change, no generation");
        let unknown = Desired::default().change(&consul(&["10.0.0.2:80"]), &facts(), false).unwrap_err();
        assert_eq!(unknown.kind, Kind::NotFound);
    }

    #[test]
    fn a_restatement_with_something_wrong_is_refused_whole() {
        let wrong = |edit: &dyn Fn(&mut ServiceSpec)| {
            let mut second = *service("10.0.0.1:81", &["10.0.0.5:80"]);
            edit(&mut second);
            let Change::Restate { source, settings, mut services } = file(&["10.0.0.2:80"]) else { unreachable!() };
            services.push(second);
            change(&Desired::default(), &file(&["10.0.0.2:80"]))
                .change(&Change::Restate { source, settings, services }, &facts(), false)
                .expect_err("this must be refused")
        };
        let vip = |text: &str| vec![text.parse().unwrap()];
        assert!(wrong(&|s| s.vips = vip("10.0.0.1:80")).message.contains("has it already"));
        assert!(wrong(&|s| s.vips = vip("10.0.0.2:90")).message.contains("backend of service web"));
        assert!(wrong(&|s| s.name = "web".into()).message.contains("named twice"));
        assert!(wrong(&|s| s.backends.push(s.backends[0].clone())).message.contains("named twice"));
        assert!(wrong(&|s| s.backends[0].address = address("127.0.0.1:1")).message.contains("loopback"));
        assert!(wrong(&|s| s.backends[0].address = address("10.0.0.1:1")).message.contains("is a VIP"));
    }

    #[test]
    fn settings_of_the_flags_count_before_the_files() {
        let settings = |interfaces: &[&str], max_flows| SettingsOptions {
            interfaces: interfaces.iter().map(|&name| name.into()).collect(),
            max_flows,
            ..SettingsOptions::default()
        };
        let flags = Change::Attach { settings: Box::new(settings(&["eth0"], None)), service: None };
        let file = Change::Restate {
            source: Source::File,
            settings: Box::new(settings(&["eth1"], Some(4096))),
            services: vec![],
        };
        for order in [[&flags, &file], [&file, &flags]] {
            let state = order.into_iter().fold(Desired::default(), |state, next| change(&state, next));
            assert_eq!((state.settings.interfaces[0].as_str(), state.settings.max_flows), ("eth0", 4096));
        }
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
