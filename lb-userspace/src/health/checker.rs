//! All running checks: who is probed when, by one thread.
//!
//! A heap says which probe is due next; the thread sleeps until then, starts what is due as a task of its own little
//! runtime, and never has more than a fixed number of sockets open. New targets begin spread over one interval, and
//! every pause is 10 % longer or shorter by chance, so that probes stay spread.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc::UnboundedSender};

use super::{Checked, Tally, Target, Verdict, Ways, probe, ways::Roads};
use crate::{Error, Result, error::Context as _, reconcile::BackendKey, state::Health};

/// Time between two probes while a verdict may be changing.
const CHANGING: Duration = Duration::from_millis(500);
/// Probes that are due within this time of each other start together: fewer awakenings.
const TOGETHER: Duration = Duration::from_millis(5);
/// So many new targets begin at once; more are spread over one interval.
const AT_ONCE: usize = 32;
/// Most probes that are on their way at a time, how many descriptors one may need, and how many are left to everything
/// else.
const MOST_SOCKETS: u64 = 4_096;
const SOCKETS_EACH: u64 = 2;
const OTHER_FILES: u64 = 256;

/// How many checks there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Probes that succeeded.
    pub ok: u64,
    /// Probes that failed.
    pub failed: u64,
}

/// See the module.
pub struct Checker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    running: Mutex<Running>,
    /// Something is due earlier than the thread thinks, or it is to end.
    wake: Notify,
    verdicts: UnboundedSender<Verdict>,
    /// Most probes at a time.
    most: usize,
    /// How probes reach VIPs on backends.
    roads: Roads,
}

/// Everything that changes while checks run.
#[derive(Default)]
struct Running {
    /// By number; numbers are never used again.
    probes: HashMap<u64, Probing>,
    by_target: HashMap<Arc<Target>, u64>,
    by_backend: BTreeMap<BackendKey, u64>,
    next: u64,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Probes that are on their way.
    open: usize,
    /// When the thread will look next; `None` = not before it is woken.
    sleeps_until: Option<Instant>,
    ended: bool,
}

/// One probe and whom its result is for.
struct Probing {
    target: Arc<Target>,
    tally: Tally,
    last: Option<Checked>,
    totals: Totals,
    /// Backends, and what was last said of each.
    told: Vec<(BackendKey, Health)>,
}

impl Checker {
    /// Verdicts go to `verdicts`.
    ///
    /// # Errors
    /// No thread or no runtime for it can be made.
    pub fn new(verdicts: UnboundedSender<Verdict>) -> Result<Self> {
        Self::with_sockets(verdicts, sockets())
    }

