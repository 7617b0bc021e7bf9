//! UDP: a datagram, and what becomes of it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::probe::{Clock, Why, holds, words};
use crate::state::Exchange;

/// Sends a datagram. An ICMP error is down. When something is expected it must come; when nothing is, silence is up,
/// and so is any answer.
pub async fn check(address: SocketAddr, exchange: &Exchange, clock: Clock) -> Result<(), Why> {
    let any = if address.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let failed = |error| -> Why { format!("udp: {}", udp_words(error)).into() };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    // Connected, so that the kernel reports ICMP errors, and others' datagrams are not taken for answers.
    socket.connect(address).await.map_err(failed)?;
    socket.send(&exchange.send.0).await.map_err(failed)?;
    let mut answer = vec![0; 64 << 10];
    let Some(received) = clock.until_end(socket.recv(&mut answer)).await else {
        return if exchange.expect.is_empty() { Ok(()) } else { Err(clock.late("udp: answer")) };
    };
    let length = received.map_err(failed)?;
    if holds(&answer[..length], &exchange.expect.0) {
        Ok(())
    } else {
        Err("udp: the answer has not what is expected".into())
    }
}

fn udp_words(error: std::io::Error) -> Why {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "port unreachable".into(),
        _ => words(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn run(address: SocketAddr, send: &str, expect: &str) -> Result<(), Why> {
        let exchange = Exchange { send: send.parse().unwrap(), expect: expect.parse().unwrap() };
        check(address, &exchange, Clock::start(Duration::from_millis(300))).await
    }

    /// Answers "ping" with "pong", and nothing else.
    async fn server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut asked = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut asked).await {
                if &asked[..length] == b"ping" {
                    socket.send_to(b"\x00pong", from).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn what_is_expected_must_come() {
        let address = server().await;
        assert_eq!(run(address, "ping", "pong").await, Ok(()));
        assert_eq!(run(address, "ping", "hex:00706f").await, Ok(()));
        assert_eq!(run(address, "ping", "ping").await, Err("udp: the answer has not what is expected".into()));
        assert_eq!(run(address, "hello", "pong").await, Err("udp: answer: timed out after 300ms".into()));
    }

    #[tokio::test]
    async fn silence_is_up_and_unreachable_is_down() {
        let address = server().await;
        assert_eq!(run(address, "hello", "").await, Ok(()));
        assert_eq!(run(address, "", "").await, Ok(()), "an empty datagram");
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(run(closed, "", "").await, Err("udp: port unreachable".into()));
        assert_eq!(run(closed, "ping", "pong").await, Err("udp: port unreachable".into()));
    }
}
