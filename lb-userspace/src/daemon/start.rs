//! Bringing the daemon up: `lb attach`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Instant,
};

use lb_common::{hash, maps::backend_flag};
use tokio::sync::mpsc;

use super::{Announced, Attachment, Daemon, admission, adopt, network::LOOPBACK, view::verdict_of};
use crate::{
    Error, Result,
    api::{Changed, client::Client, server},
    dataplane::{DataPlane, LoadOptions, pins},
    discovery::{SourceSpec, Sources, Wanted},
    doctor::{self, private_mount_namespace},
    health::Checker,
    net::{self, Changes, Interface, Net, View},
    reconcile::{self, BackendKey, Lingering, Observed, VerdictSeen},
    say,
    state::{
        Admin, BackendSpec, Change, Desired, Facts, OnDown, Outcome, ServiceOptions, ServiceSpec, SettingsOptions,
        Source, file::StateFile, words::parse_vip,
    },
};

/// What `lb attach` was told.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// The API's socket.
    pub socket: PathBuf,
    /// Directory of the state file.
    pub state_dir: PathBuf,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Interfaces and how to attach.
    pub settings: SettingsOptions,
    /// VIPs as typed.
    pub vips: Vec<String>,
    /// Backends; none = no new service.
    pub backends: Vec<(SocketAddr, u16)>,
    /// What else was said of the service.
    pub options: ServiceOptions,
    /// Level of the data path's log.
    pub log_level: u8,
    /// Say what it would do, and do nothing.
    pub dry_run: bool,
    /// Override the guards that may be overridden.
    pub force: bool,
    /// Standard output is for JSON.
    pub json: bool,
}

/// Attaches, and works until it is told to end.
pub async fn attach(mut options: AttachOptions) -> Result<()> {
    admission::able("attach")?;
    if Client::new(&options.socket).answers().await {
        return Err(Error::refused(format!("attach: a daemon answers on {} already", options.socket.display()))
            .hint("`lb status` shows it, `lb service add` adds to it, `lb detach` ends it"));
    }
    admission::free(&options)?;
    if options.log_level > 0 {
        return Err(Error::usage("--bpf-log: the data path has no log yet in this version")
            .hint("`lb drops` counts every packet's reason, `lb conn list` shows connections"));
    }
    // Before the first look, so that nothing is missed between the two.
    let changes = net::watch()?;
    let mut view = View::new(Net::new()?);
    let mut interfaces = Vec::new();
    for name in &options.settings.interfaces {
        interfaces.push(view.net().interface(name).await?);
    }
    if let Some(loopback) = interfaces.iter().find(|interface| interface.index == LOOPBACK) {
        return Err(Error::refused(format!(
            "attach {}: the loopback device carries only this host's own traffic",
            loopback.name
        ))
        .hint("name the interface that clients come in by"));
    }
    if let Some(device) = &options.settings.announce {
        view.net()
            .interface(device)
            .await
            .map_err(|error| Error { message: format!("--announce: {}", error.message), ..error })?;
    }
    admission::not_foreign(&interfaces, &options.bpffs)?;
    let service = service(&options, &interfaces)?;
    let adopting = pins::exists(&options.bpffs);
    if adopting {
        let others = adopt::others(&view, &options.bpffs, &options.settings.interfaces).await;
        options.settings.interfaces.extend(others.iter().map(|other| other.name.clone()));
        interfaces.extend(others);
    }
    let state = StateFile::open(&options.state_dir);
    let before = if adopting { state.load()?.unwrap_or_default() } else { Desired::default() };
    let change = Change::Attach { settings: Box::new(options.settings.clone()), service: service.map(Box::new) };
    let facts = facts(&mut view, &change, &interfaces, &options).await?;
    let outcome = before.change(&change, &facts, options.force)?;
    for warning in &outcome.warnings {
        say::warning(warning);
    }
    if options.dry_run {
        return dry_run(&outcome, options.json);
    }
    adopt::refuse_other_mode(&interfaces, &options.bpffs, outcome.desired.settings.xdp)?;
    state.prepare()?;
    if let Some(text) = private_mount_namespace() {
        say::warning(&format!("{text}; {}", doctor::NSENTER));
    }
    let load = LoadOptions {
        bpffs: options.bpffs.clone(),
        max_flows: outcome.desired.settings.max_flows,
        log_level: options.log_level,
    };
    let loaded = if adopting {
        DataPlane::adopt(&load)
    } else {
        let loaded = DataPlane::load(&load).map(|plane| (plane, BTreeMap::new()));
        if loaded.is_err() {
            state.forget()?;
        }
        loaded
    };
    let (plane, lost) = loaded?;
    adopt::warn_of_size(options.settings.max_flows, plane.flows().capacity());
    for (name, why) in &lost {
        say::warning(&format!("{name}: its link could not be taken over: {why}"));
    }
    let started = start(options.clone(), view, changes, plane, state.clone(), outcome.desired, interfaces).await;
    if started.is_err() && !adopting {
        pins::remove(&options.bpffs)?;
        state.forget()?;
    }
    started
}