    fn with_sockets(verdicts: UnboundedSender<Verdict>, most: usize) -> Result<Self> {
        let (running, roads) = (Mutex::default(), Roads::default());
        let shared = Arc::new(Shared { running, wake: Notify::new(), verdicts, most, roads });
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start health checks")?;
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("lb-health".to_owned())
            .spawn(move || runtime.block_on(run(its)))
            .map_err(|error| Error::failed(format!("start health checks: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Probes these and no others; unchanged ones go on undisturbed, new ones begin with what `known` says of them.
    pub fn set(&self, targets: Vec<(BackendKey, Target)>, known: impl Fn(&BackendKey) -> Health) {
        let mut running = self.shared.lock();
        let mut wanted: BTreeMap<BackendKey, u64> = BTreeMap::new();
        let mut new = Vec::new();
        for (key, target) in targets {
            let number = running.by_target.get(&target).copied().unwrap_or_else(|| {
                let number = running.add(target, known(&key));
                new.push(number);
                number
            });
            wanted.insert(key, number);
        }
        running.aim(wanted, &known, &self.shared.verdicts);
        running.schedule(&new);
        let through = running.by_target.keys().filter_map(|target| target.through.map(|(vip, _)| vip.address));
        self.shared.roads.keep(&through.collect());
        drop(running);
        self.shared.wake.notify_one();
    }

    /// How backends are reached now, for probes that go to the VIP.
    pub fn know(&self, ways: Ways) {
        self.shared.roads.know(ways);
    }

    /// The last check of a backend.
    #[must_use]
    pub fn last(&self, key: &BackendKey) -> Option<Checked> {
        let running = self.shared.lock();
        running.by_backend.get(key).and_then(|number| running.probes.get(number)?.last.clone())
    }

    /// How many checks there were of a backend since they began.
    #[must_use]
    pub fn totals(&self, key: &BackendKey) -> Option<Totals> {
        let running = self.shared.lock();
        running.by_backend.get(key).and_then(|number| Some(running.probes.get(number)?.totals))
    }

    /// How many probes there are; backends that share one count once.
    #[must_use]
    pub fn probes(&self) -> usize {
        self.shared.lock().probes.len()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Running {
    fn add(&mut self, target: Target, health: Health) -> u64 {
        let (number, target) = (self.next, Arc::new(target));
        self.next += 1;
        self.by_target.insert(Arc::clone(&target), number);
        let probing =
            Probing { target, tally: Tally::new(health), last: None, totals: Totals::default(), told: Vec::new() };
        self.probes.insert(number, probing);
        number
    }

    /// Results are for these backends from now on; probes for nobody end.
    fn aim(
        &mut self,
        wanted: BTreeMap<BackendKey, u64>,
        known: &impl Fn(&BackendKey) -> Health,
        verdicts: &UnboundedSender<Verdict>,
    ) {
        let Self { probes, by_target, .. } = self;
        // What a backend was last told stays with it, also when it is checked in another way from now on.
        let told: HashMap<BackendKey, Health> =
            probes.values_mut().flat_map(|probing| probing.told.drain(..)).collect();
        for (key, number) in &wanted {
            if let Some(probing) = probes.get_mut(number) {
                let health = told.get(key).copied().unwrap_or_else(|| known(key));
                probing.told.push((key.clone(), health));
            }
        }
        let used: HashSet<u64> = wanted.values().copied().collect();
        probes.retain(|number, probing| {
            let stays = used.contains(number);
            if !stays {
                by_target.remove(&probing.target);
            }
            stays
        });
        for probing in probes.values_mut() {
            probing.tell(verdicts);
        }
        self.by_backend = wanted;
    }

    /// New probes: at once if they are few and nothing is known of them, else spread over one interval.
    fn schedule(&mut self, new: &[u64]) {
        let now = Instant::now();
        for (n, number) in new.iter().enumerate() {
            let Some(probing) = self.probes.get(number) else { continue };
            let interval = probing.target.check.interval;
            let wait = match probing.tally.health() {
                Health::Unknown if new.len() <= AT_ONCE => Duration::ZERO,
                Health::Unknown => interval.mul_f64(n as f64 / new.len() as f64),
                Health::Up | Health::Down => interval.mul_f64(random()),
            };
            self.due.push(Reverse((now + wait, *number)));
        }
    }

    /// What is due now, no more than there is room for.
    fn take_due(&mut self, now: Instant, most: usize) -> Vec<(u64, Arc<Target>)> {
        let mut taken = Vec::new();
        while self.open < most
            && let Some(Reverse((due, number))) = self.due.peek().copied()
            && due <= now + TOGETHER
        {
            self.due.pop();
            if let Some(probing) = self.probes.get(&number) {
                self.open += 1;
                taken.push((number, Arc::clone(&probing.target)));
            }
        }
        self.sleeps_until = match self.due.peek() {
            Some(Reverse((due, _))) if self.open < most => Some(*due),
            _ => None,
        };
        taken
    }
}

impl Probing {
    /// Reports a verdict to whom it is news.
    fn tell(&mut self, verdicts: &UnboundedSender<Verdict>) {
        let health = self.tally.health();
        if health == Health::Unknown {
            return;
        }
        let reason = self.last.as_ref().map_or("as before".into(), |last| last.reason.clone());
        for (key, told) in self.told.iter_mut().filter(|(_, told)| *told != health) {
            *told = health;
            // Nobody listens any more: the daemon is ending.
            let _ = verdicts.send(Verdict { key: key.clone(), health, reason: reason.clone() });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Running> {
        // Nothing that is locked here can be left half done by a panic in a way that matters to checks.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a probe's result, and says when it is due next.
    fn finish(&self, number: u64, begun: Instant, result: Checked) {
        let mut running = self.lock();
        let was_full = running.open == self.most;
        running.open -= 1;
        let Running { probes, due, sleeps_until, .. } = &mut *running;
        let mut earlier = false;
        if let Some(probing) = probes.get_mut(&number) {
            let check = &probing.target.check;
            let (ok, totals) = (result.ok, &mut probing.totals);
            *(if ok { &mut totals.ok } else { &mut totals.failed }) += 1;
            probing.tally.take(ok, check);
            let pause = if probing.tally.is_changing() { CHANGING.min(check.interval) } else { check.interval };
            let next = (begun + pause.mul_f64(0.9 + 0.2 * random())).max(Instant::now());
            due.push(Reverse((next, number)));
            earlier = sleeps_until.is_none_or(|until| next < until);
            probing.last = Some(result);
            probing.tell(&self.verdicts);
        }
        drop(running);
        if was_full || earlier {
            self.wake.notify_one();
        }
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        let (due, until) = {
            let mut running = shared.lock();
            if running.ended {
                return;
            }
            let due = running.take_due(Instant::now(), shared.most);
            (due, running.sleeps_until)
        };
        for (number, target) in due {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let (at, begun) = (Timestamp::now(), Instant::now());
                let outcome = match shared.roads.to(&target) {
                    Ok(road) => probe::probe(&target, road.as_ref()).await,
                    Err(why) => Err(why),
                };
                let ok = outcome.is_ok();
                let reason = outcome.err().unwrap_or("ok".into());
                shared.finish(number, begun, Checked { at, ok, took: begun.elapsed(), reason });
            });
        }
        let woken = shared.wake.notified();
        match until {
            Some(until) => drop(tokio::time::timeout_at(until.into(), woken).await),
            None => woken.await,
        }
    }
}

/// How many sockets checks may have open: the limit of this process is raised as far as it goes.
fn sockets() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    let wanted = hard.min(SOCKETS_EACH * MOST_SOCKETS + OTHER_FILES);
    let limit = if wanted > soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft };
    usize::try_from((limit.saturating_sub(OTHER_FILES) / SOCKETS_EACH).clamp(64, MOST_SOCKETS)).unwrap_or(64)
}

/// A number from 0 to 1, good enough to spread probes.
fn random() -> f64 {
    let word = RandomState::new().build_hasher().finish();
    (word >> 11) as f64 / (1u64 << 53) as f64
}
