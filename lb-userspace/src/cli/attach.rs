//! `lb attach` and `lb detach`.

use std::{collections::BTreeSet, path::PathBuf};

use super::arguments::{Arguments, Attach, Output};
use crate::{
    Error, Result,
    api::{Request, client::Client},
    daemon::{self, Announced, AttachOptions},
    dataplane::pins,
    net::Net,
    say,
    state::{ServiceOptions, SettingsOptions, file::StateFile},
};

/// `lb attach`.
pub async fn attach(arguments: &Arguments, typed: Attach) -> Result<()> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = typed.interfaces.iter().find(|name| !seen.insert(*name)) {
        return Err(Error::usage(format!("attach: interface {twice} is named twice")).hint("name it once"));
    }
    let backends = typed.backends.unwrap_or_default();
    daemon::attach(AttachOptions {
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir.clone(),
        bpffs: arguments.bpffs.clone(),
        settings: SettingsOptions {
            interfaces: typed.interfaces,
            xdp: typed.xdp,
            announce: typed.announce,
            snat: typed.snat,
            snat_ports: typed.snat_ports,
            max_flows: typed.max_flows,
            on_exit: typed.on_exit,
        },
        vips: typed.vip,
        backends: backends.fixed,
        options: ServiceOptions { discovery: Some(backends.sources), ..typed.service.into() },
        log_level: typed.bpf_log,
        config: typed.config,
        daemon: false,
        dry_run: typed.dry_run,
        force: typed.force,
        json: arguments.output == Output::Json,
    })
    .await
}

/// `lb daemon`.
pub async fn daemon(arguments: &Arguments, config: PathBuf, force: bool) -> Result<()> {
    daemon::attach(AttachOptions {
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir.clone(),
        bpffs: arguments.bpffs.clone(),
        settings: SettingsOptions::default(),
        vips: Vec::new(),
        backends: Vec::new(),
        options: ServiceOptions::default(),
        log_level: 0,
        config: Some(config),
        daemon: true,
        dry_run: false,
        force,
        json: arguments.output == Output::Json,
    })
    .await
}

/// `lb detach`: by the daemon, or by removing the pins when there is none.
pub async fn detach(arguments: &Arguments, interfaces: Vec<String>) -> Result<()> {
    let client = Client::new(&arguments.socket);
    let names: Vec<String> = if client.answers().await {
        let names = client.ask(&Request::Detach { interfaces }).await?;
        if !pins::exists(&arguments.bpffs) || client.send(&Request::Status).await.is_err() {
            daemon::wait_free(&arguments.state_dir).await;
        }
        names
    } else {
        without_a_daemon(arguments, interfaces).await?
    };
    match arguments.output {
        Output::Json => say::line(&serde_json::json!(names).to_string()),
        Output::Table => names.iter().for_each(|name| say::sentence(&format!("{name}: detached"))),
    }
    Ok(())
}

async fn without_a_daemon(arguments: &Arguments, interfaces: Vec<String>) -> Result<Vec<String>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            Error::failed("detach: no daemon answers, and removing its data path needs root").hint("sudo lb detach")
        );
    }
    let links = pins::links(&arguments.bpffs);
    if links.is_empty() && !pins::exists(&arguments.bpffs) {
        return Err(Error::not_found(format!(
            "detach: nothing is attached (no pins in {})",
            arguments.bpffs.display()
        ))
        .hint("--bpffs names another place"));
    }
    if let Some(unknown) = interfaces.iter().find(|name| !links.contains(name)) {
        return Err(Error::not_found(format!("{unknown}: not attached")).hint(format!("attached: {}", links.join(" "))));
    }
    if !interfaces.is_empty() && interfaces.len() < links.len() {
        pins::remove_links(&arguments.bpffs, &interfaces)?;
        return Ok(interfaces);
    }
    let state = StateFile::open(&arguments.state_dir);
    Announced::open(&arguments.state_dir).withdraw(&Net::new()?).await?;
    let removed = pins::remove(&arguments.bpffs)?;
    state.forget()?;
    // A daemon that was killed left its socket; nobody answers there.
    match std::fs::remove_file(&arguments.socket) {
        Ok(()) | Err(_) => Ok(removed),
    }
}
