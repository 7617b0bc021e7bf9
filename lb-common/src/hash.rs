//! Two hashes, for two masters.
//!
//! [`Seeded`] places flows in the flow index. Its seed is drawn when the maps are made, so that a stranger cannot
//! aim many flows at one bucket. [`select`] places flows on a scheduler's table. Its seed is fixed, so that every
//! balancer with the same table sends a flow to the same backend.

const MULTIPLIER_1: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLIER_2: u64 = 0xd6e8_feb8_6659_fd93;
const MULTIPLIER_3: u64 = 0xff51_afd7_ed55_8ccd;

/// Mixes two words into one; every bit of the result depends on every bit of both.
#[inline(always)]
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    let mut h = a.wrapping_mul(MULTIPLIER_1);
    h ^= h >> 32;
    h = (h ^ b).wrapping_mul(MULTIPLIER_2);
    h ^= h >> 29;
    h = h.wrapping_mul(MULTIPLIER_3);
    h ^ (h >> 32)
}

/// Takes one more word into a hash that is not finished yet.
#[inline(always)]
#[must_use]
pub const fn step(h: u64, word: u64) -> u64 {
    let h = h.wrapping_mul(MULTIPLIER_1);
    (h ^ h >> 32) ^ word
}

/// The hash of the flow index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeded(pub u64);

impl Seeded {
    /// Hashes a flow's key of two words.
    #[inline(always)]
    #[must_use]
    pub const fn hash(self, key: [u64; 2]) -> u64 {
        mix(key[0] ^ self.0, key[1])
    }
}

/// The hash by which schedulers place a client's flow: `client` is the client's address (IPv4, or an IPv6 address
/// folded by the caller), `ports` what else takes part (client port, protocol; 0 for source-hash and affinity).
#[inline(always)]
#[must_use]
pub const fn select(client: u64, ports: u64) -> u32 {
    (mix(client ^ 0x6c62_272e_07bb_0142, ports) >> 32) as u32
}

/// A name's hash (FNV-1a, 64 bits): how a service is recognised in the maps after its daemon died.
#[must_use]
pub const fn name(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < bytes.len() {
        h = (h ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    h
}

/// A number below `bound` from 32 random bits, without a division.
#[inline(always)]
#[must_use]
pub const fn below(random: u32, bound: u32) -> u32 {
    ((random as u64 * bound as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_clients_spread_evenly() {
        let mut counts = [0u32; 16];
        for client in 0..65_536u64 {
            counts[below(select(client, 0), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (3_800..4_400).contains(n)), "{counts:?}");
    }

    #[test]
    fn a_seed_changes_the_place() {
        assert_ne!(Seeded(1).hash([7, 9]), Seeded(2).hash([7, 9]));
    }
}
