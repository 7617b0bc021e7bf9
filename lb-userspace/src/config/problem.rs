//! What is wrong in a config file, and where.

use std::{fmt, ops::Range, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Error, error::Kind};

/// A place in a file. Lines and columns count from 1; a column is a character, not a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// The whole name of the key, as in `service.health.interval`; empty = the file's form is wrong.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{}:{line}:{column}: ", self.file)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong in a file, as one error.
#[must_use]
pub fn as_error(file: &Path, problems: Vec<Problem>) -> Error {
    let errors = if problems.len() == 1 { "1 error".to_owned() } else { format!("{} errors", problems.len()) };
    let mut error = Error::new(Kind::Failed, format!("{}: {errors}", file.display()));
    error.problems = problems;
    error
}

/// Turns byte offsets of a text into places.
#[derive(Debug)]
pub struct Lines<'a> {
    text: &'a str,
    /// Where every line begins: every value of a large file is asked for its place.
    begins: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Of a text.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        let begins = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { text, begins }
    }

    /// Where a span begins.
    #[must_use]
    pub fn place(&self, span: &Range<usize>) -> Place {
        let mut at = span.start.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let line = self.begins.partition_point(|begin| *begin <= at);
        let begin = self.begins[line - 1];
        Place { line, column: self.text[begin..at].chars().count() + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let lines = Lines::new("a = 1\nüb = \"x\"\n");
        let at = |start| lines.place(&(start..start));
        assert_eq!(at(0), Place { line: 1, column: 1 });
        assert_eq!(at(6), Place { line: 2, column: 1 });
        assert_eq!(at(8), Place { line: 2, column: 2 });
        assert_eq!(at(999), Place { line: 3, column: 1 });
    }
}