/// What would be done.
fn dry_run(outcome: &Outcome, json: bool) -> Result<()> {
    if json {
        let Outcome { desired, warnings, summary } = outcome.clone();
        let changed = Changed { generation: desired.generation, summary, warnings };
        println!("{}", serde_json::json!(changed));
        return Ok(());
    }
    outcome.summary.iter().for_each(|sentence| say::sentence(sentence));
    say::sentence("lb: dry run: nothing was changed");
    Ok(())
}

/// Makes the daemon, brings the maps up to date, attaches, and only then says that it is ready.
async fn start(
    options: AttachOptions,
    view: View,
    changes: mpsc::Receiver<Changes>,
    plane: DataPlane,
    state: StateFile,
    desired: Desired,
    interfaces: Vec<Interface>,
) -> Result<()> {
    let places = admission::hold(&options)?;
    let listener = server::bind(&options.socket).await?;
    let (results, incoming) = mpsc::unbounded_channel();
    let (tell, heard) = mpsc::unbounded_channel();
    let mut daemon = Daemon {
        view,
        trouble: BTreeMap::new(),
        observed: recover(&plane, &desired),
        plane,
        bpffs: options.bpffs.clone(),
        desired,
        attached: BTreeMap::new(),
        checker: Checker::new(results)?,
        lingering_checks: BTreeMap::new(),
        next_count: Instant::now(),
        table_builds: 0,
        sources: Sources::new(tell),
        state_sources_at: None,
        state,
        announced: Announced::open(&options.state_dir),
        announce_trouble: None,
        started: Instant::now(),
    };
    for interface in interfaces {
        // Tables first: the interface is only told of when it is attached.
        let attachment = Attachment { xdp: daemon.desired.settings.xdp, interface, gone: false, trouble: None };
        daemon.attached.insert(attachment.interface.name.clone(), attachment);
    }
    daemon.find_neighbours(super::network::NEIGHBOUR_LOOKS).await?;
    daemon.apply()?;
    daemon.attach_all().await?;
    daemon.see_network().await?;
    daemon.state.save(&daemon.desired)?;
    if let Err(error) = daemon.announce().await {
        daemon.announced.withdraw(daemon.view.net()).await?;
        return Err(error);
    }
    daemon.aim_checks();
    daemon.aim_sources();
    let (calls, requests) = mpsc::channel(64);
    tokio::spawn(server::serve(listener, calls));
    let ended = {
        say::ready();
        daemon.run(requests, incoming, changes, heard).await
    };
    drop(places);
    match std::fs::remove_file(&options.socket) {
        Ok(()) | Err(_) => ended,
    }
}

impl Daemon {
    async fn attach_all(&mut self) -> Result<()> {
        let ours = self.plane.program_id()?;
        for (name, attachment) in &mut self.attached {
            let is_veth = attachment.interface.kind.as_deref() == Some("veth");
            let index = attachment.interface.index;
            let done = match self.plane.attach(name, index, is_veth, attachment.xdp) {
                Ok(done) => done,
                Err(error) => {
                    // Without a link the program may hang on the interface all the same, and nobody would end it.
                    let net = self.view.net();
                    if net.interface(name).await.is_ok_and(|interface| interface.xdp_program == Some(ours)) {
                        net.remove_xdp(index).await?;
                    }
                    return Err(error);
                }
            };
            attachment.xdp = done.xdp;
            match done.why {
                Some(why) => say::sentence(&format!("{name}: attached, {} ({why})", done.xdp)),
                None => say::sentence(&format!("{name}: attached, {}", done.xdp)),
            }
        }
        Ok(())
    }
}

