//! Keeping `least-conn`'s counts true: the data path counts a flow down when it ends, but one that only falls silent
//! ends without a packet.

use std::{collections::BTreeMap, mem::offset_of};

use lb_common::{
    family::Family,
    flow::{self, Tail},
};

use super::{DataPlane, flows::Records};

impl DataPlane {
    /// Live flows of a backend, as the data path counts them.
    #[must_use]
    pub fn live_flows(&self, id: u32) -> u32 {
        u32::try_from(self.live.read(id).cast_signed()).unwrap_or(0)
    }

    /// Counts flows down whose time is over at `now` (a tick); gives how many. A count that was off by the same in two
    /// sweeps is put right.
    pub fn sweep(&mut self, now: u32) -> usize {
        let mut counted = BTreeMap::<u32, i32>::new();
        let over = self.settle(&self.flows.v4, now, &mut counted) + self.settle(&self.flows.v6, now, &mut counted);
        let off = |id: &u32| self.live.read(*id).cast_signed() - counted.get(id).copied().unwrap_or(0);
        let drift: BTreeMap<u32, i32> =
            self.applied.backends.keys().map(|id| (*id, off(id))).filter(|(_, off)| *off != 0).collect();
        for (id, off) in drift.iter().filter(|(id, off)| self.drift.get(id) == Some(off)) {
            tracing::warn!(backend = id, off, "live flows were counted wrongly");
            self.live.add_u32(*id, -off);
        }
        self.drift = drift;
        over
    }

    /// Counts flows of one family down that are over, and the others for each backend into `counted`.
    fn settle<F: Family>(&self, records: &Records<F>, now: u32, counted: &mut BTreeMap<u32, i32>) -> usize {
        let place = offset_of!(flow::Flow<F>, tail) + offset_of!(Tail, counted);
        let mut over = 0;
        for index in 0..records.0.length() {
            let id = records.0.read_u32(index, place);
            if id == 0 || id >= self.live.length() {
                continue;
            }
            let ended = records.get(index).is_some_and(|flow| !self.flows.is_live(&flow, now));
            if ended && records.0.swap_u32(index, place, id, 0) {
                self.live.add_u32(id, -1);
                over += 1;
            } else {
                *counted.entry(id).or_default() += 1;
            }
        }
        over
    }
}
