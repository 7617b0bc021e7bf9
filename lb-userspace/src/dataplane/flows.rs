//! Reading connections, straight from the kernel's memory.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{Ordering, fence},
};

use lb_common::{
    Be16,
    family::{Family, V4, V6},
    flow::{self, Head, Tail, Tuple, state},
    maps,
};

use super::mapped::Mapped;

/// A connection of either family, read consistently.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Its record's number in its family's table.
    pub index: u32,
    /// What the client's packets carry: the client, and the VIP.
    pub client: Side,
    /// What the backend's packets carry: the backend, and lb's address and port (`nat`) or the client.
    pub backend: Side,
    /// IP protocol number.
    pub protocol: u8,
    /// The rest of its record.
    pub head: Head,
    /// The rest of its record.
    pub tail: Tail,
}

/// Source and destination of one direction's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Where they come from.
    pub from: SocketAddr,
    /// Where they go.
    pub to: SocketAddr,
}

impl Side {
    fn of<F: Family>(tuple: &Tuple<F>) -> Self {
        let place = |address: F::Address, port: Be16| SocketAddr::new(address_of::<F>(address), port.get());
        Self { from: place(tuple.source, tuple.source_port), to: place(tuple.destination, tuple.destination_port) }
    }
}

fn address_of<F: Family>(address: F::Address) -> IpAddr {
    let words = F::words(address);
    if F::VERSION == V4::VERSION {
        return IpAddr::from(words[0].get().to_be_bytes());
    }
    let bits = words.iter().fold(0u128, |bits, word| bits << 32 | u128::from(word.get()));
    IpAddr::from(bits.to_be_bytes())
}

/// How many connections there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Live connections.
    pub active: u64,
    /// Live connections by backend identity.
    pub by_backend: HashMap<u32, u64>,
}

/// The flow tables of both families; cheap to clone and to hand to other threads.
#[derive(Clone)]
pub struct FlowTable {
    pub(super) v4: Records<V4>,
    pub(super) v6: Records<V6>,
    pub(super) backends: Mapped<maps::Backend>,
}

/// The records of one family.
pub(super) struct Records<F: Family>(pub(super) Mapped<flow::Flow<F>>);

impl<F: Family> Clone for Records<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Family> Records<F> {
    const SEQ: usize = std::mem::offset_of!(flow::Flow<F>, head) + std::mem::offset_of!(Head, seq);
    const MODE: usize = std::mem::offset_of!(flow::Flow<F>, head) + std::mem::offset_of!(Head, mode);
    const STATE: usize = std::mem::offset_of!(flow::Flow<F>, head) + std::mem::offset_of!(Head, state);

    fn seq(&self, index: u32) -> u32 {
        self.0.read_u32(index, Self::SEQ)
    }

    /// The flow in a record; `None` if there is none or it is just being written.
    pub(super) fn get(&self, index: u32) -> Option<Flow> {
        // Most records of most tables are free: that is seen in one word, which begins with the mode.
        if self.0.read_u32(index, Self::MODE).to_ne_bytes()[Self::STATE - Self::MODE] == state::FREE {
            return None;
        }
        let seq = self.seq(index);
        fence(Ordering::Acquire);
        let record = self.0.read(index);
        fence(Ordering::Acquire);
        let whole = seq & 1 == 0 && seq == self.seq(index) && record.head.state != state::FREE;
        whole.then(|| Flow {
            index,
            client: Side::of(&record.client),
            backend: Side::of(&record.backend),
            protocol: record.client.protocol,
            head: record.head,
            tail: record.tail,
        })
    }

    fn all(&self) -> impl Iterator<Item = Flow> + '_ {
        (0..self.0.length()).filter_map(|index| self.get(index))
    }

    fn reset(&self, flow: &Flow) -> bool {
        let (old, seq) = (flow.head.state, flow.head.seq);
        if self.seq(flow.index) != seq || !self.0.swap_byte(flow.index, Self::STATE, old, state::RESET) {
            return false;
        }
        if self.seq(flow.index) == seq {
            return true;
        }
        // The record was reused at that very moment: its new flow gets its state back, unless it has moved on itself.
        let _ = self.0.swap_byte(flow.index, Self::STATE, state::RESET, old);
        false
    }
}

impl FlowTable {
    /// Number of records of each family.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.v4.0.length()
    }

    /// All flows that are not over at `now` (a tick).
    pub fn live(&self, now: u32) -> impl Iterator<Item = Flow> + '_ {
        self.v4.all().chain(self.v6.all()).filter(move |flow| self.is_live(flow, now))
    }

    /// Whether a flow can still carry packets: not closed, and not idle for longer than its backend allows.
    #[must_use]
    pub fn is_live(&self, flow: &Flow, now: u32) -> bool {
        let head = &flow.head;
        if head.state == state::CLOSED || head.backend == 0 || head.backend >= self.backends.length() {
            return false;
        }
        head.idle(now) <= self.backends.read(head.backend).idle.of(head.state)
    }

    /// Counts live flows.
    #[must_use]
    pub fn count(&self, now: u32) -> FlowCounts {
        let mut counts = FlowCounts::default();
        for flow in self.live(now) {
            counts.active += 1;
            *counts.by_backend.entry(flow.head.backend).or_default() += 1;
        }
        counts
    }

    /// Has the data path answer the client's next packet with RST; false if the flow has changed since it was read.
    #[must_use]
    pub fn reset(&self, flow: &Flow) -> bool {
        if flow.client.from.is_ipv4() { self.v4.reset(flow) } else { self.v6.reset(flow) }
    }
}
