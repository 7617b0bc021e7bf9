//! A watched file: one backend per line, or a JSON list. Read whole or not at all.
//!
//! The directory is watched, not the file: editors write beside it and rename, and ConfigMaps swap links.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{
    Answered, Instance, Registry,
    guard::Set,
    written::{Written, of_text},
};
use crate::{Error, Result, error::Context as _};

/// The file is looked at this often even if nothing is heard: some file systems tell nothing.
const LOOK: Duration = Duration::from_secs(5);
/// Time that a change is let settle before it is read.
const SETTLE: Duration = Duration::from_millis(20);
/// Whoever writes a file in place empties it first: an empty one is read again after this time.
const EMPTIED: Duration = Duration::from_millis(300);

/// See the module.
pub struct File {
    path: PathBuf,
    weight: u16,
    watch: Option<(RecommendedWatcher, UnboundedReceiver<()>)>,
    last: Option<String>,
    /// The last answer was an error, which was told.
    failed: bool,
}

impl File {
    /// A file whose lines have this weight unless they say another.
    #[must_use]
    pub const fn new(path: PathBuf, weight: u16) -> Self {
        Self { path, weight, watch: None, last: None, failed: false }
    }

    fn read(&mut self) -> Result<Option<Answered>> {
        let text = fs::read_to_string(&self.path).context(self.path.display())?;
        if self.last.as_ref() == Some(&text) {
            return Ok(None);
        }
        let set = parse(&text, &self.path, self.weight)?;
        self.last = Some(text);
        Ok(Some(Answered::whole(set)))
    }

    /// Watches the directory; again if that was not possible before.
    fn watch(&mut self) -> Result<()> {
        if self.watch.is_some() {
            return Ok(());
        }
        let (tell, told) = unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |_| {
            // Nobody listens any more when the source is gone.
            let _ = tell.send(());
        })
        .context("watch files")?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        watcher.watch(directory, RecursiveMode::NonRecursive).context(format_args!("watch {}", directory.display()))?;
        self.watch = Some((watcher, told));
        Ok(())
    }

    /// Waits until something happened in the directory, or for a while.
    async fn news(&mut self) -> Result<()> {
        let Some((_, told)) = &mut self.watch else { return self.watch() };
        if let Ok(None) = timeout(LOOK, told.recv()).await {
            self.watch = None;
            return self.watch();
        }
        tokio::time::sleep(SETTLE).await;
        while told.try_recv().is_ok() {}
        Ok(())
    }
}

impl Registry for File {
    /// A file that is mended is read at once.
    const LONGEST_PAUSE: Duration = Duration::from_millis(200);

    async fn next(&mut self, fresh: bool) -> Result<Answered> {
        let failed = std::mem::replace(&mut self.failed, false);
        if failed && !fresh && self.watch.is_some() {
            self.news().await?;
        }
        self.watch()?;
        if fresh {
            self.last = None;
        }
        loop {
            let before = self.last.clone();
            match self.read() {
                Ok(Some(answered)) if answered.set.is_empty() && before.is_some_and(|text| !text.is_empty()) => {
                    tokio::time::sleep(EMPTIED).await;
                    self.last = None;
                    return Ok(self.read()?.unwrap_or(answered));
                }
                Ok(Some(answered)) => return Ok(answered),
                Ok(None) => {}
                Err(error) => {
                    // What is there when it is readable again is news, even if it is what was there before.
                    (self.last, self.failed) = (None, true);
                    return Err(error);
                }
            }
            self.news().await?;
        }
    }
}

/// One element of a JSON list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Text(String),
    Whole(Written),
}

