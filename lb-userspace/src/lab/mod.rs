//! Network namespaces as hosts, joined by a bridge: where `lb demo` and the end-to-end tests live.
//!
//! Nothing outside is touched: every host is a namespace of its own with an interface `eth0`, and a switch is a bridge
//! in another. Dropping the [`Lab`] removes all of it; namespaces of labs whose process is gone are removed by
//! the next one.

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result};

/// What the name of every namespace of a lab begins with; the process's number follows.
const PREFIX: &str = "lb-lab-";
/// Name of the first switch.
const SWITCH: &str = "switch";
/// Name of a switch's bridge.
const BRIDGE: &str = "br0";

/// Several hosts on one network.
pub struct Lab {
    prefix: String,
    hosts: Vec<String>,
}

/// One host of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, by [`ipv6_of`].
    pub address6: Ipv6Addr,
}

/// The IPv6 address that goes with an IPv4 address of a lab, digit by digit: `10.66.0.11` has `fd66::11` (of a /64).
///
/// # Panics
/// The second number is above 99: it would not fit.
#[must_use]
pub fn ipv6_of(address: Ipv4Addr) -> Ipv6Addr {
    let [_, network, third, last] = address.octets();
    let digits = |number: u8| {
        let (hundreds, tens, ones) = (number / 100, number / 10 % 10, number % 10);
        u16::from(hundreds) << 8 | u16::from(tens) << 4 | u16::from(ones)
    };
    assert!(network < 100, "{address}: no lab network of this number");
    Ipv6Addr::new(0xfd00 | digits(network), 0, 0, 0, 0, 0, digits(third), digits(last))
}

impl Lab {
    /// A lab with a switch and no hosts.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self { prefix: format!("{PREFIX}{}-{number}-", std::process::id()), hosts: Vec::new() };
        lab.switch(SWITCH)?;
        Ok(lab)
    }

    fn namespace(&mut self, name: &str) -> Result<String> {
        let namespace = format!("{}{name}", self.prefix);
        ip(&["netns", "add", &namespace])?;
        self.hosts.push(namespace.clone());
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A host on the switch, with an address of a /24 (and the IPv6 address that goes with it) and an MTU.
    pub fn host(&mut self, name: &str, address: Ipv4Addr, mtu: u32) -> Result<Host> {
        self.host_behind(SWITCH, name, address, mtu)
    }

    /// A host on another network, behind a switch of its own name.
    pub fn host_behind(&mut self, switch: &str, name: &str, address: Ipv4Addr, mtu: u32) -> Result<Host> {
        let host = Host { namespace: self.namespace(name)?, address, address6: ipv6_of(address) };
        self.plug(&host, "eth0", switch, address, mtu)?;
        Ok(host)
    }

    /// Another network's switch.
    pub fn switch(&mut self, name: &str) -> Result<()> {
        let switch = self.namespace(name)?;
        ip(&["-n", &switch, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", BRIDGE, "up"])?;
        only_switch(&switch)
    }

    /// Gives a host an interface on a switch. Its checksums are whole and GRO is on at the switch's end, as native XDP
    /// on a veth needs it.
    pub fn plug(&mut self, host: &Host, device: &str, switch: &str, address: Ipv4Addr, mtu: u32) -> Result<()> {
        let address6 = ipv6_of(address);
        let switch = Host { namespace: format!("{}{switch}", self.prefix), address, address6 };
        let (namespace, mtu) = (host.namespace.as_str(), mtu.to_string());
        // Names of interfaces are short; addresses are unique in a lab.
        let port = format!("p{:08x}", address.to_bits());
        let peer = ["type", "veth", "peer", "name", &port, "netns", &switch.namespace];
        ip(&[&["-n", namespace, "link", "add", device, "mtu", &mtu][..], &peer].concat())?;
        ip(&["-n", &switch.namespace, "link", "set", &port, "master", BRIDGE, "mtu", &mtu, "up"])?;
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", device])?;
        // Usable at once: nobody else can have it.
        ip(&["-n", namespace, "addr", "add", &format!("{address6}/64"), "dev", device, "nodad"])?;
        offloads(&mut host.command("ethtool"), device)?;
        offloads(&mut switch.command("ethtool"), &port)?;
        ip(&["-n", namespace, "link", "set", device, "up"])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.hosts {
            // Nothing is left to be done about one that does not go.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

impl Host {
    /// A command that runs on this host. Only its network is the host's: /sys with its pins stays this machine's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = self.path();
        // SAFETY: between fork and exec only system calls are made (open, setns), and nothing is shared.
        unsafe {
            command.pre_exec(move || {
                let namespace = File::open(&path)?;
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into)
            });
        }
        command
    }

    /// Runs something on a new thread whose network is this host's.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<Result<T>> {
        let path = self.path();
        std::thread::spawn(move || {
            let enter = || setns(File::open(&path)?.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
            enter().map_err(|error| Error::failed(format!("enter {}: {error}", path.display())))?;
            Ok(work())
        })
    }

    /// How a person gets here.
    #[must_use]
    pub fn shell(&self) -> String {
        format!("nsenter --net={}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }
}

/// Takes the firewall off a switch: where `br_netfilter` is loaded, every frame would go through it, twice on its way
/// through a one-armed balancer.
fn only_switch(namespace: &str) -> Result<()> {
    const SETTINGS: [&str; 3] = ["iptables", "ip6tables", "arptables"];
    let host = Host {
        namespace: namespace.to_owned(),
        address: Ipv4Addr::UNSPECIFIED,
        address6: ipv6_of(Ipv4Addr::UNSPECIFIED),
    };
    let done = host.spawn(|| {
        for setting in SETTINGS {
            // Missing where the module is not loaded, which is as good.
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{setting}"), "0");
        }
    });
    done.join().map_err(|_| Error::failed(format!("set up the switch in {namespace}")))?
}

fn offloads(ethtool: &mut Command, device: &str) -> Result<()> {
    run(ethtool.args(["-K", device, "tx", "off", "gro", "on"]))
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|w| w.to_string_lossy()).collect();
    let typed = words.join(" ");
    let output = command.output().map_err(|error| {
        Error::failed(format!("{typed}: {error}"))
            .hint("the lab needs root, and iproute2 and ethtool: cargo xtask setup")
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::failed(format!("{typed}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        .hint("the lab needs root"))
}

/// Removes the namespaces of labs whose process is gone.
fn remove_leftovers() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).map(str::to_owned);
        if pid.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_look_alike() {
        let of = |text: &str| ipv6_of(text.parse().unwrap()).to_string();
        assert_eq!(of("10.66.0.1"), "fd66::1");
        assert_eq!(of("10.67.0.12"), "fd67::12");
        assert_eq!(of("10.66.1.254"), "fd66::1:254");
    }
}
