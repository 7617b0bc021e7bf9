//! Health checks: probes, and verdicts from their results.
//!
//! Every target has a task of its own: it probes, waits, probes. [`Tally`] turns results into verdicts: an unknown
//! backend is settled by its first result, a settled one changes after `fall` failures or `rise` successes in a row,
//! and while it may be changing it is probed twice a second.

mod probe;

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time::sleep};

use crate::{
    reconcile::BackendKey,
    state::{Health, HealthCheck, Probe},
};

/// Time between two probes while a verdict may be changing.
const CHANGING: Duration = Duration::from_millis(500);

/// What is probed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend.
    pub key: BackendKey,
    /// Where the probe goes.
    pub address: SocketAddr,
    /// The Host of an HTTP request.
    pub host: String,
    /// What is sent and expected, and when.
    pub check: HealthCheck,
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The backend.
    pub key: BackendKey,
    /// When it began.
    pub at: Timestamp,
    /// Whether the backend answered as it should.
    pub ok: bool,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; "ok" otherwise.
    pub reason: String,
    /// What checks say now.
    pub health: Health,
}

/// Results in a row, and what they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    health: Health,
    against: u32,
}

impl Tally {
    /// Begins with what was known before.
    #[must_use]
    pub const fn new(health: Health) -> Self {
        Self { health, against: 0 }
    }

    /// Takes a result; gives the verdict.
    pub fn take(&mut self, ok: bool, check: &HealthCheck) -> Health {
        let says = if ok { Health::Up } else { Health::Down };
        if self.health == says {
            self.against = 0;
            return says;
        }
        self.against += 1;
        let needed = match (self.health, ok) {
            (Health::Unknown, _) => 1,
            (_, true) => check.rise,
            (_, false) => check.fall,
        };
        if self.against >= needed {
            *self = Self::new(says);
        }
        self.health
    }

    /// Whether results speak against the verdict.
    #[must_use]
    pub const fn is_changing(&self) -> bool {
        self.against > 0
    }
}

/// All running checks.
pub struct Checker {
    results: UnboundedSender<Checked>,
    running: BTreeMap<BackendKey, (Target, JoinHandle<()>)>,
}

impl Checker {
    /// Results go to `results`.
    #[must_use]
    pub fn new(results: UnboundedSender<Checked>) -> Self {
        Self { results, running: BTreeMap::new() }
    }

    /// Probes these and no others; unchanged ones go on undisturbed, new ones begin with what `known` says of them.
    pub fn set(&mut self, targets: Vec<Target>, known: impl Fn(&BackendKey) -> Health) {
        let wanted: BTreeMap<_, _> = targets
            .into_iter()
            .filter(|target| target.check.probe != Probe::None)
            .map(|target| (target.key.clone(), target))
            .collect();
        self.running.retain(|key, (target, task)| {
            let stays = wanted.get(key) == Some(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, target) in wanted {
            let (results, health) = (self.results.clone(), known(&key));
            self.running.entry(key).or_insert_with(|| {
                let task = tokio::spawn(run(target.clone(), Tally::new(health), results));
                (target, task)
            });
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, task)| task.abort());
    }
}

async fn run(target: Target, mut tally: Tally, results: UnboundedSender<Checked>) {
    // A backend that nobody knows is probed at once; the others begin spread over one interval.
    if tally.health != Health::Unknown {
        sleep(target.check.interval.mul_f64(random())).await;
    }
    loop {
        let (at, begun) = (Timestamp::now(), Instant::now());
        let outcome = probe::probe(&target).await;
        let ok = outcome.is_ok();
        let result = Checked {
            key: target.key.clone(),
            at,
            ok,
            took: begun.elapsed(),
            reason: outcome.err().unwrap_or_else(|| "ok".to_owned()),
            health: tally.take(ok, &target.check),
        };
        if results.send(result).is_err() {
            return;
        }
        let pause = if tally.is_changing() { CHANGING.min(target.check.interval) } else { target.check.interval };
        sleep(pause.mul_f64(0.9 + 0.2 * random())).await;
    }
}

/// A number from 0 to 1, good enough to spread probes.
fn random() -> f64 {
    let word = RandomState::new().build_hasher().finish();
    (word >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Protocol;

    fn run(start: Health, results: &str) -> String {
        let check = HealthCheck::default_for(Protocol::Tcp);
        let mut tally = Tally::new(start);
        results
            .chars()
            .map(|result| match tally.take(result == '+', &check) {
                Health::Up => 'U',
                Health::Down => 'D',
                Health::Unknown => '?',
            })
            .collect()
    }

    #[test]
    fn three_failures_fall_and_two_successes_rise() {
        assert_eq!(run(Health::Up, "--+---"), "UUUUUD");
        assert_eq!(run(Health::Down, "+-++"), "DDDU");
    }

    #[test]
    fn the_first_result_settles_an_unknown_backend() {
        assert_eq!(run(Health::Unknown, "+"), "U");
        assert_eq!(run(Health::Unknown, "-"), "D");
    }
}
