//! How large each service's table is.
//!
//! A larger table moves fewer clients when backends change, and need not grow when one is added, but all tables share one
//! map. So the largest are for those whose turn comes first, in an order that only names decide, and the others get what
//! their shares need. It is a function of the desired state alone: balancers that want the same have tables of the
//! same sizes. As long as there is room for all, which is for nearly 400 services of up to 163 backends, no service's
//! size depends on another's; beyond that a new service may take the room of the last few in the order.

use std::collections::HashMap;

use lb_common::{hash, maps};

use crate::{
    maglev,
    state::{Desired, Scheduler, ServiceSpec},
};

/// Slots for all tables: the other half is for new ones beside the old ones while they are exchanged.
const ROOM: u32 = maps::TABLE_SLOTS / 2;

/// The size of every service's table, by name. A change of health never changes it.
pub fn sizes(desired: &Desired) -> HashMap<&str, u32> {
    within(desired.services.values(), ROOM)
}

fn within<'a>(services: impl Iterator<Item = &'a ServiceSpec>, room: u32) -> HashMap<&'a str, u32> {
    let mut turns: Vec<_> =
        services.map(|service| (hash::name(service.name.as_bytes()), service.name.as_str(), bounds(service))).collect();
    let needed: u64 = turns.iter().map(|(_, _, (least, _))| u64::from(*least)).sum();
    let mut spare = u64::from(room).saturating_sub(needed);
    turns.sort_unstable();
    let mut sizes = HashMap::with_capacity(turns.len());
    for (_, name, (least, roomy)) in turns {
        let rest = spare.checked_sub(u64::from(roomy - least));
        // After the first that finds no room nobody gets more: a new service changes the turn of few others then.
        spare = rest.unwrap_or(0);
        sizes.insert(name, if rest.is_some() { roomy } else { least });
    }
    sizes
}

/// The least and the largest that a service's table may be. By `source-hash` they are the same: another size is another
/// place for nearly every client, and a client's place is what it is for.
fn bounds(service: &ServiceSpec) -> (u32, u32) {
    let (backends, roomy) = (service.backends.len(), maglev::roomy_size(service.backends.len()));
    if service.scheduler == Scheduler::SourceHash { (roomy, roomy) } else { (maglev::least_size(backends), roomy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Admin, BackendSpec, Source};

    fn service(name: &str, backends: u16) -> ServiceSpec {
        let mut service = ServiceSpec::new("10.0.0.1:80".parse().unwrap(), Source::Cli);
        service.name = name.into();
        let backend =
            |n| BackendSpec { address: ([10, 0, 1, 1], n).into(), weight: 1, admin: Admin::Ready, source: Source::Cli };
        service.backends = (1..=backends).map(backend).collect();
        service
    }

    fn services(count: usize) -> Vec<ServiceSpec> {
        (0..count).map(|n| service(&format!("service-{n}"), 10)).collect()
    }

    #[test]
    fn with_room_every_table_is_large_and_none_grows_with_its_backends() {
        for count in [1, 370] {
            let services = services(count);
            let sizes = within(services.iter(), ROOM);
            assert!(sizes.values().all(|size| *size == 16_381), "{count}");
        }
        let grown = service("grown", 163);
        assert_eq!(within([&grown].into_iter(), ROOM)["grown"], 16_381);
    }

    #[test]
    fn ten_thousand_services_fit() {
        let services = services(10_000);
        let sizes = within(services.iter(), ROOM);
        let all: u32 = sizes.values().sum();
        assert!(sizes.values().all(|size| *size == 1009) && all < maps::TABLE_SLOTS, "{all}");
    }

    #[test]
    fn a_new_service_changes_the_size_of_few_others() {
        let mut services = services(1000);
        let room = 4_000_000;
        let before: HashMap<String, u32> =
            within(services.iter(), room).into_iter().map(|(name, size)| (name.to_owned(), size)).collect();
        let large = before.values().filter(|size| **size == 16_381).count();
        assert!((190..200).contains(&large), "{large}");
        services.push(service("another", 10));
        let after = within(services.iter(), room);
        let changed = before.iter().filter(|(name, size)| after[name.as_str()] != **size).count();
        assert!(changed <= 1, "{changed}");
    }

    #[test]
    fn a_source_hashes_table_keeps_its_size() {
        let mut place = service("place", 10);
        place.scheduler = Scheduler::SourceHash;
        assert_eq!(within([&place].into_iter(), 0)["place"], 16_381);
        assert_eq!(within([&service("web", 10)].into_iter(), 0)["web"], 1009);
    }
}
