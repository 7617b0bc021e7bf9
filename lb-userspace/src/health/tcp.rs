//! TCP: connect, and perhaps say something and listen.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{
    probe::{Clock, Why, holds, words},
    through_vip::{self, Road},
};
use crate::state::Exchange;

/// Most that is read in search of what is expected.
const MOST: usize = 64 << 10;

/// A connection, whatever carries it.
pub type Stream = Box<dyn Duplex>;

/// What goes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// Connects; sends and expects what the exchange says.
pub async fn check(address: SocketAddr, exchange: &Exchange, road: Option<&Road>, clock: Clock) -> Result<(), Why> {
    let quiet = exchange.send.is_empty() && exchange.expect.is_empty();
    let mut stream = reach(address, road, quiet, clock).await?;
    if quiet {
        return Ok(());
    }
    clock.step("send", async { stream.write_all(&exchange.send.0).await.map_err(words) }).await?;
    if exchange.expect.is_empty() {
        return Ok(());
    }
    clock.step("answer", find(&mut stream, &exchange.expect.0)).await
}

/// Opens a connection.
pub async fn connect(address: SocketAddr, road: Option<&Road>, clock: Clock) -> Result<Stream, Why> {
    reach(address, road, false, clock).await
}

/// Opens a connection to the backend, or to the VIP on it.
async fn reach(address: SocketAddr, road: Option<&Road>, quiet: bool, clock: Clock) -> Result<Stream, Why> {
    let Some((way, wire)) = road else {
        return Ok(Box::new(clock.step("connect", open(address, quiet)).await?));
    };
    let opening = through_vip::connect(*way, std::sync::Arc::clone(wire));
    match clock.until_end(opening).await {
        Some(Ok(stream)) => Ok(Box::new(stream)),
        Some(Err(why)) => Err(format!("connect to {} there: {why}", way.vip).into()),
        None => {
            let late = clock.late(&format!("connect to {} there", way.vip));
            Err(format!("{late}: does the backend have the VIP?").into())
        }
    }
}

/// A connection that is reset when it is dropped: no port lingers in TIME_WAIT, and nobody waits for a FIN.
///
/// `quiet`: the handshake's last ACK is held back, so that the reset takes its place. The server's kernel has answered
/// for the port then, and the server itself need not wake up for a connection that is over.
async fn open(address: SocketAddr, quiet: bool) -> Result<TcpStream, Why> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(words)?;
    socket.set_zero_linger().map_err(words)?;
    if quiet {
        SockRef::from(&socket).set_tcp_quickack(false).map_err(words)?;
    }
    socket.connect(address).await.map_err(words)
}

async fn find(stream: &mut Stream, wanted: &[u8]) -> Result<(), Why> {
    let mut read = Vec::new();
    while read.len() < MOST {
        if stream.read_buf(&mut read).await.map_err(words)? == 0 {
            return Err("the connection was closed before what is expected came".into());
        }
        if holds(&read, wanted) {
            return Ok(());
        }
    }
    Err("what is expected is not in its first 64 KiB".into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    fn exchange(send: &str, expect: &str) -> Exchange {
        Exchange { send: send.parse().unwrap(), expect: expect.parse().unwrap() }
    }

    async fn run(address: SocketAddr, exchange: Exchange) -> Result<(), Why> {
        check(address, &exchange, None, Clock::start(Duration::from_millis(500))).await
    }

    /// Answers "PING\r\n" with "+PO", a moment later "NG\r\n"; everything else by closing.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut asked = [0; 64];
                    let length = stream.read(&mut asked).await.unwrap_or(0);
                    if &asked[..length] == b"PING\r\n" {
                        stream.write_all(b"+PO").await.unwrap();
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        stream.write_all(b"NG\r\n").await.unwrap();
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_listening_port_is_enough_and_its_server_is_not_woken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(run(address, Exchange::default()).await, Ok(()));
        let woken = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(woken.is_err(), "{woken:?}");
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(run(closed, Exchange::default()).await, Err("connect: connection refused".into()));
        assert_eq!(run(closed, exchange("x", "")).await, Err("connect: connection refused".into()));
    }

    #[tokio::test]
    async fn what_is_expected_may_come_in_pieces() {
        let address = server().await;
        assert_eq!(run(address, exchange("PING\\r\\n", "+PONG")).await, Ok(()));
        assert_eq!(run(address, exchange("PING\\r\\n", "")).await, Ok(()));
        let late = run(address, exchange("PING\\r\\n", "+OK")).await;
        assert_eq!(late, Err("answer: timed out after 500ms".into()));
        let closed = run(address, exchange("QUIT\\r\\n", "+OK")).await;
        assert_eq!(closed, Err("answer: the connection was closed before what is expected came".into()));
    }
}
