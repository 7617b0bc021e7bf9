//! Reads tables of TOML by [`super::keys`]: types, unknown keys, the nearest right word. Collects everything that is
//! wrong instead of stopping at the first.

use std::{cell::RefCell, fmt::Display, ops::Range, path::PathBuf, str::FromStr, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    keys::{Key, Kind, Table},
    problem::{Lines, Place, Problem},
};
use crate::{
    Error,
    state::typed::{parse_duration, parse_size},
};

/// A value with the place where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// Collects what is wrong in one file.
pub struct Reader<'a> {
    file: String,
    lines: Lines<'a>,
    problems: RefCell<Vec<Problem>>,
    files: RefCell<Vec<Named>>,
}

/// A file that a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where.
    pub place: Place,
    /// The whole name of the key.
    pub key: String,
    /// The file.
    pub path: PathBuf,
}

impl<'a> Reader<'a> {
    /// Of a file with this text.
    #[must_use]
    pub fn new(file: &str, text: &'a str) -> Self {
        Self { file: file.to_owned(), lines: Lines::new(text), problems: RefCell::default(), files: RefCell::default() }
    }

    /// Where a span begins.
    #[must_use]
    pub fn place(&self, span: &Range<usize>) -> Place {
        self.lines.place(span)
    }

    /// Notes something that is wrong.
    pub fn wrong(&self, place: Place, key: &str, message: impl Into<String>, hint: Option<String>) {
        let problem = Problem { file: self.file.clone(), place, key: key.to_owned(), message: message.into(), hint };
        self.problems.borrow_mut().push(problem);
    }

    /// Notes an error of the vocabulary or of a guard.
    pub fn error(&self, place: Place, key: &str, error: Error) {
        let hint = error.hint.map(|hint| match hint.strip_prefix("one of: ") {
            Some(words) => with_nearest(&error.message, words, &hint),
            None => hint,
        });
        self.wrong(place, key, error.message, hint);
    }

    /// The files that were named.
    #[must_use]
    pub fn files(&self) -> Vec<Named> {
        let mut files = self.files.borrow().clone();
        files.sort_by_key(|named| named.place);
        files
    }

    /// Everything that is wrong, in the order of the file.
    #[must_use]
    pub fn problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.place);
        problems.dedup();
        problems
    }
}

/// What nginx, HAProxy, IPVS and others call what lb has.
const ELSEWHERE: [(&str, &str); 14] = [
    ("ip_hash", "source-hash"),
    ("hash", "source-hash"),
    ("source", "source-hash"),
    ("consistent", "maglev"),
    ("mh", "maglev"),
    ("least_conn", "least-conn"),
    ("masq", "nat"),
    ("masquerading", "nat"),
    ("dr", "dsr"),
    ("direct", "dsr"),
    ("gatewaying", "dsr"),
    ("tun", "ipip"),
    ("tunnel", "ipip"),
    ("skb", "generic"),
];

/// A hint of words, beginning with the one that was probably meant: the message has what was typed in quotes.
fn with_nearest(message: &str, words: &str, hint: &str) -> String {
    let typed = message.split('\'').nth(1).unwrap_or("");
    let elsewhere = ELSEWHERE.iter().find(|(word, _)| *word == typed).map(|(_, word)| *word);
    let called = elsewhere.filter(|word| words.split_whitespace().any(|known| known == *word));
    match called.or_else(|| nearest(typed, words.split_whitespace())) {
        Some(word) => format!("did you mean '{word}'? {hint}"),
        None => hint.to_owned(),
    }
}

/// The word that was probably meant.
#[must_use]
pub fn nearest<'w>(typed: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let typed = typed.to_lowercase().replace('-', "_");
    let distance = |word: &str| strsim::osa_distance(&typed, &word.to_lowercase().replace('-', "_"));
    let limit = |word: &str| match word.len().min(typed.len()) {
        0..=3 => 1,
        4..=6 => 2,
        _ => 3,
    };
    let close = |word: &&str| distance(word) <= limit(word);
    words.into_iter().filter(close).min_by_key(|word| distance(word))
}

