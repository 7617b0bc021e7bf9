//! Address families: what differs between IPv4 and IPv6 in tuples, records and keys. Everything else is written once,
//! generic over a [`Family`].

use core::{fmt::Debug, hash::Hash};

use crate::{Be32, checksum, hash};

/// An address family; the types [`V4`] and [`V6`] stand for the two.
pub trait Family: Copy + Debug + Default + Eq + Ord + Hash + 'static {
    /// An address as it stands in a packet.
    type Address: Copy + Debug + Default + Eq + Ord + Hash + 'static;
    /// What fills a record's first part up to a multiple of 64 bytes.
    type Pad: Copy + Debug + Default;
    /// 4 or 6: as in an IP header, and in [`crate::maps::Backend::family`].
    const VERSION: u8;

    /// An address of a backend or of NAT: IPv4 in the first word.
    fn address(words: &[Be32; 4]) -> Self::Address;

    /// The opposite of [`Family::address`].
    fn words(address: Self::Address) -> [Be32; 4];

    /// Whether two addresses are the same.
    fn same(a: Self::Address, b: Self::Address) -> bool;

    /// The unfolded sum of an address's 16-bit words.
    fn sum(address: Self::Address) -> u32;

    /// The address's bit in the map `filter`.
    fn filter_bit(address: Self::Address) -> u32;

    /// The address as one word, for the schedulers' hash ([`hash::select`]).
    fn fold(address: Self::Address) -> u64;

    /// The hash of a tuple: both addresses, and the ports and the protocol as one word.
    fn hash_tuple(seed: hash::Seeded, source: Self::Address, destination: Self::Address, rest: u64) -> u64;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V4;

impl Family for V4 {
    type Address = Be32;
    type Pad = [u8; 0];
    const VERSION: u8 = 4;

    #[inline(always)]
    fn address(words: &[Be32; 4]) -> Be32 {
        words[0]
    }

    #[inline(always)]
    fn words(address: Be32) -> [Be32; 4] {
        [address, Be32(0), Be32(0), Be32(0)]
    }

    #[inline(always)]
    fn same(a: Be32, b: Be32) -> bool {
        a.0 == b.0
    }

    #[inline(always)]
    fn sum(address: Be32) -> u32 {
        checksum::word(address.0)
    }

    #[inline(always)]
    fn filter_bit(address: Be32) -> u32 {
        address.0.wrapping_mul(0x9e37_79b1) >> 16
    }

    #[inline(always)]
    fn fold(address: Be32) -> u64 {
        u64::from(address.get())
    }

    #[inline(always)]
    fn hash_tuple(seed: hash::Seeded, source: Be32, destination: Be32, rest: u64) -> u64 {
        seed.hash([u64::from(source.0) | u64::from(destination.0) << 32, rest])
    }
}

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V6;

impl Family for V6 {
    type Address = [Be32; 4];
    type Pad = [u8; 16];
    const VERSION: u8 = 6;

    #[inline(always)]
    fn address(words: &[Be32; 4]) -> [Be32; 4] {
        // Word by word: the compiler would call a function that copies byte by byte.
        // SAFETY: a reference is valid for reads.
        let word = |n: usize| unsafe { core::ptr::from_ref(&words[n]).read_volatile() };
        [word(0), word(1), word(2), word(3)]
    }

    #[inline(always)]
    fn words(address: [Be32; 4]) -> [Be32; 4] {
        address
    }

    #[inline(always)]
    fn same(a: [Be32; 4], b: [Be32; 4]) -> bool {
        (a[0].0 ^ b[0].0) | (a[1].0 ^ b[1].0) | (a[2].0 ^ b[2].0) | (a[3].0 ^ b[3].0) == 0
    }

    #[inline(always)]
    fn sum(address: [Be32; 4]) -> u32 {
        let [a, b, c, d] = address;
        checksum::word(a.0) + checksum::word(b.0) + checksum::word(c.0) + checksum::word(d.0)
    }

    #[inline(always)]
    fn filter_bit(address: [Be32; 4]) -> u32 {
        let high = address[0].0 ^ address[1].0.rotate_left(13);
        let low = address[2].0.rotate_left(7) ^ address[3].0;
        (high.wrapping_mul(0x85eb_ca6b) ^ low).wrapping_mul(0x9e37_79b1) >> 16
    }

    #[inline(always)]
    fn fold(address: [Be32; 4]) -> u64 {
        let [a, b, c, d] = address.map(|word| u64::from(word.get()));
        hash::mix(a << 32 | b, c << 32 | d)
    }

    #[inline(always)]
    fn hash_tuple(seed: hash::Seeded, source: [Be32; 4], destination: [Be32; 4], rest: u64) -> u64 {
        let word = |high: Be32, low: Be32| u64::from(high.0) | u64::from(low.0) << 32;
        let [a, b, c, d] = source;
        let first = hash::step(word(a, b) ^ seed.0, word(c, d));
        let [a, b, c, d] = destination;
        let second = hash::step(hash::step(first, word(a, b)), word(c, d));
        seed.hash([second, rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Seeded;

    fn address(words: [u32; 4]) -> [Be32; 4] {
        words.map(Be32::new)
    }

    #[test]
    fn every_word_of_an_address_changes_hash_and_sum() {
        let base = address([0x2001_0db8, 0, 0, 1]);
        let hash = |a, b| V6::hash_tuple(Seeded(7), a, b, 5);
        for word in 0..4 {
            let mut other = base;
            other[word].0 ^= Be32::new(0x0100).0;
            assert_ne!(hash(base, base), hash(other, base), "word {word} of the source");
            assert_ne!(hash(base, base), hash(base, other), "word {word} of the destination");
            assert_ne!(V6::sum(base), V6::sum(other));
            assert_ne!(V6::fold(base), V6::fold(other));
            assert_ne!(V6::filter_bit(base), V6::filter_bit(other));
        }
        assert_ne!(hash(base, address([1, 2, 3, 4])), hash(address([1, 2, 3, 4]), base));
    }

    #[test]
    fn words_and_addresses_are_each_others_opposite() {
        assert_eq!(V4::address(&V4::words(Be32::new(7))), Be32::new(7));
        assert_eq!(V6::address(&V6::words(address([1, 2, 3, 4]))), address([1, 2, 3, 4]));
    }
}
