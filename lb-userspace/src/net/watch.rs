//! What changes on the host's network, as the kernel tells it: links, addresses, routes, rules, neighbours.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::AsyncSocket as _,
};
use tokio::{sync::mpsc, time::sleep};

use super::{Neighbour, neighbour};
use crate::{Result, error::Context as _};

/// What is heard within this time is one change: an interface that comes up brings a dozen notices.
const SETTLE: Duration = Duration::from_millis(10);
/// Bytes of notices that the kernel keeps for us; neighbours of 10 000 backends change in bursts.
const BUFFER: i32 = 4 << 20;
/// What is listened to.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// What has changed since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces or their addresses.
    pub interfaces: bool,
    /// Routes or rules; an interface or an address takes routes with it.
    pub routes: bool,
    /// Neighbours, by interface and address; `None` = not known any more.
    pub neighbours: BTreeMap<(u32, IpAddr), Option<Neighbour>>,
    /// Notices were lost: everything is to be looked at again.
    pub everything: bool,
}

impl Changes {
    /// Adds what a notice says.
    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        use RouteNetlinkMessage as Message;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => match message {
                Message::NewLink(_) | Message::DelLink(_) | Message::NewAddress(_) | Message::DelAddress(_) => {
                    (self.interfaces, self.routes) = (true, true);
                }
                Message::NewRoute(_) | Message::DelRoute(_) | Message::NewRule(_) | Message::DelRule(_) => {
                    self.routes = true;
                }
                Message::NewNeighbour(entry) => {
                    self.neighbours.extend(neighbour(&entry));
                }
                Message::DelNeighbour(entry) => {
                    self.neighbours.extend(neighbour(&entry).map(|(key, _)| (key, None)));
                }
                _ => {}
            },
            NetlinkPayload::Overrun(_) => self.everything = true,
            _ => {}
        }
    }
}

/// Listens in the calling thread's network namespace, until the receiver is dropped.
pub fn watch() -> Result<mpsc::Receiver<Changes>> {
    let (mut connection, _, mut notices) = new_multicast_connection(&GROUPS).context("listen to netlink")?;
    // A smaller buffer only means that everything is looked at more often.
    let _ = connection.socket_mut().socket_ref().set_rx_buf_sz(BUFFER);
    tokio::spawn(connection);
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some((first, _)) = notices.next().await {
            let mut changes = Changes::default();
            changes.take(first);
            sleep(SETTLE).await;
            while let Some(Some((next, _))) = notices.next().now_or_never() {
                changes.take(next);
            }
            // While the daemon is busy, notices wait in the queue and become one change.
            if changes != Changes::default() && tell.send(changes).await.is_err() {
                return;
            }
        }
        tracing::error!("netlink: no more notices; the network is looked at every few seconds only");
    });
    Ok(told)
}
