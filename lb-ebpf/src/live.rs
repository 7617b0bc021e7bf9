//! How many live flows each backend has: counted up where a flow begins, down where it ends, exactly once. A record says
//! in [`Tail::counted`] whose flow it is counted as; whoever takes that away by compare-and-swap counts down.
//!
//! A flow ends with both FINs or a RST, or when its record is given up. One that only falls silent is counted down by
//! the daemon's sweep, or when its record is used again.

use lb_common::flow::Tail;

use crate::{atomic, maps, table};

/// Counts a new flow; the record is this CPU's.
#[inline(always)]
pub fn begin(tail: &mut Tail, backend: u32) {
    tail.counted = backend;
    count(backend, 1);
}

/// A flow is over; it may have been before.
#[inline(always)]
pub fn end(tail: &mut Tail) {
    let backend = table::read(&tail.counted);
    // SAFETY: an aligned word of a map's value.
    if backend != 0 && unsafe { atomic::compare_and_swap(&raw mut tail.counted, backend, 0) } == backend {
        count(backend, u32::MAX);
    }
}

#[inline(always)]
fn count(backend: u32, change: u32) {
    if let Some(flows) = maps::live.get_ptr_mut(backend) {
        // SAFETY: an aligned word of a map's value.
        unsafe { atomic::add(flows, change) };
    }
}
