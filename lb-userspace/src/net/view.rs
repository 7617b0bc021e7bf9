//! The network as the daemon last saw it: what it asked for once, kept right by the kernel's notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::maps;

use super::{Changes, Interface, Neighbour, Net, Prefixes, RouteTo};
use crate::Result;

/// Up to so many addresses are asked for one by one, without a look at the routing tables.
const FEW: usize = 32;
/// Most neighbours that are asked about at a time, so that a large pool does not become a burst of ARP.
const GENTLE: usize = 500;

/// See the module.
#[derive(Debug)]
pub struct View {
    net: Net,
    interfaces: Option<Vec<Interface>>,
    neighbours: Option<BTreeMap<(u32, IpAddr), Neighbour>>,
    /// Answers to "how is this address reached".
    routes: BTreeMap<IpAddr, Option<RouteTo>>,
    /// Next hops in use.
    used: BTreeSet<(u32, IpAddr)>,
}

/// What is known of the way to some addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Next hops of those that are reached through an attached interface and whose neighbour is known.
    pub next_hops: BTreeMap<IpAddr, maps::NextHop>,
    /// Preferred source addresses.
    pub sources: BTreeMap<IpAddr, IpAddr>,
    /// Why the others are not reached.
    pub trouble: BTreeMap<IpAddr, String>,
}

impl View {
    /// Nothing is looked at yet.
    #[must_use]
    pub const fn new(net: Net) -> Self {
        Self { net, interfaces: None, neighbours: None, routes: BTreeMap::new(), used: BTreeSet::new() }
    }

    /// What asks and changes.
    #[must_use]
    pub const fn net(&self) -> &Net {
        &self.net
    }

    /// Takes the kernel's notices; false if they change nothing that was seen.
    pub fn take(&mut self, changes: &Changes) -> bool {
        if changes.everything {
            self.forget();
            return true;
        }
        if changes.interfaces {
            self.interfaces = None;
        }
        if changes.routes {
            self.routes.clear();
        }
        let mut moved = changes.interfaces || changes.routes;
        if let Some(known) = &mut self.neighbours {
            for (key, neighbour) in &changes.neighbours {
                let before = match neighbour {
                    Some(neighbour) => known.insert(*key, *neighbour),
                    None => known.remove(key),
                };
                moved |= before.map(|known| known.mac) != neighbour.map(|new| new.mac);
            }
        }
        moved
    }

    /// Forgets everything: the next question goes to the kernel.
    pub fn forget(&mut self) {
        (self.interfaces, self.neighbours) = (None, None);
        self.routes.clear();
    }

    /// Forgets who answers for which address.
    pub fn forget_neighbours(&mut self) {
        self.neighbours = None;
    }

    /// All interfaces.
    pub async fn interfaces(&mut self) -> Result<Vec<Interface>> {
        if self.interfaces.is_none() {
            self.interfaces = Some(self.net.interfaces().await?);
        }
        Ok(self.interfaces.clone().unwrap_or_default())
    }

    /// How addresses are reached; `None` = not at all. One question answers for all that routing treats alike.
    pub async fn routes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<&BTreeMap<IpAddr, Option<RouteTo>>> {
        let new: Vec<_> = addresses.iter().filter(|address| !self.routes.contains_key(address)).copied().collect();
        let groups = if new.len() <= FEW {
            new.into_iter().map(|address| vec![address]).collect()
        } else {
            let prefixes: Prefixes = self.net.prefixes().await?;
            prefixes.groups(new)
        };
        for group in groups {
            let answer = self.net.route_to(group[0]).await?;
            self.routes.extend(group.into_iter().map(|address| (address, answer.clone())));
        }
        Ok(&self.routes)
    }

    /// Next hops and preferred sources; those whose neighbour is not known are being resolved.
    pub async fn reach(&mut self, addresses: &BTreeSet<IpAddr>, attached: &[Interface]) -> Result<Reached> {
        self.routes(addresses).await?;
        self.routes.retain(|address, _| addresses.contains(address));
        if self.neighbours.is_none() {
            self.neighbours = Some(self.net.neighbours().await?);
        }
        let (mut reached, mut unknown) = (Reached::default(), BTreeSet::new());
        self.used.clear();
        for (address, route) in &self.routes {
            let Some(route) = route else {
                reached.trouble.insert(*address, "there is no route to it; see `ip route get`".to_owned());
                continue;
            };
            let next = route.gateway.unwrap_or(*address);
            reached.sources.extend(route.source.map(|source| (*address, source)));
            let Some(egress) = attached.iter().find(|interface| interface.index == route.ifindex) else {
                let why = "its route leads out of an interface that is not attached; see `ip route get`";
                reached.trouble.insert(*address, why.to_owned());
                continue;
            };
            self.used.insert((egress.index, next));
            let known = self.neighbours.as_ref().and_then(|known| known.get(&(egress.index, next)));
            let Some(neighbour) = known else {
                unknown.insert((egress.index, next));
                let via = if next == *address { "it".to_owned() } else { format!("its gateway {next}") };
                let why = format!("{via} does not answer on {} (no MAC address); see `ip neigh`", egress.name);
                reached.trouble.insert(*address, why);
                continue;
            };
            reached.next_hops.insert(*address, next_hop(neighbour, egress, route));
        }
        for (ifindex, next) in unknown {
            self.net.resolve(ifindex, next).await;
        }
        Ok(reached)
    }

    /// How many next hops the addresses of the last [`View::reach`] have.
    #[must_use]
    pub fn next_hops_used(&self) -> usize {
        self.used.len()
    }

    /// Has the kernel ask again about neighbours in use that it has not heard of for a while: without traffic of the
    /// host's own nobody else would, and a backend with a new MAC address would stay lost.
    pub async fn refresh_neighbours(&mut self) -> Result<()> {
        let known = self.net.neighbours().await?;
        let due = self.used.iter().filter(|key| known.get(key).is_none_or(|neighbour| neighbour.stale));
        for (ifindex, address) in due.take(GENTLE) {
            self.net.resolve(*ifindex, *address).await;
        }
        self.neighbours = Some(known);
        Ok(())
    }
}

fn next_hop(neighbour: &Neighbour, egress: &Interface, route: &RouteTo) -> maps::NextHop {
    let mut ethernet = [0; 12];
    ethernet[..6].copy_from_slice(&neighbour.mac);
    ethernet[6..].copy_from_slice(&egress.mac);
    let mtu = route.mtu.map_or(egress.mtu, |mtu| mtu.min(egress.mtu));
    maps::NextHop { ethernet, ifindex: egress.index, mtu, ..maps::NextHop::default() }
}
