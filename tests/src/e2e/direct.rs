//! Backends of the direct-return modes: made ready by what `lb doctor` tells an operator to type.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    lab::Host,
    state::{Admin, BackendSpec, Mode, Probe, ServiceSpec, Source, Via, Vip},
};
use serde_json::Value;

use super::{Setup, eventually};

impl Setup {
    /// The backends' addresses of a family, without a port.
    #[must_use]
    pub fn addresses(&self, v6: bool) -> String {
        let of = |host: &Host| if v6 { host.address6.to_string() } else { host.address.to_string() };
        self.backends.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// What `lb doctor` says is needed on a backend at an address, command by command.
    pub fn needs(&self, backend: IpAddr) -> Result<Vec<String>> {
        let findings = self.json("doctor eth0")?;
        let wanted = format!("{backend}: what mode");
        let of_backend = |finding: &&Value| finding["text"].as_str().is_some_and(|text| text.starts_with(&wanted));
        let mut all: Vec<String> = Vec::new();
        for finding in findings.as_array().context("doctor's findings")?.iter().filter(of_backend) {
            let fix = finding["fix"].as_str().context("a fix")?;
            all.extend(fix.split("; ").map(str::to_owned));
        }
        ensure!(!all.is_empty(), "doctor says nothing of {backend}: {findings}");
        Ok(all)
    }

    /// Runs on every backend what `lb doctor` says that it needs, as `heed` has it.
    pub fn heed_doctor(&self, heed: impl Fn(&str) -> Option<String>) -> Result<()> {
        for host in &self.backends {
            for address in [IpAddr::from(host.address), IpAddr::from(host.address6)] {
                for command in self.needs(address).unwrap_or_default().iter().filter_map(|command| heed(command)) {
                    type_in(host, &command)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a service of all backends at their IPv4 or IPv6 addresses, checked twice a second by way of its VIP.
    pub fn add_checked_via_vip(&self, vip: &str, mode: Mode, v6: bool, probe: &str) -> Result<()> {
        let vip: Vip = vip.parse()?;
        let mut service = ServiceSpec::new(vip, Source::Cli);
        service.mode = mode;
        service.health.probe = probe.parse::<Probe>()?;
        (service.health.via, service.health.interval) = (Via::Vip, Duration::from_millis(500));
        let backend = |host: &Host| BackendSpec {
            address: SocketAddr::new(if v6 { host.address6.into() } else { host.address.into() }, vip.port),
            weight: 1,
            admin: Admin::Ready,
            source: Source::Cli,
        };
        service.backends = self.backends.iter().map(backend).collect();
        self.add_service(service)
    }

    /// Waits until a service's backend has a verdict for a reason that has these words.
    pub fn wait_verdict(&self, service: &str, backend: IpAddr, health: &str, reason: &str) -> Result<()> {
        let place = |address: &str| address.parse::<SocketAddr>().is_ok_and(|place| place.ip() == backend);
        let of = |one: &&Value| one["service"] == service && one["address"].as_str().is_some_and(place);
        let seen = || self.json("health").ok()?.as_array()?.iter().find(of).cloned();
        let said = |one: &Value| one["last_check"]["reason"].as_str().is_some_and(|said| said.contains(reason));
        let right = || seen().is_some_and(|one| one["health"] == health && said(&one));
        ensure!(eventually(right), "{service} {backend}: not {health} for '{reason}': {:?}", seen());
        Ok(())
    }

    /// Layer-2 bytes that the balancer's interface has received and sent.
    pub fn carried(&self) -> Result<u64> {
        let links: Value = serde_json::from_str(&Self::ip(&self.balancer, "-j -s link show dev eth0")?)?;
        let count = |way: &str| links[0]["stats64"][way]["bytes"].as_u64().context("statistics");
        Ok(count("rx")? + count("tx")?)
    }
}

/// Types a command into a host's shell.
pub fn type_in(host: &Host, command: &str) -> Result<()> {
    let output = host.command("sh").args(["-ec", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
