//! Connections: found in the flow table, filtered, told.
//!
//! There may be millions. One pass goes over the kernel's own memory; a filter looks at the record before anything is
//! made of it, and what passes is written as text at once, in pieces, by a thread of its own. The daemon's own task only
//! resolves names.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use hyper::body::Bytes;
use lb_common::{clock, flow::state, maps};
use tokio::sync::mpsc;

use super::Daemon;
use crate::{
    Error, Result,
    api::ConnFilter,
    dataplane::{self, Flow, FlowTable},
};

/// Bytes of text that are sent together.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for a slow reader.
const PIECES: usize = 16;
/// States that `--state` may name.
const STATES: [u8; 8] = [
    state::SYN,
    state::SYN_ACK,
    state::ESTABLISHED,
    state::FIN_CLIENT,
    state::FIN_BACKEND,
    state::UDP,
    state::RESET,
    state::CLOSED,
];

/// Connections that pass a filter; independent of the daemon.
pub(super) struct Connections {
    flows: FlowTable,
    /// Services' names, as JSON, and addresses by backend identity: those of removed ones too.
    names: HashMap<u32, (String, SocketAddr)>,
    /// Backend identities that pass; `None` = all.
    backends: Option<HashSet<u32>>,
    client: Option<IpAddr>,
    state: Option<u8>,
    limit: usize,
}

impl Daemon {
    /// Resolves a filter.
    pub(super) fn connections(&self, filter: &ConnFilter) -> Result<Connections> {
        let ConnFilter { service, backend, client, state, limit } = filter;
        let ids = &self.observed.backend_ids;
        let service = match service.as_deref() {
            // A removed service whose flows go on has only its name left.
            Some(name) if ids.keys().any(|key| key.service == name) => Some(name),
            Some(name) => Some(self.desired.service(Some(name))?.name.as_str()),
            None => None,
        };
        let backends = (service.is_some() || backend.is_some()).then(|| {
            let passes = |key: &crate::reconcile::BackendKey| {
                service.is_none_or(|service| key.service == service)
                    && backend.is_none_or(|backend| key.address == backend)
            };
            ids.iter().filter(|(key, _)| passes(key)).map(|(_, id)| *id).collect()
        });
        let json = |name: &str| serde_json::to_string(name).unwrap_or_else(|_| "\"\"".to_owned());
        Ok(Connections {
            flows: self.plane.flows(),
            names: ids.iter().map(|(key, id)| (*id, (json(&key.service), key.address))).collect(),
            backends,
            client: *client,
            state: state.as_deref().map(state_of).transpose()?,
            limit: limit.unwrap_or(usize::MAX),
        })
    }
}

/// The state of a word.
fn state_of(word: &str) -> Result<u8> {
    STATES.into_iter().find(|number| state::name(*number) == word).ok_or_else(|| {
        let words: Vec<_> = STATES.iter().map(|number| state::name(*number)).collect();
        Error::usage(format!("'{word}' is not a state of a connection")).hint(format!("one of: {}", words.join(" ")))
    })
}

impl Connections {
    fn matching(&self) -> impl Iterator<Item = Flow> + '_ {
        self.flows.live(dataplane::now()).filter(|flow| self.passes(flow)).take(self.limit)
    }

    fn passes(&self, flow: &Flow) -> bool {
        self.state.is_none_or(|state| flow.head.state == state)
            && self.backends.as_ref().is_none_or(|ids| ids.contains(&flow.head.backend))
            && self.client.is_none_or(|client| flow.client.from.ip() == client)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.matching().count() as u64
    }

    /// Resets them; gives how many.
    pub(super) fn reset(&self) -> u64 {
        self.matching().filter(|flow| self.flows.reset(flow)).count() as u64
    }

    /// Writes them as one JSON array of [`crate::api::Conn`], an element on each line.
    pub(super) fn write(self) -> mpsc::Receiver<Bytes> {
        let (tell, told) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let now = dataplane::now();
            let mut text = Vec::with_capacity(PIECE + 1024);
            text.push(b'[');
            for (n, flow) in self.matching().enumerate() {
                text.extend_from_slice(if n == 0 { b"\n" } else { b",\n" });
                let known = self.names.get(&flow.head.backend);
                let service = known.map_or("\"\"", |(service, _)| service);
                element(&mut text, &flow, sides(&flow, known.map(|(_, address)| *address)), service, now);
                if text.len() >= PIECE && tell.blocking_send(std::mem::take(&mut text).into()).is_err() {
                    // Nobody reads any more.
                    return;
                }
            }
            text.extend_from_slice(b"\n]\n");
            let _ = tell.blocking_send(text.into());
        });
        told
    }
}

/// Who answers, and whom it sees as its client. The record of a direct-return flow has no tuple for them: the backend is
/// at the VIP's port, and sees the client itself.
fn sides(flow: &Flow, backend: Option<SocketAddr>) -> [SocketAddr; 2] {
    match backend {
        Some(address) if flow.head.mode >= maps::mode::DSR => {
            let port = if address.port() == 0 { flow.client.to.port() } else { address.port() };
            [SocketAddr::new(address.ip(), port), flow.client.from]
        }
        _ => [flow.backend.from, flow.backend.to],
    }
}

