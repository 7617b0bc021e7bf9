//! How a source stands: its last answer, its last error, what it warns of, and what of it is to be stated. The same for
//! sources of backends and for shared services.

use std::time::Instant;

use jiff::Timestamp;

use super::SourceSpec;
use crate::{
    Error,
    api::{SourceError, SourceStatus},
};

/// See the module.
#[derive(Debug, Default)]
pub struct Standing {
    /// Something changed that was not stated yet.
    pub dirty: bool,
    /// What the state did not take.
    pub refused: Vec<String>,
    /// What the last answer had that is odd.
    warnings: Vec<String>,
    answered: Option<Instant>,
    error: Option<(Timestamp, Error)>,
    failing: bool,
    answers: u64,
    errors: u64,
    changes: u64,
}

impl Standing {
    /// An answer came; says whether it is the first.
    pub fn answered(&mut self, source: &str, service: &str, warnings: Vec<String>) -> bool {
        if self.failing {
            tracing::info!(source, service, "answers again");
        }
        self.failing = false;
        self.answers += 1;
        self.warnings = warnings;
        self.answered.replace(Instant::now()).is_none()
    }

    /// None came.
    pub fn failed(&mut self, source: &str, service: &str, error: Error) {
        if !self.failing {
            tracing::warn!(source, service, %error, "no answer; what it said last stays");
        }
        self.failing = true;
        self.errors += 1;
        self.error = Some((Timestamp::now(), error));
    }

    /// What changed was stated.
    pub const fn stated(&mut self) {
        self.dirty = false;
        self.changes += 1;
    }

    /// As it is shown; `holding`: removals are not believed yet.
    #[must_use]
    pub fn status(&self, source: &SourceSpec, service: &str, holding: bool, backends: usize) -> SourceStatus {
        let state = match () {
            () if holding => "holding",
            () if self.failing => "error",
            () if self.answered.is_none() => "waiting",
            () => "ok",
        };
        SourceStatus {
            name: source.name.clone(),
            kind: source.wanted.kind().to_owned(),
            service: service.to_owned(),
            target: source.wanted.target(),
            state: state.to_owned(),
            backends,
            left_out: 0,
            age_s: self.answered.map(|at| at.elapsed().as_secs()),
            last_error: self.error.as_ref().map(|(at, error)| SourceError {
                at: *at,
                message: error.message.clone(),
                hint: error.hint.clone(),
                now: self.failing,
            }),
            held: Vec::new(),
            warnings: self.warnings.iter().chain(&self.refused).cloned().collect(),
            answers: self.answers,
            errors: self.errors,
            changes: self.changes,
        }
    }
}