/// A table that is being read.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    /// Notes what is wrong.
    pub reader: &'a Reader<'a>,
    /// Where the table begins.
    pub place: Place,
    known: &'static Table,
    entries: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// Begins to read a table: every key that it may not have is wrong.
    pub fn new(reader: &'a Reader<'a>, known: &'static Table, entries: &'a DeTable<'a>, span: &Range<usize>) -> Self {
        let section = Self { reader, place: reader.place(span), known, entries };
        for (name, value) in entries {
            if known.key(name.get_ref()).is_none() {
                let (message, hint) = unknown(known, name.get_ref(), value.get_ref());
                reader.wrong(reader.place(&name.span()), &known.path_of(name.get_ref()), message, Some(hint));
            }
        }
        section
    }

    /// The value of a key, if it is there.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        let key = self.known.key(name).unwrap_or_else(|| panic!("{name} is not in keys.rs"));
        let value = self.entries.get(name)?;
        Some(Value { reader: self.reader, key, path: self.known, value })
    }

    /// The same, and it is wrong when it is missing.
    #[must_use]
    pub fn required(&self, name: &str) -> Option<Value<'a>> {
        let value = self.get(name);
        if value.is_none() {
            // A word that was probably meant for it has been told already.
            let told = self.entries.keys().any(|typed| {
                let typed = typed.get_ref().as_ref();
                self.known.key(typed).is_none() && meant(self.known, typed) == Some(name)
            });
            if !told {
                let example = self.known.key(name).map_or("", |key| key.example);
                let hint = format!("{name} = {example}");
                self.reader.wrong(self.place, &self.known.path_of(name), "missing", Some(hint));
            }
        }
        value
    }

    /// Whether the table may have this key.
    #[must_use]
    pub fn known(&self, name: &str) -> bool {
        self.known.key(name).is_some()
    }

    /// The whole name of a key.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        self.known.path_of(key)
    }

    /// Names of the keys that are there, with their places.
    pub fn names(&self) -> impl Iterator<Item = (&'a str, Place)> {
        let reader = self.reader;
        self.entries.keys().map(move |name| (name.get_ref().as_ref(), reader.place(&name.span())))
    }
}

