//! The one error that reaches a person: what failed, why, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::problem::Problem;

/// Result of everything that a person may have to read about.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is; decides the exit code and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something did not work: exit 1.
    Failed,
    /// The request makes no sense: exit 2.
    Usage,
    /// A named thing does not exist: exit 1.
    NotFound,
    /// `--wait` ran out of time; the change stays: exit 4.
    TimedOut,
    /// A guard refused: exit 5.
    Refused,
}

impl Kind {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::NotFound => 1,
            Self::Usage => 2,
            Self::TimedOut => 4,
            Self::Refused => 5,
        }
    }
}

/// A failure in words: `message` reads "WHAT: WHY", `hint` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What sort of failure it is.
    pub kind: Kind,
    /// "WHAT: WHY", one line.
    pub message: String,
    /// What to do about it, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// All that is wrong in a config file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl Error {
    /// A failure of the given sort.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, problems: Vec::new() }
    }

    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The request makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A guard refused.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// A named thing does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// As it is printed for people: `lb: WHAT: WHY`, and the hint; all problems of a file before it.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let hint = |hint: &Option<String>| hint.as_ref().map(|hint| format!("hint: {hint}"));
        let problems = self
            .problems
            .iter()
            .flat_map(|problem| std::iter::once(format!("lb: {problem}")).chain(hint(&problem.hint)));
        problems.chain([format!("lb: {}", self.message)]).chain(hint(&self.hint)).collect()
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds what was attempted to an error of a library.
pub trait Context<T> {
    /// "`what`: the library's words".
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let mut message = format!("{what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let words = cause.to_string();
                if !message.contains(&words) {
                    message.push_str(": ");
                    message.push_str(&words);
                }
                source = cause.source();
            }
            Error::failed(message)
        })
    }
}
