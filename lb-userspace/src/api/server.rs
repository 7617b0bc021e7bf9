//! The server's end of the socket: HTTP in, [`Request`]s to the daemon, answers out.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use nix::unistd::{Group, chown};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::Request;
use crate::{Error, Result, error::Kind};

/// A request on its way to the daemon, and where the answer goes.
pub type Call = (Request, oneshot::Sender<Result<Answer>>);

/// What the daemon answers.
#[derive(Debug)]
pub enum Answer {
    /// A JSON value, or text.
    Value(Value),
    /// A JSON value that may be long, as text, piece by piece.
    Pieces(mpsc::Receiver<Bytes>),
}

/// Binds the socket: mode 0660, group `lb` if there is one. The socket of a dead daemon is replaced.
pub async fn bind(path: &Path) -> Result<UnixListener> {
    let error = |error: io::Error| {
        Error::failed(format!("socket {}: {error}", path.display()))
            .hint("run as root, or choose another one with --socket")
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(error)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::failed(format!("socket {}: something that is no socket is there", path.display()))
                .hint("remove it, or choose another one with --socket"));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(Error::refused(format!("a daemon answers on {} already", path.display())).hint(
                "`lb status` shows it, `lb detach` ends it; --socket, --state-dir and --bpffs make a second one",
            ));
        }
        Ok(_) => fs::remove_file(path).map_err(error)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(error)?;
    if let Ok(Some(group)) = Group::from_name("lb") {
        chown(path, None, Some(group.gid)).map_err(|why| error(why.into()))?;
    }
    Ok(listener)
}

/// Serves until the daemon is gone.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>) {
    let router = Router::new()
        .route("/v1", post(any))
        .route("/v1/status", get(|state| ask(state, Request::Status)))
        .route("/v1/drops", get(|state| ask(state, Request::Drops)))
        .route("/metrics", get(metrics))
        .with_state(calls);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the API ended");
    }
}

type Calls = State<mpsc::Sender<Call>>;

async fn any(calls: Calls, Json(request): Json<Request>) -> Response {
    ask(calls, request).await
}

async fn metrics(calls: Calls) -> Response {
    match call(&calls, Request::Metrics).await {
        Ok(Answer::Value(Value::String(text))) => text.into_response(),
        Ok(other) => respond(other),
        Err(error) => failed(&error),
    }
}

async fn ask(calls: Calls, request: Request) -> Response {
    match call(&calls, request).await {
        Ok(answer) => respond(answer),
        Err(error) => failed(&error),
    }
}

fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Value(value) => Json(value).into_response(),
        Answer::Pieces(pieces) => {
            let stream = futures_util::stream::unfold(pieces, |mut pieces| async {
                let piece = pieces.recv().await?;
                Some((Ok::<_, Infallible>(piece), pieces))
            });
            ([(CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
        }
    }
}

async fn call(calls: &Calls, request: Request) -> Result<Answer> {
    let (answer, answered) = oneshot::channel();
    let ending = || Error::failed("the daemon is ending");
    calls.send((request, answer)).await.map_err(|_| ending())?;
    answered.await.map_err(|_| ending())?
}

fn failed(error: &Error) -> Response {
    let status = match error.kind {
        Kind::Usage => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Refused => StatusCode::CONFLICT,
        Kind::TimedOut => StatusCode::REQUEST_TIMEOUT,
        Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(json!({ "error": error }))).into_response()
}