/// The key of a table that was probably meant.
fn meant(known: &'static Table, typed: &str) -> Option<&'static str> {
    let lower = typed.to_lowercase().replace('-', "_");
    let called = |key: &&Key| key.name == lower || key.also.contains(&lower.as_str());
    if let Some(key) = known.keys.iter().find(called) {
        return Some(key.name);
    }
    if elsewhere(known, typed).is_some() { None } else { nearest(&lower, known.keys.iter().map(|key| key.name)) }
}

/// Another table that has a key of this name. Options of one sort of registry are no help to another.
fn elsewhere(known: &'static Table, typed: &str) -> Option<&'static Table> {
    if known.path.starts_with("service.discovery.") {
        return None;
    }
    super::keys::FILE.all().into_iter().find(|table| table.path != known.path && table.key(typed).is_some())
}

/// What to say of a key that a table may not have.
fn unknown(known: &'static Table, typed: &str, value: &DeValue<'_>) -> (String, String) {
    let place = if known.path.is_empty() { "at the top of the file".to_owned() } else { format!("in {}", known.path) };
    let message = format!("there is no key '{typed}' {place}");
    if known.path.is_empty()
        && (meant(known, typed) == Some("service") || (value.is_table() && typed.contains("service")))
    {
        return (message, "did you mean 'service'? each service is a table of its own: [[service]]".to_owned());
    }
    let hint = match (meant(known, typed), elsewhere(known, typed)) {
        (Some(word), _) => format!("did you mean '{word}'?"),
        (None, Some(table)) if table.path.is_empty() => {
            format!("'{typed}' belongs at the top of the file, before the first [..]")
        }
        (None, Some(table)) => match table.key(typed).map(|key| &key.kind) {
            Some(Kind::Table(inner)) => format!("write [{}], below its [[service]]", inner.path),
            _ => format!("'{typed}' belongs in {}", written(table)),
        },
        (None, None) => format!("known here: {}", known.keys.iter().map(|key| key.name).collect::<Vec<_>>().join(" ")),
    };
    (message, hint)
}

/// How a table is written.
fn written(table: &Table) -> String {
    if table.path == "service" { "[[service]]".to_owned() } else { format!("[{}]", table.path) }
}

/// A value that is being read.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    reader: &'a Reader<'a>,
    key: &'static Key,
    path: &'static Table,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.reader.place(&self.value.span())
    }

    /// The whole name of its key.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.path_of(self.key.name)
    }

    /// What it is.
    #[must_use]
    pub fn raw(&self) -> &'a DeValue<'a> {
        self.value.get_ref()
    }

    /// Notes that it is wrong.
    pub fn wrong(&self, message: impl Into<String>, hint: Option<String>) {
        self.reader.wrong(self.place(), &self.path(), message, hint);
    }

    /// A right value; or none, where the key may be left out.
    fn instead(&self) -> String {
        let Key { name, default, example, .. } = self.key;
        format!("{name} = {example}{}", if default.is_empty() { "" } else { ", or leave the key out" })
    }

    fn at<T>(&self, value: T) -> At<T> {
        At { value, place: self.place() }
    }

    /// Notes that it is something else than it should be.
    fn not(&self, wanted: &str) {
        let hint =
            if self.key.example.is_empty() { None } else { Some(format!("{} = {}", self.key.name, self.key.example)) };
        self.wrong(format!("this is {}, not {wanted}", named(self.raw())), hint);
    }

    /// Text.
    pub fn text(&self) -> Option<At<String>> {
        match self.raw() {
            DeValue::String(text) if text.is_empty() => {
                self.wrong("there is nothing in the quotes", Some(self.instead()));
                None
            }
            DeValue::String(text) => Some(self.at(text.to_string())),
            _ => {
                self.not("text in quotes");
                None
            }
        }
    }

    /// Text that means something.
    pub fn parse<T: FromStr<Err = Error>>(&self) -> Option<At<T>> {
        self.parse_by(T::from_str)
    }

    /// Text that means something to `parse`.
    pub fn parse_by<T>(&self, parse: impl Fn(&str) -> crate::Result<T>) -> Option<At<T>> {
        let text = self.text()?;
        match parse(&text.value) {
            Ok(value) => Some(At { value, place: text.place }),
            Err(error) => {
                self.reader.error(text.place, &self.path(), error);
                None
            }
        }
    }

    /// A time with its unit.
    pub fn time(&self) -> Option<At<Duration>> {
        if let DeValue::Integer(number) = self.raw() {
            self.wrong(
                "a time needs a unit",
                Some(format!("{} = \"{number}s\" (units: ms, s, m, h, d)", self.key.name)),
            );
            return None;
        }
        let time = self.parse_by(parse_duration)?;
        let Kind::Time(low, high) = self.key.kind else { return Some(time) };
        let edges = (parse_duration(low), parse_duration(high));
        if let (Ok(least), Ok(most)) = edges
            && !(least..=most).contains(&time.value)
        {
            self.wrong(format!("{} is out of range", self.typed()), Some(format!("{low} to {high}")));
            return None;
        }
        Some(time)
    }

    /// The text as it was typed.
    fn typed(&self) -> &str {
        self.raw().as_str().unwrap_or_default()
    }

    /// An absolute path of a file.
    pub fn path_of_file(&self) -> Option<At<PathBuf>> {
        let path = self.parse_by(absolute)?;
        let named = Named { place: path.place, key: self.path(), path: path.value.clone() };
        self.reader.files.borrow_mut().push(named);
        Some(path)
    }

    /// A size: a number, or text with a unit.
    pub fn size(&self) -> Option<At<u64>> {
        if let DeValue::Integer(number) = self.raw() {
            let Ok(size) = u64::from_str_radix(number.as_str(), number.radix()) else {
                self.wrong(format!("{number} is not a size"), Some("a number from 0 on".to_owned()));
                return None;
            };
            return Some(self.at(size));
        }
        if !self.raw().is_str() {
            self.not("a whole number, or text with a unit");
            return None;
        }
        self.parse_by(parse_size)
    }

    /// A whole number in the range of its key.
    pub fn number<T: TryFrom<i64>>(&self) -> Option<At<T>> {
        let (low, high) = range(&self.key.kind);
        let DeValue::Integer(number) = self.raw() else {
            self.not("a whole number");
            return None;
        };
        let read = i64::from_str_radix(number.as_str(), number.radix()).ok();
        match read.filter(|number| (low..=high).contains(number)).and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(self.at(number)),
            None => {
                self.wrong(format!("{number} is out of range"), Some(format!("{low} to {high}")));
                None
            }
        }
    }

    /// True or false.
    pub fn flag(&self) -> Option<At<bool>> {
        match self.raw() {
            DeValue::Boolean(flag) => Some(self.at(*flag)),
            _ => {
                self.not("true or false (without quotes)");
                None
            }
        }
    }

    /// Its members: those of a list, or itself. A list of nothing is wrong where one thing would do.
    #[must_use]
    pub fn each(&self) -> Vec<Self> {
        match self.raw() {
            DeValue::Array(list) if list.is_empty() && matches!(self.key.kind, Kind::Some(_)) => {
                self.wrong("the list is empty", Some(self.instead()));
                Vec::new()
            }
            DeValue::Array(list) => list.iter().map(|value| Self { value, ..*self }).collect(),
            _ => vec![*self],
        }
    }

    /// The members of a list.
    #[must_use]
    pub fn list(&self) -> Vec<Self> {
        if self.raw().is_array() {
            return self.each();
        }
        self.not("a list");
        Vec::new()
    }

    /// A table.
    pub fn table(&self) -> Option<Section<'a>> {
        let known = table_in(&self.key.kind)?;
        match self.raw() {
            DeValue::Table(entries) => Some(Section::new(self.reader, known, entries, &self.value.span())),
            _ => {
                let hint = format!("{} = {{ .. }}, or its keys under {}", self.key.name, written(known));
                self.wrong(format!("this is {}, not a table", named(self.raw())), Some(hint));
                None
            }
        }
    }

    /// The tables of `[[..]]`.
    #[must_use]
    pub fn tables(&self) -> Vec<Section<'a>> {
        if self.raw().is_table() {
            let name = self.key.name;
            self.wrong(
                format!("[{name}] is one table; there may be many"),
                Some(format!("write [[{name}]], with two brackets")),
            );
        }
        self.each().iter().filter_map(Self::table).collect()
    }
}

fn range(kind: &Kind) -> (i64, i64) {
    match kind {
        Kind::Number(low, high) => (*low, *high),
        Kind::Either(kinds) => kinds.iter().map(range).find(|range| *range != NO_RANGE).unwrap_or(NO_RANGE),
        _ => NO_RANGE,
    }
}

const NO_RANGE: (i64, i64) = (i64::MIN, i64::MAX);

fn table_in(kind: &Kind) -> Option<&'static Table> {
    match kind {
        Kind::Table(table) | Kind::Tables(table) => Some(table),
        Kind::List(inner) | Kind::Some(inner) => table_in(inner),
        Kind::Either(kinds) => kinds.iter().find_map(table_in),
        Kind::Text | Kind::Word(_) | Kind::Time(..) | Kind::Size | Kind::Number(..) | Kind::Flag => None,
    }
}

/// A path that means the same in every directory.
fn absolute(text: &str) -> crate::Result<PathBuf> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::usage(format!("'{text}' is not an absolute path")).hint("begin with /"))
}

/// A value in words.
fn named(value: &DeValue<'_>) -> impl Display {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
