//! Incremental Internet checksums.
//!
//! Sums are kept in 16-bit one's-complement arithmetic over words *in the byte order in which they stand in memory*:
//! the Internet checksum is independent of byte order (RFC 1071, section 2 (B)), so nothing is swapped anywhere.
//! A *delta* is what replacing some words by others adds to the sum; it is applied by RFC 1624, equation 3.

/// Folds a 32-bit sum of 16-bit words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Folds a 64-bit sum of 16- or 32-bit words into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold64(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    fold((sum as u32 & 0xffff) + (sum as u32 >> 16))
}

/// The unfolded sum of a 32-bit word's two halves.
#[inline(always)]
#[must_use]
pub const fn word(value: u32) -> u32 {
    (value & 0xffff) + (value >> 16)
}

/// What replacing words that add up to `old` by words that add up to `new` adds to the sum (both unfolded, below 2^20).
#[inline(always)]
#[must_use]
pub const fn delta(old: u32, new: u32) -> u16 {
    fold(new + (!fold(old)) as u32)
}

/// The delta of the opposite replacement.
#[inline(always)]
#[must_use]
pub const fn inverse(delta: u16) -> u16 {
    !delta
}

/// The checksum field after a replacement: HC' = ~(~HC + ~m + m') (RFC 1624, equation 3).
///
/// TCP and IPv4 use this as it is; UDP has the rule of [`update_udp`] on top.
#[inline(always)]
#[must_use]
pub const fn update(field: u16, delta: u16) -> u16 {
    !fold((!field) as u32 + delta as u32)
}

/// The same for UDP over IPv4: a field of 0 means "no checksum" and stays 0, a computed 0 is sent as 0xffff (RFC 768).
#[inline(always)]
#[must_use]
pub const fn update_udp(field: u16, delta: u16) -> u16 {
    if field == 0 {
        return 0;
    }
    match update(field, delta) {
        0 => 0xffff,
        updated => updated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The checksum of whole bytes, written from RFC 1071 and sharing no code with the above.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// Whether a receiver accepts the field: the sum over everything, field included, is 0xffff.
    fn verifies(bytes: &[u8], field: u16) -> bool {
        let sum = u32::from(!reference(bytes)) + u32::from(field);
        fold(sum) == 0xffff
    }

    /// Rule 9 of the packet rules.
    #[test]
    fn rule_09_every_pair_of_corner_words_updates_right() {
        let corners = [0u16, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff];
        for rest in corners {
            for old in corners {
                for new in corners {
                    let before = [rest.to_ne_bytes(), old.to_ne_bytes(), 0x1234u16.to_ne_bytes()].concat();
                    let after = [rest.to_ne_bytes(), new.to_ne_bytes(), 0x1234u16.to_ne_bytes()].concat();
                    let field = update(reference(&before), delta(old.into(), new.into()));
                    assert!(verifies(&after, field), "rest {rest:#x} old {old:#x} new {new:#x} field {field:#x}");
                }
            }
        }
    }

    #[test]
    fn rule_09_udp_zero_means_none_and_is_never_computed() {
        assert_eq!(update_udp(0, 0x1234), 0);
        for field in 1..=u16::MAX {
            assert_ne!(update_udp(field, field), 0);
        }
    }

    proptest! {
        #[test]
        fn rule_09_there_and_back_verifies(mut bytes in proptest::collection::vec(any::<u8>(), 12..64), new in any::<[u32; 2]>()) {
            if bytes.len() % 2 == 1 { bytes.push(0); }
            let old = [u32::from_ne_bytes(bytes[0..4].try_into().unwrap()), u32::from_ne_bytes(bytes[4..8].try_into().unwrap())];
            let change = delta(word(old[0]) + word(old[1]), word(new[0]) + word(new[1]));
            let before = bytes.clone();
            let field = reference(&before);
            bytes[0..4].copy_from_slice(&new[0].to_ne_bytes());
            bytes[4..8].copy_from_slice(&new[1].to_ne_bytes());
            let there = update(field, change);
            prop_assert!(verifies(&bytes, there));
            prop_assert!(verifies(&before, update(there, inverse(change))));
        }

        #[test]
        fn fold64_agrees_with_the_reference(words in proptest::collection::vec(any::<u32>(), 1..32)) {
            let sum: u64 = words.iter().map(|w| u64::from(*w)).sum();
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            prop_assert_eq!(!fold64(sum), reference(&bytes));
        }
    }
}
