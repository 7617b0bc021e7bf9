//! `lb doctor`: what stands in the way on this host, one line each, with the fix.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    api::{Request, Status, client::Client},
    dataplane::program_name,
    net::{self, Interface, Net},
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
    let interfaces = Net::new()?.interfaces().await?;
    let chosen: Vec<_> = if names.is_empty() {
        interfaces.iter().filter(|interface| interface.up && interface.name != "lo").map(|i| i.name.clone()).collect()
    } else {
        names.to_vec()
    };
    for name in &chosen {
        match interfaces.iter().find(|interface| interface.name == *name) {
            Some(interface) => findings.extend(examine_interface(interface)),
            None => {
                findings.push(finding(Level::Fail, name, "there is no such interface", Some("`ip link` lists them")));
            }
        }
    }
    if let Ok(status) = Client::new(socket).ask::<Status>(&Request::Status).await {
        findings.extend(examine_services(&status));
    }
    Ok(findings)
}

fn kernel() -> Finding {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let text = text.trim();
    let mut numbers = text.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => ok("kernel", format!("Linux {text}")),
        _ => {
            finding(Level::Fail, "kernel", format!("Linux {text} lacks bpf_loop or frags"), Some("Linux 6.1 or newer"))
        }
    }
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
const NSENTER: &str = "enter only the network namespace: nsenter --net=/run/netns/NAME lb ..";

/// Says so if this process has a mount namespace of its own: pins made in it die with its last process.
#[must_use]
pub fn private_mount_namespace() -> Option<String> {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, first) = (of("self")?, of("1")?);
    (own != first).then(|| "a private mount namespace: pins die with its last process".to_owned())
}

fn examine_interface(interface: &Interface) -> Vec<Finding> {
    let name = interface.name.as_str();
    let mut findings = Vec::new();
    let mut warn = |text: String, fix: &str| findings.push(finding(Level::Warn, name, text, Some(fix)));
    if !interface.up {
        warn("down".to_owned(), &format!("sudo ip link set {name} up"));
    }
    match interface.kind.as_deref() {
        Some("veth") => warn(
            "a veth: native mode needs GRO or an XDP program at the far end, and whole checksums from there".to_owned(),
            "--xdp generic (what auto takes), or at the far end: ethtool -K IFACE gro on tx off",
        ),
        Some("bond") => warn("a bond".to_owned(), "attach to the slaves, or check that the bond's mode has XDP"),
        Some("vlan") => warn("a VLAN device: its XDP is generic".to_owned(), "attach to the parent"),
        Some("bridge") => warn("a bridge: packets that it forwards do not pass here".to_owned(), "attach to its ports"),
        _ => {}
    }
    if let Some(id) = interface.xdp_program {
        let program = program_name(id).unwrap_or_else(|| "?".to_owned());
        if program != "lb" {
            warn(
                format!("another XDP program is attached (id {id}, name '{program}')"),
                "end its owner, or: ip link set dev IFACE xdp off",
            );
        }
    }
    if findings.is_empty() {
        findings.push(ok(name, format!("up, MTU {}", interface.mtu)));
    }
    findings
}

fn examine_services(status: &Status) -> Vec<Finding> {
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
    for backend in status.services.iter().flat_map(|service| &service.backends) {
        if let Some(check) = backend.last_check.as_ref().filter(|check| !check.ok) {
            let text = format!("{}: {}", backend.address, check.reason);
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
    fn traps_are_named_with_their_fix() {
        let veth = Interface { name: "v0".into(), up: false, kind: Some("veth".into()), ..Interface::default() };
        let findings = examine_interface(&veth);
        assert_eq!(findings.len(), 2, "down, and a veth");
        assert!(findings.iter().all(|finding| finding.fix.is_some() && finding.check == "v0"));
        let sound = Interface { name: "eth0".into(), up: true, mtu: 1500, ..Interface::default() };
        assert_eq!(examine_interface(&sound), [ok("eth0", "up, MTU 1500")]);
    }

    #[tokio::test]
    async fn a_missing_interface_is_a_failure() {
        let findings = examine(&["nope0".to_owned()], Path::new("/nonexistent")).await.unwrap();
        let missing = findings.iter().find(|finding| finding.check == "nope0").unwrap();
        assert_eq!(missing.level, Level::Fail);
    }
}
