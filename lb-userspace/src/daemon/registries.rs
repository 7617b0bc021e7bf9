//! What sources of backends say, on its way into the desired state.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::Daemon;
use crate::{
    Result,
    discovery::{Instance, Wish, sources::Heard},
    reconcile::BackendKey,
    state::{Change, Desired, Health, Probe, Source},
};

/// News are collected for this long before they become a change.
const COALESCE: Duration = Duration::from_millis(100);

impl Daemon {
    /// Asks what is wanted now.
    pub(super) fn aim_sources(&mut self) {
        let mut wishes = Vec::new();
        for service in self.desired.services.values() {
            for source in &service.discovery {
                let said = self.desired.statements.of(&Source::Registry(source.name.clone()));
                let known = said.services.get(&service.name).map(|said| said.backends.clone()).unwrap_or_default();
                wishes.push(Wish {
                    service: service.name.clone(),
                    source: source.clone(),
                    checked: service.health.probe != Probe::None,
                    known: known.into_iter().map(|(address, weight)| (address, Instance::of_weight(weight))).collect(),
                });
            }
        }
        self.sources.set(wishes);
        if !self.orphans().is_empty() {
            self.state_soon();
        }
    }

    /// Statements of sources that are not asked any more.
    fn orphans(&self) -> Vec<(String, String)> {
        let stated = self.desired.statements.of_registries();
        stated
            .into_iter()
            .filter(|(service, source)| !self.sources.has(service, source) && !self.is_shared(source))
            .collect()
    }

    pub(super) fn state_soon(&mut self) {
        self.state_sources_at.get_or_insert_with(|| Instant::now() + COALESCE);
    }

    /// Takes a source's answer.
    pub(super) fn source_heard(&mut self, heard: Heard) {
        if self.sources.heard(heard) {
            self.state_soon();
        }
    }

    /// Looks after what is held.
    pub(super) fn tick_sources(&mut self) {
        let verdicts = &self.observed.verdicts;
        let down = |service: &str, address| {
            let key = BackendKey { service: service.to_owned(), address };
            !takes(&self.desired, service, address)
                || verdicts.get(&key).is_some_and(|seen| seen.health == Health::Down)
        };
        if self.sources.tick(down) {
            self.state_soon();
        }
    }

    /// States what changed.
    pub(super) async fn state_sources(&mut self) {
        self.state_sources_at = None;
        for (service, source) in self.orphans() {
            let change = Change::Withdraw { service, source: Source::Registry(source) };
            if let Err(error) = self.change(&change, false, false).await {
                tracing::error!(%error, "withdraw what a source said");
            }
        }
        self.state_shared().await;
        for (key, backends) in self.sources.take_changed() {
            let (service, source) = (key.0.clone(), Source::Registry(key.1.clone()));
            let refused = match self.change(&Change::Snapshot { service, source, backends }, false, false).await {
                Ok(changed) => changed.warnings,
                Err(error) => {
                    tracing::error!(%error, source = %key.1, "state what a source said");
                    vec![error.message]
                }
            };
            self.sources.note_refused(&key, refused);
        }
    }

    /// `lb source release`.
    pub(super) fn release(&mut self, name: &str) -> Result<usize> {
        let gone = match &mut self.shared {
            Some(shared) if shared.source().name == name => shared.release(),
            _ => self.sources.release(name)?,
        };
        if gone > 0 {
            self.state_soon();
        }
        Ok(gone)
    }

    /// What somebody should look at.
    pub(super) fn source_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for source in self.all_sources() {
            let name = format!("source {} of {}", source.name, source.service);
            if let Some(error) = source.last_error.filter(|error| error.now) {
                let stays = if source.backends > 0 { "; its last good set stays" } else { "" };
                warnings.push(format!("{name}: {}{stays}", error.message));
            }
            if let Some(held) = source.held.first() {
                warnings.push(format!(
                    "{name}: {}: {} backends are held; if it is right: lb source release {}",
                    held.reason,
                    source.held.len(),
                    source.name
                ));
            }
            warnings.extend(source.warnings.into_iter().map(|warning| format!("{name}: {warning}")));
        }
        warnings
    }
}

/// Whether a service has this backend, which a source may name without its port.
pub(super) fn takes(desired: &Desired, service: &str, address: SocketAddr) -> bool {
    desired.services.get(service).is_some_and(|service| {
        let place = service.place(address);
        service.backends.iter().any(|backend| backend.address == place)
    })
}

/// Waits until a moment, for ever without one.
pub(super) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
