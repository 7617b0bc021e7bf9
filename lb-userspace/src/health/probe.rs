//! One probe of one backend.

use std::{future::Future, time::Duration};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::Target;
use crate::state::Probe;

/// Probes; the error says why in words.
pub async fn probe(target: &Target) -> Result<(), String> {
    let within = target.check.timeout;
    match &target.check.probe {
        Probe::None => Ok(()),
        Probe::Tcp(_) => limit(within, "connect", connect(target)).await.map(drop),
        Probe::Http(http) => {
            let stream = limit(within, "connect", connect(target)).await?;
            limit(within, "http", get(stream, &target.host, &http.path)).await
        }
        other => Err(format!("{}: not in this version", other.word())),
    }
}

async fn limit<T>(within: Duration, step: &str, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match timeout(within, work).await {
        Ok(done) => done.map_err(|why| format!("{step}: {why}")),
        Err(_) => Err(format!("{step}: timed out after {within:?}")),
    }
}

async fn connect(target: &Target) -> Result<TcpStream, String> {
    TcpStream::connect(target.address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    })
}

/// GET; 200 to 399 is up, redirects are not followed.
async fn get(stream: TcpStream, host: &str, path: &str) -> Result<(), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header("Host", host)
        .header("User-Agent", "lb-health")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string());
    connection.abort();
    let status = answer?.status();
    if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        reconcile::BackendKey,
        state::{HealthCheck, Protocol},
    };

    fn target(address: SocketAddr, probe: Probe) -> Target {
        let check =
            HealthCheck { probe, timeout: Duration::from_millis(300), ..HealthCheck::default_for(Protocol::Tcp) };
        Target { key: BackendKey { service: "web".into(), address }, address, host: "10.0.0.10".into(), check }
    }

    /// A server that reads a request and answers with `answer`, or never when that is empty.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap_or(0);
                if answer.is_empty() {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                assert!(read == 0 || request.starts_with(b"GET /healthz"), "{}", String::from_utf8_lossy(&request));
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn http() -> Probe {
        "http:/healthz".parse().unwrap()
    }

    #[tokio::test]
    async fn a_listening_port_is_enough_for_tcp() {
        let address = server("").await;
        assert_eq!(probe(&target(address, Probe::tcp())).await, Ok(()));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for kind in [Probe::tcp(), http()] {
            assert_eq!(probe(&target(closed, kind)).await, Err("connect: connection refused".into()));
        }
    }

    #[tokio::test]
    async fn http_status_decides() {
        let up = server("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(&target(up, http())).await, Ok(()));
        let down = server("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(&target(down, http())).await, Err("http: status 503".into()));
    }

    #[tokio::test]
    async fn silence_and_garbage_are_down() {
        let silent = server("").await;
        assert_eq!(probe(&target(silent, http())).await, Err("http: timed out after 300ms".into()));
        let garbage = server("SSH-2.0-x\r\n\r\n").await;
        assert!(probe(&target(garbage, http())).await.unwrap_err().starts_with("http: "));
    }
}
