//! What each source has said, and the pure merge of it into the effective services and settings.
//!
//! A source ([`Source`]) states settings, services and backends; a new statement replaces only what the same source
//! said before. A backend that several sources state stays until the last of them withdraws it. The operator's words
//! about what others state (admin state, weight, options, "removed") are kept apart: they hold while anybody states
//! the object, whatever is stated anew. Where sources disagree the first in the order of [`Source`] counts, so the
//! order in which they speak does not matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use super::{Admin, BackendSpec, ServiceOptions, ServiceSpec, Settings, SettingsOptions, Source};

/// What one source says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Of the data plane's settings.
    #[serde(default)]
    pub settings: SettingsOptions,
    /// Of services, by name.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceStatement>,
}

/// What one source says of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatement {
    /// What the service is, without backends; `None` = the source only knows backends of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ServiceSpec>,
    /// Backends and their weights.
    #[serde(default)]
    pub backends: BTreeMap<SocketAddr, u16>,
}

/// The operator's word about a service that others state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceWord {
    /// Instead of what is stated.
    #[serde(default)]
    pub options: ServiceOptions,
    /// It is not wanted, whoever states it.
    #[serde(default)]
    pub removed: bool,
    /// About its backends.
    #[serde(default)]
    pub backends: BTreeMap<SocketAddr, BackendWord>,
}

/// The operator's word about a backend that others state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendWord {
    /// What is wanted of it.
    pub admin: Admin,
    /// Instead of the stated weight.
    pub weight: Option<u16>,
    /// It is not wanted, whoever states it.
    pub removed: bool,
}

impl BackendWord {
    const NOTHING: Self = Self { admin: Admin::Ready, weight: None, removed: false };
}

/// All statements, and the operator's words about them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statements {
    /// By source.
    #[serde(default)]
    sources: BTreeMap<Source, Statement>,
    /// By service.
    #[serde(default)]
    words: BTreeMap<String, ServiceWord>,
}

impl Statements {
    /// What a source says; nothing if it never spoke.
    #[must_use]
    pub fn of(&self, source: &Source) -> Statement {
        self.sources.get(source).cloned().unwrap_or_default()
    }

    /// Sources that state a backend, first the one that counts.
    #[must_use]
    pub fn claims(&self, service: &str, address: SocketAddr) -> Vec<Source> {
        let says = |statement: &Statement| {
            statement.services.get(service).is_some_and(|said| said.backends.contains_key(&address))
        };
        self.sources.iter().filter(|(_, statement)| says(statement)).map(|(source, _)| source.clone()).collect()
    }

    /// Services and the names of registries that state backends of them.
    #[must_use]
    pub fn of_registries(&self) -> Vec<(String, String)> {
        let registries = self.sources.iter().filter_map(|(source, statement)| match source {
            Source::Registry(name) => Some((name, statement)),
            _ => None,
        });
        registries
            .flat_map(|(name, statement)| statement.services.keys().map(|service| (service.clone(), name.clone())))
            .collect()
    }

    /// The operator's word about a service.
    #[must_use]
    pub fn word(&self, service: &str) -> Option<&ServiceWord> {
        self.words.get(service)
    }

    /// Replaces all that a source said.
    pub fn restate(&mut self, source: Source, statement: Statement) {
        if statement == Statement::default() {
            self.sources.remove(&source);
        } else {
            self.sources.insert(source, statement);
        }
    }

    /// Replaces what a source said of one service; an empty statement withdraws it.
    pub fn state(&mut self, source: Source, service: &str, statement: ServiceStatement) {
        let mut all = self.of(&source);
        if statement == ServiceStatement::default() {
            all.services.remove(service);
        } else {
            all.services.insert(service.to_owned(), statement);
        }
        self.restate(source, all);
    }

