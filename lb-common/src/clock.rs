//! The coarse clock in which records note times: *ticks* of 2^27 ns (about 134 ms) of `CLOCK_MONOTONIC`.
//!
//! A tick is short enough to order a packet and a health verdict, and long enough that a busy flow writes its
//! last-seen time at most eight times a second. A `u32` of ticks wraps after 18 years; differences are wrapping.

/// Nanoseconds per tick, as a power of two.
pub const TICK_SHIFT: u32 = 27;

/// Ticks of a `CLOCK_MONOTONIC` time in nanoseconds.
#[inline(always)]
#[must_use]
pub const fn ticks(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// Ticks in a number of milliseconds, rounded up, saturating.
#[must_use]
pub const fn ticks_from_millis(ms: u64) -> u32 {
    let ticks = ms.saturating_mul(1_000_000).div_ceil(1 << TICK_SHIFT);
    if ticks > u32::MAX as u64 { u32::MAX } else { ticks as u32 }
}

/// Milliseconds in a number of ticks, rounded down.
#[must_use]
pub const fn millis(ticks: u32) -> u64 {
    ((ticks as u64) << TICK_SHIFT) / 1_000_000
}

/// Ticks from `then` to `now`; 0 when `then` lies (up to nine years) ahead, as it may when two CPUs disagree by a tick.
#[inline(always)]
#[must_use]
pub const fn since(now: u32, then: u32) -> u32 {
    let difference = now.wrapping_sub(then);
    if difference > u32::MAX / 2 { 0 } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_wrap_and_never_go_negative() {
        assert_eq!(since(5, 3), 2);
        assert_eq!(since(3, 5), 0);
        assert_eq!(since(1, u32::MAX), 2);
    }

    #[test]
    fn milliseconds_round_up_into_ticks() {
        assert_eq!(ticks_from_millis(0), 0);
        assert_eq!(ticks_from_millis(1), 1);
        assert_eq!(ticks_from_millis(60_000), 448);
        assert!(millis(ticks_from_millis(60_000)) >= 60_000);
        assert_eq!(ticks_from_millis(u64::MAX), u32::MAX);
    }
}
