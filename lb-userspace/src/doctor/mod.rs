//! `lb doctor`: what stands in the way on this host, one line each, with the fix.

mod interface;
mod needs;

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    api::{Request, Status, client::Client},
    dataplane::program_name,
    net::{self, Driver, Interface, Net},
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warn,
    /// Will not work.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub check: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

fn finding(level: Level, check: &str, text: impl Into<String>, fix: Option<&str>) -> Finding {
    Finding { level, check: check.to_owned(), text: text.into(), fix: fix.map(str::to_owned) }
}

fn ok(check: &str, text: impl Into<String>) -> Finding {
    finding(Level::Ok, check, text, None)
}

/// The oldest kernel that has everything that lb needs.
const KERNEL: (u32, u32) = (6, 1);

/// Looks at this host and at some of its interfaces; all of them if none is named.
pub async fn examine(names: &[String], socket: &Path) -> crate::Result<Vec<Finding>> {
    let mut findings = vec![kernel(), jit(), privileges(), bpffs()];
    findings.push(match private_mount_namespace() {
        Some(text) => finding(Level::Warn, "mounts", text, Some(NSENTER)),
        None => ok("mounts", "the host's own mount namespace: pins outlive the process"),
    });
    let net = Net::new()?;
    let interfaces = net.interfaces().await?;
    if let Some(missing) = names.iter().find(|name| interfaces.iter().all(|interface| interface.name != **name)) {
        let known: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        return Err(Error::not_found(format!("interface {missing}: there is none of this name"))
            .hint(format!("one of: {}", known.join(" "))));
    }
    let chosen: Vec<_> = if names.is_empty() {
        interfaces.iter().filter(|interface| interface.up && interface.name != "lo").map(|i| i.name.clone()).collect()
    } else {
        names.to_vec()
    };
    for interface in interfaces.iter().filter(|interface| chosen.contains(&interface.name)) {
        findings.extend(interface::examine(&facts(interface, &interfaces)));
    }
    if let Ok(status) = Client::new(socket).ask::<Status>(&Request::Status).await {
        findings.extend(examine_services(&status, &own_addresses(&net, &status).await));
    }
    Ok(findings)
}

/// The running kernel's release, as in `uname -r`.
#[must_use]
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Whether a kernel of this release has everything that lb needs.
#[must_use]
pub fn kernel_is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL)
}

fn kernel() -> Finding {
    let release = kernel_release();
    if kernel_is_new_enough(&release) {
        return ok("kernel", format!("Linux {release}"));
    }
    let text = format!("Linux {release} is too old: attach refuses (it lacks bpf_loop, frags or coarse clocks)");
    finding(Level::Fail, "kernel", text, Some("Linux 6.1 or newer"))
}

fn jit() -> Finding {
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => finding(
            Level::Warn,
            "jit",
            "the BPF JIT is off: every packet costs many times more",
            Some("sudo sysctl net.core.bpf_jit_enable=1"),
        ),
        _ => ok("jit", "the BPF JIT is on"),
    }
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return ok("privileges", "root");
    }
    finding(Level::Fail, "privileges", "not root: programs cannot be loaded", Some("sudo lb .."))
}

fn bpffs() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf")) {
        return ok("bpffs", "a BPF file system is mounted");
    }
    finding(
        Level::Warn,
        "bpffs",
        "no BPF file system is mounted; attach mounts one",
        Some("sudo mount -t bpf bpf /sys/fs/bpf"),
    )
}

/// What to type instead of `ip netns exec`.
pub const NSENTER: &str =
    "`ip netns exec` makes one; enter only the network namespace: nsenter --net=/run/netns/NAME lb ..";

/// Says so if this process has a mount namespace of its own: pins made in it die with its last process.
#[must_use]
pub fn private_mount_namespace() -> Option<String> {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, first) = (of("self")?, of("1")?);
    (own != first).then(|| "a private mount namespace: pins die with its last process".to_owned())
}

/// What the rules look at.
fn facts(interface: &Interface, all: &[Interface]) -> interface::Facts {
    let by_index = |index: Option<u32>| all.iter().find(|other| Some(other.index) == index);
    let kind = |other: &Interface| other.kind.clone().unwrap_or_default();
    let is_vlan = |other: &&Interface| other.kind.as_deref() == Some("vlan") && other.below == Some(interface.index);
    let is_container = |other: &&Interface| other.kind.as_deref() == Some("veth") && other.elsewhere;
    let names = |list: &mut dyn Iterator<Item = &Interface>| list.map(|other| other.name.clone()).collect::<Vec<_>>();
    let program = interface.xdp_program.map(|id| (id, program_name(id).unwrap_or_else(|| "?".to_owned())));
    interface::Facts {
        driver: Driver::of(&interface.name, interface.index),
        master: by_index(interface.master).map(|master| (master.name.clone(), kind(master))),
        vlans: names(&mut all.iter().filter(is_vlan)),
        parent: by_index(interface.below).map(|parent| parent.name.clone()),
        containers: names(&mut all.iter().filter(is_container)),
        foreign: program.filter(|(_, name)| name != "lb").map(|(id, name)| format!("id {id}, name '{name}'")),
        contained: ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists()),
        interface: interface.clone(),
    }
}

/// This host's address towards each backend.
async fn own_addresses(net: &Net, status: &Status) -> BTreeMap<IpAddr, IpAddr> {
    let mut own = BTreeMap::new();
    for address in status.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address.ip()) {
        let route = net.route_to(address).await.ok().flatten();
        own.extend(route.and_then(|route| route.source).map(|source| (address, source)));
    }
    own
}

fn examine_services(status: &Status, own: &BTreeMap<IpAddr, IpAddr>) -> Vec<Finding> {
    let mut findings: Vec<_> = status
        .warnings
        .iter()
        .map(|text| finding(Level::Warn, "daemon", text.clone(), Some("see `lb status`")))
        .collect();
    let (low, high) = net::local_port_range();
    for vip in status.services.iter().flat_map(|service| &service.vips) {
        if (low..=high).contains(&vip.port) {
            let text = format!("VIP {vip}: the port is in ip_local_port_range ({low}-{high})");
            findings.push(finding(
                Level::Warn,
                "ports",
                text,
                Some("another port, or net.ipv4.ip_local_reserved_ports"),
            ));
        }
    }
    findings.extend(needs::findings(&status.services, own));
    for backend in status.services.iter().flat_map(|service| &service.backends) {
        if let Some(check) = backend.last_check.as_ref().filter(|check| !check.ok) {
            let text = format!("{} of {}: {}", backend.address, backend.service, check.reason);
            findings.push(finding(Level::Warn, "backend", text, Some("look at the server; `lb health` follows it")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_new_enough_and_said_so() {
        assert_eq!(kernel().level, Level::Ok, "{:?}", kernel());
    }

    #[test]
    fn kernels_are_judged_by_their_release() {
        for release in ["6.1.0-32-amd64", "6.1", "6.18.5", "7.3-rc1", "10.0"] {
            assert!(kernel_is_new_enough(release), "{release}");
        }
        for release in ["5.10.0-32-amd64", "6.0.19", "4.19", "", "Linux"] {
            assert!(!kernel_is_new_enough(release), "{release}");
        }
    }

    #[tokio::test]
    async fn a_missing_interface_is_an_error_that_names_those_that_are_there() {
        let error = examine(&["nope0".to_owned()], Path::new("/nonexistent")).await.unwrap_err();
        assert!(error.message.contains("nope0") && error.hint.unwrap().contains("lo"));
    }
}
