//! Bringing the daemon up: `lb attach`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Instant,
};

use lb_common::{
    hash,
    maps::{self, backend_flag},
};
use tokio::sync::mpsc;

use super::{
    Announced, Attachment, Daemon, admission, adopt,
    lock::{self, Locks},
    network::LOOPBACK,
    notify::Notify,
    view::verdict_of,
};
use crate::{
    Error, Result,
    api::{Changed, client::Client, server},
    config::Config,
    dataplane::{DataPlane, LoadOptions, pins},
    discovery::{SourceSpec, Sources, Wanted},
    doctor::{self, private_mount_namespace},
    health::Checker,
    net::{self, Changes, Interface, Net, View},
    reconcile::{self, BackendKey, Lingering, Observed, VerdictSeen},
    say,
    state::{
        Admin, BackendSpec, Change, Desired, Facts, OnDown, Outcome, Protocol, ServiceOptions, ServiceSpec,
        SettingsOptions, Source, Statement, Vip, file::StateFile, typed::parse_vip,
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
    /// The config file.
    pub config: Option<PathBuf>,
    /// `lb daemon`: saved state is taken up after a reboot too, and a signal leaves the data path running.
    pub daemon: bool,
    /// Say what it would do, and do nothing.
    pub dry_run: bool,
    /// Override the guards that may be overridden.
    pub force: bool,
    /// Standard output is for JSON.
    pub json: bool,
}

/// Attaches, and works until it is told to end.
pub async fn attach(mut options: AttachOptions) -> Result<()> {
    admission::able(if options.daemon { "daemon" } else { "attach" })?;
    let config = options.config.as_deref().map(Config::read).transpose()?;
    let log_level = log_level(&options, config.as_ref());
    let state = StateFile::open(&options.state_dir);
    let client = Client::new(&options.socket);
    let locks = lock::take(&client, &options.socket, &options.state_dir, &options.bpffs).await?;
    let adopting = pins::exists(&options.bpffs);
    let before = before(&options, &state, adopting)?;
    // Before the first look, so that nothing is missed between the two.
    let changes = net::watch()?;
    let mut view = View::new(Net::new()?);
    let mut interfaces = interfaces(&view, &options, config.as_ref(), &before).await?;
    if adopting {
        let named: Vec<_> = interfaces.iter().map(|interface| interface.name.clone()).collect();
        let others = adopt::others(&view, &options.bpffs, &named).await;
        if !options.settings.interfaces.is_empty() {
            options.settings.interfaces.extend(others.iter().map(|other| other.name.clone()));
        }
        interfaces.extend(others);
    }
    admission::not_foreign(&interfaces, &options.bpffs)?;
    let service = service(&options, &interfaces)?;
    if let (Some(service), Some(config)) = (&service, &config)
        && config.services.iter().any(|other| other.name == service.name)
    {
        return Err(Error::usage(format!(
            "attach: the flags and the config file both describe service {}",
            service.name
        ))
        .hint("describe it in one of them; or give the flags' service another --name"));
    }
    let mut wanted = Vec::new();
    if !options.daemon {
        let settings = Box::new(options.settings.clone());
        wanted.push(Change::Attach { settings, service: service.map(Box::new) });
    }
    wanted.extend(config.iter().map(Config::statement));
    let facts = facts(&mut view, &wanted, &interfaces, &options).await?;
    let outcome = all(before, &wanted, &facts, options.force).map_err(|error| match (&options.config, &config) {
        (Some(file), Some(config)) => config.located(file, error),
        _ => error,
    })?;
    if let Some(device) = &outcome.desired.settings.announce {
        view.net()
            .interface(device)
            .await
            .map_err(|error| Error { message: format!("--announce: {}", error.message), ..error })?;
    }
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
    let load = LoadOptions { bpffs: options.bpffs.clone(), max_flows: outcome.desired.settings.max_flows, log_level };
    let loaded = if adopting {
        DataPlane::adopt(&load)
    } else {
        let loaded = DataPlane::load(&load).map(|plane| (plane, BTreeMap::new()));
        if loaded.is_err() {
            state.forget()?;
        }
        loaded
    };
    let (mut plane, lost) = loaded?;
    plane.follow_log(log_level)?;
    adopt::warn_of_size(options.settings.max_flows, plane.flows().capacity());
    for (name, why) in &lost {
        say::warning(&format!("{name}: its link could not be taken over: {why}"));
    }
    let locks = locks.and_new(&options.state_dir, &options.bpffs)?;
    let bpffs = options.bpffs.clone();
    let shared = config.and_then(|config| config.shared);
    let started = start(options, view, changes, plane, state.clone(), outcome, interfaces, locks, shared).await;
    if started.is_err() && !adopting {
        pins::remove(&bpffs)?;
        state.forget()?;
    }
    started
}

/// What would be done.
fn dry_run(outcome: &Outcome, json: bool) -> Result<()> {
    if json {
        let Outcome { desired, warnings, summary } = outcome.clone();
        let changed = Changed { generation: desired.generation, summary, warnings };
        say::line(&serde_json::json!(changed).to_string());
        return Ok(());
    }
    outcome.summary.iter().for_each(|sentence| say::sentence(sentence));
    say::sentence("lb: dry run: nothing was changed");
    Ok(())
}

/// Level of the data path's log: of the flags, else of the file.
fn log_level(options: &AttachOptions, config: Option<&Config>) -> u8 {
    if options.log_level > 0 { options.log_level } else { config.and_then(|config| config.log_level).unwrap_or(0) }
}

/// What was wanted before. Flags are of one command line: for a daemon that has none they set nothing any more.
fn before(options: &AttachOptions, state: &StateFile, adopting: bool) -> Result<Desired> {
    let saved = if adopting || options.daemon { state.load()?.unwrap_or_default() } else { Desired::default() };
    if !options.daemon {
        return Ok(saved);
    }
    let mut statements = saved.statements;
    let flags = Statement { settings: SettingsOptions::default(), ..statements.of(&Source::Flags) };
    statements.restate(Source::Flags, flags);
    Ok(Desired::new(saved.generation, statements))
}

/// The interfaces that are wanted: of the flags, else of the file, else those that were.
async fn interfaces(
    view: &View,
    options: &AttachOptions,
    config: Option<&Config>,
    before: &Desired,
) -> Result<Vec<Interface>> {
    let said = [
        &options.settings.interfaces,
        config.map_or(&options.settings.interfaces, |config| &config.settings.interfaces),
        &before.settings.interfaces,
    ];
    let Some(names) = said.into_iter().find(|names| !names.is_empty()) else {
        return Err(Error::usage("attach: no interface is named")
            .hint("interfaces = [\"IFACE\"] at the top of the file, or name it on the command line"));
    };
    let mut interfaces = Vec::new();
    for name in names {
        interfaces.push(view.net().interface(name).await?);
    }
    if let Some(loopback) = interfaces.iter().find(|interface| interface.index == LOOPBACK) {
        return Err(Error::refused(format!(
            "attach {}: the loopback device carries only this host's own traffic",
            loopback.name
        ))
        .hint("name the interface that clients come in by"));
    }
    Ok(interfaces)
}

/// Several changes after one another, or none.
fn all(before: Desired, changes: &[Change], facts: &Facts, force: bool) -> Result<Outcome> {
    let mut all = Outcome { desired: before, warnings: Vec::new(), summary: Vec::new() };
    for change in changes {
        let next = all.desired.change(change, facts, force)?;
        all.desired = next.desired;
        all.warnings.extend(next.warnings);
        all.summary.extend(next.summary);
    }
    Ok(all)
}

/// Makes the daemon, brings the maps up to date, attaches, and only then says that it is ready.
#[expect(clippy::too_many_arguments, reason = "they are the parts that the daemon is made of")]
async fn start(
    options: AttachOptions,
    view: View,
    changes: mpsc::Receiver<Changes>,
    plane: DataPlane,
    state: StateFile,
    outcome: Outcome,
    interfaces: Vec<Interface>,
    locks: Locks,
    shared: Option<SourceSpec>,
) -> Result<()> {
    let Outcome { desired, warnings, .. } = outcome;
    let listener = server::bind(&options.socket).await?;
    let (results, incoming) = mpsc::unbounded_channel();
    let (tell, heard) = mpsc::unbounded_channel();
    let (tell_shared, told) = mpsc::unbounded_channel();
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
        shared: None,
        shared_number: 0,
        tell_shared,
        state_sources_at: None,
        state,
        announced: Announced::open(&options.state_dir),
        announce_trouble: None,
        started: Instant::now(),
        file_warnings: if options.config.is_some() { warnings } else { Vec::new() },
        config: options.config,
        reload_trouble: None,
        keep: options.daemon,
        notify: Notify::from_environment(),
        _locks: locks,
        slow_starts: Vec::new(),
        swept: Instant::now(),
    };
    for interface in interfaces {
        // Tables first: the interface is only told of when it is attached.
        let attachment = Attachment { xdp: daemon.desired.settings.xdp, interface, gone: false, trouble: None };
        daemon.attached.insert(attachment.interface.name.clone(), attachment);
    }
    daemon.find_neighbours(super::network::NEIGHBOUR_LOOKS_AT_START).await?;
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
    daemon.aim_shared(shared)?;
    let (calls, requests) = mpsc::channel(64);
    tokio::spawn(server::serve(listener, calls));
    let ended = daemon.run(requests, incoming, changes, heard, told).await;
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
        [] => {
            let port = common_port(&options.backends, sources)?;
            let Some(own) = own else {
                return Err(no_address(interfaces, port));
            };
            vec![Vip { address: own, port, protocol: Protocol::Tcp }]
        }
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

/// There is no VIP without an address.
fn no_address(interfaces: &[Interface], port: u16) -> Error {
    let name = interfaces.first().map_or("", |interface| &interface.name);
    Error::usage(format!("attach {name}: it has no IPv4 address that could be the VIP"))
        .hint(format!("name one: --vip ADDR:{port}, with --announce if no interface of this host has it yet"))
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
        Some(0) if ports.len() == 1 => {
            Err(Error::usage("attach: the backends have no port, so the VIP's is not clear")
                .hint("say it: --vip ADDR:PORT"))
        }
        Some(port) if ports.len() == 1 => Ok(*port),
        _ => Err(Error::usage("attach: the backends have different ports, so the VIP's is not clear")
            .hint("say it: --vip ADDR:PORT")),
    }
}

async fn facts(view: &mut View, changes: &[Change], attached: &[Interface], options: &AttachOptions) -> Result<Facts> {
    let interfaces = view.interfaces().await?;
    let backends = changes.iter().flat_map(Change::backends).map(|backend| backend.ip()).collect();
    let routes = view.routes(&backends).await?.clone();
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

/// A backend's address and port.
fn place_of(value: &maps::Backend) -> SocketAddr {
    let [a, b, c, d] = value.address.map(|word| u128::from(word.get()));
    let address = if value.family == 6 {
        IpAddr::from((a << 96 | b << 64 | c << 32 | d).to_be_bytes())
    } else {
        IpAddr::from(value.address[0].get().to_be_bytes())
    };
    SocketAddr::new(address, value.port.get())
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
        let key = BackendKey { service, address: place_of(value) };
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
