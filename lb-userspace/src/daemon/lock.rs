//! One writer at a time: locks on the state directory and on the pins, held while the daemon lives. The kernel frees
//! them when the process is gone, however it went.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{
    Error, Result,
    api::{Request, client::Client},
};

/// How long a daemon that is ending is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a daemon that lives may take to say so.
const ANSWER: Duration = Duration::from_secs(3);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The locks; dropped = freed.
#[derive(Debug)]
pub struct Locks {
    state: Option<Flock<File>>,
    pins: Option<Flock<File>>,
}

/// Waits for a daemon that is ending, and refuses when one lives.
pub async fn take(client: &Client, socket: &Path, state_dir: &Path, bpffs: &Path) -> Result<Locks> {
    let begun = Instant::now();
    loop {
        if client.answers().await && lives(client).await {
            return Err(Error::refused(format!("attach: a daemon answers on {} already", socket.display()))
                .hint("`lb status` shows it, `lb service add` adds to it, `lb detach` ends it"));
        }
        let held = match try_both(state_dir, bpffs)? {
            Ok(locks) if !client.answers().await => return Ok(locks),
            Ok(_) => socket.to_owned(),
            Err(held) => held,
        };
        if begun.elapsed() > PATIENCE {
            let (what, flag) =
                if held == state_dir { ("saved state", "--state-dir") } else { ("data plane", "--bpffs") };
            return Err(Error::refused(format!("attach: another daemon has the {what} in {}", held.display()))
                .hint(format!(
                    "talk to it by its own --socket; a second instance needs {flag} of its own (and --socket, --state-dir, --bpffs)"
                )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until nobody holds the state directory, but not for ever.
pub async fn wait_free(state_dir: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match lock_directory(state_dir) {
            Ok(None) => tokio::time::sleep(LOOK).await,
            _ => return,
        }
    }
}

/// Whether the daemon is at work, and not ending. One that does not say is.
async fn lives(client: &Client) -> bool {
    !matches!(tokio::time::timeout(ANSWER, client.send(&Request::Status)).await, Ok(Err(_)))
}

/// The locks, or the place that somebody else holds.
fn try_both(state_dir: &Path, bpffs: &Path) -> Result<std::result::Result<Locks, std::path::PathBuf>> {
    // Nobody has what is not there.
    let Some(pins) = lock_directory(bpffs)? else { return Ok(Err(bpffs.to_owned())) };
    let Some(state) = lock_directory(state_dir)? else { return Ok(Err(state_dir.to_owned())) };
    Ok(Ok(Locks { state, pins }))
}

/// The lock of a directory; `None` while somebody else holds it. One that is gone or replaced meanwhile is nobody's.
fn lock_directory(path: &Path) -> Result<Option<Option<Flock<File>>>> {
    let Ok(directory) = File::open(path) else { return Ok(Some(None)) };
    let Some(lock) = flock(directory)? else { return Ok(None) };
    let place = |metadata: std::io::Result<std::fs::Metadata>| metadata.ok().map(|found| (found.dev(), found.ino()));
    let stands = place(lock.metadata()) == place(std::fs::metadata(path));
    Ok(Some(Some(lock).filter(|_| stands)))
}

impl Locks {
    /// Locks what was not there before: the state directory, the pins.
    pub fn and_new(mut self, state_dir: &Path, bpffs: &Path) -> Result<Self> {
        if self.state.is_none() {
            self.state = lock_directory(state_dir)?.flatten();
        }
        if self.pins.is_none() {
            self.pins = lock_directory(bpffs)?.flatten();
        }
        Ok(self)
    }
}

fn flock(file: File) -> Result<Option<Flock<File>>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(Error::failed(format!("lock: {errno}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_which_place_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let pins = directory.path().join("pins");
        for path in [&one, &other, &pins] {
            std::fs::create_dir(path).unwrap();
        }
        let first = try_both(&one, &pins).unwrap().unwrap();
        assert_eq!(try_both(&one, &other).unwrap().unwrap_err(), one);
        assert_eq!(try_both(&other, &pins).unwrap().unwrap_err(), pins, "another state, the same pins");
        drop(first);
        assert!(try_both(&one, &pins).unwrap().is_ok());
    }
}
