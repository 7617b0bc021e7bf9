//! What is refused, with the fix in the text. Guards look at [`Facts`] and change nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{Desired, Facts, Mode, Probe, ServiceSpec, Via, Vip, modes};
use crate::{Error, Result};

/// Everything that can be wrong with a new state. What stood before is not judged again: the world may have changed
/// around it, and refusing it now would help nobody.
pub(super) fn check(
    old: &Desired,
    new: &Desired,
    facts: &Facts,
    force: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    check_settings(old, new, facts, force, warnings)?;
    let (vips, owners) = (vip_addresses(new), Owners::of(new));
    let known_vips: BTreeSet<_> = old.services.values().flat_map(|service| &service.vips).collect();
    for service in new.services.values() {
        let before = old.services.get(&service.name);
        if before == Some(service) {
            continue;
        }
        if let Some(before) = before.filter(|before| before.mode != service.mode) {
            return Err(Error::refused(format!(
                "service {}: its mode cannot change from {} to {} while it lives",
                service.name, before.mode, service.mode
            ))
            .hint("add a service in the new mode under another name, then remove this one"));
        }
        check_via(service)?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = service.vips.iter().find(|vip| !seen.insert(**vip)) {
            return Err(
                Error::refused(format!("VIP {twice}: named twice in service {}", service.name)).hint("name it once")
            );
        }
        for vip in &service.vips {
            owners.check(*vip, service)?;
            if !known_vips.contains(vip) {
                check_vip(*vip, new, facts, force, warnings)?;
            }
        }
        let known = |address| before.is_some_and(|before| before.backends.iter().any(|b| b.address == address));
        for backend in service.backends.iter().filter(|backend| !known(backend.address)) {
            check_backend(service, backend.address, &vips, facts)?;
            check_family(service, backend.address)?;
            warnings.extend(way_back(service, backend.address, facts));
        }
    }
    Ok(())
}

/// Addresses and ports for NAT.
fn check_settings(old: &Desired, new: &Desired, facts: &Facts, force: bool, warnings: &mut Vec<String>) -> Result<()> {
    for address in new.settings.snat.iter().filter(|address| !old.settings.snat.contains(address)) {
        check_snat_alone(*address)?;
        if !facts.host_addresses.contains(address) && !force {
            let device = new.settings.interfaces.first().map_or("DEV", String::as_str);
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            return Err(Error::refused(format!(
                "--snat {address}: this host does not own it, so replies may go elsewhere"
            ))
            .hint(format!(
                "sudo ip addr add {address}/{prefix} dev {device}; or --force, where the network routes it here"
            )));
        }
    }
    let (low, high) = facts.local_port_range;
    if let Some((from, to)) = new.settings.snat_ports.filter(|ports| Some(*ports) != old.settings.snat_ports)
        && from <= high
        && low <= to
    {
        warnings.push(format!(
            "--snat-ports {from}-{to}: overlaps ip_local_port_range ({low}-{high}); replies to connections of this host's own to a backend may be taken for lb's"
        ));
    }
    Ok(())
}

/// Whose VIPs and backends are where: the first two services by name are enough to find another one.
struct Owners<'a> {
    vips: BTreeMap<Vip, Vec<&'a str>>,
    backends: BTreeMap<IpAddr, Vec<&'a str>>,
}

impl<'a> Owners<'a> {
    fn of(all: &'a Desired) -> Self {
        let mut owners = Self { vips: BTreeMap::new(), backends: BTreeMap::new() };
        for service in all.services.values() {
            let name = service.name.as_str();
            for vip in &service.vips {
                note(owners.vips.entry(*vip).or_default(), name);
            }
            for backend in &service.backends {
                note(owners.backends.entry(backend.address.ip()).or_default(), name);
            }
        }
        owners
    }

    /// One VIP belongs to one service, and is nobody's backend.
    fn check(&self, vip: Vip, service: &ServiceSpec) -> Result<()> {
        let other = |names: Option<&Vec<&'a str>>| names?.iter().copied().find(|name| *name != service.name);
        if let Some(other) = other(self.vips.get(&vip)) {
            return Err(Error::refused(format!("VIP {vip}: service {other} has it already"))
                .hint("one VIP belongs to one service"));
        }
        match other(self.backends.get(&vip.address)) {
            Some(other) => Err(Error::refused(format!(
                "VIP {vip}: the address is that of a backend of service {other}: packets would go round for ever"
            ))
            .hint("an address that no backend has")),
            None => Ok(()),
        }
    }
}

/// Notes a name, if fewer than two are known.
fn note<'a>(names: &mut Vec<&'a str>, name: &'a str) {
    if names.len() < 2 && !names.contains(&name) {
        names.push(name);
    }
}

/// A check by way of the VIP needs a backend that has it, and a connection.
pub(crate) fn check_via(service: &ServiceSpec) -> Result<()> {
    if service.health.via == Via::Backend || service.health.probe == Probe::None {
        return Ok(());
    }
    let mode = service.mode;
    let why = match service.health.probe {
        _ if !mode.is_direct_return() => format!("in mode '{mode}' backends do not have the VIP"),
        Probe::Udp(_) => "not by UDP in this version; tcp, http, https and grpc can".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::usage(format!("service {}: health via = \"vip\": {why}", service.name)).hint("via = \"backend\""))
}

