//! `--announce`: VIPs on a device of this host, told to the neighbours, and taken away again.
//!
//! What was put there is written down first, with the boot it was put there in: only what lb itself added is ever
//! removed, and a daemon or a `lb detach` that comes after a crash still knows what that was.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Daemon;
use crate::{
    Error, Result,
    net::{self, Interface, Net},
};

/// Neighbours may miss the first word.
const REPEAT: Duration = Duration::from_secs(1);

/// Addresses that lb put on devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The kernel's `boot_id`: a reboot takes the addresses away.
    boot: String,
    /// Name of a device and an address on it.
    addresses: BTreeSet<(String, IpAddr)>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Announced {
    path: PathBuf,
    addresses: BTreeSet<(String, IpAddr)>,
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Announced {
    /// What a state directory says was announced since this boot.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("announced.json");
        // Without a readable record nothing is ours, and nothing is removed.
        let record: Record =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let addresses = if record.boot == boot() { record.addresses } else { BTreeSet::new() };
        Self { path, addresses }
    }

    /// Addresses that lb put on this host.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|(_, address)| *address).collect()
    }

    fn save(&self) -> Result<()> {
        let wrong = |error: std::io::Error| {
            Error::failed(format!("write {}: {error}", self.path.display()))
                .hint("run as root, or choose another --state-dir")
        };
        if self.addresses.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(wrong(error)),
                _ => Ok(()),
            };
        }
        let record = Record { boot: boot(), addresses: self.addresses.clone() };
        let new = self.path.with_extension("json.new");
        serde_json::to_vec_pretty(&record)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(wrong)
    }

    /// Puts `wanted` on a device and tells its neighbours, and takes away what is ours and not wanted. Addresses that
    /// the host has already stay as they are.
    pub async fn follow(
        &mut self,
        net: &Net,
        interfaces: &[Interface],
        device: Option<&str>,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        let on = |name: &str| interfaces.iter().find(|interface| interface.name == name);
        let unwanted: Vec<_> = self
            .addresses
            .iter()
            .filter(|(name, address)| device != Some(name) || !wanted.contains(address))
            .cloned()
            .collect();
        for (name, address) in unwanted {
            if let Some(interface) = on(&name) {
                net.remove_address(interface.index, address).await?;
            }
            self.addresses.remove(&(name, address));
            self.save()?;
        }
        let Some(device) = device else { return Ok(()) };
        let Some(interface) = on(device) else {
            return Err(Error::not_found(format!("--announce={device}: there is no such interface"))
                .hint("`ip link` lists them; it is tried again when one appears"));
        };
        let missing = |address: &&IpAddr| !interfaces.iter().any(|other| other.addresses.contains(address));
        for address in wanted.iter().filter(missing) {
            if self.addresses.insert((device.to_owned(), *address)) {
                self.save()?;
            }
            net.add_address(interface.index, *address).await?;
            tracing::info!(%address, device, "announced");
            tell(interface, *address);
        }
        Ok(())
    }

    /// Takes everything away.
    pub async fn withdraw(&mut self, net: &Net) -> Result<()> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        self.follow(net, &net.interfaces().await?, None, &BTreeSet::new()).await
    }
}

/// Tells the neighbours, twice. The loopback device has none.
fn tell(interface: &Interface, address: IpAddr) {
    let (name, index, mac) = (interface.name.clone(), interface.index, interface.mac);
    if mac == [0; 6] {
        return;
    }
    let say = move || {
        if let Err(error) = net::announce(index, mac, address) {
            tracing::warn!(%error, device = %name, "announce");
        }
    };
    say();
    tokio::spawn(async move {
        tokio::time::sleep(REPEAT).await;
        say();
    });
}

impl Daemon {
    /// Has the VIPs on the device that `--announce` names; those of removed services too, while flows name them.
    pub(super) async fn announce(&mut self) -> Result<()> {
        let device = self.desired.settings.announce.clone();
        if device.is_none() && self.announced.addresses.is_empty() {
            return Ok(());
        }
        let vips = self.desired.services.values().flat_map(|service| &service.vips);
        let wanted = vips.chain(&self.observed.lingering_vips).map(|vip| vip.address).collect();
        let interfaces = self.view.interfaces().await?;
        let done = self.announced.follow(self.view.net(), &interfaces, device.as_deref(), &wanted).await;
        self.announce_trouble = done.as_ref().err().map(|error| error.message.clone());
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_boot_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let mut announced = Announced::open(directory.path());
        assert!(announced.addresses.is_empty());
        announced.addresses.insert(("eth0".to_owned(), IpAddr::from([10, 0, 0, 9])));
        announced.save().unwrap();
        assert_eq!(Announced::open(directory.path()).addresses(), [IpAddr::from([10, 0, 0, 9])].into());
        let path = directory.path().join("announced.json");
        let text = fs::read_to_string(&path).unwrap().replace(&boot(), "another");
        fs::write(&path, text).unwrap();
        assert!(Announced::open(directory.path()).addresses.is_empty());
        announced.addresses.clear();
        announced.save().unwrap();
        assert!(!path.exists(), "nothing announced, nothing kept");
    }
}
