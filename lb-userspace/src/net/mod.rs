//! What the host's network looks like, by netlink: interfaces, routes, neighbours; and who listens on which port.
//!
//! [`Net`] asks and changes, [`watch`] listens to what changes, [`View`] is the picture that comes of both. A netlink
//! socket sees the network namespace of the thread that opened it.

mod announce;
mod driver;
mod listeners;
mod prefixes;
mod view;
mod watch;

use std::{collections::BTreeMap, fs, net::IpAddr};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder, new_connection,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, CacheInfo},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
        rule::RuleAttribute,
    },
};

pub use announce::announce;
pub use driver::{Driver, xdp};
pub use listeners::{Listener, listeners};
pub use prefixes::Prefixes;
pub use view::{Reached, View};
pub use watch::{Changes, watch};

use crate::{Error, Result, error::Context as _, state::XdpMode};

/// An interface of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest layer-3 packet in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is up and connected.
    pub carrier: bool,
    /// `veth`, `bond`, `vlan`, `bridge`, ...; none for a physical device.
    pub kind: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Identity of the XDP program on it.
    pub xdp_program: Option<u32>,
    /// How that program is attached: `Native` or `Generic`.
    pub xdp_mode: Option<XdpMode>,
    /// Index of the bridge or bond that it is a part of.
    pub master: Option<u32>,
    /// Index of the device below it (a VLAN device's parent, a veth's far end).
    pub below: Option<u32>,
    /// The device below it is in another network namespace: a container's, as a rule.
    pub elsewhere: bool,
}

/// How an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// Interface that packets leave by.
    pub ifindex: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The next router, if it is not on the same network.
    pub gateway: Option<IpAddr>,
    /// It is this host's own.
    pub local: bool,
    /// Largest layer-3 packet in bytes, where the route says less than its interface.
    pub mtu: Option<u32>,
}

/// Who answers for an address on an interface's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Nothing was heard of it for a while.
    pub stale: bool,
}

/// A view of the host's network.
#[derive(Clone, Debug)]
pub struct Net {
    handle: Handle,
}

