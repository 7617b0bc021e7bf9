//! HTTP and HTTPS: a GET, its status, and perhaps its body.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Target,
    probe::{Clock, Why, holds, over},
    tcp::{self, Stream},
    through_vip::Road,
};
use crate::{
    state::{HttpCheck, TlsCheck},
    tls::{Tls, TlsStream, Verify},
};

/// Most that is read of a body.
const MOST: usize = 64 << 10;
/// How long a set-up of TLS is used before the certificates of its authorities are read again.
const STALE: Duration = Duration::from_secs(60);

/// A GET, over TLS if `tls` says how.
pub async fn check(
    target: &Target,
    http: &HttpCheck,
    tls: Option<&TlsCheck>,
    road: Option<&Road>,
    clock: Clock,
) -> Result<(), Why> {
    let stream = tcp::connect(target.address, road, clock).await?;
    match tls {
        None => get(stream, target, http, clock).await,
        Some(tls) => {
            let stream = clock.step("tls", secure(stream, target, tls, b"http/1.1")).await?;
            get(stream, target, http, clock).await
        }
    }
}

async fn get<S>(stream: S, target: &Target, http: &HttpCheck, clock: Clock) -> Result<(), Why>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answered = clock.step("http", async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
        let request = Request::get(http.path.as_str())
            .header("Host", &target.host)
            .header("User-Agent", "lb-health")
            .header("Connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| Why::from(error.to_string()))?;
        over(connection, async {
            let answer = sender.send_request(request).await.map_err(words)?;
            let status = answer.status().as_u16();
            // A body that nobody asks about is not waited for.
            let wanted = http.expect_body.is_some() && http.expect_status.contains(status);
            let body = if wanted { body(answer).await? } else { Vec::new() };
            Ok((status, body))
        })
        .await
    });
    let (status, body) = answered.await?;
    if !http.expect_status.contains(status) {
        return Err(format!("HTTP {status}").into());
    }
    match &http.expect_body {
        Some(wanted) if !holds(&body, wanted.as_bytes()) => {
            Err(format!("HTTP {status}, but the body has not \"{wanted}\"").into())
        }
        _ => Ok(()),
    }
}

/// The beginning of a body.
async fn body(answer: Response<Incoming>) -> Result<Vec<u8>, Why> {
    let (mut body, mut read) = (answer.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) =
            frame.map_err(|_| Why::from("the connection was closed in the middle of the body"))?.into_data()
        {
            read.extend_from_slice(&data);
        }
        if read.len() >= MOST {
            read.truncate(MOST);
            break;
        }
    }
    Ok(read)
}

/// TLS over a connection, for the name that the check asks for.
pub async fn secure(
    stream: Stream,
    target: &Target,
    tls: &TlsCheck,
    protocol: &'static [u8],
) -> Result<TlsStream<Stream>, Why> {
    let host = target.host.rsplit_once(':').map_or(target.host.as_str(), |(host, _)| host);
    let address = target.address.ip().to_string();
    let said = tls.server_name.as_deref();
    // A host that only is the VIP says nothing about the server.
    let name = said.or(Some(host).filter(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err()));
    let name = name.filter(|name| !name.is_empty()).unwrap_or(&address);
    let set_up = set_up(tls, protocol).map_err(|error| Why::from(error.message))?;
    set_up.connect(name, stream).await.map_err(|error| {
        let message = error.message;
        message.strip_prefix("TLS: ").map_or(message.clone(), str::to_owned).into()
    })
}

/// The set-up of a check, from a moment ago or new.
fn set_up(tls: &TlsCheck, protocol: &'static [u8]) -> crate::Result<Tls> {
    type Known = HashMap<(TlsCheck, &'static [u8]), (Instant, Tls)>;
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let key = (tls.clone(), protocol);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some((made, set_up)) = known.get(&key)
        && made.elapsed() < STALE
    {
        return Ok(set_up.clone());
    }
    let verify = match &tls.ca_file {
        _ if !tls.verify => Verify::Nothing,
        Some(file) => Verify::File(file),
        None => Verify::System,
    };
    // A resumed session would not show that the certificate has expired.
    let set_up = Tls::new(verify, None)?.without_resumption().speaking(protocol);
    known.retain(|_, (made, _)| made.elapsed() < STALE);
    known.insert(key, (Instant::now(), set_up.clone()));
    Ok(set_up)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn words(error: hyper::Error) -> Why {
    if error.is_parse() {
        return "the answer is not HTTP".into();
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return "the connection was closed without an answer".into();
    }
    match std::error::Error::source(&error) {
        Some(source) => source.to_string().into(),
        None => error.to_string().into(),
    }
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
        health::probe::probe,
        state::{HealthCheck, Probe, Protocol},
    };

    async fn run(address: SocketAddr, change: impl FnOnce(&mut HttpCheck)) -> Result<(), Why> {
        let mut http = HttpCheck::new("/healthz");
        change(&mut http);
        let timeout = Duration::from_millis(500);
        let check = HealthCheck { probe: Probe::Http(http), timeout, ..HealthCheck::default_for(Protocol::Tcp) };
        probe(&Target { address, host: "10.0.0.10".into(), through: None, check }, None).await
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
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                assert!(request.starts_with("GET /healthz HTTP/1.1\r\nhost: 10.0.0.10\r\n"), "{request}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn the_status_decides() {
        let up = server("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(run(up, |_| {}).await, Ok(()));
        assert_eq!(run(up, |http| http.expect_status = "200".parse().unwrap()).await, Err("HTTP 302".into()));
        let down = server("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(run(down, |_| {}).await, Err("HTTP 503".into()));
        assert_eq!(run(down, |http| http.expect_status = "200,503".parse().unwrap()).await, Ok(()));
    }

    #[tokio::test]
    async fn the_body_decides_if_asked() {
        let cut_off = server("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstatus: ready").await;
        assert_eq!(run(cut_off, |_| {}).await, Ok(()), "nobody waits for the rest of the body");
        let wanted = |text: &'static str| move |http: &mut HttpCheck| http.expect_body = Some(text.into());
        let cut = run(cut_off, wanted("ready")).await;
        assert_eq!(cut, Err("http: the connection was closed in the middle of the body".into()));
        let whole = server("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nstatus: ready").await;
        assert_eq!(run(whole, wanted("ready")).await, Ok(()));
        let missing = run(whole, wanted("leader")).await;
        assert_eq!(missing, Err("HTTP 200, but the body has not \"leader\"".into()));
    }

    #[tokio::test]
    async fn silence_and_garbage_are_down() {
        let silent = server("").await;
        assert_eq!(run(silent, |_| {}).await, Err("http: timed out after 500ms".into()));
        let garbage = server("SSH-2.0-x\r\n\r\n").await;
        assert_eq!(run(garbage, |_| {}).await, Err("http: the answer is not HTTP".into()));
    }
}
