//! The config file: what was typed ([`typed`]) and what it means ([`meaning`]).
//!
//! [`keys`] is the one list of everything that may be written; [`reader`] reads tables by it and collects all that is
//! wrong, each with its place; [`schema`] makes the JSON Schema and the reference from it.

pub mod keys;
mod meaning;
pub mod problem;
mod reader;
pub mod schema;
mod sources;
mod typed;

pub use reader::Named;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::Path,
};

use toml::de::DeTable;

use self::{
    problem::{Lines, Place, Problem},
    reader::Reader,
};
use crate::{
    Error, Result,
    discovery::SourceSpec,
    state::{Change, ServiceSpec, SettingsOptions, Source},
};

/// Largest file that is read.
const LARGEST: u64 = 16 << 20;

/// What a file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it says of the data plane.
    pub settings: SettingsOptions,
    /// `bpf_log`.
    pub log_level: Option<u8>,
    /// Where services come from that a fleet of balancers shares.
    pub shared: Option<SourceSpec>,
    /// Its services with their backends.
    pub services: Vec<ServiceSpec>,
    /// Other files that it names.
    pub files: Vec<Named>,
    /// Where services, VIPs and backends stand, by the words that errors begin with.
    places: BTreeMap<String, Place>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read; or all that is wrong in it ([`Error::problems`]).
    pub fn read(path: &Path) -> Result<Self> {
        let unreadable = |why: String, hint: &str| Error::failed(format!("{}: {why}", path.display())).hint(hint);
        let size = fs::metadata(path).map_err(|error| unreadable(error.to_string(), "name a file that can be read"))?;
        if size.is_dir() {
            return Err(unreadable("this is a directory".to_owned(), "name a file"));
        }
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
            .map_err(|error| unreadable(error.to_string(), "name a file that can be read"))?;
        if bytes.len() as u64 > LARGEST {
            return Err(unreadable(format!("larger than {} MiB", LARGEST >> 20), "is it the right file?"));
        }
        let file = path.display().to_string();
        let parsed = match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(&file, text),
            Err(error) => Err(vec![not_utf8(file, &bytes, error.valid_up_to())]),
        };
        parsed.map_err(|problems| problem::as_error(path, problems))
    }

    /// Understands the text of a file.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Problem>> {
        let reader = Reader::new(file, text);
        let (document, errors) = DeTable::parse_recoverable(text);
        // One mistake in the form often makes several errors in its line.
        let mut lines = BTreeSet::new();
        for error in &errors {
            let span = error.span().unwrap_or(0..0);
            let place = reader.place(&span);
            if lines.insert(place.line) {
                let (message, hint) = syntax(text, place, error.message(), text.get(span).unwrap_or(""));
                reader.wrong(place, "", message, hint);
            }
        }
        if errors.is_empty() && document.get_ref().is_empty() {
            let hint = "interfaces = [\"eth0\"], and a [[service]] for each service; lb detach ends lb";
            reader.wrong(Place { line: 1, column: 1 }, "", "nothing is said here", Some(hint.to_owned()));
        }
        let config = meaning::understand(&reader, typed::read(&reader, &document));
        let mut problems = reader.problems();
        // What follows from a wrong form is noise: the rest of its line, and the keys under a broken [header].
        let broken: Vec<_> = problems.iter().filter(|problem| problem.key.is_empty()).map(|p| p.place.line).collect();
        problems.retain(|problem| problem.key.is_empty() || !follows(text, &broken, problem.place.line));
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// The change that states what the file says.
    #[must_use]
    pub fn statement(&self) -> Change {
        Change::Restate {
            source: Source::File,
            settings: Box::new(self.settings.clone()),
            services: self.services.clone(),
        }
    }

    /// A guard's refusal with the place in the file that it is about, where that is known.
    #[must_use]
    pub fn located(&self, file: &Path, error: Error) -> Error {
        meaning::located(&file.display().to_string(), self, error)
    }
}