impl Net {
    /// Opens netlink in the calling thread's network namespace; must be called within a tokio runtime.
    pub fn new() -> Result<Self> {
        let (connection, handle, _) = new_connection().context("open netlink")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All interfaces.
    pub async fn interfaces(&self) -> Result<Vec<Interface>> {
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.context("list interfaces")?;
        let mut interfaces: BTreeMap<u32, Interface> = links.iter().map(interface).map(|i| (i.index, i)).collect();
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await.context("list addresses")?;
        for message in addresses {
            let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            interface.addresses.extend(local.or(address));
        }
        Ok(interfaces.into_values().collect())
    }

    /// One interface.
    pub async fn interface(&self, name: &str) -> Result<Interface> {
        let all = self.interfaces().await?;
        let names: Vec<_> = all.iter().map(|interface| interface.name.clone()).collect();
        all.into_iter().find(|interface| interface.name == name).ok_or_else(|| {
            Error::not_found(format!("interface {name}: there is none of this name"))
                .hint(format!("one of: {}", names.join(" ")))
        })
    }

    /// How an address is reached; `None` if it is not.
    pub async fn route_to(&self, address: IpAddr) -> Result<Option<RouteTo>> {
        let request = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let found: Result<Vec<RouteMessage>, _> = self.handle.route().get(request).execute().try_collect().await;
        // "Network is unreachable" is an answer, not a failure.
        Ok(found.ok().and_then(|routes| routes.first().map(route)))
    }

    /// Prefixes of all routing tables and rules.
    pub async fn prefixes(&self) -> Result<Prefixes> {
        let mut prefixes = Prefixes::default();
        let requests = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for request in requests {
            let routes: Vec<RouteMessage> =
                self.handle.route().get(request).execute().try_collect().await.context("list routes")?;
            for message in routes {
                let attributes = &message.attributes;
                let spread = attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::MultiPath(_)));
                let destination = attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(address) => route_address(address),
                    _ => None,
                });
                let any: IpAddr = match message.header.address_family {
                    AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                prefixes.add(destination.unwrap_or(any), message.header.destination_prefix_length, spread);
            }
        }
        for family in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<_> = self.handle.rule().get(family).execute().try_collect().await.context("list rules")?;
            for message in rules {
                for attribute in &message.attributes {
                    if let RuleAttribute::Destination(address) = attribute {
                        prefixes.add(*address, message.header.dst_len, false);
                    }
                }
            }
        }
        Ok(prefixes)
    }

    /// Known neighbours, by interface and address.
    pub async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), Neighbour>> {
        let entries: Vec<_> =
            self.handle.neighbours().get().execute().try_collect().await.context("list neighbours")?;
        let known = entries.iter().filter_map(neighbour).filter_map(|(key, neighbour)| Some((key, neighbour?)));
        Ok(known.collect())
    }

    /// Has the kernel resolve a neighbour now.
    pub async fn resolve(&self, ifindex: u32, address: IpAddr) {
        let request = self.handle.neighbours().add(ifindex, address);
        let request = request.flags(NeighbourFlags::Use).state(NeighbourState::None).replace();
        if let Err(error) = request.execute().await {
            tracing::debug!(%address, %error, "resolve neighbour");
        }
    }

    /// Takes a program that hangs on an interface without a BPF link off it.
    pub async fn remove_xdp(&self, ifindex: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1)]));
        self.handle.link().set(message).execute().await.context(format!("take XDP off interface {ifindex}"))
    }

    /// Puts an address on a device, as a host's. An IPv6 one is usable at once and never a source of the host's own.
    pub async fn add_address(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(ifindex, address, prefix).replace();
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        request.execute().await.context(format!("put {address} on interface {ifindex}"))
    }

    /// Takes an address that [`Net::add_address`] put there off a device; one that is gone already is no error.
    pub async fn remove_address(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let filter = self.handle.address().get().set_link_index_filter(ifindex).set_address_filter(address);
        let filter = filter.set_prefix_length_filter(prefix);
        let found: Vec<_> = filter.execute().try_collect().await.context(format!("look for {address}"))?;
        for message in found {
            self.handle.address().del(message).execute().await.context(format!("remove {address}"))?;
        }
        Ok(())
    }
}

/// What a netlink entry says of a neighbour; one that failed or was never resolved is not known.
fn neighbour(entry: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Neighbour>)> {
    if !matches!(entry.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok(),
            _ => {}
        }
    }
    let state = entry.header.state;
    let usable = !matches!(state, NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None);
    let stale = state == NeighbourState::Stale;
    Some(((entry.header.ifindex, address?), mac.filter(|_| usable).map(|mac| Neighbour { mac, stale })))
}

fn interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) => interface.mac = <[u8; 6]>::try_from(&bytes[..]).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => interface.master = Some(*index),
            LinkAttribute::Link(index) => interface.below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => interface.elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(word(kind)),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(parts) => {
                interface.xdp_program = parts.iter().find_map(|part| match part {
                    LinkXdp::ProgId(id) if *id != 0 => Some(*id),
                    _ => None,
                });
                interface.xdp_mode = parts.iter().find_map(|part| match part {
                    LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => Some(XdpMode::Native),
                    LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    interface
}

fn word(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        known => format!("{known:?}").to_lowercase(),
    }
}

fn route(message: &RouteMessage) -> RouteTo {
    let local = message.header.kind == RouteType::Local;
    let mut route = RouteTo { ifindex: 0, source: None, gateway: None, local, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::PrefSource(source) => route.source = route_address(source),
            RouteAttribute::Gateway(gateway) => route.gateway = route_address(gateway),
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.gateway = Some((*v6).into()),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route
}

const fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// `ip_local_port_range`: the ports that the host gives to its own connections.
#[must_use]
pub fn local_port_range() -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(low)), Some(Ok(high))) => (low, high),
        _ => (32_768, 60_999),
    }
}

/// Ports that NAT leaves alone: the host's own range and its reserved ports, as inclusive ranges.
#[must_use]
pub fn reserved_ports() -> Vec<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let ranges = text.trim().split(',').filter_map(|range| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        Some((low.parse().ok()?, high.parse().ok()?))
    });
    std::iter::once(local_port_range()).chain(ranges).collect()
}
