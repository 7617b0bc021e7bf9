//! Records of flows: taking one for a new flow, and giving one up.
//!
//! There is no list of free records. A hand goes round the array, each CPU its own; a few places in front of it are
//! looked at, and the best is taken: free or expired, else the longest closed, else the oldest that never got beyond
//! the handshake. Only when none of a few is any of these, many are looked at, and an established flow is taken if it
//! has long been idle (rule 16). So the data path lives for ever without a daemon, and a flood of SYNs eats its own.

use core::marker::PhantomData;

use lb_common::{
    clock,
    flow::{Flow, Head, state},
};

use crate::{atomic, direct::is_direct, helpers, live, maps, path::Path, table, time};

/// Places that are looked at for every new flow.
const WINDOW: u32 = 8;
/// Places that are looked at when none of those would do.
const SEARCH: u32 = 2_048;
/// Places that are looked at before a flow gives way whose handshake is under way: just behind another CPU's hand
/// everything has only begun, however much is closed further on.
const HANDSHAKES: u32 = 64;
/// Places that are looked at one after the other. Further ones are taken from all over the table: beside one established
/// flow there may stand tens of thousands that were made after it.
const NEIGHBOURS: u32 = HANDSHAKES + 1;
/// From one of those to the next, modulo the number of records.
const STRIDE: u32 = 0x9e37_79b1;
/// Established flows give way when they were idle this long and nothing else can (5 min).
const SHORTEST_IDLE: u32 = clock::ticks_from_millis(300_000);

/// What a record is worth keeping: the lowest goes first. Within a class the longest idle goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
enum Class {
    Free = 0,
    Closed = 1,
    Handshake = 2,
    Idle = 3,
    Live = 4,
}

/// The timeout of a flow, from its backend; 0 if the backend is nobody.
#[inline(always)]
pub fn timeout(head: &Head) -> u32 {
    maps::backends.get(head.backend).map_or(0, |backend| backend.idle.of(head.state))
}

/// Whether a flow's time is over.
#[inline(always)]
pub fn expired(head: &Head, now: u32) -> bool {
    head.idle(now) > timeout(head)
}

/// Whether a flow has ended, or its time is over.
#[inline(always)]
pub fn is_over(head: &Head, now: u32) -> bool {
    matches!(head.state, state::FREE | state::CLOSED | state::RESET) || expired(head, now)
}

#[inline(always)]
fn class(head: &Head, now: u32) -> (Class, u32) {
    let idle = head.idle(now);
    if head.state == state::FREE || idle > timeout(head) {
        return (Class::Free, idle);
    }
    let class = match head.state {
        state::CLOSED | state::RESET => Class::Closed,
        // What the backend sends is not seen: a client that has closed may well be done, and the table still knows.
        state::FIN_CLIENT if is_direct(head.mode) => Class::Closed,
        state::SYN | state::SYN_ACK => Class::Handshake,
        _ if idle > SHORTEST_IDLE => Class::Idle,
        _ => Class::Live,
    };
    (class, idle)
}

/// What a search knows: how good the best place is, and which.
#[repr(C)]
struct Search<F> {
    family: PhantomData<F>,
    now: u32,
    hand: u32,
    best: u32,
    seq: u32,
    class: u32,
    idle: u32,
    looked: u32,
}

/// How far from the hand a round looks.
#[inline(always)]
fn distance(round: u32) -> u32 {
    if round < NEIGHBOURS { round } else { round.wrapping_mul(STRIDE) }
}

impl<F: Path> Search<F> {
    /// Looks at one place; true when the search is over.
    #[inline(always)]
    fn look(&mut self, round: u32) -> bool {
        self.looked = round + 1;
        let Some(index) = self.hand.wrapping_add(distance(round)).checked_rem(F::max_flows()) else { return true };
        let Some(flow) = table::record::<F>(index) else { return false };
        let seq = table::read(&flow.head.seq);
        if seq & 1 != 0 {
            return false;
        }
        let (class, idle) = class(&flow.head, self.now);
        if (class as u32) < self.class || (class as u32 == self.class && idle > self.idle) {
            (self.best, self.seq, self.class, self.idle) = (index, seq, class as u32, idle);
        }
        let enough = if self.class < Class::Handshake as u32 { WINDOW } else { HANDSHAKES };
        class == Class::Free || (round >= enough && self.class < Class::Idle as u32)
    }
}

