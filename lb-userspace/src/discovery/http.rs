//! HTTP towards registries: one kept connection, errors in words.

use std::{path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Error, Result,
    error::Context as _,
    tls::{Identity, Tls, Verify},
};

/// Longest that opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes.
const LONGEST: usize = 64 << 20;

/// Where a registry is, and how it is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `http(s)://HOST[:PORT]`, or `HOST:PORT`.
    pub url: String,
    /// Port unless the URL says one.
    pub port: u16,
    /// Authorities.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The name that the certificate must be for.
    pub server_name: Option<String>,
    /// Take any certificate.
    pub unverified: bool,
}

/// An answer whose body is still to come.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers; their names compare without case.
    pub headers: HeaderMap,
    /// Body.
    pub body: Incoming,
}

/// A client of one registry.
pub struct Http {
    place: Place,
    secure: bool,
    host: String,
    port: u16,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Http {
    /// For a place; nothing happens yet.
    ///
    /// # Errors
    /// The URL makes no sense.
    pub fn new(place: Place) -> Result<Self> {
        let wrong = |why: &str| {
            Err(Error::usage(format!("registry address '{}': {why}", place.url))
                .hint("http://HOST:PORT or https://HOST:PORT"))
        };
        let (scheme, rest) = place.url.split_once("://").unwrap_or(("http", &place.url));
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return wrong(&format!("'{scheme}' is not spoken here")),
        };
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.contains(['/', '@', ' ']) {
            return wrong("not a host and a port");
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => match port.parse() {
                Ok(port) => (host, port),
                Err(_) => return wrong(&format!("'{port}' is not a port")),
            },
            _ => (rest, place.port),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { secure, host, port, sender: None, place })
    }

    /// Asks; `within` is the time until the head of the answer is here. A failed connection is not kept.
    ///
    /// # Errors
    /// Nobody answers in time, in words.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Answer> {
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open().await?,
        };
        let mut request = Request::builder().method(method).uri(path).header("Host", self.authority());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).context("write the request")?;
        let answer = timeout(within, sender.send_request(request))
            .await
            .map_err(|_| Error::failed(format!("{}: no answer within {} s", self.authority(), within.as_secs())))?
            .context(self.authority())?;
        self.sender = Some(sender);
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Forgets the connection: the next question opens another.
    pub fn forget(&mut self) {
        self.sender = None;
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>> {
        let place = self.authority();
        let stream = timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port)))
            .await
            .map_err(|_| Error::failed(format!("connect {place}: no answer within {} s", CONNECT.as_secs())))?
            .map_err(|error| Error::failed(format!("connect {place}: {}", words(&error))))?;
        // The files are read again for each connection: certificates are renewed while lb runs.
        if !self.secure {
            return handshake(stream).await;
        }
        let Place { ca, cert, key, server_name, unverified, .. } = &self.place;
        let verify = match ca {
            _ if *unverified => Verify::Nothing,
            Some(path) => Verify::File(path),
            None => Verify::System,
        };
        let identity = cert.as_deref().zip(key.as_deref()).map(|(cert, key)| Identity { cert, key });
        let tls = Tls::new(verify, identity)?;
        let name = server_name.as_deref().unwrap_or(&self.host);
        let stream = timeout(CONNECT, tls.connect(name, stream))
            .await
            .map_err(|_| Error::failed(format!("TLS with {place}: no answer within {} s", CONNECT.as_secs())))?;
        handshake(stream?).await
    }
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("HTTP")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a registry's connection ended");
        }
    });
    Ok(sender)
}

impl Answer {
    /// The whole body, within a time.
    ///
    /// # Errors
    /// It breaks off, takes too long, or is far too long.
    pub async fn text(self, within: Duration) -> Result<String> {
        let body = http_body_util::Limited::new(self.body, LONGEST);
        let read = timeout(within, body.collect());
        let bytes = read
            .await
            .map_err(|_| Error::failed("the answer broke off: no more of it came"))?
            .map_err(|error| Error::failed(format!("the answer broke off: {error}")))?
            .to_bytes();
        String::from_utf8(bytes.into()).map_err(|_| Error::failed("the answer is not UTF-8"))
    }

    /// A header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What may stand in a path or query unchanged; the rest as `%XX` (RFC 3986, section 2.3).
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_registries() {
        let http = |url: &str| Http::new(Place { url: url.into(), port: 8500, ..Place::default() });
        for (url, authority, secure) in [
            ("127.0.0.1:8501", "127.0.0.1:8501", false),
            ("http://consul.example", "consul.example:8500", false),
            ("https://[fd00::1]:8501/", "[fd00::1]:8501", true),
            ("https://[fd00::1]", "[fd00::1]:8500", true),
        ] {
            let http = http(url).unwrap();
            assert_eq!((http.authority().as_str(), http.secure), (authority, secure));
        }
        for url in ["", "unix:///run/consul.sock", "http://host:port", "http://me@host:1"] {
            assert!(http(url).err().unwrap().message.contains(url), "{url}");
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("a b/c?d"), "a%20b%2Fc%3Fd");
    }
}
