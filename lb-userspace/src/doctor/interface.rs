//! What is to be known of one interface. The rules are pure: [`Facts`] in, [`Finding`]s out.

use super::{Finding, Level, finding, ok};
use crate::net::{Driver, Interface, xdp};

/// Largest MTU that native XDP takes in one buffer on common drivers (4096 bytes less head room and `skb_shared_info`).
const ONE_BUFFER: u32 = 3_506;

/// Everything that the rules look at.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// The interface.
    pub interface: Interface,
    /// What its driver says.
    pub driver: Driver,
    /// Name and kind of the bridge or bond that it is a part of.
    pub master: Option<(String, String)>,
    /// VLAN devices on top of it.
    pub vlans: Vec<String>,
    /// The device that it is a VLAN of.
    pub parent: Option<String>,
    /// Interfaces of this host whose far ends are in containers.
    pub containers: Vec<String>,
    /// Name of the XDP program on it, if it is not lb's.
    pub foreign: Option<String>,
    /// This process is in a container itself.
    pub contained: bool,
}

/// Looks at an interface.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let Facts { interface, driver, .. } = facts;
    let name = interface.name.as_str();
    let mut findings = Vec::new();
    let mut warn = |text: String, fix: String| findings.push(finding(Level::Warn, name, text, Some(&fix)));
    if !interface.up {
        warn("down".to_owned(), format!("sudo ip link set {name} up"));
    } else if !interface.carrier {
        warn("no carrier".to_owned(), "look at the cable, or at the far end".to_owned());
    }
    if let Some(program) = &facts.foreign {
        warn(
            format!("another XDP program is attached ({program}); attach refuses"),
            format!("end its owner; if it has none any more: sudo ip link set dev {name} xdp off"),
        );
    }
    structure(facts, &mut warn);
    native(facts, &mut warn);
    if driver.rxvlan == Some(true) && !facts.vlans.is_empty() {
        warn(
            format!("VLAN tags are taken off before native XDP sees the frame ({})", facts.vlans.join(", ")),
            format!("sudo ethtool -K {name} rxvlan off"),
        );
    }
    if findings.is_empty() {
        let driver = driver.name.as_ref().map_or_else(String::new, |driver| format!(", driver {driver}"));
        findings.push(ok(name, format!("up, MTU {}{driver}, native XDP", interface.mtu)));
    }
    findings
}

/// Traps of what kind of device it is.
fn structure(facts: &Facts, warn: &mut impl FnMut(String, String)) {
    let interface = &facts.interface;
    let name = interface.name.as_str();
    match interface.kind.as_deref() {
        Some("veth") if facts.contained => warn(
            "this is a container's own veth: only traffic for this container passes here".to_owned(),
            "run lb on the host, attached to its network card".to_owned(),
        ),
        Some("veth") => warn(
            "a veth: native mode needs GRO or an XDP program at the far end, and whole checksums from there".to_owned(),
            "--xdp generic (what auto takes); or at the far end: ethtool -K IFACE gro on tx off".to_owned(),
        ),
        Some("bond") => {
            warn("a bond: not every mode has native XDP".to_owned(), "attach to all of its slaves instead".to_owned());
        }
        Some("vlan") => {
            let parent = facts.parent.as_deref().unwrap_or("the parent");
            warn("a VLAN device: its XDP is generic".to_owned(), format!("attach to {parent}, which carries the tags"));
        }
        Some("bridge") => warn(
            "a bridge: what it forwards between its ports does not pass here".to_owned(),
            "attach to the port that clients come in by".to_owned(),
        ),
        Some(kind @ ("macvlan" | "ipvlan" | "tun" | "wireguard")) => {
            warn(format!("a {kind} device: its XDP is generic"), "attach to the network card below it".to_owned());
        }
        _ => {}
    }
    match &facts.master {
        Some((master, kind)) if kind == "bridge" => warn(
            format!(
                "a port of the bridge {master}: frames for this host carry the bridge's MAC address, not the port's"
            ),
            format!("sudo ip link set {master} address (the MAC of {name}), or take {name} out of the bridge"),
        ),
        Some((master, kind)) if kind == "bond" => {
            warn(format!("a slave of {master}"), format!("attach to all slaves of {master}, not to one of them"));
        }
        _ => {}
    }
    if !facts.containers.is_empty() && interface.kind.as_deref() != Some("veth") {
        warn(
            format!(
                "containers on this host ({}) send with unfinished checksums; as backends or clients they need whole ones",
                facts.containers.join(", ")
            ),
            "in each of them: ethtool -K eth0 tx off".to_owned(),
        );
    }
}

