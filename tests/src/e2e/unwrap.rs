//! What a backend of the tunnelling modes needs, for kernels that have no tunnel devices: it takes outer headers off in
//! user space. Sockets receive what lb wraps, so that the kernel has judged the outer header (its checksums too), and
//! tun devices of the names that the kernel's own would have take in what was inside.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write as _,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{lab::Host, state::Mode};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt},
};

use super::PATIENCE;

/// The port of `gue`.
const GUE_PORT: u16 = 6080;
/// The device for IPv4 in IPv4, for IPv6 in IPv4, and for both in IPv6.
pub const DEVICES: [&str; 3] = ["tunl0", "sit0", "ip6tnl0"];

nix::ioctl_write_ptr!(
    /// Makes an open `/dev/net/tun` a device.
    set_interface,
    b'T',
    202,
    libc::c_int
);

/// What was unwrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets inside.
    pub bytes: u64,
    /// The longest packet inside.
    pub longest: usize,
    /// Who wrapped them.
    pub senders: BTreeSet<IpAddr>,
}

/// Takes outer headers off on a host, until it is dropped.
pub struct Unwrapper {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

impl Unwrapper {
    /// Starts it for packets of a mode to both of a host's addresses; its devices are there, but down.
    pub fn start(host: &Host, mode: Mode) -> Result<Self> {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let devices = host.spawn(|| DEVICES.map(tun));
        let devices = devices.join().map_err(|_| anyhow::anyhow!("making devices failed"))??;
        let [in_v4, sit, in_v6] = devices;
        let (in_v4, sit, in_v6) = (Arc::new(in_v4?), Arc::new(sit?), Arc::new(in_v6?));
        let sockets = host.spawn(move || sockets(mode));
        let sockets = sockets.join().map_err(|_| anyhow::anyhow!("opening sockets failed"))??;
        let mut threads = Vec::new();
        for (outer, socket) in sockets? {
            let (over, seen) = (Arc::clone(&over), Arc::clone(&seen));
            let into = if outer == Outer::V6 { [&in_v6, &in_v6] } else { [&in_v4, &sit] }.map(Arc::clone);
            threads.push(std::thread::spawn(move || {
                let mut packet = vec![0; 1 << 16];
                while !over.load(Ordering::Relaxed) {
                    let Ok((length, from)) = receive(&socket, &mut packet) else { continue };
                    let Some(inner) = outer.take_off(&packet[..length]) else { continue };
                    if let Ok(mut seen) = seen.lock() {
                        seen.packets += 1;
                        seen.bytes += inner.len() as u64;
                        seen.longest = seen.longest.max(inner.len());
                        seen.senders.extend(from);
                    }
                    let mut device = &*into[usize::from(inner[0] >> 4 == 6)];
                    // A device that is down takes nothing: as with the kernel's own.
                    let _ = device.write_all(inner);
                }
            }));
        }
        Ok(Self { over, seen, threads })
    }

    /// What came so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

impl Drop for Unwrapper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has nothing to tell any more.
            let _ = thread.join();
        }
    }
}

/// What stands in front of the inner packet as a socket gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outer {
    /// Raw sockets of IPv4 give the IP header too.
    V4,
    /// The kernel has taken the IPv6 header off.
    V6,
    /// The kernel has taken IPv4 and UDP headers off.
    Udp4,
}

impl Outer {
    fn take_off(self, packet: &[u8]) -> Option<&[u8]> {
        let header = if self == Self::V4 { usize::from(packet.first()? & 15) * 4 } else { 0 };
        packet.get(header..).filter(|inner| matches!(inner.first().map(|first| first >> 4), Some(4 | 6)))
    }
}

/// A tun device of a name, in the calling thread's network.
fn tun(name: &'static str) -> Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid `ifreq`: numbers and bytes.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which this is; the number in its name says `int` for history's sake.
    unsafe { set_interface(device.as_raw_fd(), (&raw mut request).cast()) }.with_context(|| format!("make {name}"))?;
    Ok(device)
}

fn sockets(mode: Mode) -> Result<Vec<(Outer, UdpSocket)>> {
    ensure!(mode.is_tunnel(), "mode '{mode}' wraps nothing");
    let mut sockets = Vec::new();
    if mode == Mode::Gue {
        sockets.push((Outer::Udp4, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GUE_PORT))?));
        let v6 = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), SockProtocol::Udp)?;
        setsockopt(&v6, sockopt::Ipv6V6Only, &true)?;
        let any =
            nix::sys::socket::SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, GUE_PORT, 0, 0));
        nix::sys::socket::bind(v6.as_raw_fd(), &any)?;
        sockets.push((Outer::V6, UdpSocket::from(v6)));
    } else {
        for (family, outer) in [(libc::AF_INET, Outer::V4), (libc::AF_INET6, Outer::V6)] {
            for protocol in [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6] {
                sockets.push((outer, raw(family, protocol)?));
            }
        }
    }
    for (_, socket) in &sockets {
        setsockopt(socket, sockopt::RcvBuf, &(8 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    }
    Ok(sockets)
}

/// A raw socket for a protocol that `nix` has no name for.
fn raw(family: libc::c_int, protocol: libc::c_int) -> Result<UdpSocket> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: plain numbers; the result is looked at before it is owned.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    nix::errno::Errno::result(descriptor).context("raw socket")?;
    // SAFETY: the descriptor was just made, and nobody else has it. It is a socket of an internet family, whose
    // addresses are those of UDP; nothing but receiving is asked of it.
    Ok(unsafe { UdpSocket::from_raw_fd(descriptor) })
}

fn receive(socket: &UdpSocket, packet: &mut [u8]) -> std::io::Result<(usize, Option<IpAddr>)> {
    let (length, from): (usize, SocketAddr) = socket.recv_from(packet)?;
    Ok((length, Some(from.ip())))
}

/// Waits until nothing comes any more.
pub fn settled(all: &[Unwrapper]) -> Vec<Seen> {
    let look = || all.iter().map(Unwrapper::seen).collect::<Vec<_>>();
    let begun = std::time::Instant::now();
    let mut last = look();
    while begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(300));
        let now = look();
        if now == last {
            break;
        }
        last = now;
    }
    last
}
