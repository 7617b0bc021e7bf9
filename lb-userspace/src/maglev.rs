//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4), weighted exactly, and with less disruption.
//!
//! Every backend gets its share of the slots to within one slot: the largest remainders of weight / sum of weights,
//! but never less than one slot for a weight above 0. Each asks for slots in the order of its own permutation until it
//! has its share, as in the paper; but a slot that two ask for goes to the one that wants it more, and the other asks
//! on. That is stable matching (Gale and Shapley 1962): it does not depend on who asks first, and a change of one backend
//! moves about half as many of the others' slots as turns do. How much somebody wants the slots of its permutation is
//! what weighted rendezvous hashing draws for them, an exponential variable of rate weight (here: its expected value at
//! that place), because then another weight of one backend hardly changes who of the others wants a slot most.
//!
//! What is left to move besides is due to whole shares of a small table: with ten backends 1.3 percentage points at
//! 1 009 slots when one is removed, 0.4 at 16 381. So tables are larger than their shares need where there is room
//! ([`crate::reconcile`] decides).
//!
//! A table is made in two steps. The *base* is made for all configured backends with their weights, usable or not. Then
//! those that take less now (down, draining, starting slowly) give up the slots that they wanted least, and only those
//! are given to others. So a backend that fails, drains or comes back moves its own slots and no others.
//!
//! A table depends on addresses, weights and who is usable, not on history: every balancer computes the same one.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::hash;

/// Sizes of tables: primes, so that every step of a permutation visits every slot.
const SIZES: [u32; 13] = [307, 509, 1009, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 262_139, 524_287, 1_048_573];
/// Sizes of tables where there is room, far apart.
const ROOMY_SIZES: [u32; 4] = [16_381, 65_537, 262_139, 1_048_573];
/// Slots per backend, at least: it bounds what one backend's share may be off to a hundredth of it.
const SLOTS_PER_BACKEND: u32 = 100;
/// A backend in full service takes this many times its weight ([`Candidate::now`]).
pub const FULL: u32 = 8;
/// "Nobody", among indices of candidates.
const NOBODY: u32 = u32::MAX;
/// Not to be had, among places of permutations.
const TAKEN: u32 = u32::MAX;

/// The least size of a table for a number of configured backends, usable or not: a change of health must not reshuffle.
#[must_use]
pub fn least_size(backends: usize) -> u32 {
    first_of(&SIZES, backends)
}

/// The size of a table that moves little when backends are added or removed, and seldom has to grow.
#[must_use]
pub fn roomy_size(backends: usize) -> u32 {
    first_of(&ROOMY_SIZES, backends)
}

