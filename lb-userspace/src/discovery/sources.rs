//! The sources that run: a task asks each registry, a guard decides what counts.
//!
//! Owned by the daemon's state task. Answers come to it through a channel ([`Heard`]); it hands them back here, and
//! takes from here what changed, a moment later, so that a hundred registrations are a few changes.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::{
    Answered, SourceSpec, Standing, Vanish, Wanted,
    consul::Consul,
    dns::Dns,
    etcd::Etcd,
    file::File,
    guard::{Guard, Policy, Set},
    line::Line,
};
use crate::{
    Error, Result,
    api::{HeldBackend, SourceStatus},
};

/// A source that shall run.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Whose backends it finds.
    pub service: String,
    /// What it is.
    pub source: SourceSpec,
    /// The service's health is checked.
    pub checked: bool,
    /// What it said before, for the case that it does not run yet.
    pub known: Set,
}

/// Service and name of a source.
pub type Key = (String, String);

/// An answer on its way to the state task.
pub struct Heard {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) answer: Result<Answered>,
    pub(super) fresh: bool,
}

/// What a source states of its service.
pub type Stated = (Key, Vec<(SocketAddr, u16)>);

/// See the module.
pub struct Sources {
    tell: UnboundedSender<Heard>,
    running: BTreeMap<Key, Running>,
    number: u64,
}

