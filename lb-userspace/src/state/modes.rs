//! What a mode asks of a service's backends: the direct-return modes (`dsr`, `ipip`, `gue`) leave addresses and ports
//! as the client sent them, so their backends listen on the VIP's own address and port.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Change, Desired, Facts, Mode, Probe, ServiceSpec};
use crate::{Error, Result};

impl Mode {
    /// Backends answer the client directly, as the VIP.
    #[must_use]
    pub const fn is_direct_return(self) -> bool {
        matches!(self, Self::Dsr | Self::Ipip | Self::Gue)
    }

    /// Packets are wrapped, so that the backend may be of the other family.
    #[must_use]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}

impl ServiceSpec {
    /// The ports of its VIPs.
    fn ports(&self) -> BTreeSet<u16> {
        self.vips.iter().map(|vip| vip.port).collect()
    }

    /// A backend's address as this service names it. Direct-return modes: typed with the VIP's port or without one
    /// it is the same backend, whose port is the VIP's, or 0 where VIPs differ in it.
    #[must_use]
    pub fn place(&self, typed: SocketAddr) -> SocketAddr {
        let ports = self.ports();
        match ports.first() {
            Some(port) if self.mode.is_direct_return() && ports.len() == 1 && typed.port() == 0 => {
                SocketAddr::new(typed.ip(), *port)
            }
            _ => typed,
        }
    }

    /// The port that a backend is reached at: its own, or in direct-return modes that of the first VIP.
    #[must_use]
    pub fn port_of(&self, backend: SocketAddr) -> u16 {
        match (backend.port(), self.vips.first()) {
            (0, Some(vip)) => vip.port,
            (port, _) => port,
        }
    }
}

/// Refuses a backend that the service's mode cannot serve.
pub(super) fn check_backend(service: &ServiceSpec, backend: SocketAddr, facts: &Facts) -> Result<()> {
    let mode = service.mode;
    let every_port = service.vips.iter().all(|vip| vip.port == 0);
    if service.port_of(backend) == 0 && service.health.probe != Probe::None && service.health.port.is_none() {
        return Err(Error::refused(format!(
            "backend {}: it takes every port, so which one its health check asks is not clear",
            backend.ip()
        ))
        .hint("--health none, or in the config file [service.health] port = N"));
    }
    if !mode.is_direct_return() {
        if backend.port() == 0 && !every_port {
            return Err(Error::usage(format!("backend {}: the port is missing", backend.ip()))
                .hint("ADDR:PORT[=WEIGHT], as in 10.0.0.2:8080 or [2001:db8::2]:8080=5"));
        }
        return Ok(());
    }
    let ports = service.ports();
    let of_vip = ports.len() == 1 && ports.contains(&backend.port());
    if !of_vip && backend.port() != 0 {
        let vips = service.vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::refused(format!(
            "backend {backend}: mode '{mode}' cannot translate ports, and the VIP is {vips}: the server must listen on the VIP's port"
        ))
        .hint(format!("{} without a port, or --mode nat, which translates", backend.ip())));
    }
    let route = facts.routes.get(&backend.ip()).and_then(Option::as_ref);
    if let (Mode::Dsr, Some(gateway)) = (mode, route.and_then(|route| route.gateway)) {
        return Err(Error::refused(format!(
            "backend {backend}: it is behind the router {gateway}, but mode 'dsr' only changes MAC addresses: it must be on the same layer 2"
        ))
        .hint("--mode ipip or gue reach it through routers"));
    }
    let own = route.and_then(|route| route.source);
    if let Some(vip) = service.vips.iter().find(|vip| own == Some(vip.address)) {
        return Err(Error::refused(format!(
            "backend {backend}: lb's own address towards it is the VIP {}, which in mode '{mode}' the backend owns too: it could not answer lb",
            vip.address
        ))
        .hint("another address for the VIP: --vip ADDR:PORT --announce"));
    }
    Ok(())
}

