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

/// How `CLOCK_MONOTONIC_COARSE` is made of the kernel's jiffies, which a program reads without a call: with
/// high-resolution timers the kernel counts both on together, to within a jiffy (`tick_do_update_jiffies64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jiffies {
    /// Nanoseconds that a jiffy lasts; 0: not known, the clock itself is read.
    pub length: u64,
    /// Nanoseconds (wrapping) that the clock showed at jiffy 0.
    pub offset: u64,
}

impl Jiffies {
    /// From the length of a jiffy and one reading of both clocks.
    #[must_use]
    pub const fn calibrated(length: u64, jiffies: u64, nanoseconds: u64) -> Self {
        Self { length, offset: nanoseconds.wrapping_sub(jiffies.wrapping_mul(length)) }
    }

    /// What the clock shows at a jiffy.
    #[inline(always)]
    #[must_use]
    pub const fn nanoseconds(self, jiffies: u64) -> u64 {
        jiffies.wrapping_mul(self.length).wrapping_add(self.offset)
    }
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
    fn jiffies_show_the_clock() {
        let jiffies = Jiffies::calibrated(4_000_000, 4_294_892_296, 17_000_000);
        assert_eq!(jiffies.nanoseconds(4_294_892_296), 17_000_000);
        assert_eq!(jiffies.nanoseconds(4_294_892_296 + 250), 1_017_000_000);
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
