//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4), weighted exactly, and with less disruption.
//!
//! Every backend gets its share of the slots to within one slot: the largest remainders of weight / sum of weights,
//! but never less than one slot for a weight above 0. Each asks for slots in the order of its own permutation until it
//! has its share, as in the paper; but a slot that two ask for goes to the one that has it earlier in its permutation
//! (by its weight), and the other asks on. That is stable matching (Gale and Shapley 1962): it does not depend on who
//! asks first, and a change of one backend moves about half as many of the others' slots as turns do.
//!
//! A table is made in two steps. The *base* is made for all configured backends with their weights, usable or not. Then
//! those that take less now (down, draining, starting slowly) give up the slots that they wanted least, and only those
//! are given to others. So a backend that fails, drains or comes back moves its own slots and no others.
//!
//! A table depends on addresses, weights and who is usable, not on history: every balancer computes the same one.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::hash;

/// Sizes of tables: primes, so that every step of a permutation visits every slot.
const SIZES: [u32; 13] = [307, 509, 1009, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 262_139, 524_287, 1_048_573];
/// Slots per backend, at least: it bounds what one backend's share may be off to a hundredth of it.
const SLOTS_PER_BACKEND: u32 = 100;
/// A backend in full service takes this many times its weight ([`Candidate::now`]).
pub const FULL: u32 = 8;
/// "Nobody", among indices of candidates.
const NOBODY: u32 = u32::MAX;

/// The size of a table for a number of configured backends, usable or not: a change of health must not reshuffle.
#[must_use]
pub fn size_for(backends: usize) -> u32 {
    let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(SLOTS_PER_BACKEND);
    SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// One configured backend of a table to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// What its slots will say.
    pub id: u32,
    /// What its permutation is made from.
    pub address: SocketAddr,
    /// Its configured weight; 0 gets no slot.
    pub weight: u16,
    /// What it takes at present: [`FULL`] times its weight in full service, less during a slow start, 0 while it takes no
    /// new flows.
    pub now: u32,
}

/// A table and what it is compared by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Backend identities; empty = nobody takes flows.
    pub slots: Arc<Vec<u32>>,
    /// A hash over (address, port) in slot order: the same on every balancer that would choose alike.
    pub fingerprint: u64,
}

/// Tables that were made before: a change of one service does not make those of the others anew.
#[derive(Clone, Debug, Default)]
pub struct Memo(Arc<Mutex<Generations>>);

#[derive(Debug, Default)]
struct Generations {
    now: HashMap<(Vec<Candidate>, u32), Table>,
    before: HashMap<(Vec<Candidate>, u32), Table>,
}

impl Memo {
    /// Forgets tables that were not asked for since the last call.
    pub fn turn(&self) {
        let mut memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memo.before = std::mem::take(&mut memo.now);
    }

    /// The table of a service with these configured backends, of `size` slots.
    #[must_use]
    pub fn table(&self, candidates: Vec<Candidate>, size: u32) -> Table {
        let mut memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (candidates, size);
        if let Some(known) = memo.now.get(&key) {
            return known.clone();
        }
        let made = memo.before.remove(&key).unwrap_or_else(|| {
            let slots = table(&key.0, size);
            Table { fingerprint: fingerprint(&slots, &key.0), slots: Arc::new(slots) }
        });
        memo.now.insert(key, made.clone());
        made
    }
}

fn fingerprint(slots: &[u32], candidates: &[Candidate]) -> u64 {
    let addresses: HashMap<u32, u64> = candidates
        .iter()
        .map(|candidate| (candidate.id, hash::name(candidate.address.to_string().as_bytes())))
        .collect();
    slots.iter().fold(slots.len() as u64, |sum, id| hash::mix(sum, addresses.get(id).copied().unwrap_or(0)))
}