/// Where text ends to be UTF-8.
fn not_utf8(file: String, bytes: &[u8], good: usize) -> Problem {
    let place = Lines::new(std::str::from_utf8(&bytes[..good]).unwrap_or_default()).place(&(good..good));
    let (message, hint) = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => ("this is UTF-16".to_owned(), "save it as UTF-8"),
        _ => (format!("the byte 0x{:02x} is not UTF-8", bytes[good]), "save it as UTF-8; is it the right file?"),
    };
    Problem { file, place, key: String::new(), message, hint: Some(hint.to_owned()) }
}

/// Whether what is wrong in a line may follow from what is wrong in the form of others.
fn follows(text: &str, broken: &[usize], line: usize) -> bool {
    let is_header = |number: usize| text.lines().nth(number - 1).is_some_and(|line| line.trim_start().starts_with('['));
    let header = (1..=line).rev().find(|number| is_header(*number));
    broken.contains(&line) || header.is_some_and(|header| broken.contains(&header))
}

/// What to do about the commonest mistake: text without quotes.
fn unquoted(text: &str, place: Place) -> Option<String> {
    let line = text.lines().nth(place.line - 1)?;
    let (key, value) = line.split_once('=')?;
    let value = value.split('#').next().unwrap_or(value).trim();
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    if let Some(quoted) = value.strip_prefix(['“', '”', '‘', '’', '„']) {
        let inner = quoted.trim_end_matches(['“', '”', '‘', '’']);
        return Some(format!("plain quotes: {} = \"{inner}\"", key.trim()));
    }
    let fine = !key.trim().is_empty() && !value.is_empty() && value.chars().all(is_word);
    fine.then(|| format!("text stands in quotes: {} = \"{value}\"", key.trim()))
}

/// What to say of text whose form is wrong (`what` is the piece that the TOML parser stumbled over), and what to do.
fn syntax(text: &str, place: Place, message: &str, what: &str) -> (String, Option<String>) {
    if message.starts_with("duplicate key") {
        return (format!("'{what}' is there twice in this table"), Some("keep one of them".to_owned()));
    }
    let message = format!("this is not TOML: {}", message.lines().map(str::trim).collect::<Vec<_>>().join(", "));
    (message, unquoted(text, place).or_else(|| other_language(text, place)))
}

/// What to do about a file that was written for something else.
fn other_language(text: &str, place: Place) -> Option<String> {
    let like = |language: &str| {
        Some(format!("this looks like {language}; TOML writes KEY = VALUE, and [[service]] before each service"))
    };
    if text.trim_start().starts_with('{') {
        return like("JSON");
    }
    let line = text.lines().nth(place.line - 1)?.trim_start().trim_start_matches("- ");
    let (key, value) = line.split_once(':')?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if is_key && (value.is_empty() || value.starts_with(' ')) { like("YAML") } else { None }
}