/// All rounds but the first, which needs no loop.
extern "C" fn look<F: Path>(round: u32, search: *mut Search<F>) -> u64 {
    // SAFETY: bpf_loop hands back the pointer that it was given, to an object of the caller's that is still there.
    u64::from(unsafe { (*search).look(round + 1) })
}

/// "No record": what [`claim`] gives when all are live.
pub const NO_RECORD: u32 = u32::MAX;

/// Takes a record for a new flow: gives its number; its sequence is odd, and it is out of the index.
#[inline(always)]
pub fn claim<F: Path>() -> u32 {
    let now = time::now();
    let Some(hand) = maps::cursor.get_ptr_mut(F::MAPS.cursor) else { return NO_RECORD };
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    let hand = unsafe { &mut *hand };
    let start = hand.hand.wrapping_add(helpers::cpu().wrapping_mul(0x9e37_79b1));
    let mut search = Search::<F> {
        family: PhantomData,
        now,
        hand: start,
        best: 0,
        seq: 0,
        class: Class::Live as u32,
        idle: 0,
        looked: 0,
    };
    if !search.look(0) {
        helpers::repeat(if hand.exhausted == now { WINDOW } else { SEARCH } - 1, look::<F>, &mut search);
    }
    if search.class == Class::Live as u32 {
        hand.hand = hand.hand.wrapping_add(search.looked.min(NEIGHBOURS));
        hand.exhausted = now;
        return NO_RECORD;
    }
    // Where one was found there will be more.
    hand.hand = hand.hand.wrapping_add(distance(search.looked.wrapping_sub(1))).wrapping_add(1);
    if take::<F>(search.best, search.seq) { search.best } else { NO_RECORD }
}

/// Makes a record this CPU's: sequence odd, entries out of the index. False: another CPU was faster.
#[inline(always)]
fn take<F: Path>(index: u32, seq: u32) -> bool {
    let Some(flow) = table::record::<F>(index) else { return false };
    // SAFETY: an aligned word of a map's value.
    if unsafe { atomic::compare_and_swap(&raw mut flow.head.seq, seq, seq.wrapping_add(1)) } != seq {
        return false;
    }
    if flow.head.state != state::FREE {
        forget(flow, index);
    }
    true
}

/// Takes both entries of a record out of the index; its flow is over.
#[inline(always)]
pub fn forget<F: Path>(flow: &mut Flow<F>, index: u32) {
    table::remove::<F>(flow.tail.slot_client, index);
    table::remove::<F>(flow.tail.slot_backend, index);
    live::end(&mut flow.tail);
    flow.head.state = state::FREE;
}

/// Gives a record up whose sequence was `seq` when its flow was seen: the flow is over, its tuple and its port are free. 0:
/// another CPU was faster.
#[inline(always)]
pub fn release<F: Path>(index: u32, seq: u32) -> u32 {
    let Some(flow) = table::record::<F>(index) else { return 0 };
    if seq & 1 != 0 || !take::<F>(index, seq) {
        return 0;
    }
    publish(flow);
    1
}

/// Makes a record's sequence even: readers may trust it from now on.
#[inline(always)]
pub fn publish<F: Path>(flow: &mut Flow<F>) {
    let seq = &raw mut flow.head.seq;
    // SAFETY: an aligned word of a map's value, this CPU's while it is odd. The compare-and-swap orders what was
    // written before it.
    unsafe {
        let odd = seq.read_volatile();
        atomic::compare_and_swap(seq, odd, odd.wrapping_add(1));
    }
}
