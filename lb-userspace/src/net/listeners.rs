//! Who listens on which port of this host.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::state::Protocol;

/// A socket that takes connections or datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its address; unspecified = every address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The process that has it, where this one may know.
    pub process: Option<String>,
}

/// All listening sockets of the calling thread's network namespace.
#[must_use]
pub fn listeners() -> Vec<Listener> {
    let processes = processes_by_socket();
    let mut found = Vec::new();
    for (file, protocol, state) in [
        ("tcp", Protocol::Tcp, "0A"),
        ("tcp6", Protocol::Tcp, "0A"),
        ("udp", Protocol::Udp, "07"),
        ("udp6", Protocol::Udp, "07"),
    ] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let (address, port) = words.get(1)?.split_once(':')?;
            (*words.get(3)? == state).then_some(())?;
            Some(Listener {
                address: address_from_hex(address)?,
                port: u16::from_str_radix(port, 16).ok()?,
                protocol,
                process: processes.get(*words.get(9)?).cloned(),
            })
        }));
    }
    found
}

/// An address as /proc/net writes it: words in host order, in hex.
fn address_from_hex(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<u32>> = text
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::to_be))
        .collect();
    match words?.as_slice() {
        [v4] => Some(Ipv4Addr::from(*v4).into()),
        [a, b, c, d] => {
            let bits = [a, b, c, d].iter().fold(0u128, |bits, word| bits << 32 | u128::from(**word));
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

/// Names of processes by the inode of a socket of theirs.
fn processes_by_socket() -> HashMap<String, String> {
    let mut names = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let Ok(name) = fs::read_to_string(process.path().join("comm")) else { continue };
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let target = target.to_string_lossy();
            if let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                let process = process.file_name();
                names.insert(inode.to_owned(), format!("{} (pid {})", name.trim(), process.to_string_lossy()));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        assert_eq!(address_from_hex("0100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(address_from_hex("00000000000000000000000001000000"), Some(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn a_listener_is_found_with_its_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listeners().into_iter().find(|listener| listener.port == port).unwrap();
        assert_eq!((found.address, found.protocol), (IpAddr::from([127, 0, 0, 1]), Protocol::Tcp));
        assert!(found.process.unwrap().contains(&std::process::id().to_string()));
    }
}