#[cfg(test)]
mod agree;
#[cfg(test)]
mod wrong;

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use super::*;
    use crate::state::{Mode, Probe, XdpMode};

    const EXAMPLE: &str = include_str!("../../../packaging/lb.example.toml");

    #[test]
    fn the_example_of_the_contract_means_what_it_says() {
        let text = r#"
interfaces = ["eth0"]

[[service]]
name = "web"
vip = "10.0.0.10:80"            # or a list
mode = "nat"
scheduler = "maglev"
backends = ["10.0.0.2:8080", { address = "10.0.0.3:8080", weight = 2 }]

[service.health]
type = "http"
path = "/healthz"
interval = "2s"
timeout = "1s"
rise = 2
fall = 3

[service.discovery]             # instead of, or beside, backends
consul = { service = "api-service", tag = "api" }
"#;
        let config = Config::parse("lb.toml", text).unwrap();
        assert_eq!(config.settings.interfaces, ["eth0"]);
        let [service] = config.services.as_slice() else { panic!("one service") };
        assert_eq!((service.name.as_str(), service.mode, service.source.clone()), ("web", Mode::Nat, Source::File));
        let backends: Vec<_> = service.backends.iter().map(|b| (b.address.to_string(), b.weight)).collect();
        assert_eq!(backends, [("10.0.0.2:8080".to_owned(), 1), ("10.0.0.3:8080".to_owned(), 2)]);
        assert!(matches!(&service.health.probe, Probe::Http(http) if http.path == "/healthz"));
        assert_eq!(service.discovery[0].to_string(), "consul:api-service?tag=api");
    }

    #[test]
    fn interfaces_alone_are_enough() {
        let config = Config::parse("lb.toml", "interfaces = \"eth0\"\n").unwrap();
        assert_eq!(
            (config.settings.interfaces.as_slice(), config.services),
            (["eth0".to_owned()].as_slice(), Vec::new())
        );
    }

    #[test]
    fn the_documented_example_is_right_and_has_every_key() {
        let config = Config::parse("lb.example.toml", EXAMPLE).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!((config.settings.xdp, config.settings.max_flows), (Some(XdpMode::Auto), Some(262_144)));
        assert_eq!(config.services[0].idle.established, Some(Duration::from_secs(3600)), "its own");
        assert_eq!(config.services[0].idle.udp, Some(Duration::from_secs(120)), "the file's");
        assert_eq!(config.services[4].discovery.len(), 4);
        let document: toml::Table = EXAMPLE.parse().unwrap();
        let mut missing = Vec::new();
        for table in keys::FILE.all() {
            for key in table.keys {
                let path = table.path_of(key.name);
                if !has(&toml::Value::Table(document.clone()), &path) {
                    missing.push(path);
                }
            }
        }
        // What is only said once for all kinds of registries.
        missing.retain(|path| {
            let own =
                ["dns", "etcd", "file"].iter().any(|kind| path.starts_with(&format!("service.discovery.{kind}.")));
            !(own
                && has(
                    &toml::Value::Table(document.clone()),
                    &path.replace(".dns.", ".consul.").replace(".etcd.", ".consul.").replace(".file.", ".consul."),
                ))
        });
        assert!(missing.is_empty(), "not in packaging/lb.example.toml: {missing:?}");
    }

    /// Whether a document has a key, somewhere in its lists of tables.
    fn has(value: &toml::Value, path: &str) -> bool {
        match (value, path) {
            (_, "") => true,
            (toml::Value::Array(list), _) => list.iter().any(|value| has(value, path)),
            (toml::Value::Table(table), _) => {
                let (name, rest) = path.split_once('.').unwrap_or((path, ""));
                table.get(name).is_some_and(|value| has(value, rest))
            }
            _ => false,
        }
    }

    #[test]
    fn every_key_has_a_table_a_help_and_an_example_that_the_parser_takes() {
        for table in keys::FILE.all() {
            assert!(!table.help.is_empty(), "{}", table.path);
            for key in table.keys {
                assert!(key.help.ends_with(['.', '?']), "{}: {}", table.path, key.name);
                let taken: Result<toml::Table, _> = format!("x = {}", key.example).parse();
                assert!(key.example.is_empty() || taken.is_ok(), "{}.{}: {}", table.path, key.name, key.example);
            }
        }
    }

    #[test]
    fn words_of_the_keys_are_those_of_the_vocabulary() {
        use crate::state::{OnDown, OnEmpty, OnExit, Scheduler, Via};
        let words = |path: &str| {
            let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
            let table = keys::FILE.all().into_iter().find(|known| known.path == table).unwrap();
            match table.key(name).unwrap().kind {
                keys::Kind::Word(words) => words.to_vec(),
                _ => panic!("{path} is no word"),
            }
        };
        let all = [
            ("xdp", XdpMode::ALL.iter().map(|word| word.word()).collect::<Vec<_>>()),
            ("on_exit", OnExit::ALL.iter().map(|word| word.word()).collect()),
            ("service.mode", Mode::ALL.iter().map(|word| word.word()).collect()),
            ("service.scheduler", Scheduler::ALL.iter().map(|word| word.word()).collect()),
            ("service.on_down", OnDown::ALL.iter().map(|word| word.word()).collect()),
            ("service.on_empty", OnEmpty::ALL.iter().map(|word| word.word()).collect()),
            ("service.health.via", Via::ALL.iter().map(|word| word.word()).collect()),
        ];
        for (path, wanted) in all {
            assert_eq!(words(path), wanted, "{path}");
        }
    }

    #[test]
    fn announce_is_a_device_or_the_first() {
        let announce = |text: &str| Config::parse("lb.toml", text).unwrap().settings.announce;
        assert_eq!(announce("interfaces = [\"eth0\", \"eth1\"]\nannounce = true").as_deref(), Some("eth0"));
        assert_eq!(announce("announce = \"lo\"").as_deref(), Some("lo"));
        assert_eq!(announce("announce = true").as_deref(), Some(""), "the first of the command line");
        assert_eq!(announce("announce = false"), None);
    }

    #[test]
    fn a_guards_refusal_gets_the_place_in_the_file() {
        let text = "[[service]]\nname = \"web\"\nvip = \"10.0.0.10:80\"\nbackends = [\"10.0.0.2:80\"]\n";
        let config = Config::parse("lb.toml", text).unwrap();
        let facts = crate::state::Facts {
            host_addresses: [std::net::IpAddr::from([10, 0, 0, 2])].into(),
            ..crate::state::Facts::default()
        };
        let error = crate::state::Desired::default().change(&config.statement(), &facts, false).unwrap_err();
        let error = config.located(Path::new("lb.toml"), error);
        assert!(error.message.starts_with("lb.toml:4:13: backend 10.0.0.2:80: the address is this host's"), "{error}");
        let other = config.located(Path::new("lb.toml"), Error::failed("no such thing"));
        assert_eq!(other.message, "no such thing");
        assert!("10.0.0.2:80".parse::<SocketAddr>().is_ok());
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.toml");
        let binary = directory.path().join("binary.toml");
        let endless = Path::new("/dev/zero");
        for (path, words) in
            [(missing.as_path(), "No such file"), (directory.path(), "directory"), (endless, "larger than")]
        {
            let error = Config::read(path).unwrap_err();
            assert!(error.message.contains(words) && error.hint.is_some(), "{error}");
        }
        let said = |bytes: &[u8]| {
            fs::write(&binary, bytes).unwrap();
            Config::read(&binary).unwrap_err().problems[0].to_string()
        };
        assert!(said(b"a = 1\n\xc3\xbc = \"\xff\"").ends_with("binary.toml:2:6: the byte 0xff is not UTF-8"));
        assert!(said(b"\xff\xfea\0").ends_with("binary.toml:1:1: this is UTF-16"));
    }

    /// Writes what is generated when LB_BLESS is set; else it must be what stands there.
    fn kept(path: &str, generated: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        if std::env::var_os("LB_BLESS").is_some() {
            fs::write(&path, generated).unwrap();
        }
        let stands = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stands == generated,
            "{} is out of date: LB_BLESS=1 cargo test -p lb-userspace --lib config::",
            path.display()
        );
    }

    #[test]
    fn the_schema_is_that_of_the_keys() {
        kept("packaging/lb.schema.json", &format!("{:#}\n", schema::schema()));
    }

    #[test]
    fn the_reference_is_that_of_the_keys() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let text = fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once("<!-- keys: generated -->\n").expect("the first mark");
        let (_, after) = rest.split_once("<!-- end of keys -->\n").expect("the second mark");
        let marks = ("<!-- keys: generated -->\n", "<!-- end of keys -->\n");
        kept("docs/configuration.md", &format!("{before}{}{}{}{after}", marks.0, schema::reference(), marks.1));
    }
}
