//! The state file: the desired state on disk, whole or not at all.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::Desired;
use crate::{Error, Result};

/// Where the desired state is kept.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The state file in a directory, which is made if it is missing.
    pub fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|error| {
            Error::failed(format!("make the state directory {}: {error}", directory.display()))
                .hint("run as root, or choose another one with --state-dir")
        })?;
        Ok(Self { path: directory.join("state.json") })
    }

    /// What was saved; `None` if nothing was.
    pub fn load(&self) -> Result<Option<Desired>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error("read", &error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::failed(format!("{}: {error}", self.path.display())).hint(format!(
                "repair it, or `sudo rm {}`: the data path goes on, and lb starts without the saved services",
                self.path.display()
            ))
        })
    }

    /// Saves: a new file beside the old one, then one rename.
    pub fn save(&self, desired: &Desired) -> Result<()> {
        let new = self.path.with_extension("json.new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            serde_json::to_writer_pretty(&mut file, desired)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().map_err(|error| self.error("write", &error))
    }

    /// Removes it.
    pub fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.error("remove", &error)),
            _ => Ok(()),
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
    use crate::state::{ServiceSpec, Source};

    #[test]
    fn what_is_saved_is_loaded_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(&directory.path().join("deep/er")).unwrap();
        assert_eq!(file.load().unwrap(), None);
        let mut desired = Desired { generation: 7, ..Desired::default() };
        let service = ServiceSpec::new("10.0.0.1:80".parse().unwrap(), Source::Registry("consul".into()));
        desired.services.insert(service.name.clone(), service);
        file.save(&desired).unwrap();
        file.save(&desired).unwrap();
        assert_eq!(file.load().unwrap(), Some(desired));
        file.forget().unwrap();
        file.forget().unwrap();
        assert_eq!(file.load().unwrap(), None);
    }

    #[test]
    fn a_broken_file_is_named_with_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = StateFile::open(directory.path()).unwrap();
        fs::write(directory.path().join("state.json"), "{\"generation\": oops}").unwrap();
        let error = file.load().unwrap_err();
        assert!(error.message.contains("state.json") && error.message.contains("line 1"), "{error}");
        assert!(error.hint.unwrap().contains("sudo rm"));
    }
}
