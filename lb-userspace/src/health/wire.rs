//! The packet sockets under [`through_vip`](super::through_vip): one for each VIP, shared by all its probes, because
//! the kernel takes its time to close one. It hears TCP from the VIP only, and knows whom a port belongs to.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lb_common::{Be16, Be32, outer};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, Receiver, Sender},
    task::AbortHandle,
};

use super::through_vip::Way;

/// Longest packet that is read: what GRO makes of several.
const LONGEST: usize = 64 << 10;
/// Packets that wait for one connection; more are lost, and sent again.
const WAITING: usize = 64;

/// Whom packets to a port are for.
type Ports = Arc<Mutex<HashMap<u16, Sender<Vec<u8>>>>>;

/// See the module.
#[derive(Debug)]
pub struct Wire {
    /// A packet socket whose packets begin with the IP header; tokio only needs to know that it is a socket.
    socket: Arc<UdpSocket>,
    ports: Ports,
    reader: AbortHandle,
}

impl Wire {
    /// Listens for what backends send as the VIP. Called within a runtime.
    pub fn open(vip: IpAddr) -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain numbers. Protocol 0: nothing arrives before the filter is in place.
        let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let socket = Socket::from(owned);
        socket.attach_filter(&filter(vip))?;
        let place = libc::sockaddr_ll { sll_protocol: ether_type(vip).to_be(), ..NOWHERE };
        // SAFETY: an address of the family's own type and size.
        let bound = unsafe { libc::bind(descriptor, (&raw const place).cast(), size_of_val(&place) as u32) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let ports = Ports::default();
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&ports))).abort_handle();
        Ok(Self { socket, ports, reader })
    }

    /// Packets to a port, from now on.
    pub fn listen(&self, port: u16) -> Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        lock(&self.ports).insert(port, sender);
        receiver
    }

    /// No more packets to a port.
    pub fn forget(&self, port: u16) {
        lock(&self.ports).remove(&port);
    }

    /// Sends an IP packet to the backend, wrapped.
    pub fn send(&self, packet: &[u8], way: &Way) -> io::Result<()> {
        let wrapped = way.wrap.around(packet);
        let outer = match way.wrap {
            Wrap::Bare => way.vip.ip(),
            Wrap::Ip(_, to) | Wrap::Udp(_, to, _) => to,
        };
        let mut place = libc::sockaddr_ll {
            sll_protocol: ether_type(outer).to_be(),
            sll_ifindex: way.ifindex.cast_signed(),
            sll_halen: 6,
            ..NOWHERE
        };
        place.sll_addr[..6].copy_from_slice(&way.mac);
        // SAFETY: the packet's bytes, and an address of the family's own type and size; both are only read.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                wrapped.as_ptr().cast(),
                wrapped.len(),
                0,
                (&raw const place).cast(),
                size_of_val(&place) as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn lock(ports: &Ports) -> MutexGuard<'_, HashMap<u16, Sender<Vec<u8>>>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands packets to whom they are for.
async fn read(socket: Arc<UdpSocket>, ports: Ports) {
    let mut packet = vec![0; LONGEST];
    loop {
        let Ok(length) = socket.recv(&mut packet).await else {
            // An interface that went down says so once.
            tokio::task::yield_now().await;
            continue;
        };
        let packet = &packet[..length];
        let Some(sender) = port_of(packet).and_then(|port| lock(&ports).get(&port).cloned()) else { continue };
        let _ = sender.try_send(packet.to_vec());
    }
}

/// A TCP segment's destination port.
fn port_of(packet: &[u8]) -> Option<u16> {
    let first = packet.first()?;
    let header = if first >> 4 == 4 { usize::from(first & 15) * 4 } else { 40 };
    let [high, low] = *packet.get(header + 2..)?.first_chunk()?;
    Some(u16::from_be_bytes([high, low]))
}

/// A port of an address that is nobody else's until the socket is closed. What comes to it is swallowed by a filter:
/// the kernel answers nothing.
pub fn hold_port(address: IpAddr) -> io::Result<(OwnedFd, u16)> {
    let place = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(place), Type::STREAM, None)?;
    socket.attach_filter(&[step(libc::BPF_RET | libc::BPF_K, 0, 0, 0)])?;
    socket.bind(&place.into())?;
    socket.listen(1)?;
    let port = socket.local_addr()?.as_socket().map_or(0, |place| place.port());
    Ok((socket.into(), port))
}

const NOWHERE: libc::sockaddr_ll = libc::sockaddr_ll {
    sll_family: libc::AF_PACKET as u16,
    sll_protocol: 0,
    sll_ifindex: 0,
    sll_hatype: 0,
    sll_pkttype: 0,
    sll_halen: 0,
    sll_addr: [0; 8],
};

