//! Which part of the map `tables` belongs to which service.
//!
//! A new table goes where nothing stands, then one store in the service's record makes it visible. The place of the
//! old one rests for a while, because a packet may just be reading it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How long a freed region rests; a packet takes microseconds.
const REST: Duration = Duration::from_millis(100);

/// The map's regions.
#[derive(Debug)]
pub struct Slots {
    /// Free regions: first slot to number of slots; neighbours are joined.
    free: BTreeMap<u32, u32>,
    /// Freed a moment ago, the earliest first.
    resting: VecDeque<(Instant, u32, u32)>,
}

impl Slots {
    /// All of `length` slots (an even number) free but the regions `used` (first slot, number of slots). Regions begin at
    /// even slots, so that they are whole elements of the map.
    pub fn new(length: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<_> = used.into_iter().filter(|(_, size)| *size > 0).collect();
        used.sort_unstable();
        let (mut free, mut from) = (BTreeMap::new(), 0);
        for (base, size) in used {
            if base > from {
                free.insert(from, base - from);
            }
            from = from.max(base + size.next_multiple_of(2));
        }
        if from < length {
            free.insert(from, length - from);
        }
        Self { free, resting: VecDeque::new() }
    }

    /// A region of `size` slots; `None` when there is none.
    pub fn take(&mut self, size: u32, now: Instant) -> Option<u32> {
        let size = size.next_multiple_of(2);
        self.wake(now);
        let (base, room) = self.free.iter().find(|(_, room)| **room >= size).map(|(base, room)| (*base, *room))?;
        self.free.remove(&base);
        if room > size {
            self.free.insert(base + size, room - size);
        }
        Some(base)
    }

    /// Gives a region back.
    pub fn give(&mut self, base: u32, size: u32, now: Instant) {
        if size > 0 {
            self.resting.push_back((now + REST, base, size.next_multiple_of(2)));
        }
    }

    /// Gives a region back that nobody has looked at yet.
    pub fn give_unused(&mut self, base: u32, size: u32) {
        if size > 0 {
            self.join(base, size.next_multiple_of(2));
        }
    }

    /// When the next region will have rested; `None` if none rests.
    pub fn rested(&self) -> Option<Instant> {
        self.resting.front().map(|(until, ..)| *until)
    }

    fn wake(&mut self, now: Instant) {
        while let Some((until, base, size)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            self.join(base, size);
        }
    }

    /// Makes a region free, and one with its neighbours.
    fn join(&mut self, mut base: u32, mut size: u32) {
        if let Some((before, room)) = self.free.range(..base).next_back().map(|(b, r)| (*b, *r))
            && before + room == base
        {
            self.free.remove(&before);
            (base, size) = (before, room + size);
        }
        if let Some(room) = self.free.remove(&(base + size)) {
            size += room;
        }
        self.free.insert(base, size);
    }
}

/// Low and high half of a word: first place and number of places.
pub fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_region_rests_and_joins_its_neighbours() {
        let start = Instant::now();
        let mut slots = Slots::new(100, []);
        let (a, b) = (slots.take(40, start).unwrap(), slots.take(60, start).unwrap());
        assert_eq!((a, b), (0, 40));
        slots.give(a, 40, start);
        slots.give(b, 60, start);
        assert_eq!(slots.take(10, start), None, "both still rest");
        assert_eq!(slots.take(100, start + REST), Some(0), "joined");
    }

    #[test]
    fn what_nobody_saw_is_free_at_once() {
        let now = Instant::now();
        let mut slots = Slots::new(100, []);
        let base = slots.take(99, now).unwrap();
        assert_eq!((slots.take(2, now), slots.rested()), (None, None));
        slots.give_unused(base, 99);
        assert_eq!(slots.take(100, now), Some(0));
        slots.give(0, 100, now);
        assert_eq!(slots.rested(), Some(now + REST));
    }

    #[test]
    fn adoption_leaves_used_regions_alone() {
        let now = Instant::now();
        let mut slots = Slots::new(100, [(50, 10), (0, 20), (90, 0)]);
        assert_eq!(slots.take(30, now), Some(20));
        assert_eq!(slots.take(40, now), Some(60));
        assert_eq!(slots.take(2, now), None);
    }
}
