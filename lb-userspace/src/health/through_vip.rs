//! Connections to the VIP *on one backend*, the way that clients' packets go in direct-return modes: `via = "vip"`.
//!
//! No socket of this host can make them: to the host the VIP is an address of its own, or one that all backends share.
//! So TCP runs here, in user space (smoltcp). Its packets leave through a packet socket ([`wire`](super::wire)) to
//! the backend's next hop, wrapped as the mode wraps them, and what the backend answers, straight from the VIP, is
//! read off the same socket. A backend that lacks the VIP never answers: it is down, as it is for clients.
//!
//! Nothing gets in anybody's way: the port is one that the kernel gave to a listening socket of ours, so that no
//! connection of the host's and no NAT port is the same; a filter on that socket swallows the answers, so that the
//! kernel does not reset what it knows nothing of; and the data path passes what is for none of its flows.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::Instant as Tick,
    wire::{HardwareAddress, IpAddress, IpCidr},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc::Receiver,
    time::sleep,
};

use super::wire::{Wire, Wrap};

/// A way, and the socket for it.
pub type Road = (Way, Arc<Wire>);

/// How packets reach the VIP on one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Address of lb's own that the backend answers to.
    pub source: IpAddr,
    /// What is connected to.
    pub vip: SocketAddr,
    /// Destination MAC address.
    pub mac: [u8; 6],
    /// Where packets leave.
    pub ifindex: u32,
    /// Largest layer-3 packet on the way.
    pub mtu: u32,
    /// What is put in front of them.
    pub wrap: Wrap,
}

/// Bytes that are buffered in each direction.
const BUFFER: usize = 64 << 10;
/// Largest segments are made for no more than this.
const MTU: usize = 1500;
/// Time between two looks at the clock when nothing happens.
const LONGEST_NAP: Duration = Duration::from_millis(500);

/// Opens a TCP connection to the VIP on a backend. Dropping the stream resets it. The caller limits the time.
///
/// # Errors
/// In words: the backend refuses, or this host cannot send.
pub async fn connect(way: Way, wire: Arc<Wire>) -> Result<DuplexStream, String> {
    let mut stack = Stack::new(way, wire).map_err(|error| format!("socket: {error}"))?;
    loop {
        match stack.turn() {
            State::SynSent | State::SynReceived => stack.wait().await,
            State::Closed | State::TimeWait => return Err("connection refused".to_owned()),
            _ => break,
        }
    }
    let (near, far) = duplex(BUFFER);
    tokio::spawn(carry(stack, far));
    Ok(near)
}

/// Carries bytes between the connection and its user, until one of them ends it.
async fn carry(mut stack: Stack, far: DuplexStream) {
    let (mut reader, mut writer) = split(far);
    let mut open = true;
    loop {
        stack.turn();
        if open && (deliver(&mut stack, &mut writer).await.is_err() || !stack.socket().may_recv()) {
            open = false;
            // The user sees the end, and may still write.
            let _ = writer.shutdown().await;
        }
        if !stack.socket().is_open() || !fetch(&mut stack, &mut reader).await {
            return;
        }
    }
}

/// What came, to the user.
async fn deliver(stack: &mut Stack, writer: &mut WriteHalf<DuplexStream>) -> io::Result<()> {
    let mut bytes = [0; 4096];
    while stack.socket().can_recv() {
        let length = stack.socket().recv_slice(&mut bytes).unwrap_or(0);
        writer.write_all(&bytes[..length]).await?;
    }
    Ok(())
}

/// Waits for what the user writes, for packets, or for time to pass; false when the user is gone.
async fn fetch(stack: &mut Stack, reader: &mut ReadHalf<DuplexStream>) -> bool {
    let mut bytes = [0; 4096];
    let socket = stack.socket();
    let room = (socket.send_capacity() - socket.send_queue()).min(bytes.len());
    let can_send = socket.may_send() && room > 0;
    tokio::select! {
        read = reader.read(&mut bytes[..room.max(1)]), if can_send => match read {
            Ok(length) if length > 0 => {
                // There is room for all of it.
                let _ = stack.socket().send_slice(&bytes[..length]);
                true
            }
            _ => false,
        },
        () = stack.wait() => true,
    }
}

/// One connection with the stack under it.
struct Stack {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    begun: Instant,
    /// Has the port; nothing is ever read off it.
    _port: OwnedFd,
}

impl Stack {
    fn new(way: Way, wire: Arc<Wire>) -> io::Result<Self> {
        let (held, port) = super::wire::hold_port(way.source)?;
        let incoming = wire.listen(port);
        let mut link = Link { wire, way, port, incoming, next: None };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = getrandom::u64().unwrap_or_default();
        let mut interface = Interface::new(config, &mut link, Tick::ZERO);
        let source = IpAddress::from(way.source);
        interface.update_ip_addrs(|addresses| {
            // There is room for at least one. Everything is on its network: there are no neighbours to find.
            let _ = addresses.push(IpCidr::new(source, 0));
        });
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let to = (IpAddress::from(way.vip.ip()), way.vip.port());
        socket.connect(interface.context(), to, (source, port)).map_err(|e| io::Error::other(e.to_string()))?;
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Ok(Self { link, interface, sockets, handle, begun: Instant::now(), _port: held })
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn now(&self) -> Tick {
        Tick::from_micros(i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes what came, sends what is due; gives the connection's state.
    fn turn(&mut self) -> State {
        let now = self.now();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.socket().state()
    }

    /// Waits for a packet, or until something is due.
    async fn wait(&mut self) {
        let now = self.now();
        let due = self.interface.poll_delay(now, &self.sockets).map_or(LONGEST_NAP, Duration::from);
        tokio::select! {
            packet = self.link.incoming.recv() => self.link.next = packet,
            () = sleep(due.min(LONGEST_NAP)) => {}
        }
    }
}

impl Drop for Stack {
    /// The backend shall not keep half a connection.
    fn drop(&mut self) {
        self.socket().abort();
        self.turn();
    }
}

/// The way out and in, as smoltcp wants it.
struct Link {
    wire: Arc<Wire>,
    way: Way,
    port: u16,
    incoming: Receiver<Vec<u8>>,
    /// A packet that was waited for.
    next: Option<Vec<u8>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.wire.forget(self.port);
    }
}

/// A packet that came.
struct Received(Vec<u8>);

/// A packet to be.
struct Sending<'a>(&'a Link);

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Tick) -> Option<(Received, Sending<'_>)> {
        let packet = self.next.take().or_else(|| self.incoming.try_recv().ok())?;
        Some((Received(packet), Sending(self)))
    }

    fn transmit(&mut self, _: Tick) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        let way = match self.way.mtu as usize {
            0 => MTU,
            mtu => mtu.min(MTU),
        };
        capabilities.max_transmission_unit = way.saturating_sub(self.way.wrap.overhead());
        // A backend on this machine hands its checksums over unfinished.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        let way = &self.0.way;
        // What does not go out is sent again, or never arrives: the check times out, and says so.
        if let Err(error) = self.0.wire.send(&packet, way) {
            tracing::debug!(%error, vip = %way.vip, "send a probe");
        }
        result
    }
}
