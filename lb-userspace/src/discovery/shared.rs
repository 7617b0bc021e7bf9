//! Whole services under `PREFIX/config/` of an etcd, so that a fleet of balancers shares one desired state.
//!
//! A key's value is TOML as in the config file: `[[service]]` tables and nothing else. A key that cannot be understood
//! keeps what it said before. Services that vanish all at once, or more than the share that counts as a mass, stay until
//! somebody says `lb source release`. Owned by the daemon's state task, like [`super::Sources`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time::sleep};

use super::{SourceSpec, Standing, Wanted, etcd::Keys, line::pause};
use crate::{
    Error, Result,
    api::SourceStatus,
    config::Config,
    state::{ServiceSpec, SettingsOptions, Source},
};

/// What stands for every service where one is named.
const EVERY: &str = "*";
/// News are not looked at more often than this.
const REST: Duration = Duration::from_millis(100);

/// An answer on its way to the state task.
pub struct Told {
    number: u64,
    answer: Result<BTreeMap<String, String>>,
}

/// Services by name.
type Services = BTreeMap<String, ServiceSpec>;

/// See the module.
pub struct Shared {
    source: SourceSpec,
    number: u64,
    task: JoinHandle<()>,
    /// What each key said last that made sense.
    keys: BTreeMap<String, Vec<ServiceSpec>>,
    good: Services,
    /// Names of services in the good set that the registry does not name any more.
    held: BTreeSet<String>,
    standing: Standing,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Follows a source; `known` is what it said before. The answers of another one before it have another number.
    ///
    /// # Errors
    /// The source's address makes no sense.
    pub fn follow(
        source: SourceSpec,
        number: u64,
        known: Vec<ServiceSpec>,
        tell: UnboundedSender<Told>,
    ) -> Result<Self> {
        let Wanted::Etcd { prefix } = &source.wanted else {
            return Err(Error::usage(format!("{}: services are shared by etcd only", source.name)).hint("etcd:PREFIX"));
        };
        let mut keys = Keys::new(&format!("{prefix}/config"), &source.options)?;
        let task = tokio::spawn(async move {
            let mut failures = 0;
            loop {
                let answer = keys.next(false).await.cloned();
                let failed = answer.is_err();
                if tell.send(Told { number, answer }).is_err() {
                    return;
                }
                failures = if failed { failures + 1 } else { 0 };
                sleep(if failed { pause(failures - 1, super::random()) } else { REST }).await;
            }
        });
        Ok(Self {
            source,
            number,
            task,
            keys: BTreeMap::new(),
            good: known.into_iter().map(|service| (service.name.clone(), service)).collect(),
            held: BTreeSet::new(),
            standing: Standing::default(),
        })
    }

    /// What is followed.
    #[must_use]
    pub const fn source(&self) -> &SourceSpec {
        &self.source
    }

    /// Who states its services.
    #[must_use]
    pub fn as_source(&self) -> Source {
        Source::Registry(self.source.name.clone())
    }

    /// Takes an answer; says whether there is something to state.
    pub fn heard(&mut self, told: Told) -> bool {
        if told.number != self.number {
            return false;
        }
        match told.answer {
            Ok(keys) => self.take(&keys),
            Err(error) => self.standing.failed(&self.source.name, EVERY, error),
        }
        self.standing.dirty
    }

    fn take(&mut self, said: &BTreeMap<String, String>) {
        let mut warnings = Vec::new();
        // A key that never made sense may have been one of the good services before this daemon began.
        let mut whole = true;
        for (key, text) in said {
            match definitions(key, text, &self.as_source()) {
                Ok(services) => drop(self.keys.insert(key.clone(), services)),
                Err(why) => {
                    let stays = if self.keys.contains_key(key) { "; what it said before stays" } else { "" };
                    whole &= self.keys.contains_key(key);
                    warnings.push(format!("{why}{stays}"));
                }
            }
        }
        self.keys.retain(|key, _| said.contains_key(key));
        let mut services = Services::new();
        for (key, service) in self.keys.iter().flat_map(|(key, all)| all.iter().map(move |service| (key, service))) {
            if services.insert(service.name.clone(), service.clone()).is_some() {
                warnings.push(format!("{key}: service {} is defined by another key too", service.name));
            }
        }
        self.held = self.good.keys().filter(|name| !services.contains_key(*name)).cloned().collect();
        let missing = self.held.len();
        let mass = missing > 1 && missing * 100 > self.good.len() * usize::from(self.source.options.mass);
        if whole && !services.is_empty() && !mass {
            self.held.clear();
        }
        services.extend(self.held.iter().filter_map(|name| Some((name.clone(), self.good.get(name)?.clone()))));
        self.standing.answered(&self.source.name, EVERY, warnings);
        self.standing.dirty |= services != self.good;
        self.good = services;
    }

    /// The services to be stated, if they changed; they are stated anew until [`Shared::done`] says otherwise.
    #[must_use]
    pub fn changed(&self) -> Option<Vec<ServiceSpec>> {
        self.standing.dirty.then(|| self.good.values().cloned().collect())
    }

    /// What became of stating them.
    pub fn done(&mut self, result: Result<Vec<String>>) {
        match result {
            Ok(warnings) => {
                self.standing.refused = warnings;
                self.standing.stated();
            }
            Err(error) => self.standing.refused = vec![format!("not taken over, what stood before goes on: {error}")],
        }
    }

