//! What a mode asks of its backends: commands to type there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::outer;

use super::{Finding, Level, finding};
use crate::{api::Service, state::Mode};

/// A backend's needs in a mode: for these VIPs.
type Needs = BTreeMap<(IpAddr, &'static str), (Mode, BTreeSet<IpAddr>)>;

/// One finding for each backend and mode, however many services it is in.
pub fn findings(services: &[Service], own: &BTreeMap<IpAddr, IpAddr>) -> Vec<Finding> {
    let mut needs = Needs::new();
    for service in services.iter().filter(|service| service.mode != Mode::Nat) {
        for backend in &service.backends {
            let key = (backend.address.ip(), service.mode.word());
            let (_, vips) = needs.entry(key).or_insert_with(|| (service.mode, BTreeSet::new()));
            vips.extend(service.vips.iter().map(|vip| vip.address));
        }
    }
    let say = |((backend, word), (mode, vips))| {
        let commands = commands(mode, &vips, backend, own.get(&backend).copied()).join("; ");
        let text = format!("{backend}: what mode '{word}' needs there, as root");
        finding(Level::Ok, "backend", text, Some(&commands))
    };
    needs.into_iter().map(say).collect()
}

/// Commands for a backend at `backend` of a service in `mode` with VIPs at `vips`; `own` is lb's address towards it.
#[must_use]
pub fn commands(mode: Mode, vips: &BTreeSet<IpAddr>, backend: IpAddr, own: Option<IpAddr>) -> Vec<String> {
    let mut commands = Vec::new();
    if mode == Mode::Dnat {
        let family = if backend.is_ipv4() { "" } else { "-6 " };
        let own = own.map_or("LB".to_owned(), |own| own.to_string());
        commands.push(format!("ip {family}route replace default via {own}"));
    }
    if !mode.is_direct_return() {
        return commands;
    }
    if vips.iter().any(IpAddr::is_ipv4) {
        commands.push("sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2".to_owned());
    }
    if mode == Mode::Gue {
        let (module, family) = if backend.is_ipv4() { ("fou", "") } else { ("fou6", "-6 ") };
        commands.push(format!("modprobe {module}"));
        commands.push(format!("ip {family}fou add port {} gue", outer::GUE_PORT));
    }
    let mut devices = BTreeSet::new();
    for vip in vips {
        let (prefix, nodad) = if vip.is_ipv4() { (32, "") } else { (128, " nodad") };
        let device = if mode == Mode::Dsr { "lo" } else { device(*vip, backend, &mut commands) };
        commands.push(format!("ip addr add {vip}/{prefix} dev {device}{nodad}"));
        devices.extend((mode.is_tunnel() && vip.is_ipv4()).then_some(device));
    }
    // The stricter of a device's own setting and that of "all" counts.
    for device in devices {
        commands.push(format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{device}.rp_filter=0"));
    }
    commands
}

/// The device that unwraps packets for a VIP, and how it comes up.
fn device(vip: IpAddr, backend: IpAddr, commands: &mut Vec<String>) -> &'static str {
    let (module, device) = match (vip.is_ipv4(), backend.is_ipv4()) {
        (true, true) => ("ipip", "tunl0"),
        (false, true) => ("sit", "sit0"),
        (_, false) => ("ip6_tunnel", "ip6tnl0"),
    };
    let up = format!("modprobe {module} && ip link set {device} up");
    if !commands.contains(&up) {
        commands.push(up);
        if device == "ip6tnl0" && vip.is_ipv4() {
            commands.push("ip -6 tunnel change ip6tnl0 mode any".to_owned());
        }
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(mode: Mode, vip: &str, backend: &str) -> String {
        commands(mode, &[vip.parse().unwrap()].into(), backend.parse().unwrap(), "10.0.0.1".parse().ok()).join("\n")
    }

    #[test]
    fn every_mode_and_family_names_its_device() {
        assert_eq!(lines(Mode::Nat, "10.0.0.10", "10.0.0.2"), "");
        assert_eq!(lines(Mode::Dnat, "10.0.0.10", "10.0.0.2"), "ip route replace default via 10.0.0.1");
        let dsr = lines(Mode::Dsr, "10.0.0.10", "10.0.0.2");
        assert!(dsr.contains("arp_ignore=1") && dsr.contains("ip addr add 10.0.0.10/32 dev lo"), "{dsr}");
        assert!(lines(Mode::Dsr, "fd00::10", "fd00::2").contains("fd00::10/128 dev lo nodad"));
        let devices = [
            ("10.0.0.10", "10.0.0.2", "dev tunl0"),
            ("fd00::10", "10.0.0.2", "dev sit0"),
            ("10.0.0.10", "fd00::2", "mode any"),
            ("fd00::10", "fd00::2", "dev ip6tnl0"),
        ];
        for (vip, backend, word) in devices {
            assert!(lines(Mode::Ipip, vip, backend).contains(word), "{vip} {backend}");
        }
        assert!(lines(Mode::Ipip, "10.0.0.10", "10.0.0.2").contains("all.rp_filter=0 net.ipv4.conf.tunl0.rp_filter=0"));
        assert!(!lines(Mode::Ipip, "fd00::10", "10.0.0.2").contains("rp_filter"), "IPv6 has no such filter");
        assert!(lines(Mode::Gue, "10.0.0.10", "10.0.0.2").contains("ip fou add port 6080 gue"));
        assert!(lines(Mode::Gue, "fd00::10", "fd00::2").contains("ip -6 fou add port 6080 gue"));
    }
}
