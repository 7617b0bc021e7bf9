//! The scenarios of docs/scenarios/: what `cargo xtask example NAME` shows and what the end-to-end tests hold true.
//!
//! Each makes its own lab, runs the apps of `examples/` in it, and fails when a single request does: [`clones`] of one
//! app behind a VIP, services that [`registered`] instances fill, clients that keep their instance ([`memory`]),
//! [`nginx`], and instances that come, go and are restarted ([`supervisors`]).

mod clones;
mod memory;
mod nginx;
mod registered;
mod supervisors;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use lb_userspace::lab::Host;

use crate::{
    e2e::{Setup, clients::Wrk, servers::Server},
    registry::{SILENCE, tools},
};

/// Where the VIP is.
const URL: &str = "http://10.66.0.1/";
/// Port of the apps.
const PORT: u16 = 8080;
/// Longest that a load may last; it ends when the work is done.
const LONGEST: Duration = Duration::from_secs(120);

/// A scenario's name, what it shows, and how.
pub type Scenario = (&'static str, &'static str, fn() -> Result<()>);

/// All of them.
pub const ALL: [Scenario; 9] = [
    ("cluster", "clones of a Node cluster app: workers crash, all are replaced, no request fails", clones::cluster),
    ("scale", "one instance, eight, two: under load, no request fails", clones::scale),
    ("nobody", "no instance at all: refused at once", clones::nobody),
    ("registered", "two services filled from Consul by tag: apps come, go and die silently", registered::registered),
    ("partition", "clients are partitioned by their address, and what moves with another partition", memory::partition),
    ("sticky", "sessions stay with their instance by affinity", memory::sticky),
    ("nginx", "nginx behind lb, and lb instead of an nginx upstream list", nginx::both_ways),
    ("supervised", "supervised instances restarted one by one, no request fails", supervisors::supervised),
    ("pm2", "instances under pm2: reloaded, and restarted one by one, no request fails", supervisors::pm2),
];

/// Runs a scenario by its name.
///
/// # Errors
/// There is none of this name, or something in it is not as docs/scenarios/ says.
pub fn run(name: &str) -> Result<()> {
    let Some((_, about, scenario)) = ALL.iter().find(|(other, ..)| *other == name) else {
        bail!("there is no example '{name}'; there are:\n{}", list());
    };
    say(about);
    scenario()
}

/// The names and what each shows.
#[must_use]
pub fn list() -> String {
    ALL.map(|(name, about, _)| format!("  {name:<12} {about}")).join("\n")
}

fn say(what: &str) {
    eprintln!("  {what}");
}

/// What an operator would type, and what lb answers.
fn show(setup: &Setup, command: &str) -> Result<()> {
    say(&format!("$ lb {command}"));
    setup.done(command)?.lines().for_each(|line| say(&format!("  {line}")));
    Ok(())
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path)
}

/// Packages of npm that apps need, put there by `cargo xtask setup`.
fn packages() -> Result<PathBuf> {
    let packages = tools()?.join("node/node_modules");
    ensure!(packages.is_dir(), "{} is missing: cargo xtask setup", packages.display());
    Ok(packages)
}

/// A command that runs a Node app of `examples/` on a host.
fn app(host: &Host, app: &str) -> Command {
    let mut command = host.command("node");
    let address = host.address.to_string();
    command.arg(example(app)).env("HOST", &address).env("NAME", address).env("PORT", PORT.to_string());
    command
}

/// Starts one.
fn node(host: &Host, name: &str) -> Result<Server> {
    Server::start(&mut app(host, name), Path::new(SILENCE))
}

/// A lab whose backends run an app.
fn lab(backends: u8, name: &str) -> Result<(Setup, Vec<Server>)> {
    let setup = Setup::new(backends, 1500)?;
    let apps = setup.backends.iter().map(|host| node(host, name)).collect::<Result<_>>()?;
    setup.wait_listening(PORT)?;
    Ok((setup, apps))
}

/// Requests over a new connection each while something happens; none may fail.
fn under_load(setup: &Setup, url: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let wrk = Wrk::begin(&setup.client, url, 4, LONGEST, true)?;
    let worked = work();
    let seen = wrk.end()?;
    worked?;
    say(&format!("{} requests, {} failed", seen.requests, seen.errors));
    ensure!(seen.requests > 0 && seen.errors == 0, "{seen:?}");
    Ok(())
}

/// Who answers, by some requests.
fn voices(setup: &Setup, url: &str, requests: u32) -> Result<BTreeSet<String>> {
    (0..requests).map(|_| Ok(String::from_utf8(setup.curl(url)?)?.trim().to_owned())).collect()
}
