//! The daemon: one task that owns the desired state, what is observed, and the data plane.
//!
//! Requests, health results and the clock come to it through channels; nobody else touches the maps. [`start`] brings
//! it up, [`view`] answers questions, [`network`] follows the network, [`registries`] what sources of
//! backends say, this file changes things.

mod admission;
mod adopt;
mod announce;
mod checks;
mod connections;
mod lock;
mod network;
mod notify;
mod registries;
mod reload;
mod schedulers;
mod shared;
mod start;
mod view;

pub use announce::Announced;
pub use lock::wait_free;
pub use start::{AttachOptions, attach};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::{lock::Locks, notify::Notify};
use crate::{
    Error, Result,
    api::{
        Changed, Request,
        server::{Answer, Call},
    },
    dataplane::{self, DataPlane, pins},
    discovery::{
        Sources,
        shared::{Shared, Told},
        sources::Heard,
    },
    error::Context as _,
    health::{Checker, Target, Verdict},
    net::{self, Changes, Interface, View},
    reconcile::{BackendKey, Lingering, Observed, compile, on_down, slow_start},
    say,
    state::{Change, Desired, Facts, OnExit, Outcome, XdpMode, file::StateFile},
};

/// How often flows of removed backends are counted and schedulers tended.
const ROUND: Duration = Duration::from_secs(1);
/// How often a supervisor is told how things stand, unless it asks for more.
const STATUS: Duration = Duration::from_secs(5);

/// Most verdicts that are applied together.
const MOST_VERDICTS: usize = 65_536;
/// So many times as long as a look at all flows takes, the next is not taken.
const LOOK_PAUSE: u32 = 200;

/// An interface that the data path runs on.
#[derive(Clone, Debug)]
struct Attachment {
    interface: Interface,
    xdp: XdpMode,
    /// It was not there when the network was last looked at.
    gone: bool,
    /// Why it cannot be attached again although it is back.
    trouble: Option<String>,
}

/// See the module.
pub struct Daemon {
    view: View,
    /// Why addresses of backends are not reached.
    trouble: BTreeMap<IpAddr, String>,
    plane: DataPlane,
    bpffs: PathBuf,
    desired: Desired,
    observed: Observed,
    attached: BTreeMap<String, Attachment>,
    checker: Checker,
    /// How backends are checked that are removed but whose flows go on.
    lingering_checks: BTreeMap<BackendKey, Target>,
    /// Tables of services that were put in place.
    table_builds: u64,
    /// Removed backends' flows are not counted before.
    next_count: Instant,
    sources: Sources,
    /// Services that are shared by a fleet, and how their source speaks to this task.
    shared: Option<Shared>,
    shared_number: u64,
    tell_shared: mpsc::UnboundedSender<Told>,
    /// When what sources said becomes a change.
    state_sources_at: Option<tokio::time::Instant>,
    state: StateFile,
    announced: Announced,
    /// Why a VIP could not be announced.
    announce_trouble: Option<String>,
    started: Instant,
    /// The config file, if there is one.
    config: Option<PathBuf>,
    /// Why the file as it is now is not what counts.
    reload_trouble: Option<String>,
    /// What reading it last warned of.
    file_warnings: Vec<String>,
    /// A signal leaves the data path running.
    keep: bool,
    notify: Notify,
    _locks: Locks,
    /// How far slow starts had come when tables were last made.
    slow_starts: Vec<u32>,
    swept: Instant,
}

/// Why the daemon ends.
enum End {
    /// The last interface was detached.
    Detached,
    /// A signal.
    Signal,
}