/// A table of `size` slots (a prime), each a candidate's id. Empty if nobody takes flows, or there are more candidates
/// than slots.
#[must_use]
pub fn table(candidates: &[Candidate], size: u32) -> Vec<u32> {
    let mut chosen: Vec<_> = candidates.iter().filter(|candidate| candidate.weight > 0).copied().collect();
    chosen.sort_unstable_by_key(|candidate| candidate.address);
    if chosen.iter().all(|candidate| candidate.now == 0) || chosen.len() > size as usize {
        return Vec::new();
    }
    let weights: Vec<u32> = chosen.iter().map(|candidate| u32::from(candidate.weight) * FULL).collect();
    let now: Vec<u32> = chosen.iter().map(|candidate| candidate.now).collect();
    let mut matching = Matching::new(&chosen, size);
    matching.fill(&weights, &quotas(&weights, size));
    if now != weights {
        let quotas = quotas(&now, size);
        matching.shed(&quotas);
        matching.fill(&now, &quotas);
    }
    matching.owners.iter().map(|owner| chosen[*owner as usize].id).collect()
}

/// One that asks for slots.
struct Asker {
    /// The next slot of its permutation.
    next: u32,
    /// From a slot of its permutation to the next one.
    step: u32,
    /// How many it has asked for.
    asked: u32,
    /// How many it holds.
    held: u32,
}

struct Matching {
    size: u32,
    firsts: Vec<(u32, u32)>,
    askers: Vec<Asker>,
    /// Of each slot.
    owners: Vec<u32>,
    /// How much each slot's owner wants it: the least wins.
    wishes: Vec<u64>,
}

impl Matching {
    fn new(candidates: &[Candidate], size: u32) -> Self {
        let firsts: Vec<_> = candidates.iter().map(|candidate| permutation(candidate.address, size)).collect();
        let askers = firsts.iter().map(|(next, step)| Asker { next: *next, step: *step, asked: 0, held: 0 }).collect();
        let (owners, wishes) = (vec![NOBODY; size as usize], vec![u64::MAX; size as usize]);
        Self { size, firsts, askers, owners, wishes }
    }

    /// Everybody asks for slots until they hold their quota; slots that were taken before are not to be had.
    fn fill(&mut self, weights: &[u32], quotas: &[u32]) {
        let taken: Vec<bool> = self.owners.iter().map(|owner| *owner != NOBODY).collect();
        for (asker, (first, _)) in self.askers.iter_mut().zip(&self.firsts) {
            (asker.next, asker.asked) = (*first, 0);
        }
        let mut waiting: Vec<u32> = (0..weights.len() as u32).rev().collect();
        while let Some(who) = waiting.pop() {
            let (weight, quota) = (u64::from(weights[who as usize]), quotas[who as usize]);
            while self.askers[who as usize].held < quota {
                let asker = &mut self.askers[who as usize];
                let (slot, asked) = (asker.next as usize, asker.asked);
                asker.next = if asker.next + asker.step >= self.size {
                    asker.next + asker.step - self.size
                } else {
                    asker.next + asker.step
                };
                asker.asked += 1;
                if taken[slot] {
                    continue;
                }
                let (wish, owner) = ((u64::from(asked) << 32) / weight, self.owners[slot]);
                if (wish, who) < (self.wishes[slot], owner) {
                    asker.held += 1;
                    (self.owners[slot], self.wishes[slot]) = (who, wish);
                    if owner != NOBODY {
                        self.askers[owner as usize].held -= 1;
                        waiting.push(owner);
                    }
                }
            }
        }
    }

    /// Whoever holds more than the quota gives up the slots that it wants least.
    fn shed(&mut self, quotas: &[u32]) {
        let mut held: Vec<Vec<u32>> = vec![Vec::new(); quotas.len()];
        for (slot, owner) in (0..).zip(&self.owners) {
            if self.askers[*owner as usize].held > quotas[*owner as usize] {
                held[*owner as usize].push(slot);
            }
        }
        for (who, slots) in held.iter_mut().enumerate() {
            slots.sort_unstable_by_key(|slot| self.wishes[*slot as usize]);
            for slot in slots.drain(..).skip(quotas[who] as usize) {
                (self.owners[slot as usize], self.wishes[slot as usize]) = (NOBODY, u64::MAX);
                self.askers[who].held -= 1;
            }
        }
    }
}

