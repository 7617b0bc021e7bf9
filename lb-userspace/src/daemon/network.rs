//! What the network does to the daemon: interfaces that come and go, addresses, routes and neighbours that change.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_common::maps;

use super::{Attachment, Daemon, keys};
use crate::{
    Error, Result,
    health::Ways,
    net::{self, Changes},
    state::XdpMode,
};

/// Index of the loopback device, which is never attached.
pub(super) const LOOPBACK: u32 = 1;
/// How often everything is looked at anew, whatever notices have said.
pub(super) const SAFETY: Duration = Duration::from_secs(5);
/// How often, and how long apart, new backends' neighbours are looked for before a change is called done.
pub(super) const NEIGHBOUR_LOOKS: u32 = 5;
/// The same before a start is called done: an interface that has just come up asks for IPv6 neighbours only when it
/// knows that its own address is nobody else's (RFC 4862), which takes one to two seconds.
pub(super) const NEIGHBOUR_LOOKS_AT_START: u32 = 40;
const NEIGHBOUR_LOOK: Duration = Duration::from_millis(50);

impl Daemon {
    /// Takes the kernel's notices.
    pub(super) async fn network_changed(&mut self, changes: &Changes) {
        if self.view.take(changes) {
            self.follow_network().await;
        }
    }

    /// Looks at everything anew, in case a notice was missed, and has quiet neighbours asked again.
    pub(super) async fn look_around(&mut self) {
        self.view.forget();
        if let Err(error) = self.view.refresh_neighbours().await {
            tracing::warn!(%error, "look at the neighbours");
        }
        self.follow_network().await;
    }

    async fn follow_network(&mut self) {
        match self.see_network().await {
            Ok(false) => {}
            Ok(true) => {
                if let Err(error) = self.apply() {
                    tracing::error!(%error, "apply what the network says");
                }
            }
            Err(error) => tracing::warn!(%error, "look at the network"),
        }
        // A device that was away comes back without its addresses.
        if let Err(error) = self.announce().await {
            tracing::warn!(%error, "announce the VIPs");
        }
    }

    /// Looks at the network until every backend's neighbour is found, but not for long: notices go on telling.
    pub(super) async fn find_neighbours(&mut self, looks: u32) -> Result<()> {
        for look in 0..looks {
            if look > 0 {
                tokio::time::sleep(NEIGHBOUR_LOOK).await;
                self.view.forget_neighbours();
            }
            self.see_network().await?;
            if keys(&self.desired).all(|key| self.observed.next_hops.contains_key(&key.address.ip())) {
                break;
            }
        }
        let (used, most) = (self.view.next_hops_used(), maps::NEXT_HOPS as usize - 1);
        if used > most {
            return Err(Error::refused(format!("the backends have {used} next hops; there is room for {most}"))
                .hint("reach backends through a router (one next hop for all behind it), or serve fewer"));
        }
        Ok(())
    }

    /// Interfaces, addresses, routes and neighbours as they are now; whether that changes the tables.
    pub(super) async fn see_network(&mut self) -> Result<bool> {
        let interfaces = self.view.interfaces().await?;
        for (name, attachment) in &mut self.attached {
            let Some(found) = interfaces.iter().find(|interface| interface.name == *name) else {
                if !attachment.gone {
                    tracing::warn!(interface = %name, "the interface is gone");
                }
                attachment.gone = true;
                continue;
            };
            if found.index != attachment.interface.index {
                // Another one of the same name: its link is the old one's, and leads nowhere.
                let again = self.plane.attach_again(name, found.index, attachment.xdp);
                attachment.trouble = again.as_ref().err().map(|error| error.message.clone());
                attachment.gone = again.is_err();
                if again.is_err() {
                    continue;
                }
                tracing::warn!(interface = %name, index = found.index, "the interface is back: attached again");
            }
            attachment.gone = false;
            attachment.interface = found.clone();
        }
        let present = self.attached.values().filter(|attachment| !attachment.gone);
        let mut entries: Vec<_> = present.clone().map(entry).collect();
        // A test run without a context comes in by the loopback device: it shall find what the first interface would.
        let first = self.desired.settings.interfaces.first().and_then(|name| self.attached.get(name));
        entries.extend(first.map(|first| maps::Interface { ifindex: LOOPBACK, flags: 0, ..entry(first) }));
        self.plane.set_interfaces(&entries)?;
        let attached: Vec<_> = present.map(|attachment| attachment.interface.clone()).collect();

        let addresses: BTreeSet<_> = keys(&self.desired)
            .map(|key| key.address.ip())
            .chain(self.observed.lingering.keys().map(|key| key.address.ip()))
            .collect();
        let reached = self.view.reach(&addresses, &attached).await?;
        let mut next_hops = reached.next_hops;
        // A neighbour that is just being asked again keeps its last known MAC.
        for (address, hop) in &self.observed.next_hops {
            if addresses.contains(address) {
                next_hops.entry(*address).or_insert(*hop);
            }
        }
        let host_addresses = interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect();
        let reserved_ports = net::reserved_ports();
        self.trouble = reached.trouble;
        let vips = crate::state::guards::vip_addresses(&self.desired);
        let own = attached.iter().flat_map(|interface| &interface.addresses).copied();
        let own = own.filter(|address| !vips.contains(address) && !is_link_local(*address)).collect();
        let sources = reached.sources.clone();
        self.checker.know(Ways { next_hops: next_hops.clone(), sources, own });
        let observed = &mut self.observed;
        let changed = observed.next_hops != next_hops
            || observed.sources != reached.sources
            || observed.host_addresses != host_addresses
            || observed.reserved_ports != reserved_ports;
        (observed.next_hops, observed.sources) = (next_hops, reached.sources);
        (observed.host_addresses, observed.reserved_ports) = (host_addresses, reserved_ports);
        Ok(changed)
    }

    /// What the operator should know about interfaces and the ways to the backends.
    pub(super) fn network_warnings(&self) -> Vec<String> {
        let mut warnings = self.file_warnings();
        for (name, attachment) in &self.attached {
            if let Some(trouble) = &attachment.trouble {
                warnings.push(format!("{name}: the interface is back, but cannot be attached again: {trouble}"));
            } else if attachment.gone {
                warnings.push(format!("{name}: the interface is gone; one of the same name will be attached again"));
            } else if !attachment.interface.up {
                warnings.push(format!("{name}: the interface is down: sudo ip link set {name} up"));
            } else if !attachment.interface.carrier {
                warnings.push(format!("{name}: the interface has no carrier (cable, or the far end, is down)"));
            }
        }
        warnings.extend(self.announce_trouble.clone());
        let left_out = self.observed.next_hop_places.left_out();
        if left_out > 0 {
            warnings
                .push(format!("{left_out} next hops of backends have no room in the map; their backends get nothing"));
        }
        warnings.extend(self.trouble.iter().map(|(address, why)| format!("backend {address}: {why}")));
        warnings
    }
}

/// Good for one link only: no backend answers to it from another.
const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// What the data path has to know of an attached interface.
fn entry(attachment: &Attachment) -> maps::Interface {
    use maps::interface_flag::{GENERIC, REDIRECT};
    let Attachment { interface, xdp, .. } = attachment;
    let is_veth = interface.kind.as_deref() == Some("veth");
    let flags = match xdp {
        XdpMode::Generic => GENERIC,
        _ if is_veth => REDIRECT,
        _ => 0,
    };
    let (mac, mtu) = (interface.mac, interface.mtu);
    maps::Interface { ifindex: interface.index, flags, mtu, mac, virtual_mac: mac }
}
