//! Instances under supervision: restarted one by one, and by pm2's own reload.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::lab::Host;
use nix::sys::signal::Signal;

use super::{PORT, URL, example, packages, say, under_load, voices};
use crate::{
    e2e::{Setup, eventually, servers::Server},
    registry::SILENCE,
};

/// A supervisor that ends with what it supervises, which SIGKILL would leave behind.
struct Supervisor(Server);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.signal(Signal::SIGTERM);
        eventually(|| !self.0.runs());
    }
}

/// A lab whose backends run supervisors, behind a VIP.
fn lab(count: u8, mut start: impl FnMut(&Setup, &Host) -> Result<Supervisor>) -> Result<(Setup, Vec<Supervisor>)> {
    let mut setup = Setup::new(count, 1500)?;
    let supervisors = setup.backends.iter().map(|host| start(&setup, host)).collect::<Result<Vec<_>>>()?;
    setup.wait_listening(PORT)?;
    let list = setup.list(PORT);
    setup.attach(&format!("--vip 80 --health http --backends {list}"))?;
    setup.wait_usable(count.into())?;
    Ok((setup, supervisors))
}

/// Drains each backend in turn, has it restarted, and waits until new processes answer.
fn one_by_one(setup: &Setup, mut restart: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let before = voices(setup, URL, 60)?;
    under_load(setup, URL, || {
        for (n, host) in setup.backends.iter().enumerate() {
            let backend = format!("{}:{PORT}", host.address);
            setup.done(&format!("backend drain {backend} --wait=20s"))?;
            restart(n)?;
            let url = format!("http://{backend}/");
            let anew = || voices(setup, &url, 6).is_ok_and(|now| now.is_disjoint(&before));
            ensure!(eventually(anew), "{backend} is not started again");
            setup.done(&format!("backend ready {backend} --wait=20s"))?;
            say(&format!("{backend}: drained, restarted, ready"));
        }
        Ok(())
    })?;
    ensure!(voices(setup, URL, 60)?.is_disjoint(&before), "every instance was replaced");
    Ok(())
}

pub(super) fn supervised() -> Result<()> {
    let (setup, supervisors) = lab(3, |_, host| {
        let mut command = host.command(example("supervised/supervise.sh"));
        let address = host.address.to_string();
        command.arg("node").arg(example("app.js"));
        command.env("HOST", &address).env("NAME", address).env("PORT", PORT.to_string());
        Ok(Supervisor(Server::start(&mut command, Path::new(SILENCE))?))
    })?;
    one_by_one(&setup, |n| {
        let children = format!("/proc/{0}/task/{0}/children", supervisors[n].0.id());
        let child = fs::read_to_string(children)?.trim().parse().context("the supervised app")?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGTERM)?)
    })
}

/// pm2 on a host; each has a home of its own.
fn pm2_command(setup: &Setup, host: &Host, program: &str) -> Result<Command> {
    let address = host.address.to_string();
    let home: PathBuf = setup.directory().join(format!("pm2-{address}"));
    let mut command = host.command(packages()?.join(".bin").join(program));
    command.env("PM2_HOME", home).env("PM2_DISABLE_VERSION_CHECK", "true");
    command.env("HOST", &address).env("NAME", address).env("PORT", PORT.to_string());
    Ok(command)
}

fn pm2_done(setup: &Setup, host: &Host, arguments: &[&str]) -> Result<()> {
    let output = pm2_command(setup, host, "pm2")?.args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pm2 {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub(super) fn pm2() -> Result<()> {
    let (setup, _supervisors) = lab(2, |setup, host| {
        // pm2 without its detached daemon: it ends when this does.
        let mut command = pm2_command(setup, host, "pm2-runtime")?;
        command.arg("start").arg(example("pm2/ecosystem.config.js"));
        let log = setup.directory().join(format!("pm2-{}.log", host.address));
        Ok(Supervisor(Server::start(&mut command, &log)?))
    })?;
    let before = voices(&setup, URL, 60)?;
    ensure!(before.len() == 4, "two processes on each of two hosts: {before:?}");
    say("pm2 reload: new processes listen before the old ones go, no drain is needed");
    under_load(&setup, URL, || {
        for host in &setup.backends {
            pm2_done(&setup, host, &["reload", "app"])?;
        }
        ensure!(eventually(|| voices(&setup, URL, 30).is_ok_and(|now| now.is_disjoint(&before))), "old ones answer");
        Ok(())
    })?;
    say("pm2 restart: all processes of a host go at once, so it is drained first");
    one_by_one(&setup, |n| pm2_done(&setup, &setup.backends[n], &["restart", "app"]))
}