/// First slot and step of a backend's permutation.
fn permutation(address: SocketAddr, size: u32) -> (u32, u32) {
    let bits = match address.ip() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let first = hash::mix(bits as u64, (bits >> 64) as u64 ^ u64::from(address.port()));
    let second = hash::mix(first, 0x6d61_676c_6576);
    ((first % u64::from(size)) as u32, (second % (u64::from(size) - 1)) as u32 + 1)
}

/// Slots of each weight: at least one for a weight above 0, in all `size`, by the largest remainders.
fn quotas(weights: &[u32], size: u32) -> Vec<u32> {
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let share = |weight: u32| u64::from(weight) * u64::from(size);
    let mut quotas: Vec<u32> =
        weights.iter().map(|weight| ((share(*weight) / sum) as u32).max(u32::from(*weight > 0))).collect();
    let mut order: Vec<usize> = (0..weights.len()).filter(|index| weights[*index] > 0).collect();
    order.sort_by_key(|index| std::cmp::Reverse(share(weights[*index]) % sum));
    let given: u32 = quotas.iter().sum();
    for index in order.iter().cycle().take(size.saturating_sub(given) as usize) {
        quotas[*index] += 1;
    }
    // The ones that were lifted to a slot may have taken too many: the largest give them back.
    for _ in 0..given.saturating_sub(size) {
        if let Some(largest) = quotas.iter_mut().max() {
            *largest -= 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        (0u32..)
            .zip(weights)
            .map(|(i, weight)| Candidate {
                id: i + 1,
                address: SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 8080)),
                weight: *weight,
                now: u32::from(*weight) * FULL,
            })
            .collect()
    }

    fn count(table: &[u32], id: u32) -> usize {
        table.iter().filter(|slot| **slot == id).count()
    }

    #[test]
    fn sizes_grow_with_the_backends() {
        assert_eq!((size_for(0), size_for(3), size_for(4), size_for(655)), (307, 307, 509, 65537));
        assert_eq!((size_for(10_000), size_for(usize::MAX)), (1_048_573, 1_048_573));
    }

    /// Percentage points of slots that differ between two tables beyond those that had to: what shares lost.
    fn excess(before: &[u32], after: &[u32], ids: u32) -> f64 {
        let moved = before.iter().zip(after).filter(|(b, a)| b != a).count();
        let mut lost = vec![0i64; ids as usize + 1];
        before.iter().for_each(|id| lost[*id as usize] += 1);
        after.iter().for_each(|id| lost[*id as usize] -= 1);
        let lost: i64 = lost.iter().map(|slots| (*slots).max(0)).sum();
        let moved = moved as i64;
        100.0 * (moved - lost) as f64 / before.len() as f64
    }

    fn without(all: &[Candidate], ids: &[u32]) -> Vec<Candidate> {
        let now = |candidate: &Candidate| if ids.contains(&candidate.id) { 0 } else { candidate.now };
        all.iter().map(|candidate| Candidate { now: now(candidate), ..*candidate }).collect()
    }

    /// Numbers of backends, weights, and the most that may move beyond the minimum when one is removed for good.
    const DISRUPTIONS: [(u32, u16, f64); 8] = [
        (3, 1, 1.5),
        (5, 1, 2.0),
        (10, 1, 2.5),
        (20, 1, 2.0),
        (20, 9, 2.0),
        (50, 1, 1.0),
        (100, 5, 1.0),
        (655, 1, 0.6),
    ];

    #[test]
    fn a_table_is_made_once() {
        let (memo, all) = (Memo::default(), candidates(&[1, 2, 3]));
        let first = memo.table(all.clone(), 307);
        memo.turn();
        assert!(Arc::ptr_eq(&first.slots, &memo.table(all.clone(), 307).slots));
        assert_ne!(first, memo.table(candidates(&[1, 2, 4]), 307));
        assert_ne!(first, memo.table(all.clone(), 509));
        memo.turn();
        memo.turn();
        let again = memo.table(all, 307);
        assert!(!Arc::ptr_eq(&first.slots, &again.slots) && first == again);
    }

    #[test]
    fn a_failed_or_drained_backend_moves_its_own_slots_only() {
        for (number, weights, _) in DISRUPTIONS {
            let all = candidates(&(0..number as u16).map(|n| 1 + n % weights).collect::<Vec<_>>());
            let size = size_for(all.len());
            let before = table(&all, size);
            for id in [1, 2, number] {
                let one = table(&without(&all, &[id]), size);
                // Quotas are whole slots, so a slot or two may have to change hands besides.
                let off = excess(&before, &one, number);
                assert!(off < 0.5, "{number} backends, {id} fails: {off:.2} points beyond the minimum");
                assert_eq!(table(&all, size), before, "it comes back");
                let two = table(&without(&all, &[id, 1 + id % number]), size);
                let off = excess(&one, &two, number);
                assert!(off < 1.5, "{number} backends, a second one fails: {off:.2} points beyond the minimum");
            }
        }
    }

    #[test]
    fn a_removed_backend_moves_little_else() {
        for (number, weights, most) in DISRUPTIONS {
            let all = candidates(&(0..number as u16).map(|n| 1 + n % weights).collect::<Vec<_>>());
            let size = size_for(all.len());
            let before = table(&all, size);
            let removed = [0, number / 2, number - 1];
            let off: f64 = removed
                .map(|index| {
                    let rest: Vec<_> = all.iter().filter(|candidate| candidate.id != index + 1).copied().collect();
                    excess(&before, &table(&rest, size), number)
                })
                .iter()
                .sum();
            let mean = off / removed.len() as f64;
            assert!(mean < most, "{number} backends, weights to {weights}: {mean:.2} points beyond the minimum");
        }
    }

    #[test]
    fn a_slow_start_takes_from_everybody_and_moves_nothing_else() {
        let all = candidates(&[1; 10]);
        let mut before = table(&without(&all, &[4]), 1009);
        for part in 1..=FULL {
            let now: Vec<_> =
                all.iter().map(|c| Candidate { now: if c.id == 4 { part } else { FULL }, ..*c }).collect();
            let after = table(&now, 1009);
            let wanted = 1009.0 * f64::from(part) / f64::from(9 * FULL + part);
            assert!((count(&after, 4) as f64 - wanted).abs() <= 1.0, "part {part}: {}", count(&after, 4));
            assert!(excess(&before, &after, 10) < 1.0, "part {part}");
            before = after;
        }
        assert_eq!(before, table(&all, 1009));
    }

    #[test]
    fn a_million_slots_are_made_in_time() {
        let start = std::time::Instant::now();
        let made = table(&candidates(&vec![1; 10_000]), 1_048_573);
        assert_eq!(made.len(), 1_048_573);
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Rule 8 of the packet rules.
        #[test]
        fn rule_08_shares_are_weights(weights in proptest::collection::vec(any::<u16>(), 1..40)) {
            let all = candidates(&weights);
            let size = size_for(all.len());
            let made = table(&all, size);
            let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assert_eq!(made.len(), if sum == 0 { 0 } else { size as usize });
            for candidate in &all {
                let got = count(&made, candidate.id);
                if candidate.weight == 0 {
                    prop_assert_eq!(got, 0);
                } else {
                    prop_assert!(got > 0);
                    let share = f64::from(candidate.weight) / sum as f64;
                    let off = (got as f64 / f64::from(size) - share).abs();
                    prop_assert!(off < 0.01, "weight {} of {}: off by {}", candidate.weight, sum, off);
                }
            }
        }

        #[test]
        fn the_order_of_the_backends_does_not_matter(seed in any::<u64>()) {
            let all = candidates(&[1, 5, 2, 9, 1, 1, 30]);
            let mut shuffled = all.clone();
            shuffled.sort_by_key(|candidate| hash::mix(seed, u64::from(candidate.id)));
            prop_assert_eq!(table(&all, 1009), table(&shuffled, 1009));
        }
    }
}