impl Daemon {
    /// Works until it is told to end; then does what `--on-exit` says.
    async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut results: mpsc::UnboundedReceiver<Verdict>,
        mut changes: mpsc::Receiver<Changes>,
        mut heard: mpsc::UnboundedReceiver<Heard>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) -> Result<()> {
        let mut verdicts = Vec::new();
        let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut safety = interval(network::SAFETY);
        safety.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Without a file SIGHUP ends the process, as ever; the data path goes on.
        let mut hangup =
            self.config.is_some().then(|| signal(SignalKind::hangup())).transpose().context("watch for SIGHUP")?;
        let mut watchdog = interval(self.notify.every().unwrap_or(STATUS));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let status = self.in_a_line();
        // Only now: who has read it may send a signal at once.
        say::ready();
        self.notify.ready(&status);
        let end = loop {
            tokio::select! {
                Some((request, answer)) = calls.recv() => {
                    let detaching = matches!(request, Request::Detach { .. });
                    let said = self.answer(request).await;
                    // The caller may be gone; what was done is done.
                    let _ = answer.send(said);
                    if detaching && self.attached.is_empty() {
                        break End::Detached;
                    }
                }
                _ = results.recv_many(&mut verdicts, MOST_VERDICTS) => self.settle(verdicts.drain(..)).await,
                Some(changes) = changes.recv() => self.network_changed(&changes).await,
                Some(heard) = heard.recv() => self.source_heard(heard),
                Some(told) = told.recv() => self.shared_heard(told),
                () = registries::until(self.state_sources_at) => self.state_sources().await,
                _ = round.tick() => {
                    self.count_lingering().await;
                    self.tick_sources();
                    self.tend_schedulers();
                }
                _ = safety.tick() => self.look_around().await,
                _ = hung_up(&mut hangup) => self.reload().await,
                _ = watchdog.tick() => self.tell_supervisor(),
                _ = interrupt.recv() => break End::Signal,
                _ = terminate.recv() => break End::Signal,
            }
        };
        self.notify.stopping();
        let keep = self.keep || self.desired.settings.on_exit == OnExit::Keep;
        if matches!(end, End::Signal) && keep {
            eprintln!("lb: the data path goes on; `sudo lb attach` takes it over, `sudo lb detach` ends it");
            return Ok(());
        }
        if let Err(error) = self.announced.withdraw(self.view.net()).await {
            tracing::warn!(%error, "take the VIPs off their device");
        }
        pins::remove(&self.bpffs)?;
        self.state.forget()?;
        // The last answer is still on its way through the socket.
        tokio::time::sleep(Duration::from_millis(50)).await;
        eprintln!("lb: detached");
        Ok(())
    }

    fn tell_supervisor(&mut self) {
        self.notify.alive();
        let status = self.in_a_line();
        self.notify.status(&status);
    }

    async fn answer(&mut self, request: Request) -> Result<Answer> {
        let value = match request {
            Request::Status => serde_json::to_value(self.status()?).context("write the answer"),
            Request::Drops => serde_json::to_value(self.drops()?).context("write the answer"),
            Request::Connections { filter } => return Ok(Answer::Pieces(self.connections(&filter)?.write())),
            Request::CountConnections { filter } => Ok(json!(self.connections(&filter)?.count())),
            Request::Flush { filter } => Ok(json!(self.connections(&filter)?.reset())),
            Request::Metrics => Ok(Value::String(crate::observe::metrics(&self.status()?, &self.measured()?))),
            Request::Change { change, force, dry_run } => self
                .change(&change, force, dry_run)
                .await
                .and_then(|c| serde_json::to_value(c).context("write the answer")),
            Request::ReleaseSource { name } => self.release(&name).map(|gone| json!(gone)),
            Request::Detach { interfaces } => self.detach(&interfaces).map(|names| json!(names)),
        };
        value.map(Answer::Value)
    }

    /// Checks a change, and makes it so.
    async fn change(&mut self, change: &Change, force: bool, dry_run: bool) -> Result<Changed> {
        let facts = self.facts(change).await?;
        let Outcome { desired, warnings, summary } = self.desired.change(change, &facts, force)?;
        let changed = Changed { generation: desired.generation, warnings, summary };
        if dry_run || desired == self.desired {
            return Ok(changed);
        }
        self.state.save(&desired)?;
        let old = std::mem::replace(&mut self.desired, desired);
        self.keep_removed(&old, force);
        self.forget_maintained();
        // Registries change often: what their backends' neighbours are is heard from the network soon enough.
        let looks = if matches!(change, Change::Snapshot { .. }) { 1 } else { network::NEIGHBOUR_LOOKS };
        let mut applied = self.find_neighbours(looks).await.and_then(|()| self.apply());
        if applied.is_ok() {
            applied = self.announce().await;
        }
        if let Err(error) = applied {
            // Nothing half-applied: the old state stands again, in the file too.
            self.desired = old;
            let present: BTreeSet<_> = keys(&self.desired).collect();
            self.observed.lingering.retain(|key, _| !present.contains(key));
            self.state.save(&self.desired)?;
            self.apply()?;
            return Err(error);
        }
        self.aim_checks();
        self.aim_sources();
        tracing::info!(generation = changed.generation, "changed");
        Ok(changed)
    }

    /// Backends and VIPs that are gone from the desired state, but whose flows go on.
    fn keep_removed(&mut self, old: &Desired, reset: bool) {
        let present: BTreeSet<_> = keys(&self.desired).collect();
        for key in keys(old).filter(|key| !present.contains(key)) {
            let Some(id) = self.observed.backend_ids.get(&key) else { continue };
            let Some(service) = old.services.get(&key.service) else { continue };
            if let Some(value) = self.plane.applied().backends.get(id) {
                // Maintenance resets flows; removing the backend does not bring them back.
                let reset = reset || value.flags & lb_common::maps::backend_flag::MAINT != 0;
                let lingering = Lingering { value: *value, reset, on_down: on_down(service) };
                self.lingering_checks.extend(Target::new(service, key.address).map(|target| (key.clone(), target)));
                self.observed.lingering.insert(key, lingering);
            }
        }
        self.observed.lingering.retain(|key, _| !present.contains(key));
        self.lingering_checks.retain(|key, _| !present.contains(key));
        let vips = |desired: &Desired| desired.services.values().flat_map(|s| s.vips.clone()).collect::<BTreeSet<_>>();
        let (before, now) = (vips(old), vips(&self.desired));
        self.observed.lingering_vips.extend(before.difference(&now));
        self.observed.lingering_vips.retain(|vip| !now.contains(vip));
    }

    /// Compiles and applies.
    fn apply(&mut self) -> Result<()> {
        self.observed.now = dataplane::now();
        self.slow_starts = slow_start::parts(&self.desired, &self.observed);
        let tables = compile(&self.desired, &self.observed);
        self.table_builds += self.plane.apply(&tables)?.tables as u64;
        self.observed.backend_ids.clone_from(&tables.backend_ids);
        self.observed.service_ids.clone_from(&tables.service_ids);
        self.observed.next_hop_places.clone_from(&tables.next_hops);
        Ok(())
    }

    /// Identities of removed backends are free again when no flow names them.
    async fn count_lingering(&mut self) {
        let nothing = self.observed.lingering.is_empty() && self.observed.lingering_vips.is_empty();
        if nothing || Instant::now() < self.next_count {
            return;
        }
        let begun = Instant::now();
        let flows = self.plane.flows();
        let (mut ids, mut vips) = (BTreeSet::new(), BTreeSet::new());
        for flow in flows.live(dataplane::now()) {
            ids.insert(flow.head.backend);
            vips.insert((flow.client.to.ip(), flow.client.to.port()));
        }
        self.next_count = Instant::now() + begun.elapsed() * LOOK_PAUSE;
        let observed = &mut self.observed;
        let over: Vec<_> = observed
            .lingering
            .keys()
            .filter(|key| observed.backend_ids.get(key).is_none_or(|id| !ids.contains(id)))
            .cloned()
            .collect();
        for key in &over {
            observed.lingering.remove(key);
            observed.backend_ids.remove(key);
            observed.verdicts.remove(key);
            self.lingering_checks.remove(key);
        }
        let over = over.len();
        let before = (over, observed.lingering_vips.len());
        observed.lingering_vips.retain(|vip| vips.contains(&(vip.address, vip.port)));
        let nothing_new = before == (0, observed.lingering_vips.len());
        if over > 0 {
            self.aim_checks();
        }
        if nothing_new {
            return;
        }
        let forgotten = match self.apply() {
            Ok(()) => self.announce().await,
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            tracing::error!(%error, "forget what was removed");
        }
    }

    /// What guards look at.
    async fn facts(&mut self, change: &Change) -> Result<Facts> {
        let interfaces = self.view.interfaces().await?;
        let addresses = change.backends().iter().map(SocketAddr::ip).collect();
        let routes = self.view.routes(&addresses).await?;
        let routes = addresses.iter().filter_map(|address| Some((*address, routes.get(address)?.clone()))).collect();
        let counts = self.plane.flows().count(dataplane::now());
        let flows = self.observed.backend_ids.iter();
        let flows = flows.filter_map(|(key, id)| Some((key.clone(), *counts.by_backend.get(id)?)));
        Ok(Facts {
            host_addresses: interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect(),
            listeners: net::listeners(),
            local_port_range: net::local_port_range(),
            attached: self.attached.values().map(|a| (a.interface.index, a.interface.name.clone())).collect(),
            interfaces: interfaces.iter().map(|interface| (interface.index, interface.name.clone())).collect(),
            announced: self.announced.addresses(),
            routes,
            flows: flows.collect(),
            usable: compile(&self.desired, &self.observed).usable,
        })
    }

    fn detach(&mut self, names: &[String]) -> Result<Vec<String>> {
        let all: Vec<_> = self.attached.keys().cloned().collect();
        let chosen = if names.is_empty() { all.clone() } else { names.to_vec() };
        if let Some(unknown) = chosen.iter().find(|name| !self.attached.contains_key(*name)) {
            return Err(
                Error::not_found(format!("{unknown}: not attached")).hint(format!("attached: {}", all.join(" ")))
            );
        }
        for name in &chosen {
            self.plane.detach(name)?;
            self.attached.remove(name);
        }
        Ok(chosen)
    }
}

/// Waits for SIGHUP, for ever if it is not watched for.
async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Every backend of every service.
fn keys(desired: &Desired) -> impl Iterator<Item = BackendKey> {
    desired.services.values().flat_map(|service| {
        service.backends.iter().map(|backend| BackendKey { service: service.name.clone(), address: backend.address })
    })
}
