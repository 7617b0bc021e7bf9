//! The flow index: from a packet's tuple to its flow's record, in one cache line of entries and one of the record.
//!
//! A bucket is searched without a lock: an entry is one word, and the record that it names is compared in full.
//! Entries are put in by compare-and-swap, and looked for again afterwards, so that two CPUs never keep two entries
//! for one tuple.

use lb_common::flow::{BUCKET_ENTRIES, Bucket, Flow, NO_SLOT, OVERFLOWED, Tuple, entry, state};

use crate::{atomic, maps, path::Path, words::opaque};

/// No record's number.
const NOBODY: u32 = u32::MAX;
/// Words of a bucket, the overflow mark included.
const WORDS: u32 = BUCKET_ENTRIES + 1;

/// A found flow.
pub struct Found<F: Path> {
    /// Its record.
    pub flow: &'static mut Flow<F>,
    /// Index of its record.
    pub index: u32,
    /// The record's sequence before its tuple was compared: as long as it stands there, the record is this flow's.
    pub seq: u32,
    /// Whether the tuple is that of the backend's packets.
    pub from_backend: bool,
}

impl<F: Path> Found<F> {
    /// Finds the flow whose packets carry this tuple.
    #[inline(always)]
    pub fn new(tuple: &Tuple<F>) -> Option<Self> {
        Self::of(F::find(tuple, NOBODY))
    }

    /// As [`Found::new`]; without a call, if the flow stands where it is looked for first. It takes more of the caller's
    /// stack.
    #[inline(always)]
    pub fn at_once(tuple: &Tuple<F>) -> Option<Self> {
        // Where a flow was found makes no difference from here on; the verifier must not keep the ways apart.
        Self::of(opaque(at_once(tuple) as usize) as u64)
    }

    /// What [`find`] gave.
    #[inline(always)]
    fn of(found: u64) -> Option<Self> {
        let word = found as u32;
        let flow = if word == 0 { None } else { record(entry::record(word)) };
        flow.map(|flow| Self {
            flow,
            index: entry::record(word),
            seq: (found >> 32) as u32,
            from_backend: word & entry::FROM_BACKEND != 0,
        })
    }
}

/// As [`find`]; what stands where it is looked for first is found without a call, whose return costs as much as half a
/// search on CPUs that must not predict it.
#[inline(always)]
fn at_once<F: Path>(tuple: &Tuple<F>) -> u64 {
    let hash = tuple.hash(maps::seeded());
    let (first, _) = entry::buckets(hash, F::index_mask());
    let Some(bucket) = F::MAPS.index.get(first) else { return 0 };
    let word = opaque(candidate(bucket, entry::tag(hash)) as usize) as u32;
    if word == 0 && !overflowed(bucket) {
        return 0;
    }
    if let Some(flow) = record::<F>(entry::record(word)) {
        let seq = read(&flow.head.seq);
        let theirs = if word & entry::FROM_BACKEND != 0 { &flow.backend } else { &flow.client };
        if theirs.is(tuple) && flow.head.state != state::FREE {
            return (seq as u64) << 32 | (word & ((1 << entry::TAG_SHIFT) - 1)) as u64;
        }
    }
    // Another flow has the same tag, or the bucket was full. A copy, so that the packet's need not stand in memory.
    let tuple = *tuple;
    F::find(&tuple, NOBODY)
}

/// The first entry of a bucket with this tag; 0 if there is none.
#[inline(always)]
fn candidate(bucket: &Bucket, tag: u32) -> u32 {
    let mut position = 0;
    while position < BUCKET_ENTRIES as usize {
        let word = read(&bucket.words[position]);
        if word >> entry::TAG_SHIFT == tag && word != 0 {
            return word;
        }
        position += 1;
    }
    0
}

/// The record at an index.
#[inline(always)]
pub fn record<F: Path>(index: u32) -> Option<&'static mut Flow<F>> {
    // SAFETY: the pointer is a map value's and lives as long as the program; who writes what is said in lb_common::flow.
    F::MAPS.flows.get_ptr_mut(index).map(|flow| unsafe { &mut *flow })
}

