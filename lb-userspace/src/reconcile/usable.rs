//! Which backends receive new flows: the first of product.md's sets that is not empty.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::clock;

use super::VerdictSeen;
use crate::state::{Admin, Health, Probe, ServiceSpec};

/// Who takes new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usable {
    /// These.
    Set(BTreeSet<SocketAddr>),
    /// Nobody yet, but some are still to be checked: SYNs are dropped, the clients try again.
    Unchecked,
    /// Nobody.
    Nobody,
}

/// Who takes new flows of a service, by `verdict` (what checks said last of a backend).
pub fn usable(service: &ServiceSpec, verdict: impl Fn(SocketAddr) -> Option<VerdictSeen>) -> Usable {
    let unchecked_is_up = service.health.probe == Probe::None;
    let candidates: Vec<_> = service
        .backends
        .iter()
        .filter(|backend| backend.weight > 0 && backend.admin == Admin::Ready)
        .map(|backend| (backend.address, verdict(backend.address)))
        .collect();
    let health = |seen: &Option<VerdictSeen>| match seen {
        Some(seen) if !unchecked_is_up => seen.health,
        _ if unchecked_is_up => Health::Up,
        _ => Health::Unknown,
    };
    let up: BTreeSet<_> =
        candidates.iter().filter(|(_, seen)| health(seen) == Health::Up).map(|(address, _)| *address).collect();
    if !up.is_empty() {
        return Usable::Set(up);
    }
    // Fail open: the latest to fall. "Down" is only said of a backend that was up, or that failed its first checks;
    // the latter was never up and is not tried.
    let fallen =
        || candidates.iter().filter_map(|(address, seen)| seen.filter(|seen| seen.was_up).map(|s| (*address, s.since)));
    if let Some(latest) = fallen().map(|(_, since)| since).reduce(|a, b| if clock::since(b, a) > 0 { b } else { a }) {
        return Usable::Set(fallen().filter(|(_, since)| *since == latest).map(|(address, _)| address).collect());
    }
    if candidates.iter().any(|(_, seen)| health(seen) == Health::Unknown) {
        return Usable::Unchecked;
    }
    Usable::Nobody
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::{BackendSpec, HealthCheck, IdleTimeouts, Mode, OnDown, OnEmpty, Protocol, Scheduler, Source};

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn service(backends: &[(u8, u16, Admin)]) -> ServiceSpec {
        ServiceSpec {
            name: "web".into(),
            vips: vec!["10.0.0.100:80".parse().unwrap()],
            mode: Mode::Nat,
            scheduler: Scheduler::Maglev,
            affinity: None,
            slow_start: None,
            health: HealthCheck::default_for(Protocol::Tcp),
            on_down: OnDown::Auto,
            on_empty: OnEmpty::Reject,
            idle: IdleTimeouts::default(),
            source: Source::Cli,
            backends: backends
                .iter()
                .map(|(n, weight, admin)| BackendSpec {
                    address: address(*n),
                    weight: *weight,
                    admin: *admin,
                    source: Source::Cli,
                })
                .collect(),
            discovery: Vec::new(),
        }
    }

    fn run(service: &ServiceSpec, verdicts: &[(u8, Health, u32, bool)]) -> Usable {
        let verdicts: BTreeMap<_, _> = verdicts
            .iter()
            .map(|(n, health, since, was_up)| {
                (address(*n), VerdictSeen { health: *health, since: *since, was_up: *was_up })
            })
            .collect();
        usable(service, |address| verdicts.get(&address).copied())
    }

    fn set(numbers: &[u8]) -> Usable {
        Usable::Set(numbers.iter().map(|n| address(*n)).collect())
    }

    #[test]
    fn the_first_set_that_is_not_empty() {
        use Admin::{Drain, Maint, Ready};
        use Health::{Down, Up};
        let web = service(&[(1, 1, Ready), (2, 1, Ready), (3, 1, Drain), (4, 1, Maint), (5, 0, Ready)]);
        let all_up = [(1, Up, 5, true), (2, Up, 5, true), (3, Up, 5, true), (4, Up, 5, true), (5, Up, 5, true)];
        assert_eq!(run(&web, &all_up), set(&[1, 2]), "drain, maint and weight 0 take nothing");
        assert_eq!(run(&web, &[(1, Down, 9, true), (2, Up, 5, true)]), set(&[2]));
        assert_eq!(run(&web, &[(1, Down, 9, true), (2, Down, 7, true)]), set(&[1]), "fail open: the latest to fall");
        assert_eq!(run(&web, &[(1, Down, 9, true), (2, Down, 9, true)]), set(&[1, 2]), "both fell together");
        assert_eq!(run(&web, &[(1, Down, 9, false)]), Usable::Unchecked, "one never was up, one is unchecked");
        assert_eq!(run(&web, &[(1, Down, 9, false), (2, Down, 9, false)]), Usable::Nobody);
        assert_eq!(run(&web, &[]), Usable::Unchecked);
        assert_eq!(run(&service(&[(3, 1, Drain)]), &all_up), Usable::Nobody);
        assert_eq!(run(&service(&[]), &[]), Usable::Nobody);
    }

    #[test]
    fn without_a_check_everybody_is_up() {
        let mut web = service(&[(1, 1, Admin::Ready)]);
        web.health.probe = Probe::None;
        assert_eq!(run(&web, &[]), set(&[1]));
    }
}