impl Change {
    /// The same change with every backend named as its service names it.
    pub(super) fn placed(&self, now: &Desired) -> Self {
        let mut change = self.clone();
        let known = |wanted: Option<&str>| now.service(wanted).ok();
        let pairs = |service: Option<&ServiceSpec>, backends: &mut Vec<(SocketAddr, u16)>| {
            if let Some(service) = service {
                backends.iter_mut().for_each(|(address, _)| *address = service.place(*address));
            }
        };
        let places = |service: Option<&ServiceSpec>, backends: &mut [SocketAddr]| {
            if let Some(service) = service {
                backends.iter_mut().for_each(|address| *address = service.place(*address));
            }
        };
        match &mut change {
            Self::Attach { service: Some(service), .. } | Self::AddService { service } => place_all(service),
            Self::Restate { services, .. } => services.iter_mut().for_each(place_all),
            Self::Snapshot { service, backends, .. } | Self::SetService { service, backends: Some(backends), .. } => {
                pairs(known(Some(service)), backends);
            }
            Self::AddBackends { service, backends } => pairs(known(service.as_deref()), backends),
            Self::RemoveBackends { service, backends } | Self::SetAdmin { service, backends, .. } => {
                places(known(service.as_deref()), backends);
            }
            Self::SetWeight { service, backend, .. } => {
                places(known(service.as_deref()), std::slice::from_mut(backend));
            }
            _ => {}
        }
        change
    }
}

