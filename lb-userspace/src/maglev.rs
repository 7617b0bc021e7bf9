//! Maglev tables (Eisenbud et al., NSDI 2016, section 3.4), weighted exactly.
//!
//! Every backend gets its share of the slots to within one slot: the largest remainders of weight / sum of weights,
//! but never less than one slot for a weight above 0. The shares are then filled as in the paper: backends take turns,
//! each turn to the one that is furthest behind its share, and each takes the next free slot of its own permutation.
//! A table depends on addresses and weights only, so every balancer computes the same one.

use std::net::{IpAddr, SocketAddr};

use lb_common::hash;

/// Sizes of tables: primes, so that every step of a permutation visits every slot.
const SIZES: [u32; 13] = [307, 509, 1009, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 262_139, 524_287, 1_048_573];
/// Slots per backend, at least: it bounds what one backend's share may be off to a hundredth of it.
const SLOTS_PER_BACKEND: u32 = 100;

/// The size of a table for a number of configured backends, usable or not: a change of health must not reshuffle.
#[must_use]
pub fn size_for(backends: usize) -> u32 {
    let wanted = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(SLOTS_PER_BACKEND);
    SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// One backend of a table to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What its slots will say.
    pub id: u32,
    /// What its permutation is made from.
    pub address: SocketAddr,
    /// Its weight; 0 gets no slot.
    pub weight: u16,
}

struct Filling {
    id: u32,
    next: u64,
    step: u64,
    quota: u64,
    taken: u64,
}

/// A table of `size` slots (a prime), each a candidate's id. Empty if no weight is above 0, or there are more
/// candidates than slots.
#[must_use]
pub fn table(candidates: &[Candidate], size: u32) -> Vec<u32> {
    let mut chosen: Vec<_> = candidates.iter().filter(|candidate| candidate.weight > 0).copied().collect();
    chosen.sort_unstable_by_key(|candidate| candidate.address);
    if chosen.is_empty() || chosen.len() > size as usize {
        return Vec::new();
    }
    let quotas = quotas(&chosen, size);
    let mut fillings: Vec<_> =
        chosen.iter().zip(quotas).map(|(candidate, quota)| filling(candidate, quota, size)).collect();
    let mut slots = vec![None; size as usize];
    // Turns in the order of (turn + 1/2) / quota: everybody advances evenly, the heavy ones more often.
    let mut turns = std::collections::BinaryHeap::with_capacity(fillings.len());
    for (index, filling) in fillings.iter().enumerate() {
        turns.push(std::cmp::Reverse((due(filling), index)));
    }
    while let Some(std::cmp::Reverse((_, index))) = turns.pop() {
        let filling = &mut fillings[index];
        while slots[filling.next as usize].is_some() {
            filling.next = (filling.next + filling.step) % u64::from(size);
        }
        slots[filling.next as usize] = Some(filling.id);
        filling.taken += 1;
        if filling.taken < filling.quota {
            turns.push(std::cmp::Reverse((due(filling), index)));
        }
    }
    slots.into_iter().flatten().collect()
}

/// When a backend's next turn is, in 2^-32 of the whole filling.
fn due(filling: &Filling) -> u64 {
    ((2 * filling.taken + 1) << 32) / (2 * filling.quota)
}

fn filling(candidate: &Candidate, quota: u64, size: u32) -> Filling {
    let address = match candidate.address.ip() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let first = hash::mix(address as u64, (address >> 64) as u64 ^ u64::from(candidate.address.port()));
    let second = hash::mix(first, 0x6d61_676c_6576);
    Filling {
        id: candidate.id,
        next: first % u64::from(size),
        step: second % (u64::from(size) - 1) + 1,
        quota,
        taken: 0,
    }
}

/// Slots of each candidate: at least one, in all `size`, by the largest remainders.
fn quotas(candidates: &[Candidate], size: u32) -> Vec<u64> {
    let sum: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    let share = |candidate: &Candidate| u64::from(candidate.weight) * u64::from(size);
    let mut quotas: Vec<u64> = candidates.iter().map(|candidate| (share(candidate) / sum).max(1)).collect();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(share(&candidates[*index]) % sum));
    let given: u64 = quotas.iter().sum();
    for index in order.iter().cycle().take(u64::from(size).saturating_sub(given) as usize) {
        quotas[*index] += 1;
    }
    // The ones that were lifted to a slot may have taken too many: the largest give them back.
    for _ in 0..given.saturating_sub(u64::from(size)) {
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

    #[test]
    fn a_removed_backend_moves_little_else() {
        let all = candidates(&[1; 20]);
        let (before, after) = (table(&all, 2039), table(&all[1..], 2039));
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 1 && b != a).count();
        let rest = before.len() - count(&before, 1);
        assert!(moved * 100 < rest * 10, "{moved} of {rest} slots of other backends moved");
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