struct Running {
    source: SourceSpec,
    number: u64,
    guard: Guard,
    task: JoinHandle<()>,
    ask: UnboundedSender<()>,
    standing: Standing,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sources {
    /// Nothing runs yet; answers go to `tell`.
    #[must_use]
    pub const fn new(tell: UnboundedSender<Heard>) -> Self {
        Self { tell, running: BTreeMap::new(), number: 0 }
    }

    /// Runs these and no others; unchanged ones go on undisturbed.
    pub fn set(&mut self, wishes: Vec<Wish>) {
        let key = |wish: &Wish| (wish.service.clone(), wish.source.name.clone());
        let wanted: BTreeMap<Key, Wish> = wishes.into_iter().map(|wish| (key(&wish), wish)).collect();
        self.running.retain(|key, running| wanted.get(key).is_some_and(|wish| wish.source == running.source));
        for (key, wish) in wanted {
            let policy = policy(&wish);
            if let Some(running) = self.running.get_mut(&key) {
                running.guard.set_policy(policy);
                continue;
            }
            self.number += 1;
            let (ask, asked) = unbounded_channel();
            let task = start(&wish.source, key.clone(), self.number, self.tell.clone(), asked);
            let running = Running {
                source: wish.source,
                number: self.number,
                guard: Guard::new(policy, wish.known),
                task,
                ask,
                standing: Standing::default(),
            };
            self.running.insert(key, running);
        }
    }

    /// Takes an answer; says whether something changed.
    pub fn heard(&mut self, heard: Heard) -> bool {
        let Heard { key, number, answer, fresh } = heard;
        // One that was replaced may have had a last word.
        let Some(running) = self.running.get_mut(&key).filter(|running| running.number == number) else { return false };
        let standing = &mut running.standing;
        match answer {
            Ok(answered) => {
                let was_held = running.guard.hold().is_some();
                let first = standing.answered(&key.1, &key.0, answered.warnings);
                // The first answer is stated in any case: some of it may have been refused before.
                standing.dirty |= running.guard.take(Instant::now(), answered.set, fresh, !answered.partial) || first;
                if let (Some(hold), false) = (running.guard.hold(), was_held) {
                    let (held, why) = (hold.held.len(), hold.why.words());
                    tracing::warn!(source = %key.1, service = %key.0, held, why, "removals held");
                }
            }
            Err(error) => standing.failed(&key.1, &key.0, error),
        }
        standing.dirty
    }

    /// Asks afresh where holds are over, and lets through what is confirmed; `down`: what our own checks say of a
    /// service's backend, and whether there is one. Says whether something changed.
    pub fn tick(&mut self, down: impl Fn(&str, SocketAddr) -> bool) -> bool {
        let mut changed = false;
        for ((service, _), running) in &mut self.running {
            if running.guard.wants_fresh(Instant::now()) {
                // A task that ended has nothing to ask.
                let _ = running.ask.send(());
            }
            running.standing.dirty |= running.guard.settle(|address| down(service, address));
            changed |= running.standing.dirty;
        }
        changed
    }

    /// What changed since it was last taken: whole sets.
    pub fn take_changed(&mut self) -> Vec<Stated> {
        let mut changed = Vec::new();
        for (key, running) in self.running.iter_mut().filter(|(_, running)| running.standing.dirty) {
            running.standing.stated();
            let weights = running.guard.good().iter().map(|(address, instance)| (*address, instance.weight));
            changed.push((key.clone(), weights.collect()));
        }
        changed
    }

    /// Notes what the state did not take of a source's set.
    pub fn note_refused(&mut self, key: &Key, refused: Vec<String>) {
        if let Some(running) = self.running.get_mut(key) {
            let who = format!("registry:{}: ", key.1);
            let plain = |text: String| text.strip_prefix(&who).map_or(text.clone(), str::to_owned);
            running.standing.refused = refused.into_iter().map(plain).collect();
        }
    }

    /// Lets go what the sources of this name hold; gives how many backends.
    ///
    /// # Errors
    /// There is no such source.
    pub fn release(&mut self, name: &str) -> Result<usize> {
        let mut named = self.running.iter_mut().filter(|((_, source), _)| source == name).peekable();
        if named.peek().is_none() {
            drop(named);
            let known: Vec<_> = self.running.keys().map(|(_, source)| source.as_str()).collect();
            let known =
                if known.is_empty() { "there is none".to_owned() } else { format!("known: {}", known.join(" ")) };
            return Err(Error::not_found(format!("source {name}: there is none of this name")).hint(known));
        }
        Ok(named
            .map(|(_, running)| {
                let gone = running.guard.release();
                running.standing.dirty |= gone > 0;
                gone
            })
            .sum())
    }

    /// Whether this source runs.
    #[must_use]
    pub fn has(&self, service: &str, source: &str) -> bool {
        self.running.contains_key(&(service.to_owned(), source.to_owned()))
    }

    /// How each of them stands; `taken`: whether a service has this backend.
    #[must_use]
    pub fn list(&self, taken: impl Fn(&str, SocketAddr) -> bool) -> Vec<SourceStatus> {
        let all = self.running.iter();
        all.map(|((service, _), running)| running.status(service, |address| taken(service, address))).collect()
    }
}

impl Running {
    /// What the state did not take is not held either: it never took traffic.
    fn status(&self, service: &str, taken: impl Fn(SocketAddr) -> bool) -> SourceStatus {
        let held: Vec<_> = self
            .guard
            .hold()
            .iter()
            .flat_map(|hold| {
                hold.held.iter().filter(|address| taken(**address)).map(|address| HeldBackend {
                    address: *address,
                    reason: hold.why.words().to_owned(),
                    age_s: hold.since.elapsed().as_secs(),
                    confirmed: hold.confirmed,
                })
            })
            .collect();
        let holding = !held.is_empty();
        let backends = self.guard.good().keys().filter(|address| taken(**address)).count();
        let left_out = self.guard.good().len() - backends;
        SourceStatus { held, left_out, ..self.standing.status(&self.source, service, holding, backends) }
    }
}

fn policy(wish: &Wish) -> Policy {
    let options = &wish.source.options;
    let keep = options.on_empty.map_or(wish.checked, |what| what == Vanish::Keep);
    Policy { hold: options.empty_hold, keep, mass: options.mass }
}

fn start(
    source: &SourceSpec,
    key: Key,
    number: u64,
    tell: UnboundedSender<Heard>,
    asked: UnboundedReceiver<()>,
) -> JoinHandle<()> {
    let options = &source.options;
    let line = Line { key, number, tell, asked };
    match &source.wanted {
        Wanted::Consul(query) => tokio::spawn(line.run(Consul::new(query.clone(), options))),
        Wanted::Dns { name, port } => tokio::spawn(line.run(Dns::new(name, *port, options))),
        Wanted::File { path } => tokio::spawn(line.run(File::new(path.clone(), options.weight))),
        Wanted::Etcd { prefix } => match Etcd::new(prefix, options) {
            Ok(etcd) => tokio::spawn(line.run(etcd)),
            Err(error) => {
                line.say(Err(error), false);
                tokio::spawn(async {})
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What lets two balancers agree: sets are by address, whatever order and names the registry has them in.
    #[tokio::test]
    async fn a_file_is_followed_guarded_and_released() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web");
        std::fs::write(&path, "10.0.0.2:80\n10.0.0.1:80\n").unwrap();
        let (tell, mut told) = unbounded_channel();
        let mut sources = Sources::new(tell);
        let source: SourceSpec = format!("file:{}?name=web&empty_hold=0ms", path.display()).parse().unwrap();
        let wish = Wish { service: "s".into(), source, checked: true, known: Set::new() };
        sources.set(vec![wish.clone()]);
        assert!(sources.heard(told.recv().await.unwrap()));
        let addresses = |stated: Vec<Stated>| stated[0].1.iter().map(|(a, _)| a.to_string()).collect::<Vec<_>>();
        assert_eq!(addresses(sources.take_changed()), ["10.0.0.1:80", "10.0.0.2:80"]);
        sources.set(vec![wish]);
        std::fs::write(&path, "").unwrap();
        let heard = told.recv().await.unwrap();
        assert!(!sources.heard(heard) && sources.take_changed().is_empty());
        let status = &sources.list(|_, _| true)[0];
        assert_eq!((status.state.as_str(), status.held.len(), status.backends), ("holding", 2, 2));
        let nothing_taken = &sources.list(|_, _| false)[0];
        assert_eq!((nothing_taken.state.as_str(), nothing_taken.backends, nothing_taken.left_out), ("ok", 0, 2));
        assert!(!sources.tick(|_, _| true));
        sources.heard(told.recv().await.unwrap());
        assert!(!sources.tick(|_, _| true), "confirmed, and kept all the same");
        assert!(sources.release("nope").unwrap_err().hint.unwrap().contains("web"));
        assert_eq!(sources.release("web").unwrap(), 2);
        assert!(sources.take_changed()[0].1.is_empty());
        std::fs::write(&path, "10.0.0.2:x").unwrap();
        sources.heard(told.recv().await.unwrap());
        let status = &sources.list(|_, _| true)[0];
        assert!(status.state == "error" && status.last_error.as_ref().unwrap().message.contains("web:1"));
        // However long it was wrong, it is read as soon as it is right.
        tokio::time::sleep(Duration::from_secs(2)).await;
        std::fs::write(&path, "10.0.0.3:80\n").unwrap();
        let mended = async { while !sources.heard(told.recv().await.unwrap()) {} };
        tokio::time::timeout(Duration::from_secs(1), mended).await.expect("it is read again");
        assert_eq!(addresses(sources.take_changed()), ["10.0.0.3:80"]);
    }
}