    /// The operator wants a service or backend that a word had removed.
    pub fn allow(&mut self, service: &str, addresses: impl IntoIterator<Item = SocketAddr>) {
        let Some(word) = self.words.get_mut(service) else { return };
        word.removed = false;
        for address in addresses {
            word.backends.entry(address).and_modify(|word| word.removed = false);
        }
    }

    /// Withdraws a service, whoever states it.
    pub fn remove_service(&mut self, service: &str) {
        self.state(Source::Cli, service, ServiceStatement::default());
        self.words.insert(service.to_owned(), ServiceWord { removed: true, ..ServiceWord::default() });
    }

    /// Withdraws a backend, whoever states it.
    pub fn remove_backend(&mut self, service: &str, address: SocketAddr) {
        if let Some(said) = self.sources.get_mut(&Source::Cli).and_then(|cli| cli.services.get_mut(service)) {
            said.backends.remove(&address);
        }
        *self.backend_word(service, address) = BackendWord { removed: true, ..BackendWord::NOTHING };
    }

    /// The operator's word about a backend, to be changed.
    pub fn backend_word(&mut self, service: &str, address: SocketAddr) -> &mut BackendWord {
        let word = self.words.entry(service.to_owned()).or_default();
        word.backends.entry(address).or_insert(BackendWord::NOTHING)
    }

    /// The operator's options of a service instead of the stated ones; what is not said stays as it was said before.
    pub fn set_options(&mut self, service: &str, options: &ServiceOptions) {
        let word = self.words.entry(service.to_owned()).or_default();
        word.options = options.clone().or(&word.options);
    }

    /// Gives a service another name, in everybody's statement.
    pub fn rename(&mut self, old: &str, new: &str) {
        for statement in self.sources.values_mut() {
            if let Some(mut said) = statement.services.remove(old) {
                if let Some(spec) = &mut said.spec {
                    new.clone_into(&mut spec.name);
                }
                statement.services.insert(new.to_owned(), said);
            }
        }
        if let Some(word) = self.words.remove(old) {
            self.words.insert(new.to_owned(), word);
        }
    }

    /// Forgets words about objects that nobody states any more. The admin state and weight of a backend stay while
    /// its service does: it may come back.
    pub fn tidy(&mut self) {
        let mut stated: BTreeMap<&str, BTreeSet<SocketAddr>> = BTreeMap::new();
        for (name, said) in self.sources.values().flat_map(|statement| &statement.services) {
            stated.entry(name).or_default().extend(said.backends.keys());
        }
        self.words.retain(|name, word| {
            let Some(backends) = stated.get(name.as_str()) else { return false };
            for (address, word) in &mut word.backends {
                word.removed &= backends.contains(address);
            }
            word.backends.retain(|_, word| *word != BackendWord::NOTHING);
            *word != ServiceWord::default()
        });
        for statement in self.sources.values_mut() {
            statement.services.retain(|_, said| *said != ServiceStatement::default());
        }
        self.sources.retain(|_, statement| *statement != Statement::default());
    }

    /// The settings that count: of the flags, else of the file, else the defaults.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let said = self.sources.values().fold(SettingsOptions::default(), |said, next| said.or(&next.settings));
        Settings::from(said)
    }

    /// The services that count.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, ServiceSpec> {
        let mut services: BTreeMap<String, ServiceSpec> = BTreeMap::new();
        for (name, said) in self.sources.values().flat_map(|statement| &statement.services) {
            if let (Some(spec), false) = (&said.spec, self.word(name).is_some_and(|word| word.removed)) {
                services.entry(name.clone()).or_insert_with(|| spec.clone());
            }
        }
        for (name, service) in &mut services {
            let nothing = ServiceWord::default();
            let word = self.word(name).unwrap_or(&nothing);
            word.options.apply(service);
            service.name.clone_from(name);
            service.backends = self.backends(name, word);
        }
        services
    }

    fn backends(&self, service: &str, word: &ServiceWord) -> Vec<BackendSpec> {
        let mut backends = BTreeMap::new();
        for (source, statement) in &self.sources {
            let Some(said) = statement.services.get(service) else { continue };
            for (address, weight) in &said.backends {
                let about = word.backends.get(address).copied().unwrap_or(BackendWord::NOTHING);
                if !about.removed {
                    backends.entry(*address).or_insert_with(|| BackendSpec {
                        address: *address,
                        weight: about.weight.unwrap_or(*weight),
                        admin: about.admin,
                        source: source.clone(),
                    });
                }
            }
        }
        backends.into_values().collect()
    }
}

