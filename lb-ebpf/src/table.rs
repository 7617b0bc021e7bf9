//! The flow index: from a packet's tuple to its flow's record, in one cache line of entries and one of the record.
//!
//! A bucket is searched without a lock: an entry is one word, and the record that it names is compared in full.
//! Entries are put in by compare-and-swap, and looked for again afterwards, so that two CPUs never keep two entries
//! for one tuple.

use lb_common::flow::{BUCKET_ENTRIES, Bucket, Flow4, NO_SLOT, OVERFLOWED, Tuple4, entry};

use crate::{atomic, maps};

/// Words of a bucket, the overflow mark included.
const WORDS: u32 = BUCKET_ENTRIES + 1;

/// A found flow.
#[derive(Clone, Copy)]
pub struct Found {
    /// Index of its record.
    pub record: u32,
    /// Whether the tuple is that of the backend's packets.
    pub from_backend: bool,
}

/// The record at an index.
#[inline(always)]
pub fn record(index: u32) -> Option<&'static mut Flow4> {
    // SAFETY: the pointer is a map value's and lives as long as the program; who writes what is said in lb_common::flow.
    maps::flows4.get_ptr_mut(index).map(|flow| unsafe { &mut *flow })
}

/// Reads a word that another CPU may be writing.
#[inline(always)]
pub fn read(word: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Finds the flow whose packets carry this tuple.
#[inline(always)]
pub fn find(words: [u64; 2], hash: u64) -> Option<Found> {
    let (first, second) = entry::buckets(hash, maps::index_mask());
    let bucket = maps::index4.get(first)?;
    let found = search(bucket, words, hash, u32::MAX);
    if found.is_some() || read(&bucket.words[BUCKET_ENTRIES as usize]) != OVERFLOWED {
        return found;
    }
    search(maps::index4.get(second)?, words, hash, u32::MAX)
}

/// Whether a record other than `mine` carries this tuple.
#[inline(always)]
fn twin(words: [u64; 2], hash: u64, mine: u32) -> bool {
    let (first, second) = entry::buckets(hash, maps::index_mask());
    let other = |index| maps::index4.get(index).is_some_and(|bucket| search(bucket, words, hash, mine).is_some());
    other(first) || other(second)
}

#[inline(always)]
fn search(bucket: &Bucket, words: [u64; 2], hash: u64, except: u32) -> Option<Found> {
    let tag = entry::tag(hash);
    let mut position = 0;
    while position < BUCKET_ENTRIES as usize {
        let word = read(&bucket.words[position]);
        position += 1;
        if word >> entry::TAG_SHIFT != tag || word == 0 {
            continue;
        }
        let index = entry::record(word);
        let Some(flow) = record(index) else { continue };
        let from_backend = word & entry::FROM_BACKEND != 0;
        let theirs = if from_backend { flow.backend.words() } else { flow.client.words() };
        if theirs[0] == words[0] && theirs[1] == words[1] && index != except {
            return Some(Found { record: index, from_backend });
        }
    }
    None
}

/// Puts an entry for `tuple` into the index. `None`: no room, or another record has the same tuple.
///
/// The record must already carry the tuple.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn insert(tuple: *const Tuple4, direction: u32, index: u32) -> u32 {
    // SAFETY: null or a tuple; the verifier checks both this function and its callers.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else { return NO_SLOT };
    let words = tuple.words();
    let hash = maps::seeded().hash(words);
    let (first, second) = entry::buckets(hash, maps::index_mask());
    let new = entry::new(hash, direction, index);
    let mut slot = place(first, new);
    if slot == NO_SLOT {
        if let Some(bucket) = maps::index4.get_ptr_mut(first) {
            // SAFETY: a map value's word; every writer writes the same.
            unsafe { (&raw mut (*bucket).words[BUCKET_ENTRIES as usize]).write_volatile(OVERFLOWED) };
        }
        slot = place(second, new);
    }
    if slot != NO_SLOT && twin(words, hash, index) {
        remove(slot, index);
        return NO_SLOT;
    }
    slot
}

#[inline(always)]
fn place(index: u32, new: u32) -> u32 {
    let Some(bucket) = maps::index4.get_ptr_mut(index) else { return NO_SLOT };
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
pub fn remove(slot: u32, index: u32) {
    if slot == NO_SLOT {
        return;
    }
    let Some(bucket) = maps::index4.get_ptr_mut(slot / WORDS) else { return };
    // SAFETY: inside the map's value; the position is masked to the number of words.
    let word = unsafe { &raw mut (*bucket).words[(slot % WORDS) as usize] };
    // SAFETY: as above.
    let seen = unsafe { word.read_volatile() };
    if entry::record(seen) == index && slot % WORDS != BUCKET_ENTRIES {
        // SAFETY: as above.
        unsafe { atomic::compare_and_swap(word, seen, 0) };
    }
}