    /// Lets go what is held; gives how many services.
    pub fn release(&mut self) -> usize {
        let held = std::mem::take(&mut self.held);
        self.good.retain(|name, _| !held.contains(name));
        self.standing.dirty |= !held.is_empty();
        held.len()
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        let held = self.held.iter().map(|service| {
            let name = &self.source.name;
            format!("service {service} is not defined any more and stays; if that is right: lb source release {name}")
        });
        let backends = self.good.values().map(|service| service.backends.len()).sum();
        let mut status = self.standing.status(&self.source, EVERY, !self.held.is_empty(), backends);
        status.target.push_str("/config");
        status.warnings.extend(held);
        status
    }
}

/// The services that a key's value defines.
fn definitions(key: &str, text: &str, source: &Source) -> Result<Vec<ServiceSpec>, String> {
    let config = Config::parse(key, text).map_err(|problems| match problems.as_slice() {
        [first, rest @ ..] if !rest.is_empty() => format!("{first} (and {} more)", rest.len()),
        problems => problems.first().map(ToString::to_string).unwrap_or_default(),
    })?;
    if config.settings != SettingsOptions::default() || config.log_level.is_some() || config.shared.is_some() {
        return Err(format!("{key}: only [[service]] may be shared: the rest is each balancer's own"));
    }
    let mut services = config.services;
    for service in &mut services {
        service.source = source.clone();
        service.backends.iter_mut().for_each(|backend| backend.source = source.clone());
    }
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let source = "etcd:lb?addr=http://127.0.0.1:1".parse().unwrap();
        let (tell, _) = tokio::sync::mpsc::unbounded_channel();
        Shared::follow(source, 1, Vec::new(), tell).unwrap()
    }

    fn service(n: u8) -> String {
        format!("[[service]]\nname = \"s{n}\"\nvip = \"10.0.0.{n}:80\"\nbackends = [\"10.0.1.{n}:80\"]\n")
    }

    fn hear(shared: &mut Shared, keys: &[(&str, String)]) -> Option<Vec<String>> {
        let keys = keys.iter().map(|(key, text)| (format!("lb/config/{key}"), text.clone())).collect();
        shared.heard(Told { number: 1, answer: Ok(keys) });
        let names = shared.changed().map(|services| services.into_iter().map(|service| service.name).collect());
        shared.done(Ok(Vec::new()));
        names
    }

    fn names(numbers: &[u8]) -> Option<Vec<String>> {
        Some(numbers.iter().map(|n| format!("s{n}")).collect())
    }

    #[tokio::test]
    async fn keys_define_services_and_what_makes_no_sense_keeps_what_it_said() {
        let mut shared = shared();
        assert_eq!(hear(&mut shared, &[("a", service(1)), ("b", service(2) + &service(3))]), names(&[1, 2, 3]));
        assert_eq!(hear(&mut shared, &[("a", service(1)), ("b", service(2) + &service(3))]), None, "nothing new");
        let broken = service(1).replace("vip", "vipp");
        assert_eq!(hear(&mut shared, &[("a", broken), ("b", service(2))]), names(&[1, 2]));
        let warnings = shared.status().warnings;
        assert!(
            warnings[0].starts_with("lb/config/a:3:1: service.vipp:") && warnings[0].contains("stays"),
            "{warnings:?}"
        );
        hear(&mut shared, &[("a", "interfaces = [\"eth0\"]\n".to_owned() + &service(1)), ("b", service(2))]);
        assert!(shared.status().warnings[0].contains("only [[service]]"));
        assert_eq!(shared.changed(), None);
    }

    #[tokio::test]
    async fn services_that_vanish_together_are_held_until_released() {
        let mut shared = shared();
        let all = [("a", service(1)), ("b", service(2)), ("c", service(3))];
        hear(&mut shared, &all);
        assert_eq!(hear(&mut shared, &[]), None);
        assert_eq!((shared.status().state.as_str(), shared.status().warnings.len()), ("holding", 3));
        assert_eq!(hear(&mut shared, &all), None);
        assert_eq!(shared.status().state, "ok");
        assert_eq!(hear(&mut shared, &all[..2]), names(&[1, 2]), "one may go");
        hear(&mut shared, &all);
        assert_eq!(hear(&mut shared, &all[..1]), None, "two of three are a mass");
        assert_eq!(shared.release(), 2);
        assert_eq!(hear(&mut shared, &all[..1]), names(&[1]));
        shared.heard(Told { number: 1, answer: Err(Error::failed("connection refused")) });
        assert_eq!((shared.status().state.as_str(), shared.changed()), ("error", None));
    }

    #[tokio::test]
    async fn what_a_guard_refused_is_stated_again() {
        let mut shared = shared();
        let keys = BTreeMap::from([("lb/config/a".to_owned(), service(1))]);
        assert!(shared.heard(Told { number: 1, answer: Ok(keys.clone()) }));
        shared.done(Err(Error::refused("backend 10.0.1.1:80: no route")));
        assert!(shared.status().warnings[0].contains("no route"));
        assert!(shared.heard(Told { number: 1, answer: Ok(keys) }), "with the next look");
        assert!(!shared.heard(Told { number: 0, answer: Ok(BTreeMap::new()) }) || shared.changed().is_some());
    }
}
