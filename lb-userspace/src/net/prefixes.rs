//! Which addresses the host's routing treats alike, so that one question answers for all of them.
//!
//! The kernel's answer for an address depends on which prefixes of routes and rules contain it, and on nothing else
//! about it, as long as no route spreads over several next hops. Prefixes that contain an address lie in each other, so
//! the longest says which the others are: addresses with the same longest prefix get the same answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Prefixes of all routing tables and rules.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    known: HashSet<(IpAddr, u8)>,
    lengths4: BTreeSet<u8>,
    lengths6: BTreeSet<u8>,
    /// Those of routes with several next hops: each address may get another.
    spread: HashSet<(IpAddr, u8)>,
}

impl Prefixes {
    /// Adds the prefix of a route or a rule.
    pub fn add(&mut self, address: IpAddr, length: u8, spread: bool) {
        let prefix = (masked(address, length), length);
        self.known.insert(prefix);
        if spread {
            self.spread.insert(prefix);
        }
        if address.is_ipv4() { &mut self.lengths4 } else { &mut self.lengths6 }.insert(length);
    }

    /// The addresses in groups that are treated alike.
    #[must_use]
    pub fn groups(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Vec<IpAddr>> {
        let mut groups: BTreeMap<(IpAddr, u8), Vec<IpAddr>> = BTreeMap::new();
        for address in addresses {
            groups.entry(self.group(address)).or_default().push(address);
        }
        groups.into_values().collect()
    }

    fn group(&self, address: IpAddr) -> (IpAddr, u8) {
        let (lengths, whole) = if address.is_ipv4() { (&self.lengths4, 32) } else { (&self.lengths6, 128) };
        let containing = lengths.iter().rev().map(|length| (masked(address, *length), *length));
        let mut containing = containing.filter(|prefix| self.known.contains(prefix)).peekable();
        let longest = containing.peek().copied().unwrap_or((masked(address, 0), 0));
        if containing.any(|prefix| self.spread.contains(&prefix)) { (address, whole) } else { longest }
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0))
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefixes(list: &[(&str, u8, bool)]) -> Prefixes {
        let mut prefixes = Prefixes::default();
        list.iter().for_each(|(text, length, spread)| prefixes.add(address(text), *length, *spread));
        prefixes
    }

    #[test]
    fn one_group_per_most_specific_prefix() {
        let table = prefixes(&[
            ("0.0.0.0", 0, false),
            ("10.1.0.0", 16, false),
            ("10.1.2.0", 24, false),
            ("10.1.2.9", 32, false),
            ("2001:db8::", 32, false),
        ]);
        let asked =
            ["10.1.2.3", "10.1.2.4", "10.1.2.9", "10.1.3.1", "8.8.8.8", "9.9.9.9", "2001:db8::1", "2001:db8::2", "::5"];
        let groups = table.groups(asked.map(address));
        let sizes: BTreeSet<_> = groups.iter().map(|group| (group[0].to_string(), group.len())).collect();
        let wanted =
            [("10.1.2.3", 2), ("10.1.2.9", 1), ("10.1.3.1", 1), ("8.8.8.8", 2), ("2001:db8::1", 2), ("::5", 1)];
        assert_eq!(sizes, wanted.map(|(text, size)| (text.to_owned(), size)).into());
    }

    #[test]
    fn addresses_behind_several_next_hops_are_asked_for_one_by_one() {
        let table = prefixes(&[("0.0.0.0", 0, true), ("10.0.0.0", 8, false)]);
        // The default route is behind 10/8 too: a table that is looked at first may have only the default.
        assert_eq!(table.groups(["10.0.0.1", "10.0.0.2", "8.8.8.8"].map(address)).len(), 3);
        let table = prefixes(&[("0.0.0.0", 0, false), ("10.0.0.0", 8, true)]);
        assert_eq!(table.groups(["10.0.0.1", "10.0.0.2", "8.8.8.8", "8.8.4.4"].map(address)).len(), 3);
    }
}
