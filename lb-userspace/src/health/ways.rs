//! Which way a probe to the VIP on a backend goes: what the daemon knows of the network, and the sockets for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_common::{maps::NextHop, outer};

use super::{
    Target,
    probe::Why,
    through_vip::{Road, Way},
    wire::{Wire, Wrap},
};
use crate::state::Mode;

/// How backends are reached.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Next hop of every backend address that has one.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    /// Preferred source address of the route to every backend address.
    pub sources: BTreeMap<IpAddr, IpAddr>,
    /// This host's own addresses, VIPs excepted: what a backend can answer to.
    pub own: BTreeSet<IpAddr>,
}

impl Ways {
    fn to(&self, target: &Target) -> Result<Option<Way>, Why> {
        let Some((vip, mode)) = &target.through else { return Ok(None) };
        let backend = target.address.ip();
        let hop =
            self.next_hops.get(&backend).ok_or("via vip: the backend's MAC address, or its gateway's, is not known")?;
        let towards = self.sources.get(&backend).copied().ok_or("via vip: there is no route to the backend")?;
        let family = |address: &&IpAddr| address.is_ipv4() == vip.address.is_ipv4();
        let source = Some(&towards).filter(family).filter(|own| self.own.contains(own));
        let source = source.or_else(|| self.own.iter().find(family)).copied().ok_or_else(|| {
            let family = if vip.address.is_ipv4() { "IPv4" } else { "IPv6" };
            Why::from(format!(
                "via vip: this host has no {family} address besides VIPs that the backend could answer to"
            ))
        })?;
        let wrap = match mode {
            Mode::Ipip => Wrap::Ip(towards, backend),
            Mode::Gue => Wrap::Udp(towards, backend, outer::GUE_PORT),
            Mode::Dsr | Mode::Nat | Mode::Dnat => Wrap::Bare,
        };
        let [a, b, c, d, e, f, ..] = hop.ethernet;
        let vip = SocketAddr::new(vip.address, target.address.port());
        Ok(Some(Way { source, vip, mac: [a, b, c, d, e, f], ifindex: hop.ifindex, mtu: hop.mtu, wrap }))
    }
}

/// Ways, and the socket of each VIP that is probed.
#[derive(Debug, Default)]
pub struct Roads {
    ways: Mutex<Ways>,
    wires: Mutex<HashMap<IpAddr, Arc<Wire>>>,
}

impl Roads {
    /// What is known from now on.
    pub fn know(&self, ways: Ways) {
        *lock(&self.ways) = ways;
    }

    /// Closes the sockets of VIPs that are not probed any more.
    pub fn keep(&self, vips: &BTreeSet<IpAddr>) {
        lock(&self.wires).retain(|vip, _| vips.contains(vip));
    }

    /// The road to what a target says; `None` if it is an ordinary one. Called within the checks' runtime.
    pub fn to(&self, target: &Target) -> Result<Option<Road>, Why> {
        let Some(way) = lock(&self.ways).to(target)? else { return Ok(None) };
        let mut wires = lock(&self.wires);
        let wire = match wires.get(&way.vip.ip()) {
            Some(wire) => Arc::clone(wire),
            None => {
                let opened = Wire::open(way.vip.ip());
                let wire = Arc::new(opened.map_err(|error| Why::from(format!("via vip: packet socket: {error}")))?);
                wires.insert(way.vip.ip(), Arc::clone(&wire));
                wire
            }
        };
        Ok(Some((way, wire)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ServiceSpec, Source, Via};

    fn way(mode: Mode, vip: &str, backend: &str, ways: &Ways) -> Result<Way, Why> {
        let mut service = ServiceSpec::new(vip.parse().unwrap(), Source::Cli);
        (service.mode, service.health.via) = (mode, Via::Vip);
        let target = Target::new(&service, backend.parse().unwrap()).unwrap();
        ways.to(&target).map(Option::unwrap)
    }

    #[test]
    fn a_way_is_the_modes_own_and_answers_find_back() {
        let [v4, v6, b4, b6] =
            ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
        let hop =
            NextHop { ethernet: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1], ifindex: 3, mtu: 1400, ..NextHop::default() };
        let mut ways = Ways::default();
        let why = way(Mode::Dsr, "10.0.0.10:80", "10.0.0.2:0", &ways).unwrap_err();
        assert!(why.contains("MAC address"), "{why}");
        ways.next_hops = [(b4, hop), (b6, hop)].into();
        ways.sources = [(b4, v4), (b6, v6)].into();
        let why = way(Mode::Dsr, "10.0.0.10:80", "10.0.0.2:0", &ways).unwrap_err();
        assert!(why.contains("no IPv4 address besides VIPs"), "{why}");
        ways.own = [v4, v6].into();

        let dsr = way(Mode::Dsr, "10.0.0.10:80", "10.0.0.2:0", &ways).unwrap();
        assert_eq!((dsr.source, dsr.vip.to_string().as_str(), dsr.wrap), (v4, "10.0.0.10:80", Wrap::Bare));
        assert_eq!((dsr.mac, dsr.ifindex, dsr.mtu), ([2, 0, 0, 0, 0, 9], 3, 1400));
        let mixed = way(Mode::Ipip, "10.0.0.10:80", "[fd00::2]:0", &ways).unwrap();
        assert_eq!((mixed.source, mixed.wrap), (v4, Wrap::Ip(v6, b6)));
        let gue = way(Mode::Gue, "[fd00::10]:80", "10.0.0.2:80", &ways).unwrap();
        assert_eq!((gue.source, gue.wrap), (v6, Wrap::Udp(v4, b4, 6080)));
    }
}