impl From<ServiceSpec> for ServiceStatement {
    fn from(mut spec: ServiceSpec) -> Self {
        let backends = std::mem::take(&mut spec.backends);
        Self {
            backends: backends.into_iter().map(|backend| (backend.address, backend.weight)).collect(),
            spec: Some(spec),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::state::Scheduler;

    const SOURCES: usize = 5;

    fn source(n: usize) -> Source {
        match n {
            0 => Source::Flags,
            1 => Source::Cli,
            2 => Source::File,
            _ => Source::Registry(format!("r{n}")),
        }
    }

    /// A source's statement of one of three services: what it is, if the source says so, and some of six backends.
    fn statement(source: Source, defines: bool, backends: &[(u8, u16)]) -> ServiceStatement {
        let scheduler = if source == Source::File { Scheduler::Random } else { Scheduler::Maglev };
        let spec = ServiceSpec { scheduler, ..ServiceSpec::new("10.0.0.1:80".parse().unwrap(), source) };
        let backends = backends.iter().map(|(n, weight)| (SocketAddr::from(([10, 0, 1, *n], 80)), *weight));
        ServiceStatement { spec: defines.then_some(spec), backends: backends.collect() }
    }

    type Said = (usize, usize, bool, Vec<(u8, u16)>);

    fn said() -> impl Strategy<Value = Vec<Said>> {
        vec((0..SOURCES, 0..3_usize, any::<bool>(), vec((0..6_u8, 0..4_u16), 0..5)), 1..20)
    }

    /// Speaks in the given order of sources; what one source says stays in its own order.
    fn speak(said: &[Said], order: &[usize]) -> Statements {
        let mut statements = Statements::default();
        for speaker in order {
            for (who, service, defines, backends) in said.iter().filter(|(who, ..)| who == speaker) {
                let words = statement(source(*who), *defines, backends);
                statements.state(source(*who), &format!("s{service}"), words);
            }
        }
        statements.tidy();
        statements
    }

    proptest! {
        #[test]
        fn the_order_in_which_sources_speak_does_not_matter(
            said in said(), order in Just((0..SOURCES).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (one, other) = (speak(&said, &[0, 1, 2, 3, 4]), speak(&said, &order));
            prop_assert_eq!(one.services(), other.services());
            prop_assert_eq!(one, other);
        }

        #[test]
        fn withdrawing_one_source_leaves_what_the_others_say(said in said(), gone in 0..SOURCES) {
            let mut statements = speak(&said, &[0, 1, 2, 3, 4]);
            statements.restate(source(gone), Statement::default());
            let others: Vec<_> = said.iter().filter(|(who, ..)| *who != gone).cloned().collect();
            prop_assert_eq!(statements.services(), speak(&others, &[0, 1, 2, 3, 4]).services());
        }

        #[test]
        fn saying_the_same_again_changes_nothing(said in said(), again in 0..SOURCES) {
            let statements = speak(&said, &[0, 1, 2, 3, 4]);
            let mut next = statements.clone();
            next.restate(source(again), statements.of(&source(again)));
            prop_assert_eq!(next, statements);
        }

        #[test]
        fn every_backend_that_counts_is_stated_by_somebody(said in said()) {
            let statements = speak(&said, &[0, 1, 2, 3, 4]);
            for service in statements.services().values() {
                for backend in &service.backends {
                    let claims = statements.claims(&service.name, backend.address);
                    prop_assert_eq!(Some(&backend.source), claims.first());
                }
            }
        }
    }
}