/// The first of some sizes that has enough slots for every backend, or the last.
fn first_of(sizes: &[u32], backends: usize) -> u32 {
    let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(SLOTS_PER_BACKEND);
    sizes.iter().copied().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
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

/// Tables that were made before: a change of one service does not make those of the others anew, and a change of health
/// or a slow start not the base of a large one.
#[derive(Clone, Debug, Default)]
pub struct Memo(Arc<Mutex<Generations>>);

/// Addresses and weights.
type Configured = Vec<(SocketAddr, u16)>;

#[derive(Debug, Default)]
struct Generations {
    tables: Generation<(Vec<Candidate>, u32), Table>,
    bases: Generation<(Configured, u32), Arc<Vec<Slot>>>,
}

/// What was asked for since the last turn, and before it.
#[derive(Debug)]
struct Generation<K, V> {
    now: HashMap<K, V>,
    before: HashMap<K, V>,
}

impl<K, V> Default for Generation<K, V> {
    fn default() -> Self {
        Self { now: HashMap::new(), before: HashMap::new() }
    }
}

impl<K: Hash + Eq, V: Clone> Generation<K, V> {
    fn turn(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    fn get(&mut self, key: K, make: impl FnOnce(&K) -> V) -> V {
        if let Some(known) = self.now.get(&key) {
            return known.clone();
        }
        let made = self.before.remove(&key).unwrap_or_else(|| make(&key));
        self.now.insert(key, made.clone());
        made
    }
}

impl Memo {
    /// Forgets tables that were not asked for since the last call.
    pub fn turn(&self) {
        let mut memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memo.tables.turn();
        memo.bases.turn();
    }

    /// The table of a service with these configured backends, of `size` slots.
    #[must_use]
    pub fn table(&self, candidates: Vec<Candidate>, size: u32) -> Table {
        let mut memo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { tables, bases } = &mut *memo;
        let chosen = Chosen::of(&candidates);
        let key = chosen.configured();
        // Bases of small tables are not worth their memory. One that is asked for, though its table is known, stays.
        let base = (size >= ROOMY_SIZES[0]).then(|| bases.get((key, size), |_| Arc::new(chosen.base(size))));
        tables.get((candidates, size), |_| match &base {
            Some(base) => chosen.table(base.as_ref().clone()),
            None => chosen.table(chosen.base(size)),
        })
    }
}

/// A table of `size` slots (a prime), each a candidate's id. Empty if nobody takes flows, or there are more candidates
/// than slots.
#[must_use]
pub fn table(candidates: &[Candidate], size: u32) -> Vec<u32> {
    let chosen = Chosen::of(candidates);
    Arc::unwrap_or_clone(chosen.table(chosen.base(size)).slots)
}

/// Candidates with a weight, in an order that is the same everywhere.
struct Chosen(Vec<Candidate>);

impl Chosen {
    fn of(candidates: &[Candidate]) -> Self {
        let mut chosen: Vec<_> = candidates.iter().filter(|candidate| candidate.weight > 0).copied().collect();
        chosen.sort_unstable_by_key(|candidate| candidate.address);
        Self(chosen)
    }

    /// All that the base depends on.
    fn configured(&self) -> Configured {
        self.0.iter().map(|candidate| (candidate.address, candidate.weight)).collect()
    }

    fn weights(&self) -> Vec<u32> {
        self.0.iter().map(|candidate| u32::from(candidate.weight) * FULL).collect()
    }

    /// The slots as if all were in full service.
    fn base(&self, size: u32) -> Vec<Slot> {
        let mut matching = Matching::new(&self.0, vec![Slot::FREE; size as usize]);
        if !self.0.is_empty() && self.0.len() <= size as usize {
            let weights = self.weights();
            matching.fill(&weights, &quotas(&weights, size));
        }
        matching.slots
    }

    /// The table, from the base.
    fn table(&self, base: Vec<Slot>) -> Table {
        let size = base.len() as u32;
        let now: Vec<u32> = self.0.iter().map(|candidate| candidate.now).collect();
        if now.iter().all(|now| *now == 0) || now.len() > size as usize {
            return Table::default();
        }
        let mut matching = Matching::new(&self.0, base);
        if now != self.weights() {
            let quotas = quotas(&now, size);
            matching.shed(&quotas);
            matching.fill(&now, &quotas);
        }
        let names: Vec<_> =
            self.0.iter().map(|candidate| hash::name(candidate.address.to_string().as_bytes())).collect();
        let owners = || matching.slots.iter().map(|slot| slot.owner as usize);
        let fingerprint = owners().fold(u64::from(size), |sum, owner| hash::mix(sum, names[owner]));
        Table { fingerprint, slots: Arc::new(owners().map(|owner| self.0[owner].id).collect()) }
    }
}

/// A slot, while a table is made.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Whose it is, an index of candidates.
    owner: u32,
    /// Which place it has in the owner's permutation, from 0.
    asked: u32,
}

impl Slot {
    const FREE: Self = Self { owner: NOBODY, asked: 0 };
}

/// One that asks for slots.
#[derive(Clone, Default)]
struct Asker {
    /// The first slot of its permutation.
    first: u32,
    /// From a slot of its permutation to the next one.
    step: u32,
    /// The next slot.
    next: u32,
    /// How many it has asked for.
    asked: u32,
    /// How many it holds.
    held: u32,
}

struct Matching {
    askers: Vec<Asker>,
    slots: Vec<Slot>,
    /// How much somebody of weight 1 wants the slots of its permutation, one after the other.
    places: Arc<Vec<u64>>,
}

impl Matching {
    fn new(candidates: &[Candidate], slots: Vec<Slot>) -> Self {
        let size = slots.len() as u32;
        let asker = |candidate: &Candidate| {
            let (first, step) = permutation(candidate.address, size);
            Asker { first, step, ..Asker::default() }
        };
        let mut askers: Vec<_> = candidates.iter().map(asker).collect();
        for slot in slots.iter().filter(|slot| slot.owner != NOBODY) {
            askers[slot.owner as usize].held += 1;
        }
        Self { askers, slots, places: order_statistics(size) }
    }

    /// Everybody asks for slots until they hold their quota; slots that were taken before are not to be had.
    fn fill(&mut self, weights: &[u32], quotas: &[u32]) {
        let Self { askers, slots, places } = self;
        let size = slots.len() as u32;
        for slot in slots.iter_mut().filter(|slot| slot.owner != NOBODY) {
            slot.asked = TAKEN;
        }
        for asker in askers.iter_mut() {
            (asker.next, asker.asked) = (asker.first, 0);
        }
        let mut waiting: Vec<u32> = (0..weights.len() as u32).rev().collect();
        while let Some(who) = waiting.pop() {
            let (weight, quota) = (u64::from(weights[who as usize]), quotas[who as usize]);
            let mut asker = std::mem::take(&mut askers[who as usize]);
            while asker.held < quota {
                let (slot, asked) = (&mut slots[asker.next as usize], asker.asked);
                asker.next += asker.step;
                asker.next -= if asker.next >= size { size } else { 0 };
                asker.asked += 1;
                if slot.owner == NOBODY {
                    *slot = Slot { owner: who, asked };
                    asker.held += 1;
                    continue;
                }
                if slot.asked == TAKEN {
                    continue;
                }
                // Whose place / weight is less: without a division.
                let ours = places[asked as usize] * u64::from(weights[slot.owner as usize]);
                let theirs = places[slot.asked as usize] * weight;
                if (ours, who) < (theirs, slot.owner) {
                    askers[slot.owner as usize].held -= 1;
                    waiting.push(slot.owner);
                    *slot = Slot { owner: who, asked };
                    asker.held += 1;
                }
            }
            askers[who as usize] = asker;
        }
    }

    /// Whoever holds more than the quota gives up the slots that it wants least: the last of its permutation.
    fn shed(&mut self, quotas: &[u32]) {
        let mut held: Vec<Vec<(u32, u32)>> = vec![Vec::new(); quotas.len()];
        for (index, slot) in (0..).zip(&self.slots) {
            if self.askers[slot.owner as usize].held > quotas[slot.owner as usize] {
                held[slot.owner as usize].push((slot.asked, index));
            }
        }
        for (who, slots) in held.iter_mut().enumerate() {
            slots.sort_unstable();
            for (_, index) in slots.drain(..).skip(quotas[who] as usize) {
                self.slots[index as usize] = Slot::FREE;
                self.askers[who].held -= 1;
            }
        }
    }
}

/// The expected values of as many exponential variables of rate 1 in ascending order, times 2^40 (Rényi 1953): the n-th is
/// the sum of 1 / size, 1 / (size - 1), .. over n terms. In whole numbers: the same on every machine.
fn order_statistics(size: u32) -> Arc<Vec<u64>> {
    static LAST: Mutex<Option<Arc<Vec<u64>>>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = last.as_ref().filter(|known| known.len() == size as usize) {
        return Arc::clone(known);
    }
    let steps = (1..=u64::from(size)).rev().map(|left| (1 << 40) / left);
    let sums = steps.scan(0, |sum, step| {
        let before = *sum;
        *sum += step;
        Some(before)
    });
    let made = Arc::new(sums.collect::<Vec<u64>>());
    *last = Some(Arc::clone(&made));
    made
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
        assert_eq!([0, 3, 4, 655, 10_000, usize::MAX].map(least_size), [307, 307, 509, 65_537, 1_048_573, 1_048_573]);
        assert_eq!([0, 163, 164, 655, 656].map(roomy_size), [16_381, 16_381, 65_537, 65_537, 262_139]);
        assert_eq!(roomy_size(usize::MAX), 1_048_573);
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

    /// Numbers of backends, weights, and the most that may move beyond the minimum when one is removed for good from a
    /// table of the least size.
    const DISRUPTIONS: [(u32, u16, f64); 8] = [
        (3, 1, 1.5),
        (5, 1, 1.5),
        (10, 1, 2.0),
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
            let size = least_size(all.len());
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
            let size = least_size(all.len());
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

    /// Rule 8 and the promise for new connections: a percentage point at most beyond the minimum, whatever is changed.
    #[test]
    fn in_a_roomy_table_no_change_moves_a_point_more_than_it_must() {
        for (number, weights, _) in DISRUPTIONS {
            let all = candidates(&(0..number as u16).map(|n| 1 + n % weights).collect::<Vec<_>>());
            let size = roomy_size(all.len());
            let before = table(&all, size);
            let weighted = |id: u32, weight: u16| -> Vec<_> {
                let now = u32::from(weight) * FULL;
                all.iter().map(|c| if c.id == id { Candidate { weight, now, ..*c } } else { *c }).collect()
            };
            for id in [1, number / 2, number] {
                let rest: Vec<_> = all.iter().filter(|candidate| candidate.id != id).copied().collect();
                let changes =
                    [("removed", rest), ("of twice the weight", weighted(id, 2)), ("of weight 3", weighted(id, 3))];
                for (what, changed) in changes {
                    let after = table(&changed, size);
                    let off = excess(&before, &after, number).max(excess(&after, &before, number));
                    assert!(off < 1.0, "{number} backends, {id} {what}, and back: {off:.2} points beyond the minimum");
                }
            }
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
            let size = least_size(all.len());
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
