//! Where next hops stand in their map: one that is in use stays where it is, and a new one never takes a place that the
//! tables before named, so that no packet meets another backend's next hop while a change is applied.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::maps;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    places: BTreeMap<Key, u32>,
    taken: BTreeSet<u32>,
    /// No place up to this one is free.
    searched: u32,
    /// Next hops for which there was no place.
    left_out: BTreeSet<Key>,
}

/// Everything that tells two next hops apart.
type Key = (u32, [u8; 12], u32, u16);

const fn key(hop: &maps::NextHop) -> Key {
    (hop.ifindex, hop.ethernet, hop.mtu, hop.vlan.get())
}

impl NextHops {
    /// The place of a next hop, from 1; 0 = "not known", because there is none left. `before` are those that stand in
    /// the map.
    pub fn place(&mut self, hop: &maps::NextHop, before: &Self) -> u32 {
        let key = key(hop);
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        let Some(place) = before.places.get(&key).copied().or_else(|| self.free(before)) else {
            self.left_out.insert(key);
            return 0;
        };
        self.places.insert(key, place);
        self.taken.insert(place);
        place
    }

    /// A place that neither these tables nor those before name.
    fn free(&mut self, before: &Self) -> Option<u32> {
        let mut further = self.searched + 1..maps::NEXT_HOPS;
        let found = further.find(|place| !self.taken.contains(place) && !before.taken.contains(place));
        self.searched = found.unwrap_or(maps::NEXT_HOPS - 1);
        found
    }

    /// What stands where.
    pub fn entries(&self) -> impl Iterator<Item = (u32, maps::NextHop)> {
        self.places.iter().map(|((ifindex, ethernet, mtu, vlan), place)| {
            let vlan = lb_common::Be16::new(*vlan);
            (
                *place,
                maps::NextHop { ethernet: *ethernet, ifindex: *ifindex, mtu: *mtu, vlan, ..maps::NextHop::default() },
            )
        })
    }

    /// How many there was no place for.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(n: u16) -> maps::NextHop {
        let [high, low] = n.to_be_bytes();
        maps::NextHop {
            ethernet: [2, 0, 0, 0, high, low, 0, 0, 0, 0, 0, 1],
            ifindex: 2,
            mtu: 1500,
            ..maps::NextHop::default()
        }
    }

    #[test]
    fn a_new_next_hop_takes_no_place_that_was_in_use() {
        let (mut first, none) = (NextHops::default(), NextHops::default());
        assert_eq!([1, 2, 1].map(|n| first.place(&hop(n), &none)), [1, 2, 1]);
        // 1 is gone, 3 is new: 2 stays, and 1's place is only free the next time.
        let mut second = NextHops::default();
        assert_eq!([2, 3].map(|n| second.place(&hop(n), &first)), [2, 3]);
        let mut third = NextHops::default();
        assert_eq!([2, 3, 4].map(|n| third.place(&hop(n), &second)), [2, 3, 1]);
        assert!(third.entries().any(|(place, entry)| (place, entry) == (1, hop(4))));
    }

    #[test]
    fn more_than_there_is_room_for_are_counted() {
        let (mut all, none) = (NextHops::default(), NextHops::default());
        let places: BTreeSet<_> = (1..=4_100).map(|n| all.place(&hop(n), &none)).collect();
        assert_eq!((places.len(), all.left_out()), (4_096, 5), "4 095 places, and 0 for the rest");
    }
}
