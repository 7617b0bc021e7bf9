//! gRPC's health service: one call of `grpc.health.v1.Health/Check`
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! The request has one field and so has the answer: they are written and read here by hand.

use h2::{RecvStream, client};
use hyper::{HeaderMap, Method, Request, Version, body::Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Target,
    http::secure,
    probe::{Clock, Why, over},
    tcp,
    through_vip::Road,
};
use crate::state::GrpcCheck;

/// Most that is read of an answer.
const MOST: usize = 4 << 10;

/// Asks; up is `SERVING`.
pub async fn check(target: &Target, grpc: &GrpcCheck, road: Option<&Road>, clock: Clock) -> Result<(), Why> {
    let stream = tcp::connect(target.address, road, clock).await?;
    let scheme = if grpc.tls.is_some() { "https" } else { "http" };
    match &grpc.tls {
        None => clock.step("grpc", call(stream, target, grpc, scheme)).await,
        Some(tls) => {
            let stream = clock.step("tls", secure(stream, target, tls, b"h2")).await?;
            clock.step("grpc", call(stream, target, grpc, scheme)).await
        }
    }
}

async fn call<S>(stream: S, target: &Target, grpc: &GrpcCheck, scheme: &str) -> Result<(), Why>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, connection) = client::handshake(stream).await.map_err(words)?;
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("{scheme}://{}/grpc.health.v1.Health/Check", target.host))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "lb-health")
        .body(())
        .map_err(|error| Why::from(error.to_string()))?;
    over(connection, async {
        let mut sender = sender.ready().await.map_err(words)?;
        let (answer, mut body) = sender.send_request(request, false).map_err(words)?;
        body.send_data(frame(&grpc.service), true).map_err(words)?;
        let answer = answer.await.map_err(words)?;
        let status = answer.status();
        if status != 200 {
            return Err(format!("HTTP {}", status.as_u16()).into());
        }
        // A call that fails at once has its status in the headers.
        fine(answer.headers())?;
        let mut body = answer.into_body();
        let message = read(&mut body).await?;
        if let Some(trailers) = body.trailers().await.map_err(words)? {
            fine(&trailers)?;
        }
        serving(&message)
    })
    .await
}

/// A `HealthCheckRequest` with gRPC's five bytes before it.
fn frame(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, a string.
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, Why> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(words)?;
        read.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).map_err(words)?;
        if read.len() > MOST {
            return Err("the answer is too long".into());
        }
    }
    Ok(read)
}

/// What `grpc-status` says, if it is there.
fn fine(headers: &HeaderMap) -> Result<(), Why> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text("grpc-status") else { return Ok(()) };
    let name = match status {
        "0" => return Ok(()),
        "5" => return Err("NOT_FOUND: the server does not know this service".into()),
        "12" => return Err("UNIMPLEMENTED: the server has no health service".into()),
        "4" => "DEADLINE_EXCEEDED",
        "7" => "PERMISSION_DENIED",
        "13" => "INTERNAL",
        "14" => "UNAVAILABLE",
        "16" => "UNAUTHENTICATED",
        other => return Err(format!("status {other}: {}", text("grpc-message").unwrap_or("")).into()),
    };
    Err(format!("{name}: {}", text("grpc-message").unwrap_or("")).into())
}

/// Whether a framed `HealthCheckResponse` says `SERVING`.
fn serving(framed: &[u8]) -> Result<(), Why> {
    let message = match framed {
        [0, length @ ..] if length.len() >= 4 => &length[4..],
        [] => return Err("the server sent no answer".into()),
        _ => return Err("the answer is not a plain gRPC message".into()),
    };
    match field_one(message) {
        Some(1) => Ok(()),
        Some(0) => Err("UNKNOWN".into()),
        Some(2) => Err("NOT_SERVING".into()),
        Some(3) => Err("SERVICE_UNKNOWN".into()),
        Some(other) => Err(format!("serving status {other}").into()),
        None => Err("the answer is not a HealthCheckResponse".into()),
    }
}

/// The number in field 1 of a protobuf message, 0 if it is not there; other fields are skipped.
fn field_one(mut message: &[u8]) -> Option<u64> {
    let mut found = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    found = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn words(error: h2::Error) -> Why {
    match error.get_io() {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionReset => "connection reset".into(),
        Some(io) => io.to_string().into(),
        None if error.is_remote() => format!("HTTP/2: {error}").into(),
        None => "the server does not speak HTTP/2".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use hyper::{Response, header::HeaderValue};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        health::probe::probe,
        state::{HealthCheck, Probe, Protocol},
    };

    async fn run(address: SocketAddr, service: &str) -> Result<(), Why> {
        let probe_of = Probe::Grpc(GrpcCheck { service: service.into(), ..GrpcCheck::default() });
        let timeout = Duration::from_secs(2);
        let check = HealthCheck { probe: probe_of, timeout, ..HealthCheck::default_for(Protocol::Tcp) };
        probe(&Target { address, host: "10.0.0.10:50051".into(), through: None, check }, None).await
    }

    /// Answers by the service that is asked about: its length is the serving status; longer ones are unknown.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        assert_eq!(request.headers()["content-type"], "application/grpc");
                        tokio::spawn(async move {
                            let asked = read(&mut request.into_body()).await.unwrap();
                            let status = asked.len().saturating_sub(7) as u8;
                            let mut head = Response::builder().header("content-type", "application/grpc");
                            if status > 3 {
                                head = head.header("grpc-status", "5").header("grpc-message", "unknown");
                                respond.send_response(head.body(()).unwrap(), true).unwrap();
                                return;
                            }
                            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                            stream.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false).unwrap();
                            let ok = [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))];
                            stream.send_trailers(ok.into_iter().collect()).unwrap();
                        });
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn serving_is_up_and_everything_else_says_what_it_is() {
        let address = server().await;
        let cases = [
            ("x", Ok(())),
            ("", Err("grpc: UNKNOWN")),
            ("xx", Err("grpc: NOT_SERVING")),
            ("xxx", Err("grpc: SERVICE_UNKNOWN")),
            ("xxxx", Err("grpc: NOT_FOUND: the server does not know this service")),
        ];
        for (service, expected) in cases {
            assert_eq!(run(address, service).await, expected.map_err(Why::from), "'{service}'");
        }
    }

    #[tokio::test]
    async fn a_server_of_something_else_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            }
        });
        assert_eq!(run(address, "").await, Err("grpc: the server does not speak HTTP/2".into()));
    }

    #[test]
    fn messages_are_read_field_by_field() {
        assert_eq!(field_one(&[]), Some(0));
        assert_eq!(field_one(&[8, 1]), Some(1));
        assert_eq!(field_one(&[0x12, 2, 8, 9, 8, 2]), Some(2), "a string first");
        assert_eq!(field_one(&[0x15, 1, 2, 3, 4, 8, 0x81, 1]), Some(129));
        for cut in [&[8][..], &[0x12, 9, 1], &[8, 0xff], &[3]] {
            assert_eq!(field_one(cut), None, "{cut:?}");
        }
        assert_eq!(frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(frame(&"a".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }
}
