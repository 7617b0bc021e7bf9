//! A change under way: what every kind of it does to the statements of who speaks, and the sentences that say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    Admin, BackendSpec, Desired, Facts, Outcome, ServiceOptions, ServiceSpec, SettingsOptions, Source,
    guards::{check, check_backend, vip_addresses},
    statements::{ServiceStatement, Statement, Statements},
};
use crate::{Error, Result, reconcile::BackendKey, say::count};

/// A change under way.
pub(super) struct Draft<'a> {
    /// What stands.
    now: &'a Desired,
    facts: &'a Facts,
    force: bool,
    pub(super) statements: Statements,
    warnings: Vec<String>,
    /// Sentences; when there are none, the difference is told.
    summary: Vec<String>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(now: &'a Desired, facts: &'a Facts, force: bool) -> Self {
        let statements = now.statements.clone();
        Self { now, facts, force, statements, warnings: Vec::new(), summary: Vec::new() }
    }

    pub(super) fn finish(mut self) -> Result<Outcome> {
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
    pub(super) fn attach(&mut self, settings: &SettingsOptions, service: Option<&ServiceSpec>) {
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

    pub(super) fn restate(
        &mut self,
        source: &Source,
        settings: &SettingsOptions,
        services: &[ServiceSpec],
    ) -> Result<()> {
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

    pub(super) fn snapshot(&mut self, service: &str, source: &Source, backends: &[(SocketAddr, u16)]) -> Result<()> {
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

    pub(super) fn add_service(&mut self, service: &ServiceSpec) -> Result<()> {
        if self.now.services.contains_key(&service.name) {
            return Err(Error::refused(format!("service {}: there is one of this name", service.name))
                .hint("`lb service set` changes it; or choose another --name"));
        }
        self.summary.push(format!("{}: new, {}", service.name, count(service.backends.len(), "backend")));
        self.statements.allow(&service.name, service.backends.iter().map(|backend| backend.address));
        self.statements.state(Source::Cli, &service.name, service.clone().into());
        Ok(())
    }

    pub(super) fn set_service(
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

    pub(super) fn remove_service(&mut self, service: &str) -> Result<()> {
        let name = self.now.service(Some(service))?.name.clone();
        let flows: u64 = self.facts.flows.iter().filter(|(key, _)| key.service == name).map(|(_, flows)| flows).sum();
        self.statements.remove_service(&name);
        self.summary.push(format!("{name}: removed; {}", go_on(flows, self.force)));
        Ok(())
    }

    pub(super) fn add_backends(&mut self, service: Option<&str>, backends: &[(SocketAddr, u16)]) -> Result<()> {
        let service = self.now.service(service)?;
        for (n, (address, weight)) in backends.iter().enumerate() {
            if backends[..n].iter().any(|(other, _)| other == address) {
                return Err(
                    Error::usage(format!("backend {address}: named twice")).hint("name it once, with its weight")
                );
            }
            if service.backends.iter().any(|backend| backend.address == *address) {
                return Err(Error::refused(format!("backend {address}: service {} has it already", service.name))
                    .hint(format!("`lb backend weight {address} N` changes its weight")));
            }
            self.state_backend(&service.name, *address, *weight);
            self.summary.push(format!("{address}: added; takes new flows once it is up"));
        }
        Ok(())
    }

    pub(super) fn remove_backends(&mut self, service: Option<&str>, backends: &[SocketAddr]) -> Result<()> {
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
            self.summary.push(format!("{address}: removed; {}", go_on(flows, self.force)));
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

    pub(super) fn set_weight(&mut self, service: Option<&str>, backend: SocketAddr, weight: u16) -> Result<()> {
        let service = self.now.service(service)?;
        let old = find(service, backend)?.weight;
        self.statements.backend_word(&service.name, backend).weight = Some(weight);
        self.summary.push(format!("{backend}: weight {old} -> {weight}; known flows stay"));
        Ok(())
    }

    pub(super) fn set_admin(&mut self, service: Option<&str>, backends: &[SocketAddr], admin: Admin) -> Result<()> {
        let service = self.now.service(service)?;
        for address in backends {
            find(service, *address)?;
            self.statements.backend_word(&service.name, *address).admin = admin;
            let flows = flows_of(self.facts, &service.name, *address);
            self.summary.push(match admin {
                Admin::Ready => format!("{address}: ready for new flows"),
                Admin::Drain => format!("{address}: takes no new flows; {}", go_on(flows, false)),
                Admin::Maint => format!("{address}: in maintenance; {}", go_on(flows, true)),
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
            summary.push(format!("{name}: removed; {}", go_on(flows, force)));
        }
    }
    for (name, service) in &new.services {
        let Some(before) = old.services.get(name) else {
            summary.push(format!("{name}: new, {}", count(service.backends.len(), "backend")));
            continue;
        };
        let has = |service: &ServiceSpec, address| service.backends.iter().any(|b| b.address == address);
        for gone in before.backends.iter().filter(|backend| !has(service, backend.address)) {
            let flows = flows_of(facts, name, gone.address);
            summary.push(format!("{name}: {} removed; {}", gone.address, go_on(flows, force)));
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

/// What becomes of the flows of something that is removed.
fn go_on(flows: u64, force: bool) -> String {
    match (flows, force) {
        (0, _) => "it has no flows".to_owned(),
        (1, true) => "its flow is reset".to_owned(),
        (1, false) => "its flow goes on until it ends".to_owned(),
        (_, true) => format!("its {flows} flows are reset"),
        (_, false) => format!("its {flows} flows go on until they end"),
    }
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
