//! One blocking question: an index is taken only from a 200, and may go backwards after a restart.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::access::Access;
use crate::{Error, Result, discovery::http::Http};

/// Time for an answer after its wait; the server itself adds up to a sixteenth of the wait.
const SLACK: Duration = Duration::from_secs(10);

/// One blocking question, asked again and again.
pub(super) struct Watch {
    access: Access,
    http: Http,
    path: String,
    index: u64,
}

/// A decoded answer and what its headers say.
pub(super) struct Told<T> {
    pub(super) body: T,
    pub(super) leader: bool,
    pub(super) contact: u64,
}

impl Watch {
    /// `path` may have a query of its own after a `?`.
    pub(super) fn new(access: Access, path: String) -> Result<Self> {
        Ok(Self { http: Http::new(access.place.clone())?, access, path, index: 0 })
    }

    /// After an error it asks without an index: a server that began anew would wait for an index of the old one.
    pub(super) async fn next<T: DeserializeOwned>(&mut self, fresh: bool) -> Result<Told<T>> {
        let index = std::mem::take(&mut self.index);
        self.ask(if fresh { 0 } else { index }, fresh).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, before: u64, fresh: bool) -> Result<Told<T>> {
        let (wait, scope) = (self.access.wait, &self.access.scope);
        let blocking = match before {
            0 => String::new(),
            index => format!("&index={index}&wait={}ms", wait.as_millis()),
        };
        let consistent = if fresh && !scope.contains("&stale") { "&consistent" } else { "" };
        let more = format!("{scope}{blocking}{consistent}");
        let path = match self.path.contains('?') {
            true => format!("{}{more}", self.path),
            false => format!("{}?{}", self.path, more.trim_start_matches('&')),
        };
        let within = if before == 0 { SLACK } else { wait + wait / 16 + SLACK };
        let answer = self.http.ask(Method::GET, &path, &self.access.headers()?, Vec::new(), within).await;
        let answer = answer.map_err(|error| Error { message: format!("consul: {}", error.message), ..error })?;
        let number = |name: &str| answer.header(name).and_then(|text| text.parse::<u64>().ok());
        let index = number("x-consul-index");
        let (status, leader) = (answer.status, answer.header("x-consul-knownleader") != Some("false"));
        let contact = number("x-consul-lastcontact").unwrap_or(0);
        let text = answer.text(SLACK).await?;
        if status != StatusCode::OK {
            let said = text.trim().chars().take(200).collect::<String>();
            let error = Error::failed(format!("consul: {}: {said}", status.as_u16()));
            return Err(match status {
                StatusCode::FORBIDDEN => error.hint("the token is not known or may not read; see token_file"),
                _ => error,
            });
        }
        let body = serde_json::from_str(&text)
            .map_err(|error| Error::failed(format!("consul: an answer that makes no sense: {error}")))?;
        // An index that goes backwards is of a server that began anew: ask it without one.
        self.index = match index {
            Some(index) if index >= before => index.max(1),
            _ => 0,
        };
        Ok(Told { body, leader, contact })
    }
}
