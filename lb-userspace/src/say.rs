//! Sentences for people, by `-o` and `-q`: they go to standard output, or to standard error where standard output
//! belongs to a JSON value; `-q` leaves only errors.

use std::{io::Write as _, sync::OnceLock};

/// How people are talked to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Standard output is for JSON.
    pub json: bool,
    /// Only errors.
    pub quiet: bool,
}

static MANNER: OnceLock<Manner> = OnceLock::new();

/// Sets the manner of this process, once.
pub fn set(manner: Manner) {
    // A second call would come from a second command line, which there is not.
    let _ = MANNER.set(manner);
}

fn manner() -> Manner {
    MANNER.get().copied().unwrap_or_default()
}

/// A line on standard output. Whoever reads it may have read enough and gone (`| head`): that is no error.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A sentence about what was done.
pub fn sentence(text: &str) {
    match manner() {
        Manner { quiet: true, .. } => {}
        Manner { json: true, .. } => eprintln!("{text}"),
        Manner { .. } => line(text),
    }
}

/// Something that somebody should know.
pub fn warning(text: &str) {
    if !manner().quiet {
        eprintln!("lb: warning: {text}");
    }
}

/// How far something has come.
pub fn progress(text: &str) {
    if !manner().quiet {
        eprintln!("{text}");
    }
}

/// What others wait for: it is said in any case.
pub fn ready() {
    if manner().json { eprintln!("lb: ready") } else { line("lb: ready") }
}

/// "1 backend", "3 backends".
#[must_use]
pub fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
