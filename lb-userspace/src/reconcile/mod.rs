//! From what is wanted and what is seen to what stands in the maps.
//!
//! [`compile`] is a pure function of [`crate::state::Desired`] and [`Observed`]; the same inputs give the same
//! [`Tables`] on every balancer. [`crate::dataplane`] applies the difference.

mod compile;
mod next_hops;
mod sizes;
pub mod slow_start;
mod usable;

pub(crate) use compile::words_of;
pub use compile::{compile, on_down};
pub use next_hops::NextHops;
pub use usable::{Usable, usable};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::maps;

use crate::{
    maglev,
    state::{Health, OnDown, Vip},
};

/// Names one backend of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The service's name.
    pub service: String,
    /// The backend's address.
    pub address: SocketAddr,
}

/// A verdict and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictSeen {
    /// What checks say now.
    pub health: Health,
    /// Tick of the verdict ([`lb_common::clock`]); for `down`: when it fell.
    pub since: u32,
    /// For `down`: the verdict before this one was `up`.
    pub was_up: bool,
}

/// What is known of the world; everything that `compile` needs besides the desired state.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Last verdicts. Absent = unknown, never checked.
    pub verdicts: BTreeMap<BackendKey, VerdictSeen>,
    /// Identities (`backends` index, from 1) already given: of present backends, and of removed ones that flows name.
    pub backend_ids: BTreeMap<BackendKey, u32>,
    /// Identities (`services` index, from 1) already given, by service name.
    pub service_ids: BTreeMap<String, u32>,
    /// Backends that are no longer wanted but whose flows go on, with what they need; `reset` = removed by force.
    pub lingering: BTreeMap<BackendKey, Lingering>,
    /// Next hop of every backend address that has one.
    pub next_hops: BTreeMap<IpAddr, maps::NextHop>,
    /// Where next hops stand in their map already.
    pub next_hop_places: NextHops,
    /// Preferred source address of the route to every backend address.
    pub sources: BTreeMap<IpAddr, IpAddr>,
    /// Addresses that this host owns.
    pub host_addresses: BTreeSet<IpAddr>,
    /// `ip_local_port_range` and `ip_local_reserved_ports`: ports that NAT leaves alone, as inclusive ranges.
    pub reserved_ports: Vec<(u16, u16)>,
    /// Tables that were made for earlier compilations.
    pub tables_made: maglev::Memo,
    /// Now, a tick: how far slow starts have come.
    pub now: u32,
    /// VIPs that are no longer wanted but that flows still name.
    pub lingering_vips: BTreeSet<Vip>,
}

/// A removed backend whose flows go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lingering {
    /// The value that its identity had.
    pub value: maps::Backend,
    /// Its flows are to be reset.
    pub reset: bool,
    /// What happens to its flows when checks say that it is down.
    pub on_down: OnDown,
}

/// Everything that stands in the maps on the control plane's word; `dataplane::apply` makes it so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `vips4`.
    pub vips4: BTreeMap<maps::Vip4Key, maps::Vip>,
    /// `vips6`.
    pub vips6: BTreeMap<maps::Vip6Key, maps::Vip>,
    /// `services` by identity; [`maps::Service::table`] is 0 here, `dataplane` places the slots.
    pub services: BTreeMap<u32, maps::Service>,
    /// Slots of each service's table (backend identities); empty = no usable backend.
    pub slots: BTreeMap<u32, Arc<Vec<u32>>>,
    /// Members of each service whose scheduler looks at them: identity and weight ([`maps::Service::members`]).
    pub members: BTreeMap<u32, Vec<[u32; 2]>>,
    /// `backends` by identity.
    pub backends: BTreeMap<u32, maps::Backend>,
    /// `next_hops`.
    pub next_hops: NextHops,
    /// `snat`.
    pub snat: Vec<[lb_common::Be32; 4]>,
    /// `nat_ports`, host order, ascending.
    pub nat_ports: Vec<u16>,
    /// Addresses whose bit is set in `filter`.
    pub filter: BTreeSet<IpAddr>,
    /// Source addresses whose bit is set in `filter`: backends in mode `dnat`.
    pub filter_sources: BTreeSet<IpAddr>,
    /// Ports whose bit is set in `ports`, besides `nat_ports`.
    pub vip_ports: BTreeSet<u16>,
    /// A VIP has port 0: every bit of `ports` is set.
    pub wildcard: bool,
    /// Identities after this compilation, for the next.
    pub backend_ids: BTreeMap<BackendKey, u32>,
    /// Identities after this compilation, for the next.
    pub service_ids: BTreeMap<String, u32>,
    /// By service name: usable backends (those that new flows go to), and the fingerprint of the table.
    pub usable: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// A table's hash over (address, port) in slot order: equal on balancers that would choose alike.
    pub fingerprints: BTreeMap<String, u64>,
}
