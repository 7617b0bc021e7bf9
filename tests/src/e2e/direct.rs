//! Backends of the direct-return modes: made ready by what `lb doctor` tells an operator to type.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_userspace::lab::Host;
use serde_json::Value;

use super::Setup;

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
        // Services of the same VIP say the same.
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|command| seen.insert(command.clone()));
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
