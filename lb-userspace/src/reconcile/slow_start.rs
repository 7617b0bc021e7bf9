//! Slow start: a backend that came up takes a growing share of new flows, in [`FULL`] steps, until its service's
//! `slow_start` is over. Verdicts are each balancer's own, so tables of several balancers differ while it lasts.

use lb_common::clock;

use super::{BackendKey, Observed, VerdictSeen};
use crate::{
    maglev::FULL,
    state::{Desired, Health, Probe, ServiceSpec},
};

/// How much of its weight a backend takes, in parts of [`FULL`], at least one.
#[must_use]
pub fn part(service: &ServiceSpec, verdict: Option<VerdictSeen>, now: u32) -> u32 {
    let (Some(time), Some(seen)) = (service.slow_start, verdict) else { return FULL };
    if seen.health != Health::Up || service.health.probe == Probe::None {
        return FULL;
    }
    let time = clock::ticks_from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).max(1);
    let step = u64::from(clock::since(now, seen.since)) * u64::from(FULL) / u64::from(time);
    u32::try_from(step + 1).unwrap_or(FULL).min(FULL)
}

/// How far every slow start has come: when it differs from before, tables must be made anew.
#[must_use]
pub fn parts(desired: &Desired, observed: &Observed) -> Vec<u32> {
    let mut parts = Vec::new();
    for service in desired.services.values().filter(|service| service.slow_start.is_some()) {
        for backend in &service.backends {
            let key = BackendKey { service: service.name.clone(), address: backend.address };
            parts.push(part(service, observed.verdicts.get(&key).copied(), observed.now));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::state::Source;

    #[test]
    fn it_grows_from_one_part_to_all() {
        let mut service = ServiceSpec::new("10.0.0.1:80".parse().unwrap(), Source::Cli);
        let up = |since| Some(VerdictSeen { health: Health::Up, since, was_up: false });
        assert_eq!(part(&service, up(100), 100), FULL, "off by default");
        service.slow_start = Some(Duration::from_secs(60));
        let ticks = clock::ticks_from_millis(60_000);
        let grown: Vec<u32> = (0..=10).map(|tenth| part(&service, up(100), 100 + ticks * tenth / 10)).collect();
        assert!(grown.is_sorted() && grown[0] == 1 && grown[9] == FULL && grown[10] == FULL, "{grown:?}");
        assert_eq!(part(&service, up(100), 100 + 1000 * ticks), FULL);
        assert_eq!(part(&service, None, 100), FULL, "unchecked: whoever takes flows unchecked takes its share");
    }
}