/// In mode `dnat` a backend's answers must pass lb; of a router in between only the operator knows where it sends them.
fn way_back(service: &ServiceSpec, backend: SocketAddr, facts: &Facts) -> Option<String> {
    let route = facts.routes.get(&backend.ip())?.as_ref()?;
    let gateway = route.gateway.filter(|_| service.mode == Mode::Dnat)?;
    Some(format!(
        "backend {backend}: it is behind the router {gateway}, which must send its answers to clients back to lb (mode 'dnat'): nothing arrives at clients otherwise"
    ))
}

/// A mode that keeps the packet's IP header cannot change its family.
fn check_family(service: &ServiceSpec, backend: SocketAddr) -> Result<()> {
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let keeps = !matches!(service.mode, Mode::Ipip | Mode::Gue);
    match service.vips.iter().find(|vip| keeps && vip.address.is_ipv4() != backend.is_ipv4()) {
        Some(vip) => Err(Error::refused(format!(
            "backend {backend}: {}, but VIP {vip} is {}: mode '{}' does not translate between them",
            family(backend.ip()),
            family(vip.address),
            service.mode
        ))
        .hint(format!("{} backends for it, and a service of its own for the other VIP", family(vip.address)))),
        None => Ok(()),
    }
}

fn check_vip(vip: Vip, others: &Desired, facts: &Facts, force: bool, warnings: &mut Vec<String>) -> Result<()> {
    let address = vip.address;
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
        return Err(Error::refused(format!("VIP {vip}: not an address that clients can reach"))
            .hint("a unicast address of this network"));
    }
    let own = facts.host_addresses.contains(&address) && !facts.announced.contains(&address);
    if own && vip.port == 0 && !force {
        return Err(Error::refused(format!("VIP {vip}: every port of this host's own address, SSH too"))
            .hint("name a port, use another address, or --force"));
    }
    let taken = facts.listeners.iter().find(|listener| {
        let here = listener.address == address || (listener.address.is_unspecified() && own);
        here && listener.port == vip.port && listener.protocol == vip.protocol
    });
    if let (Some(listener), false) = (taken, force) {
        let who = listener.process.as_deref().unwrap_or("a process of this host");
        return Err(Error::refused(format!("VIP {vip}: {who} listens there; it would get no more connections"))
            .hint("another port or address, stop it, or --force"));
    }
    let (low, high) = facts.local_port_range;
    if own && (low..=high).contains(&vip.port) {
        warnings.push(format!(
            "VIP {vip}: the port is in ip_local_port_range ({low}-{high}), which this host uses for its own connections"
        ));
    }
    if !own && others.settings.announce.is_none() {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let device = others.settings.interfaces.first().map_or("DEV", String::as_str);
        warnings.push(format!(
            "VIP {vip}: no interface of this host has the address, so its neighbours may not find it: sudo ip addr add {address}/{prefix} dev {device}, or --announce"
        ));
    }
    Ok(())
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

pub(super) fn check_backend(
    service: &ServiceSpec,
    address: SocketAddr,
    vips: &BTreeSet<IpAddr>,
    facts: &Facts,
) -> Result<()> {
    let refuse = |why: &str, fix: &str| Err(Error::refused(format!("backend {address}: {why}")).hint(fix));
    let ip = address.ip();
    if ip.is_loopback() {
        return refuse(
            "a loopback address cannot be reached through an interface",
            "give the server an address of its own",
        );
    }
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) {
        return refuse("not the address of a server", "a unicast address");
    }
    modes::check_backend(service, address, facts)?;
    if vips.contains(&ip) {
        return refuse("the address is a VIP: packets would go round for ever", "the server's own address");
    }
    if facts.host_addresses.contains(&ip) {
        return refuse(
            "the address is this host's own: packets to it do not leave",
            "a server on another host or in its own network namespace",
        );
    }
    match facts.routes.get(&ip) {
        Some(None) => refuse("there is no route to it", "see `ip route get`"),
        Some(Some(route)) if route.local => refuse("the address is this host's own", "a server on another host"),
        Some(Some(route)) if !facts.attached.contains_key(&route.ifindex) => {
            let device = facts.interfaces.get(&route.ifindex).map_or("?", String::as_str);
            let why = if service.mode.is_direct_return() { "lb cannot send there" } else { "replies would bypass lb" };
            refuse(
                &format!("it is reached through {device}, which is not attached: {why}"),
                &format!("attach {device} too: lb attach IFACE {device} .."),
            )
        }
        _ => Ok(()),
    }
}

/// Addresses of all VIPs.
pub(crate) fn vip_addresses(desired: &Desired) -> BTreeSet<IpAddr> {
    desired.services.values().flat_map(|service| &service.vips).map(|vip| vip.address).collect()
}

/// What can be said against a VIP without a look at the host.
pub(crate) fn check_vip_alone(vip: Vip) -> Result<()> {
    check_vip(vip, &Desired::default(), &Facts::default(), false, &mut Vec::new())
}

/// What can be said against a backend without a look at the host.
pub(crate) fn check_backend_alone(service: &ServiceSpec, address: SocketAddr, vips: &BTreeSet<IpAddr>) -> Result<()> {
    check_backend(service, address, vips, &Facts::default())?;
    check_family(service, address)
}

/// What can be said against an address for NAT without a look at the host.
pub(crate) fn check_snat_alone(address: IpAddr) -> Result<()> {
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
        return Err(Error::refused(format!("--snat {address}: not an address that backends can answer to"))
            .hint("a unicast address of this host"));
    }
    Ok(())
}