/// Reads a word that another CPU may be writing.
#[inline(always)]
pub fn read(word: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Finds the flow whose packets carry this tuple: its entry in the index without the tag, and above it the sequence
/// that its record had; 0 if there is none. Record `except` is not looked at.
#[inline(always)]
pub fn find<F: Path>(tuple: &Tuple<F>, except: u32) -> u64 {
    let hash = tuple.hash(maps::seeded());
    let (first, second) = entry::buckets(hash, F::index_mask());
    let Some(bucket) = F::MAPS.index.get(first) else { return 0 };
    let found = search(bucket, tuple, hash, except);
    if found != 0 || !overflowed(bucket) {
        return found;
    }
    F::MAPS.index.get(second).map_or(0, |bucket| search(bucket, tuple, hash, except))
}

/// Whether entries that belong into this bucket may stand in their second one.
#[inline(always)]
fn overflowed(bucket: &Bucket) -> bool {
    read(&bucket.words[BUCKET_ENTRIES as usize]) == OVERFLOWED
}

#[inline(always)]
fn search<F: Path>(bucket: &Bucket, tuple: &Tuple<F>, hash: u64, except: u32) -> u64 {
    let tag = entry::tag(hash);
    let mut position = 0;
    while position < BUCKET_ENTRIES as usize {
        let word = read(&bucket.words[position]);
        position += 1;
        if word >> entry::TAG_SHIFT != tag || word == 0 {
            continue;
        }
        let index = entry::record(word);
        let Some(flow) = record::<F>(index) else { continue };
        let seq = read(&flow.head.seq);
        let theirs = if word & entry::FROM_BACKEND != 0 { &flow.backend } else { &flow.client };
        if theirs.is(tuple) && index != except && flow.head.state != state::FREE {
            return (seq as u64) << 32 | (word & ((1 << entry::TAG_SHIFT) - 1)) as u64;
        }
    }
    0
}

/// Puts an entry for `tuple` into the index. [`NO_SLOT`]: no room, or another record has the same tuple.
///
/// The record must already carry the tuple.
#[inline(always)]
pub fn insert<F: Path>(tuple: &Tuple<F>, direction: u32, index: u32) -> u32 {
    let hash = tuple.hash(maps::seeded());
    let (first, second) = entry::buckets(hash, F::index_mask());
    let new = entry::new(hash, direction, index);
    let mut slot = place::<F>(first, new);
    if slot == NO_SLOT {
        if let Some(bucket) = F::MAPS.index.get_ptr_mut(first) {
            // SAFETY: a map value's word; every writer writes the same.
            unsafe { (&raw mut (*bucket).words[BUCKET_ENTRIES as usize]).write_volatile(OVERFLOWED) };
        }
        slot = place::<F>(second, new);
    }
    // Whoever else has the tuple put it into the first bucket, or found that full as it was.
    if slot != NO_SLOT && !alone::<F>(first, new) && F::find(tuple, index) != 0 {
        remove::<F>(slot, index);
        return NO_SLOT;
    }
    slot
}

/// Whether no other entry has the tag of this one, as far as its tuple could have been put. Where the bucket overflowed
/// nobody knows: who puts a twin into the second bucket has set the mark before, and this entry stood in the first
/// before the mark is read, so one of the two sees the other.
#[inline(always)]
fn alone<F: Path>(first: u32, new: u32) -> bool {
    let Some(bucket) = F::MAPS.index.get(first) else { return false };
    let mut position = 0;
    while position < BUCKET_ENTRIES as usize {
        let word = read(&bucket.words[position]);
        if (word ^ new) >> entry::TAG_SHIFT == 0 && word != new {
            return false;
        }
        position += 1;
    }
    !overflowed(bucket)
}

#[inline(always)]
fn place<F: Path>(index: u32, new: u32) -> u32 {
    let Some(bucket) = F::MAPS.index.get_ptr_mut(index) else { return NO_SLOT };
    let mut position = 0;
    while position < BUCKET_ENTRIES {
        // SAFETY: inside the map's value; the position is below the number of words.
        let word = unsafe { &raw mut (*bucket).words[position as usize] };
        // SAFETY: as above.
        if unsafe { word.read_volatile() } == 0 && unsafe { atomic::compare_and_swap(word, 0, new) } == 0 {
            return index * WORDS + position;
        }
        position += 1;
    }
    NO_SLOT
}

/// Takes a record's entry out of the index.
#[inline(always)]
pub fn remove<F: Path>(slot: u32, index: u32) {
    if slot == NO_SLOT {
        return;
    }
    let Some(bucket) = F::MAPS.index.get_ptr_mut(slot / WORDS) else { return };
    // SAFETY: inside the map's value; the position is masked to the number of words.
    let word = unsafe { &raw mut (*bucket).words[(slot % WORDS) as usize] };
    // SAFETY: as above.
    let seen = unsafe { word.read_volatile() };
    if entry::record(seen) == index && slot % WORDS != BUCKET_ENTRIES {
        // SAFETY: as above.
        unsafe { atomic::compare_and_swap(word, seen, 0) };
    }
}
