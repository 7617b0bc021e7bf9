//! What the daemon answers to questions.

use lb_common::{
    LAYOUT_VERSION, maps,
    reason::{Reason, Verdict},
};

use super::Daemon;
use crate::{
    Result,
    api::{Backend, Both, Drop, FlowsStatus, InterfaceStatus, LastCheck, Service, Status},
    dataplane::{self, Counters, FlowCounts},
    observe::Measured,
    reconcile::{BackendKey, Tables},
    state::{BackendSpec, Health, Probe, ServiceSpec},
};

impl Daemon {
    /// The whole picture.
    pub(super) fn status(&self) -> Result<Status> {
        let counters = self.plane.counters()?;
        let flows = self.plane.flows();
        let counts = flows.count(dataplane::now());
        let tables = crate::reconcile::compile(&self.desired, &self.observed);
        let program_id = self.plane.program_id()?;
        let interfaces = self.attached.values().map(|attachment| InterfaceStatus {
            name: attachment.interface.name.clone(),
            xdp: attachment.xdp.to_string(),
            mac: attachment.interface.mac.map(|byte| format!("{byte:02x}")).join(":"),
            mtu: attachment.interface.mtu,
            program_id,
        });
        let services = self.desired.services.values().map(|spec| self.service(spec, &tables, &counters, &counts));
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.desired.generation,
            layout: LAYOUT_VERSION,
            uptime_s: self.started.elapsed().as_secs(),
            interfaces: interfaces.collect(),
            services: services.collect(),
            flows: FlowsStatus { active: counts.active, max: u64::from(flows.capacity()) },
            warnings: self.network_warnings().into_iter().chain(self.source_warnings()).collect(),
            sources: self.all_sources(),
        })
    }

    fn service(&self, spec: &ServiceSpec, tables: &Tables, counters: &Counters, counts: &FlowCounts) -> Service {
        let backends: Vec<_> =
            spec.backends.iter().map(|backend| self.backend(spec, backend, tables, counters, counts)).collect();
        let sum = |of: fn(&Backend) -> Both| {
            backends
                .iter()
                .map(of)
                .fold(Both::default(), |a, b| Both { inward: a.inward + b.inward, out: a.out + b.out })
        };
        Service {
            name: spec.name.clone(),
            vips: spec.vips.clone(),
            mode: spec.mode,
            scheduler: spec.scheduler,
            source: spec.source.clone(),
            usable: backends.iter().filter(|backend| backend.usable).count(),
            flows: backends.iter().map(|backend| backend.flows).sum(),
            packets: sum(|backend| backend.packets),
            bytes: sum(|backend| backend.bytes),
            table_fingerprint: format!("{:016x}", tables.fingerprints.get(&spec.name).copied().unwrap_or(0)),
            backends,
        }
    }

    fn backend(
        &self,
        service: &ServiceSpec,
        spec: &BackendSpec,
        tables: &Tables,
        counters: &Counters,
        counts: &FlowCounts,
    ) -> Backend {
        let key = BackendKey { service: service.name.clone(), address: spec.address };
        let id = tables.backend_ids.get(&key).copied().unwrap_or(0);
        let traffic = counters.traffic.get(&id).copied().unwrap_or_default();
        let slots = tables.service_ids.get(&service.name).and_then(|id| tables.slots.get(id));
        let share = slots
            .filter(|slots| !slots.is_empty())
            .map_or(0.0, |slots| slots.iter().filter(|slot| **slot == id).count() as f64 / slots.len() as f64);
        let health = match (&service.health.probe, self.observed.verdicts.get(&key)) {
            (Probe::None, _) => Health::Up,
            (_, seen) => seen.map_or(Health::Unknown, |seen| seen.health),
        };
        Backend {
            service: service.name.clone(),
            address: spec.address,
            weight: spec.weight,
            admin: spec.admin,
            health,
            usable: tables.usable.get(&service.name).is_some_and(|usable| usable.contains(&spec.address)),
            source: spec.source.clone(),
            flows: counts.by_backend.get(&id).copied().unwrap_or(0),
            share,
            packets: Both { inward: traffic.packets_in, out: traffic.packets_out },
            bytes: Both { inward: traffic.bytes_in, out: traffic.bytes_out },
            last_check: self.checker.last(&key).map(|check| LastCheck {
                at: check.at,
                ok: check.ok,
                took_ms: u64::try_from(check.took.as_millis()).unwrap_or(u64::MAX),
                reason: check.reason.into_owned(),
            }),
        }
    }

    /// What metrics need besides the status.
    pub(super) fn measured(&self) -> Result<Measured> {
        let counters = self.plane.counters()?;
        let refusals = self.observed.service_ids.iter();
        let refusals = refusals.filter_map(|(name, id)| Some((name.clone(), *counters.refusals.get(id)?)));
        let checks = super::keys(&self.desired).filter_map(|key| self.checker.totals(&key).map(|totals| (key, totals)));
        Ok(Measured {
            reasons: self.drops()?,
            probes: self.checker.probes() as u64,
            table_builds: self.table_builds,
            refusals: refusals.collect(),
            checks: checks.collect(),
        })
    }

    /// Packets by reason, forwarded and passed ones too.
    pub(super) fn drops(&self) -> Result<Vec<Drop>> {
        let counters = self.plane.counters()?;
        let reasons =
            Reason::ALL.iter().filter(|reason| counters.of(**reason) > 0 || reason.verdict() == Verdict::Drop);
        let drops = reasons.map(|reason| Drop {
            reason: reason.name().to_owned(),
            count: counters.of(*reason),
            help: reason.help().to_owned(),
        });
        Ok(drops.collect())
    }
}

/// Bits that say how a backend stands, as an adopting daemon reads them.
pub(super) fn verdict_of(value: &maps::Backend) -> Option<(Health, u32)> {
    use maps::backend_flag::{DOWN, UP};
    match value.flags & (UP | DOWN) {
        UP => Some((Health::Up, 0)),
        DOWN => Some((Health::Down, value.down_since)),
        _ => None,
    }
}