/// Whether native mode will work, and what generic mode costs.
fn native(facts: &Facts, warn: &mut impl FnMut(String, String)) {
    let Facts { interface, driver, .. } = facts;
    let name = interface.name.as_str();
    let is_veth = interface.kind.as_deref() == Some("veth");
    let has_native = driver.xdp.map(|features| features & xdp::BASIC != 0);
    let generic = is_veth || has_native == Some(false);
    if has_native == Some(false) {
        let driver = driver.name.as_deref().unwrap_or("?");
        warn(
            format!("the driver ({driver}) has no native XDP; auto takes generic mode, which is slower"),
            "a card with native XDP for speed; --xdp generic says that this is known".to_owned(),
        );
    }
    let fragments = driver.xdp.is_none_or(|features| features & xdp::FRAGMENTS != 0);
    if interface.mtu > ONE_BUFFER && has_native == Some(true) && !fragments {
        warn(
            format!("MTU {}: the driver's XDP takes frames in one buffer only", interface.mtu),
            format!("sudo ip link set {name} mtu {ONE_BUFFER}, or --xdp generic"),
        );
    }
    let forwards = driver.xdp.is_none_or(|features| features & xdp::REDIRECT != 0);
    if has_native == Some(true) && !forwards {
        warn(
            "the driver's XDP cannot redirect: packets cannot leave by another interface".to_owned(),
            "use it alone (one interface), or --xdp generic".to_owned(),
        );
    }
    if driver.lro == Some(true) && !generic {
        warn("LRO is on: native XDP does not go with it".to_owned(), format!("sudo ethtool -K {name} lro off"));
    }
    if driver.gro == Some(true) && generic {
        warn(
            "generic mode sees packets that GRO has merged; one longer than the MTU of another interface is lost"
                .to_owned(),
            format!("with two interfaces: sudo ethtool -K {name} gro off (and tso off at a veth's far end)"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Facts {
        let interface = Interface { name: "eth0".into(), up: true, carrier: true, mtu: 1500, ..Interface::default() };
        let all = xdp::BASIC | xdp::REDIRECT | xdp::TRANSMIT | xdp::FRAGMENTS;
        let driver =
            Driver { name: Some("ice".into()), xdp: Some(all), gro: Some(true), lro: Some(false), rxvlan: Some(true) };
        Facts { interface, driver, ..Facts::default() }
    }

    #[test]
    fn a_sound_card_has_one_good_line() {
        assert_eq!(examine(&card()), [ok("eth0", "up, MTU 1500, driver ice, native XDP")]);
    }

    /// Every trap, a word that its line must have, and one that the fix must have.
    #[test]
    fn traps_are_named_with_their_fix() {
        type Change = fn(&mut Facts);
        let traps: [(Change, &str, &str); 17] = [
            (|f| f.interface.up = false, "down", "ip link set eth0 up"),
            (|f| f.interface.carrier = false, "carrier", "cable"),
            (|f| f.foreign = Some("id 7, name 'other'".into()), "name 'other'", "xdp off"),
            (|f| f.interface.kind = Some("veth".into()), "far end", "--xdp generic"),
            (|f| (f.interface.kind, f.contained) = (Some("veth".into()), true), "container's own veth", "on the host"),
            (|f| f.interface.kind = Some("bond".into()), "a bond", "slaves"),
            (
                |f| (f.interface.kind, f.parent) = (Some("vlan".into()), Some("eth7".into())),
                "generic",
                "attach to eth7",
            ),
            (|f| f.interface.kind = Some("bridge".into()), "a bridge", "port"),
            (|f| f.interface.kind = Some("macvlan".into()), "macvlan", "below"),
            (|f| f.master = Some(("br0".into(), "bridge".into())), "br0", "out of the bridge"),
            (|f| f.master = Some(("bond0".into(), "bond".into())), "bond0", "all slaves"),
            (|f| f.containers = vec!["veth3".into()], "veth3", "tx off"),
            (|f| f.driver.xdp = Some(0), "no native XDP", "--xdp generic"),
            (|f| (f.interface.mtu, f.driver.xdp) = (9000, Some(xdp::BASIC | xdp::REDIRECT)), "MTU 9000", "mtu 3506"),
            (|f| f.driver.xdp = Some(xdp::BASIC | xdp::FRAGMENTS), "redirect", "alone"),
            (|f| f.driver.lro = Some(true), "LRO", "lro off"),
            (|f| f.vlans = vec!["eth0.5".into()], "eth0.5", "rxvlan off"),
        ];
        for (change, text, fix) in traps {
            let mut facts = card();
            change(&mut facts);
            let findings = examine(&facts);
            let found = findings.iter().any(|finding| {
                finding.level == Level::Warn
                    && finding.check == "eth0"
                    && finding.text.contains(text)
                    && finding.fix.as_ref().is_some_and(|words| words.contains(fix))
            });
            assert!(found, "{text}: {findings:?}");
        }
    }

    #[test]
    fn generic_mode_is_warned_of_merged_packets() {
        let mut facts = card();
        facts.driver.xdp = Some(0);
        assert!(examine(&facts).iter().any(|finding| finding.text.contains("GRO")));
        facts.driver.gro = Some(false);
        assert!(!examine(&facts).iter().any(|finding| finding.text.contains("GRO")));
    }
}