/// A [`crate::api::Conn`] as JSON. By hand: a million of them shall take no second.
fn element(text: &mut Vec<u8>, flow: &Flow, [backend, snat]: [SocketAddr; 2], service: &str, now: u32) {
    let proto = if flow.protocol == 6 { "tcp" } else { "udp" };
    for part in ["{\"proto\":\"", proto, "\",\"client\":\""] {
        text.extend_from_slice(part.as_bytes());
    }
    place(text, flow.client.from);
    text.extend_from_slice(b"\",\"vip\":\"");
    place(text, flow.client.to);
    text.extend_from_slice(b"\",\"backend\":\"");
    place(text, backend);
    text.extend_from_slice(b"\",\"snat\":\"");
    place(text, snat);
    for part in ["\",\"service\":", service, ",\"state\":\"", state::name(flow.head.state), "\",\"idle_s\":"] {
        text.extend_from_slice(part.as_bytes());
    }
    number(text, clock::millis(flow.head.idle(now)) / 1000);
    text.extend_from_slice(b",\"age_s\":");
    number(text, clock::millis(clock::since(now, flow.head.created)) / 1000);
    text.extend_from_slice(b",\"packets\":{\"in\":");
    number(text, flow.tail.packets_in);
    text.extend_from_slice(b",\"out\":");
    number(text, flow.tail.packets_out);
    text.extend_from_slice(b"}}");
}

fn place(text: &mut Vec<u8>, place: SocketAddr) {
    match place.ip() {
        IpAddr::V4(address) => {
            for (n, octet) in address.octets().into_iter().enumerate() {
                if n > 0 {
                    text.push(b'.');
                }
                number(text, octet.into());
            }
            text.push(b':');
            number(text, place.port().into());
        }
        IpAddr::V6(_) => text.extend_from_slice(place.to_string().as_bytes()),
    }
}

fn number(text: &mut Vec<u8>, mut number: u64) {
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use lb_common::flow::{Head, Tail};

    use super::*;
    use crate::{api::Conn, dataplane::Side};

    #[test]
    fn the_text_is_a_connections_json() {
        let now = clock::ticks_from_millis(100_000);
        let seen = now - clock::ticks_from_millis(5_500);
        let head = Head {
            state: state::ESTABLISHED,
            seen_client: seen,
            seen_backend: seen,
            created: now - clock::ticks_from_millis(60_500),
            ..Head::default()
        };
        let tail = Tail { packets_in: 18_446_744_073_709_551_615, packets_out: 0, ..Tail::default() };
        let side = |from: &str, to: &str| Side { from: from.parse().unwrap(), to: to.parse().unwrap() };
        for (client, vip) in [("192.0.2.1:65535", "10.0.0.10:80"), ("[2001:db8::1]:1", "[2001:db8::2]:443")] {
            let flow = Flow {
                index: 0,
                client: side(client, vip),
                backend: side("10.0.0.2:8080", "10.0.0.1:40000"),
                protocol: 6,
                head,
                tail,
            };
            let mut text = Vec::new();
            element(&mut text, &flow, sides(&flow, None), "\"we\\\"b\"", now);
            let conn: Conn = serde_json::from_slice(&text).unwrap();
            assert_eq!((conn.client.to_string(), conn.vip.to_string()), (client.to_owned(), vip.to_owned()));
            assert_eq!((conn.backend.port(), conn.snat.port(), conn.proto.as_str()), (8080, 40_000, "tcp"));
            assert_eq!((conn.service.as_str(), conn.state.as_str()), ("we\"b", "established"));
            assert_eq!((conn.idle_s, conn.age_s), (5, 60));
            assert_eq!((conn.packets.inward, conn.packets.out), (u64::MAX, 0));
            // Field by field and in the same order as the API says it.
            assert_eq!(String::from_utf8(text).unwrap(), serde_json::to_string(&conn).unwrap());
        }
    }

    #[test]
    fn a_direct_return_flows_backend_is_at_the_vips_port() {
        let client = Side { from: "192.0.2.1:9".parse().unwrap(), to: "10.0.0.10:80".parse().unwrap() };
        let head = Head { mode: maps::mode::IPIP, ..Head::default() };
        let flow = Flow { index: 0, client, backend: client, protocol: 6, head, tail: Tail::default() };
        let at = |text: &str| sides(&flow, Some(text.parse().unwrap())).map(|side| side.to_string());
        assert_eq!(at("10.0.0.2:0"), ["10.0.0.2:80", "192.0.2.1:9"]);
        assert_eq!(at("[2001:db8::2]:80"), ["[2001:db8::2]:80", "192.0.2.1:9"]);
    }

    #[test]
    fn states_are_words() {
        for word in ["syn", "established", "udp", "fin-client"] {
            assert_eq!(state::name(state_of(word).unwrap()), word);
        }
        assert!(state_of("open").unwrap_err().hint.unwrap().contains("established"));
    }
}