fn place_all(service: &mut impl std::borrow::BorrowMut<ServiceSpec>) {
    let service = service.borrow_mut();
    let mut backends = std::mem::take(&mut service.backends);
    backends.iter_mut().for_each(|backend| backend.address = service.place(backend.address));
    backends.sort_by_key(|backend| backend.address);
    service.backends = backends;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        net::RouteTo,
        state::{Admin, BackendSpec, Source},
    };

    fn service(mode: Mode, vips: &[&str], backends: &[&str]) -> ServiceSpec {
        let mut service = ServiceSpec::new(vips[0].parse().unwrap(), Source::Cli);
        service.mode = mode;
        service.vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        service.backends = backends
            .iter()
            .map(|text| {
                let (address, weight) = crate::state::typed::parse_backend(text).unwrap();
                BackendSpec { address, weight, admin: Admin::Ready, source: Source::Cli }
            })
            .collect();
        service
    }

    fn added(service: ServiceSpec) -> Result<Desired> {
        let change = Change::AddService { service: Box::new(service) };
        Desired::default().change(&change, &Facts::default(), false).map(|outcome| outcome.desired)
    }

    fn addresses(desired: &Desired) -> Vec<String> {
        desired.services.values().flat_map(|s| &s.backends).map(|backend| backend.address.to_string()).collect()
    }

    #[test]
    fn with_the_vips_port_or_without_one_it_is_the_same_backend() {
        for typed in ["10.0.0.2", "10.0.0.2:80"] {
            let desired = added(service(Mode::Dsr, &["10.0.0.10:80"], &[typed])).unwrap();
            assert_eq!(addresses(&desired), ["10.0.0.2:80"]);
            let drain =
                Change::SetAdmin { service: None, backends: vec!["10.0.0.2:0".parse().unwrap()], admin: Admin::Drain };
            let after = desired.change(&drain, &Facts::default(), false).unwrap().desired;
            assert_eq!(after.service(None).unwrap().backends[0].admin, Admin::Drain);
        }
        let both = service(Mode::Ipip, &["10.0.0.10:80", "10.0.0.10:443"], &["10.0.0.2"]);
        assert_eq!(both.port_of(both.backends[0].address), 80);
        assert_eq!(addresses(&added(both).unwrap()), ["10.0.0.2:0"]);
    }

    #[test]
    fn other_ports_are_refused_with_the_fix() {
        let one = ["10.0.0.10:80"];
        for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
            let error = added(service(mode, &one, &["10.0.0.2:8080"])).unwrap_err();
            assert!(error.kind == Kind::Refused && error.message.contains("cannot translate ports"), "{error:?}");
            assert!(error.hint.unwrap().contains("10.0.0.2 without a port"));
        }
        let two = service(Mode::Dsr, &["10.0.0.10:80", "10.0.0.10:443"], &["10.0.0.2:80"]);
        assert_eq!(added(two).unwrap_err().kind, Kind::Refused);
        let error = added(service(Mode::Nat, &one, &["10.0.0.2"])).unwrap_err();
        assert!(error.kind == Kind::Usage && error.message.contains("port is missing"), "{error:?}");
    }

    #[test]
    fn of_every_port_the_backend_keeps_the_clients_and_the_check_needs_one() {
        for mode in [Mode::Nat, Mode::Dnat, Mode::Ipip] {
            let mut all = service(mode, &["10.0.0.10:0"], &["10.0.0.2"]);
            let error = added(all.clone()).unwrap_err();
            assert!(error.kind == Kind::Refused && error.message.contains("health check"), "{error:?}");
            all.health.port = Some(80);
            assert_eq!(addresses(&added(all.clone()).unwrap()), ["10.0.0.2:0"]);
            (all.health.port, all.health.probe) = (None, Probe::None);
            added(all).unwrap();
        }
        added(service(Mode::Nat, &["10.0.0.10:0"], &["10.0.0.2:80"])).unwrap();
    }

    #[test]
    fn checks_by_way_of_the_vip_need_a_backend_that_has_it() {
        let checked = |mode, probe: &str| {
            let mut service = service(mode, &["10.0.0.10:80"], &["10.0.0.2:80"]);
            service.health.probe = probe.parse().unwrap();
            service.health.via = crate::state::Via::Vip;
            added(service).map(drop)
        };
        for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
            for probe in ["tcp", "http", "https", "grpc", "none"] {
                checked(mode, probe).unwrap();
            }
            let error = checked(mode, "udp").unwrap_err();
            assert!(error.message.contains("not by UDP") && error.hint.is_some(), "{error:?}");
        }
        for mode in [Mode::Nat, Mode::Dnat] {
            let error = checked(mode, "tcp").unwrap_err();
            assert!(error.message.contains("backends do not have the VIP"), "{error:?}");
        }
    }

    #[test]
    fn dsr_does_not_go_through_routers() {
        let gateway = Some("10.0.0.254".parse().unwrap());
        let route = RouteTo { ifindex: 2, source: None, gateway, local: false, mtu: None };
        let facts = Facts { routes: [("10.9.0.2".parse().unwrap(), Some(route))].into(), ..Facts::default() };
        let backend = "10.9.0.2:80".parse().unwrap();
        let check = |mode| check_backend(&service(mode, &["10.0.0.10:80"], &[]), backend, &facts);
        let error = check(Mode::Dsr).unwrap_err();
        assert!(error.message.contains("router 10.0.0.254") && error.hint.unwrap().contains("ipip"));
        check(Mode::Ipip).unwrap();
        check(Mode::Gue).unwrap();
    }

    #[test]
    fn the_vip_is_not_lbs_own_way_to_be_known() {
        let source = Some("10.0.0.10".parse().unwrap());
        let route = RouteTo { ifindex: 2, source, gateway: None, local: false, mtu: None };
        let facts = Facts { routes: [("10.0.0.2".parse().unwrap(), Some(route))].into(), ..Facts::default() };
        let check =
            |mode| check_backend(&service(mode, &["10.0.0.10:80"], &[]), "10.0.0.2:80".parse().unwrap(), &facts);
        let error = check(Mode::Dsr).unwrap_err();
        assert!(error.message.contains("it could not answer lb") && error.hint.is_some(), "{error:?}");
        check(Mode::Nat).unwrap();
    }

    #[test]
    fn a_mode_does_not_change_while_its_service_lives() {
        let desired = added(service(Mode::Dsr, &["10.0.0.10:80"], &["10.0.0.2"])).unwrap();
        let options = super::super::ServiceOptions { mode: Some(Mode::Nat), ..Default::default() };
        let change = Change::SetService { service: "10.0.0.10:80".into(), options: Box::new(options), backends: None };
        let error = desired.change(&change, &Facts::default(), true).unwrap_err();
        assert!(error.kind == Kind::Refused && error.message.contains("mode cannot change"), "{error:?}");
    }
}