const fn ether_type(address: IpAddr) -> u16 {
    if address.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// A classic BPF instruction.
const fn step(code: u32, if_true: u8, if_false: u8, k: u32) -> SockFilter {
    SockFilter::new(code as u16, if_true, if_false, k)
}

/// Lets TCP from an address pass, so that other packets do not wake us. Offsets are from the IP header.
fn filter(from: IpAddr) -> Vec<SockFilter> {
    const BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let (protocol_at, source_at, bytes) = match from {
        IpAddr::V4(v4) => (9, 12, v4.octets().to_vec()),
        IpAddr::V6(v6) => (6, 8, v6.octets().to_vec()),
    };
    let mut tests = vec![(BYTE, protocol_at, 6)];
    for (at, word) in (source_at..).step_by(4).zip(bytes.chunks(4)) {
        tests.push((WORD, at, u32::from_be_bytes([word[0], word[1], word[2], word[3]])));
    }
    let total = tests.len() * 2 + 2;
    let mut program = Vec::new();
    for (load, at, value) in tests {
        program.push(step(load, 0, 0, at));
        // To the last instruction, from the one behind this.
        let reject = total - program.len() - 2;
        program.push(step(IS, 0, reject as u8, value));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    program
}

/// What is put in front of packets; outer source and destination are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// Nothing (`dsr`).
    Bare,
    /// An IP header (`ipip`).
    Ip(IpAddr, IpAddr),
    /// IP and UDP headers to a port (`gue`).
    Udp(IpAddr, IpAddr, u16),
}

impl Wrap {
    /// Bytes that it puts in front.
    pub fn overhead(self) -> usize {
        let ip = |address: IpAddr| usize::from(if address.is_ipv4() { outer::IPV4 } else { outer::IPV6 });
        match self {
            Self::Bare => 0,
            Self::Ip(_, to) => ip(to),
            Self::Udp(_, to, _) => ip(to) + usize::from(outer::UDP),
        }
    }

    /// A TCP packet without IP options, with what goes in front of it.
    fn around(self, packet: &[u8]) -> Vec<u8> {
        let word = |at: usize| u32::from_ne_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let is_v4 = packet[0] >> 4 == 4;
        let inner = if is_v4 {
            outer::Inner::ipv4(word(0), u16::from_ne_bytes([packet[6], packet[7]]))
        } else {
            outer::Inner::ipv6(word(0), packet.len() as u16)
        };
        let (from, to, port) = match self {
            Self::Bare => return packet.to_vec(),
            Self::Ip(from, to) => (from, to, None),
            Self::Udp(from, to, port) => (from, to, Some(Be16::new(port))),
        };
        // One connection, one path: the ports are entropy enough.
        let entropy = word(if is_v4 { 20 } else { 40 });
        let source_port = outer::source_port(entropy);
        let (header, checksum) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (Be32::new(from.to_bits()), Be32::new(to.to_bits()));
                let id = getrandom::u32().unwrap_or_default() as u16;
                (outer::ipv4(&inner, port.is_some(), id, from, to).to_vec(), 0)
            }
            _ => {
                let (from, to) = (words(from), words(to));
                let header = outer::ipv6(&inner, port.is_some(), outer::flow_label(entropy), from, to);
                let sum = if is_v4 {
                    outer::sum_ipv4(Be32(word(12)), Be32(word(16)), packet[9], (packet.len() - 20) as u16)
                } else {
                    outer::sum_ipv6([word(0), word(4)], packet[6], 0, 0)
                };
                let ports = (source_port, port.unwrap_or_default());
                (header.to_vec(), outer::udp_checksum(&inner, sum, ports, from, to))
            }
        };
        let udp = port.map(|port| outer::udp(&inner, source_port, port, checksum));
        let words = header.into_iter().chain(udp.into_iter().flatten());
        words.flat_map(u32::to_ne_bytes).chain(packet.iter().copied()).collect()
    }
}

/// An address's words as they stand in a header.
fn words(address: IpAddr) -> [Be32; 4] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [96, 64, 32, 0].map(|shift: u32| Be32::new((bits >> shift) as u32))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_held_port_is_nobody_elses_and_answers_nothing() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let (_held, port) = hold_port(address).unwrap();
            assert!(TcpListener::bind((address, port)).is_err());
            let wait = std::time::Duration::from_millis(300);
            let asked = TcpStream::connect_timeout(&SocketAddr::new(address, port), wait);
            assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::TimedOut, "neither opened nor reset");
        }
    }

    #[test]
    fn a_segments_port_is_behind_options() {
        let mut packet = vec![0; 64];
        packet[0] = 0x46;
        packet[26..28].copy_from_slice(&8080u16.to_be_bytes());
        assert_eq!(port_of(&packet), Some(8080));
        packet[0] = 0x60;
        packet[42..44].copy_from_slice(&443u16.to_be_bytes());
        assert_eq!(port_of(&packet), Some(443));
        assert_eq!(port_of(&packet[..43]), None);
        assert_eq!(port_of(&[]), None);
    }
}