/// The service that the flags describe.
fn service(options: &AttachOptions, interfaces: &[Interface]) -> Result<Option<ServiceSpec>> {
    let sources = options.options.discovery.as_deref().unwrap_or_default();
    if options.backends.is_empty() && sources.is_empty() && options.vips.is_empty() {
        return Ok(None);
    }
    let own = interfaces.first().and_then(|interface| interface.addresses.iter().find(|a| a.is_ipv4()).copied());
    let vips: Vec<_> = match options.vips.as_slice() {
        [] => vec![parse_vip(&common_port(&options.backends, sources)?.to_string(), own)?],
        typed => typed.iter().map(|text| parse_vip(text, own)).collect::<Result<_>>()?,
    };
    let mut service = ServiceSpec::new(vips[0], Source::Flags);
    service.vips = vips;
    options.options.apply(&mut service);
    service.backends = options
        .backends
        .iter()
        .map(|(address, weight)| BackendSpec {
            address: *address,
            weight: *weight,
            admin: Admin::Ready,
            source: Source::Flags,
        })
        .collect();
    service.backends.sort_by_key(|backend| backend.address);
    Ok(Some(service))
}

/// The port that all backends share.
fn common_port(backends: &[(SocketAddr, u16)], sources: &[SourceSpec]) -> Result<u16> {
    let mut ports: BTreeSet<u16> = backends.iter().map(|(address, _)| address.port()).collect();
    for source in sources {
        match source.wanted {
            Wanted::Dns { port: Some(port), .. } => ports.insert(port),
            _ => {
                return Err(Error::usage(format!(
                    "attach: what port the backends of {} have is not known yet, so the VIP's is not clear",
                    source.name
                ))
                .hint("say it: --vip ADDR:PORT"));
            }
        };
    }
    match ports.first() {
        Some(port) if ports.len() == 1 => Ok(*port),
        _ => Err(Error::usage("attach: the backends have different ports, so the VIP's is not clear")
            .hint("say it: --vip ADDR:PORT")),
    }
}

async fn facts(view: &mut View, change: &Change, attached: &[Interface], options: &AttachOptions) -> Result<Facts> {
    let interfaces = view.interfaces().await?;
    let routes = view.routes(&change.backends().iter().map(SocketAddr::ip).collect()).await?.clone();
    Ok(Facts {
        host_addresses: interfaces.iter().flat_map(|interface| interface.addresses.clone()).collect(),
        listeners: net::listeners(),
        local_port_range: net::local_port_range(),
        attached: attached.iter().map(|interface| (interface.index, interface.name.clone())).collect(),
        interfaces: interfaces.iter().map(|interface| (interface.index, interface.name.clone())).collect(),
        announced: Announced::open(&options.state_dir).addresses(),
        routes,
        ..Facts::default()
    })
}

/// What the maps of an adopted data plane say: identities, verdicts, backends whose flows go on.
fn recover(plane: &DataPlane, desired: &Desired) -> Observed {
    let found = plane.recover();
    let mut observed = Observed::default();
    let names: BTreeMap<u64, &String> =
        desired.services.keys().map(|name| (hash::name(name.as_bytes()).max(1), name)).collect();
    for (id, service) in &found.services {
        if let Some(name) = names.get(&service.name_hash) {
            observed.service_ids.insert((*name).clone(), *id);
        }
    }
    let name_of =
        |wanted: u32| observed.service_ids.iter().find(|(_, id)| **id == wanted).map(|(name, _)| name.clone());
    let wanted: BTreeSet<BackendKey> = super::keys(desired).collect();
    let mut lingering = BTreeMap::new();
    for (id, value) in &found.backends {
        // The service may be gone while flows to its backend go on: any name that no service has will do.
        let service = name_of(value.service).unwrap_or_else(|| format!("(removed {})", value.service));
        let address = IpAddr::from(value.address[0].get().to_be_bytes());
        let key = BackendKey { service, address: SocketAddr::new(address, value.port.get()) };
        if let Some((health, since)) = verdict_of(value) {
            observed
                .verdicts
                .insert(key.clone(), VerdictSeen { health, since, was_up: value.flags & backend_flag::FELL != 0 });
        }
        if !wanted.contains(&key) {
            let reset = value.flags & backend_flag::MAINT != 0;
            // The service may be gone, and with it what was said of this; its flags show it if the backend is down.
            let on_down = match desired.services.get(&key.service) {
                Some(service) => reconcile::on_down(service),
                None if value.flags & backend_flag::RESET_SILENT != 0 => OnDown::Auto,
                None if value.flags & backend_flag::RESET != 0 => OnDown::Reset,
                None => OnDown::Keep,
            };
            lingering.insert(key.clone(), Lingering { value: *value, reset, on_down });
        }
        observed.backend_ids.insert(key, *id);
    }
    observed.lingering = lingering;
    observed
}