/// `ADDR:PORT[=WEIGHT]` per line, `#` begins a comment; or a JSON list of the same texts or of
/// `{"address", "weight", "tags", "meta"}`.
fn parse(text: &str, path: &Path, weight: u16) -> Result<Set> {
    let mut set = Set::new();
    let mut put = |place: &str, said: Result<(SocketAddr, Instance)>| -> Result<()> {
        let wrong = |error: Error| Error { message: format!("{place}: {}", error.message), ..error };
        let (address, instance) = said.map_err(wrong)?;
        match set.insert(address, instance) {
            None => Ok(()),
            Some(_) => Err(wrong(Error::usage(format!("backend {address}: named twice")).hint("name it once"))),
        }
    };
    if text.trim_start().starts_with('[') {
        let elements: Vec<Element> = serde_json::from_str(text).map_err(|error| {
            Error::usage(format!("{}: {error}", path.display()))
                .hint(r#"a list of "ADDR:PORT" or {"address": "ADDR:PORT", "weight": 1}"#)
        })?;
        for (n, element) in elements.into_iter().enumerate() {
            let place = format!("{}: element {}", path.display(), n + 1);
            match element {
                Element::Text(text) => put(&place, of_text(&text, weight))?,
                Element::Whole(written) => put(&place, written.meaning(weight))?,
            }
        }
        return Ok(set);
    }
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            put(&format!("{}:{}", path.display(), n + 1), of_text(line, weight))?;
        }
    }
    Ok(set)
}

/// Text of a set as a file has it; for tests and examples.
#[must_use]
pub fn lines(addresses: impl IntoIterator<Item = SocketAddr>) -> String {
    addresses.into_iter().map(|address| format!("{address}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, u16)>> {
        let set = parse(text, Path::new("/etc/lb/web"), 7)?;
        Ok(set.into_iter().map(|(address, instance)| (address.to_string(), instance.weight)).collect())
    }

    #[test]
    fn lines_and_json_say_the_same() {
        let lines = read("# the web\n10.0.0.2:80 # old\n\n  10.0.0.1:80=3\n").unwrap();
        let json = read(r#"["10.0.0.2:80", {"address": "10.0.0.1:80", "weight": 3, "meta": {"a": "b"}}]"#).unwrap();
        assert_eq!(lines, [("10.0.0.1:80".to_owned(), 3), ("10.0.0.2:80".to_owned(), 7)]);
        assert_eq!(lines, json);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, words) in [
            ("10.0.0.1:80\n10.0.0.2:x", "/etc/lb/web:2: backend '10.0.0.2:x'"),
            ("10.0.0.1:80\n\n10.0.0.1:80=2", "/etc/lb/web:3: backend 10.0.0.1:80: named twice"),
            ("web:80", "/etc/lb/web:1"),
            ("[\n\"10.0.0.1:80\",\n]", "/etc/lb/web: trailing comma at line 3"),
            ("[{\"address\": \"x\"}]", "element 1: backend 'x'"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message.starts_with(words) || error.message.contains(words), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn renames_and_swapped_links_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web");
        fs::write(&path, "10.0.0.1:80").unwrap();
        let mut file = File::new(path.clone(), 1);
        let count = |answered: Result<Answered>| answered.map(|answered| answered.set.len());
        assert_eq!(count(file.next(false).await), Ok(1));
        fs::write(directory.path().join("new"), "10.0.0.1:80\n10.0.0.2:80").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert_eq!(count(timeout(LOOK / 2, file.next(false)).await.expect("seen at once")), Ok(2));
        fs::write(directory.path().join("other"), "10.0.0.3:80").unwrap();
        std::os::unix::fs::symlink(directory.path().join("other"), directory.path().join("link")).unwrap();
        fs::rename(directory.path().join("link"), &path).unwrap();
        assert_eq!(count(timeout(LOOK / 2, file.next(false)).await.expect("seen at once")), Ok(1));
        fs::write(&path, "10.0.0.3:x").unwrap();
        assert!(timeout(LOOK / 2, file.next(false)).await.expect("seen at once").is_err());
        fs::remove_file(&path).unwrap();
        assert!(file.next(false).await.unwrap_err().message.contains("No such file"));
        fs::write(&path, "10.0.0.3:80").unwrap();
        assert_eq!(count(file.next(false).await), Ok(1), "what was there before is news after an error");
    }
}
