//! What the daemon answers to questions.

use lb_common::{
    LAYOUT_VERSION, clock,
    flow::state,
    maps,
    reason::{Reason, Verdict},
};

use super::Daemon;
use crate::{
    Result,
    api::{Backend, Both, Conn, ConnFilter, Drop, FlowsStatus, InterfaceStatus, LastCheck, Service, Status},
    dataplane::{self, Counters, Flow, FlowCounts},
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
            sources: self.sources.list(),
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

    /// Live connections that pass a filter.
    pub(super) fn connections(&self, filter: &ConnFilter) -> Result<Vec<Conn>> {
        Ok(self.matching(filter)?.iter().map(|flow| self.conn(flow)).collect())
    }

    /// Resets live connections that pass a filter; gives how many.
    pub(super) fn flush(&self, filter: &ConnFilter) -> Result<usize> {
        let flows = self.plane.flows();
        Ok(self.matching(filter)?.iter().filter(|flow| flows.reset(flow)).count())
    }

    fn matching(&self, filter: &ConnFilter) -> Result<Vec<Flow>> {
        let service = filter.service.as_deref().map(|name| self.desired.service(Some(name))).transpose()?;
        let flows = self.plane.flows();
        let passes = |flow: &Flow| {
            let conn = self.conn(flow);
            service.is_none_or(|service| conn.service == service.name)
                && filter.backend.is_none_or(|backend| conn.backend == backend)
                && filter.client.is_none_or(|client| conn.client.ip() == client)
                && filter.state.as_ref().is_none_or(|state| conn.state == *state)
        };
        Ok(flows.live(dataplane::now()).filter(passes).take(filter.limit.unwrap_or(usize::MAX)).collect())
    }

    fn conn(&self, flow: &Flow) -> Conn {
        let now = dataplane::now();
        let names = self.observed.service_ids.iter();
        let service = names.filter(|(_, id)| **id == flow.head.service).map(|(name, _)| name.clone()).next();
        Conn {
            proto: if flow.protocol == 6 { "tcp" } else { "udp" }.to_owned(),
            client: flow.client.from,
            vip: flow.client.to,
            backend: flow.backend.from,
            snat: flow.backend.to,
            service: service.unwrap_or_default(),
            state: state::name(flow.head.state).to_owned(),
            idle_s: clock::millis(flow.head.idle(now)) / 1000,
            age_s: clock::millis(clock::since(now, flow.head.created)) / 1000,
            packets: Both { inward: flow.tail.packets_in, out: flow.tail.packets_out },
        }
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
