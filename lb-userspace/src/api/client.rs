//! The client's end of the socket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request as HttpRequest, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinHandle};

use super::Request;
use crate::{Error, Result, error::Context as _};

/// Asks the daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For a socket; nothing happens yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Whether a daemon answers.
    pub async fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// Asks, and reads the answer as a `T`.
    pub async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let value = self.send(request).await?;
        serde_json::from_value(value).context("the daemon's answer (is it of another version?)")
    }

    /// Asks.
    ///
    /// # Errors
    /// Nobody answers, or what the daemon says is wrong.
    pub async fn send(&self, request: &Request) -> Result<Value> {
        let (answer, connection) = self.post(request).await?;
        let bytes = answer.into_body().collect().await.context("read the daemon's answer")?.to_bytes();
        connection.abort();
        read(&bytes)
    }

    /// Asks, and gives the answer's text to `take`, piece by piece, until that fails.
    ///
    /// # Errors
    /// Nobody answers, or what the daemon says is wrong, or `take` fails.
    pub async fn pieces(&self, request: &Request, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        let (answer, connection) = self.post(request).await?;
        let fine = answer.status().is_success();
        let mut body = answer.into_body();
        let mut error = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.context("read the daemon's answer")?.into_data() else { continue };
            if fine {
                take(&piece).context("write")?;
            } else {
                error.extend_from_slice(&piece);
            }
        }
        connection.abort();
        if fine { Ok(()) } else { read(&error).map(drop) }
    }

    async fn post(&self, request: &Request) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.nobody(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("talk to the daemon")?;
        let connection = tokio::spawn(connection);
        let body = serde_json::to_vec(request).context("write the request")?;
        let http = HttpRequest::post("/v1")
            .header("Host", "lb")
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .context("write the request")?;
        let answer = sender.send_request(http).await.context("the daemon ended without an answer")?;
        Ok((answer, connection))
    }

    fn nobody(&self, error: &std::io::Error) -> Error {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => {
                Error::failed(format!("socket {socket}: permission denied")).hint("use sudo, or join the group lb")
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                Error::failed(format!("no daemon answers on {socket}"))
                    .hint("start one: sudo lb attach IFACE --backends ADDR:PORT,.. (the data path needs none to go on)")
            }
            _ => Error::failed(format!("socket {socket}: {error}")),
        }
    }
}

/// A whole answer.
fn read(bytes: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|_| Error::failed(format!("the daemon says: {}", String::from_utf8_lossy(bytes))))?;
    match value.get("error") {
        Some(error) => Err(serde_json::from_value(error.clone()).context("read the daemon's error")?),
        None => Ok(value),
    }
}
