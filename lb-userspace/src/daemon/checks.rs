//! What the daemon has checked, and what it makes of verdicts.

use super::Daemon;
use crate::{
    dataplane,
    health::{Target, Verdict},
    reconcile::{BackendKey, VerdictSeen},
    state::{Admin, Health},
};

impl Daemon {
    /// Probes what is wanted now, and removed backends while they have flows.
    pub(super) fn aim_checks(&mut self) {
        let mut targets = Vec::new();
        for service in self.desired.services.values() {
            for backend in service.backends.iter().filter(|backend| backend.admin != Admin::Maint) {
                let key = BackendKey { service: service.name.clone(), address: backend.address };
                targets.extend(Target::new(service, backend.address).map(|target| (key, target)));
            }
        }
        for (key, _) in self.observed.lingering.iter().filter(|(_, lingering)| !lingering.reset) {
            let target = match self.desired.services.get(&key.service) {
                Some(service) => Target::new(service, key.address),
                None => self.lingering_checks.get(key).cloned(),
            };
            targets.extend(target.map(|target| (key.clone(), target)));
        }
        let known = &self.observed.verdicts;
        self.checker.set(targets, |key| known.get(key).map_or(Health::Unknown, |seen| seen.health));
    }

    /// Takes verdicts of health checks, as many as there are.
    pub(super) async fn settle(&mut self, verdicts: impl Iterator<Item = Verdict>) {
        let (mut changed, mut unseen) = (false, false);
        for Verdict { key, health, reason } in verdicts {
            let before = self.observed.verdicts.get(&key).map_or(Health::Unknown, |seen| seen.health);
            if before == health {
                continue;
            }
            tracing::info!(service = %key.service, backend = %key.address, %health, %reason, "verdict");
            // The probe has made the kernel find its neighbour: no flow shall wait for the next round.
            unseen |= health == Health::Up && !self.observed.next_hops.contains_key(&key.address.ip());
            let seen = VerdictSeen { health, since: dataplane::now(), was_up: before == Health::Up };
            self.observed.verdicts.insert(key, seen);
            changed = true;
        }
        if !changed {
            return;
        }
        let seen = if unseen { self.see_network().await.map(drop) } else { Ok(()) };
        if let Err(error) = seen.and_then(|()| self.apply()) {
            tracing::error!(%error, "apply verdicts");
        }
    }

    /// A backend in maintenance is not checked: what was known of it says nothing about how it comes back.
    pub(super) fn forget_maintained(&mut self) {
        for service in self.desired.services.values() {
            for backend in service.backends.iter().filter(|backend| backend.admin == Admin::Maint) {
                self.observed.verdicts.remove(&BackendKey { service: service.name.clone(), address: backend.address });
            }
        }
    }
}
