//! What a driver says of itself: its name and offloads (the ethtool ioctl), and what its XDP can do (the kernel's
//! generic netlink family `netdev`, from Linux 6.3).

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, RawFd},
};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// What is known of an interface's driver; `None` = it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Its name, as in `ethtool -i`.
    pub name: Option<String>,
    /// Bits of [`xdp`].
    pub xdp: Option<u64>,
    /// Received packets are merged before generic XDP sees them.
    pub gro: Option<bool>,
    /// Received packets are merged by the card; native XDP does not go with that.
    pub lro: Option<bool>,
    /// VLAN tags are taken off before native XDP sees the frame.
    pub rxvlan: Option<bool>,
}

/// `NETDEV_XDP_ACT_*` (include/uapi/linux/netdev.h).
pub mod xdp {
    /// Native XDP at all.
    pub const BASIC: u64 = 1;
    /// `XDP_REDIRECT`.
    pub const REDIRECT: u64 = 2;
    /// Takes what others redirect to it.
    pub const TRANSMIT: u64 = 4;
    /// Frames in several buffers (jumbo frames).
    pub const FRAGMENTS: u64 = 32;
}

/// Commands and flags of the ioctl (include/uapi/linux/ethtool.h).
const GET_DRIVER: u32 = 0x3;
const GET_FLAGS: u32 = 0x25;
const GET_GRO: u32 = 0x2b;
const FLAG_LRO: u32 = 1 << 15;
const FLAG_RXVLAN: u32 = 1 << 8;

impl Driver {
    /// Asks.
    #[must_use]
    pub fn of(name: &str, ifindex: u32) -> Self {
        let mut driver = Self { xdp: features(ifindex).ok().flatten(), ..Self::default() };
        let Ok(socket) = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("::1", 0))) else {
            return driver;
        };
        let fd = socket.as_raw_fd();
        // `struct ethtool_drvinfo`: the command, then the driver's name in 32 bytes.
        let mut info = [0u8; 196];
        if ethtool(fd, name, GET_DRIVER, &mut info).is_ok() {
            let text: Vec<u8> = info[4..36].iter().copied().take_while(|byte| *byte != 0).collect();
            driver.name = String::from_utf8(text).ok().filter(|text| !text.is_empty());
        }
        let value = |command| {
            // `struct ethtool_value`: the command, then a word.
            let mut value = [0u8; 8];
            ethtool(fd, name, command, &mut value).ok()?;
            Some(u32::from_ne_bytes([value[4], value[5], value[6], value[7]]))
        };
        driver.gro = value(GET_GRO).map(|word| word != 0);
        let flags = value(GET_FLAGS);
        driver.lro = flags.map(|word| word & FLAG_LRO != 0);
        driver.rxvlan = flags.map(|word| word & FLAG_RXVLAN != 0);
        driver
    }
}

/// One `SIOCETHTOOL`; the answer is written over the question.
fn ethtool(socket: RawFd, name: &str, command: u32, data: &mut [u8]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // `struct ifreq`: a name of 16 bytes, then a union whose member here is a pointer.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        data: *mut u8,
        rest: [u8; 16],
    }
    data[..4].copy_from_slice(&command.to_ne_bytes());
    let mut request = Request { name: [0; 16], data: data.as_mut_ptr(), rest: [0; 16] };
    let length = name.len().min(15);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: `request` has the layout of `struct ifreq`, and its pointer leads to as many bytes as the command writes
    // (196 for GET_DRIVER, 8 for the others), which outlive the call.
    let done = unsafe { libc::ioctl(socket, SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Generic netlink: its controller, and the family `netdev`.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// The XDP features of an interface, where the kernel says them.
fn features(ifindex: u32) -> io::Result<Option<u64>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let answer = ask(&socket, CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0")?;
    let Some(id) = attribute(&answer, FAMILY_ID).and_then(|id| Some(u16::from_ne_bytes(id.get(..2)?.try_into().ok()?)))
    else {
        return Ok(None);
    };
    let answer = ask(&socket, id, GET_DEVICE, DEVICE_IFINDEX, &ifindex.to_ne_bytes())?;
    let features = attribute(&answer, DEVICE_XDP_FEATURES);
    Ok(features.and_then(|bytes| Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?))))
}

/// Asks with one attribute; gives the attributes of the answer.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    const HEADERS: usize = 20;
    const ERROR: u16 = 2;
    let padded = value.len().next_multiple_of(4);
    let mut message = Vec::with_capacity(HEADERS + 4 + padded);
    // `struct nlmsghdr` (request), `struct genlmsghdr`, `struct nlattr`.
    message.extend((HEADERS as u32 + 4 + padded as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(1u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(HEADERS + 4 + padded, 0);
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match answer.get(4..6) {
        Some(kind) if kind != ERROR.to_ne_bytes() && answer.len() >= HEADERS => Ok(answer[HEADERS..].to_vec()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The value of an attribute in a run of them.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let bytes = [5, 0, 7, 0, 1, 0, 0, 0, 6, 0, 9, 0, 2, 3, 0, 0];
        assert_eq!(attribute(&bytes, 9), Some(&[2, 3][..]));
        assert_eq!(attribute(&bytes, 8), None);
        assert_eq!(attribute(&[9, 0, 1, 0, 0], 1), None, "longer than what is there");
    }

    #[test]
    fn the_loopback_device_says_what_it_is() {
        let driver = Driver::of("lo", 1);
        assert_eq!(driver.gro, Some(true), "{driver:?}");
    }
}
