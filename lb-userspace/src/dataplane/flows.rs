//! Reading connections, straight from the kernel's memory.

use std::{
    collections::HashMap,
    sync::atomic::{Ordering, fence},
};

use lb_common::{
    flow::{Flow4, Head, state},
    maps,
};

use super::mapped::Mapped;

/// A connection, read consistently.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Its record's number.
    pub index: u32,
    /// The record.
    pub record: Flow4,
}

/// How many connections there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Live connections.
    pub active: u64,
    /// Live connections by backend identity.
    pub by_backend: HashMap<u32, u64>,
}

/// The flow table; cheap to clone and to hand to other threads.
#[derive(Clone)]
pub struct FlowTable {
    pub(super) records: Mapped<Flow4>,
    pub(super) backends: Mapped<maps::Backend>,
}

impl FlowTable {
    /// Number of records.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.records.length()
    }

    /// The flow in a record; `None` if there is none or it is just being written.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Flow> {
        let seq = self.seq(index);
        fence(Ordering::Acquire);
        let record = self.records.read(index);
        fence(Ordering::Acquire);
        let whole = seq & 1 == 0 && seq == self.seq(index) && record.head.state != state::FREE;
        whole.then_some(Flow { index, record })
    }

    fn seq(&self, index: u32) -> u32 {
        self.records.read_u32(index, std::mem::offset_of!(Flow4, head) + std::mem::offset_of!(Head, seq))
    }

    /// All flows that are not over at `now` (a tick).
    pub fn live(&self, now: u32) -> impl Iterator<Item = Flow> + '_ {
        (0..self.capacity()).filter_map(|index| self.get(index)).filter(move |flow| self.is_live(flow, now))
    }

    /// Whether a flow can still carry packets: not closed, and not idle for longer than its backend allows.
    #[must_use]
    pub fn is_live(&self, flow: &Flow, now: u32) -> bool {
        let head = &flow.record.head;
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
            *counts.by_backend.entry(flow.record.head.backend).or_default() += 1;
        }
        counts
    }

    /// Has the data path answer the client's next packet with RST; false if the flow has changed since it was read.
    #[must_use]
    pub fn reset(&self, flow: &Flow) -> bool {
        let offset = std::mem::offset_of!(Flow4, head) + std::mem::offset_of!(Head, state);
        let (old, seq) = (flow.record.head.state, flow.record.head.seq);
        if self.seq(flow.index) != seq || !self.records.swap_byte(flow.index, offset, old, state::RESET) {
            return false;
        }
        if self.seq(flow.index) == seq {
            return true;
        }
        // The record was reused at that very moment: its new flow gets its state back, unless it has moved on itself.
        let _ = self.records.swap_byte(flow.index, offset, state::RESET, old);
        false
    }
}
