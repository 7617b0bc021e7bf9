//! The state file: the statements that make the desired state, on disk, whole or not at all.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Desired, Statements};
use crate::{Error, Result};

/// Format of the file. 1 (which did not say so) had the merged services and not who stated what.
const FORMAT: u32 = 2;

/// What is in the file.
#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    generation: u64,
    #[serde(flatten)]
    statements: Statements,
}

#[derive(Deserialize)]
struct Format {
    format: Option<u32>,
}

/// Where the desired state is kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state file in a directory; nothing is made yet.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self { path: directory.join("state.json") }
    }

    /// Makes the directory if it is missing.
    pub fn prepare(&self) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(|error| {
            Error::failed(format!("make the state directory {}: {error}", directory.display()))
                .hint("run as root, or choose another one with --state-dir")
        })
    }

    /// What was saved; `None` if nothing was.
    pub fn load(&self) -> Result<Option<Desired>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotADirectory => return self.prepare().map(|()| None),
            Err(error) => return Err(self.error("read", &error)),
        };
        let format = serde_json::from_str::<Format>(&text).map_err(|error| self.unreadable(&error.to_string()))?;
        match format.format {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                return Err(self.unreadable(&format!("its format is {newer}, and this lb knows {FORMAT} at most")));
            }
            _ => return Err(self.unreadable("its format is that of an older lb, which did not keep who stated what")),
        }
        let saved: Saved = serde_json::from_str(&text).map_err(|error| self.unreadable(&error.to_string()))?;
        Ok(Some(Desired::new(saved.generation, saved.statements)))
    }

    fn unreadable(&self, why: &str) -> Error {
        let path = self.path.display();
        Error::failed(format!("saved state {path}: {why}")).hint(format!(
            "`sudo rm {path}`: the data path goes on until the next start, and lb starts without the saved services; or use the lb that wrote it"
        ))
    }

    /// Saves: a new file beside the old one, then one rename.
    pub fn save(&self, desired: &Desired) -> Result<()> {
        let new = self.path.with_extension("json.new");
        let saved = Saved { format: FORMAT, generation: desired.generation, statements: desired.statements.clone() };
        self.prepare()?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            serde_json::to_writer_pretty(&mut file, &saved)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|error| self.error("write", &error))
    }

    /// Removes it, and its directory if nothing else is in there.
    pub fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(self.error("remove", &error));
            }
            _ => {}
        }
        match fs::remove_dir(self.path.parent().unwrap_or(Path::new("/"))) {
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn error(&self, what: &str, error: &std::io::Error) -> Error {
        Error::failed(format!("{what} {}: {error}", self.path.display()))
            .hint("run as root, or choose another --state-dir")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Admin, ServiceSpec, ServiceStatement, Source};

    fn some() -> Desired {
        let mut statements = Statements::default();
        let service = ServiceSpec::new("10.0.0.1:80".parse().unwrap(), Source::File);
        statements.state(Source::File, "web", service.into());
        let backends = [("10.0.0.2:80".parse().unwrap(), 3)].into();
        let registry = Source::Registry("consul".into());
        statements.state(registry, "web", ServiceStatement { spec: None, backends });
        statements.backend_word("web", "10.0.0.2:80".parse().unwrap()).admin = Admin::Drain;
        Desired::new(7, statements)
    }

    #[test]
    fn what_is_saved_is_loaded_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(&directory.path().join("deep/er"));
        assert_eq!(file.load().unwrap(), None);
        file.save(&some()).unwrap();
        file.save(&some()).unwrap();
        let loaded = file.load().unwrap().unwrap();
        assert_eq!(loaded, some());
        let backend = &loaded.services["web"].backends[0];
        assert_eq!(
            (backend.weight, backend.admin, backend.source.to_string().as_str()),
            (3, Admin::Drain, "registry:consul")
        );
        file.forget().unwrap();
        file.forget().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(directory.path());
        let cases = [
            ("{\"generation\": oops}", "line 1"),
            ("", "EOF"),
            ("{\"generation\": 3, \"settings\": {}, \"services\": {}}", "older lb"),
            ("{\"format\": 99, \"more\": true}", "its format is 99"),
            ("{\"format\": 2}", "generation"),
            ("{\"format\": 2, \"generation\": 1, \"sources\": {\"nobody\": {}}}", "'nobody' is not a source"),
        ];
        for (text, words) in cases {
            fs::write(directory.path().join("state.json"), text).unwrap();
            let error = file.load().unwrap_err();
            assert!(error.message.contains("state.json") && error.message.contains(words), "{text}: {error}");
            assert!(error.hint.unwrap().contains("sudo rm"));
        }
    }
}
