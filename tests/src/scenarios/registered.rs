//! Services that instances fill by registering themselves (y axis).

use std::{path::Path, time::Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{URL, app, packages, say, show, under_load, voices};
use crate::{
    e2e::{Setup, eventually, servers::Server},
    registry::{Consul, SILENCE},
};

const OTHER_URL: &str = "http://10.66.0.1:81/";

/// Starts an instance that registers itself.
fn start(setup: &Setup, n: usize, service: &str, tag: &str) -> Result<Server> {
    let mut command = app(&setup.backends[n], "registered/app.js");
    command.env("NODE_PATH", packages()?).env("CONSUL", setup.balancer.address.to_string());
    Server::start(command.env("SERVICE", service).env("TAGS", tag), Path::new(SILENCE))
}

fn usable(setup: &Setup, service: &str, wanted: u64) -> Result<()> {
    let seen = || setup.json(&format!("service show {service}")).ok().and_then(|s| s["usable"].as_u64());
    ensure!(eventually(|| seen() == Some(wanted)), "{service}: {:?} usable, not {wanted}", seen());
    Ok(())
}

pub(super) fn registered() -> Result<()> {
    if Consul::binary().is_none() {
        bail!("there is no Consul that an app could register with");
    }
    let mut setup = Setup::new(5, 1500)?;
    let address = setup.balancer.address.to_string();
    let _consul = Consul::on(&setup.balancer, &address, None, &["-dev", "-bind", "127.0.0.1"])?;
    let source = |tag: &str| format!("consul:?tag={tag}&addr=http://{address}:8500");
    setup.attach(&format!("--vip 80 --name api --health http --backends {}", source("api")))?;
    setup.done(&format!("service add 10.66.0.1:81 --name webapp --health http --backends {}", source("webapp")))?;
    let _first = start(&setup, 0, "api-service", "api")?;
    let second = start(&setup, 1, "api-service", "api")?;
    let mut third = start(&setup, 2, "webapp-service", "webapp")?;
    let _fourth = start(&setup, 3, "webapp-service", "webapp")?;
    usable(&setup, "api", 2)?;
    usable(&setup, "webapp", 2)?;
    ensure!(voices(&setup, URL, 20)?.iter().all(|voice| voice.starts_with("api-service")));
    ensure!(voices(&setup, OTHER_URL, 20)?.iter().all(|voice| voice.starts_with("webapp-service")));
    say("two services, each filled from Consul by its tag");
    show(&setup, "source list")?;
    let mut fifth = None;
    under_load(&setup, URL, || {
        fifth = Some(start(&setup, 4, "api-service", "api")?);
        usable(&setup, "api", 3)?;
        say("another instance registers, and gets its share");
        second.signal(Signal::SIGTERM)?;
        usable(&setup, "api", 2)?;
        second.ended()?;
        say("SIGTERM: an instance deregisters, finishes and ends");
        Ok(())
    })?;
    third.kill();
    let killed = Instant::now();
    usable(&setup, "webapp", 1)?;
    let noticed = killed.elapsed().as_secs_f32();
    let backends = setup.json("service show webapp")?["backends"].as_array().map_or(0, Vec::len);
    ensure!(backends == 2, "Consul still names it");
    say("SIGKILL: an instance died silently; Consul believes in it, our health check does not");
    show(&setup, "backend list")?;
    say(&format!("it took {noticed:.1} s to notice; from then on:"));
    under_load(&setup, OTHER_URL, || {
        std::thread::sleep(std::time::Duration::from_secs(3));
        Ok(())
    })
}
