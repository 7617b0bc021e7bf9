//! A task that asks one registry again and again, and its way to the state task and back: never too fast, slower while
//! there are errors.

use std::time::{Duration, Instant};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::sleep,
};

use super::{
    Answered, Registry,
    sources::{Heard, Key},
};
use crate::Result;

/// Shortest and longest pause after errors; in between it doubles.
const PAUSE: Duration = Duration::from_millis(500);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// So many answers may follow each other at once; then one per [`REFILL`].
const BURST: f64 = 10.0;
const REFILL: Duration = Duration::from_millis(100);

/// A task's way to the state task and back.
pub(super) struct Line {
    pub key: Key,
    pub number: u64,
    pub tell: UnboundedSender<Heard>,
    pub asked: UnboundedReceiver<()>,
}

impl Line {
    pub fn say(&self, answer: Result<Answered>, fresh: bool) -> bool {
        self.tell.send(Heard { key: self.key.clone(), number: self.number, answer, fresh }).is_ok()
    }

    /// Asks again and again, never too fast, and slower while there are errors.
    pub async fn run<R: Registry>(mut self, mut registry: R) {
        let mut fresh = false;
        let mut failures = 0;
        let mut bucket = Bucket { left: BURST, at: Instant::now() };
        loop {
            let answer = tokio::select! {
                biased;
                Some(()) = self.asked.recv() => {
                    fresh = true;
                    continue;
                }
                answer = registry.next(fresh) => answer,
            };
            let failed = answer.is_err();
            if !self.say(answer, fresh && !failed) {
                return;
            }
            if failed {
                sleep(pause(failures, super::random()).min(R::LONGEST_PAUSE)).await;
                failures += 1;
            } else {
                (failures, fresh) = (0, false);
                sleep(bucket.take(Instant::now())).await;
            }
        }
    }
}

/// Full jitter: anything up to a bound that doubles with every failure.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let bound = PAUSE.saturating_mul(1 << failures.min(6)).min(LONGEST_PAUSE);
    bound.mul_f64(random).max(PAUSE / 10)
}

/// A token bucket.
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// How long to wait for the next one.
    fn take(&mut self, now: Instant) -> Duration {
        let refill = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        self.left = (self.left + refill).min(BURST) - 1.0;
        self.at = now;
        REFILL.mul_f64((-self.left).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_never_none() {
        assert_eq!(pause(0, 1.0), PAUSE);
        assert_eq!(pause(3, 0.5), PAUSE * 4);
        assert_eq!(pause(99, 1.0), LONGEST_PAUSE);
        assert!(pause(5, 0.0) > Duration::ZERO);
    }

    #[test]
    fn a_burst_is_free_and_then_it_is_one_per_refill() {
        let now = Instant::now();
        let mut bucket = Bucket { left: BURST, at: now };
        assert!((0..10).all(|_| bucket.take(now) == Duration::ZERO));
        assert_eq!(bucket.take(now), REFILL);
        assert_eq!(bucket.take(now + REFILL * 2), Duration::ZERO);
    }
}
