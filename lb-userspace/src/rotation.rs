//! The order in which `round-robin` goes round the backends of a service: smooth, so that a heavy backend's turns are
//! spread over the round and not one after the other.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Most turns of a round. Weights whose exact round would be longer are rounded to this many turns, everybody at least
/// one.
const LONGEST: u64 = 4_096;

/// Indices of `weights` in the order of their turns, each as often as its weight says; weight 0 has no turn.
#[must_use]
pub fn order(weights: &[u32]) -> Vec<usize> {
    let divisor = weights.iter().fold(0, |a, b| greatest_common_divisor(a, u64::from(*b)));
    if divisor == 0 {
        return Vec::new();
    }
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let longest = LONGEST.max(8 * weights.len() as u64);
    let turns = |weight: u32| match u64::from(weight) {
        0 => 0,
        weight if sum / divisor <= longest => weight / divisor,
        weight => ((weight * longest + sum / 2) / sum).max(1),
    };
    let turns: Vec<u64> = weights.iter().map(|weight| turns(*weight)).collect();
    // Turn k of n is due at (k + 1/2) / n of the round.
    let due = |index: usize, taken: u64| ((2 * taken + 1) << 32) / (2 * turns[index]);
    let mut waiting: BinaryHeap<_> =
        (0..turns.len()).filter(|index| turns[*index] > 0).map(|index| Reverse((due(index, 0), index, 0))).collect();
    let mut order = Vec::with_capacity(turns.iter().sum::<u64>() as usize);
    while let Some(Reverse((_, index, taken))) = waiting.pop() {
        order.push(index);
        if taken + 1 < turns[index] {
            waiting.push(Reverse((due(index, taken + 1), index, taken + 1)));
        }
    }
    order
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equals_alternate_and_heavy_ones_are_spread() {
        assert_eq!(order(&[7, 7, 7]), [0, 1, 2]);
        assert_eq!(order(&[2, 1, 1]), [0, 1, 2, 0]);
        assert_eq!(order(&[0, 5]), [1]);
        assert!(order(&[]).is_empty() && order(&[0, 0]).is_empty());
    }

    proptest! {
        /// Rule 8, for every stretch of a round: nobody is ahead or behind by more than a few turns.
        #[test]
        fn rule_08_turns_are_weights(weights in proptest::collection::vec(any::<u16>().prop_map(u32::from), 1..40)) {
            let order = order(&weights);
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            prop_assert_eq!(order.is_empty(), sum == 0);
            for (index, weight) in weights.iter().enumerate() {
                let turns = order.iter().filter(|turn| **turn == index).count();
                prop_assert_eq!(turns > 0, *weight > 0);
                if *weight > 0 {
                    let (got, wanted) = (turns as f64 / order.len() as f64, f64::from(*weight) / sum as f64);
                    prop_assert!((got - wanted).abs() < 0.01, "weight {} of {}: {} instead of {}", weight, sum, got, wanted);
                }
            }
        }
    }
}
