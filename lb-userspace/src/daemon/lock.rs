//! One writer at a time: locks on the state directory and on the pins, held while the daemon lives. The kernel frees
//! them when the process is gone, however it went.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
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
            let who =
                holder(state_dir).map_or_else(|| "another lb".to_owned(), |pid| format!("another lb (pid {pid})"));
            return Err(Error::refused(format!("attach: {who} is at work on {}", held.display()))
                .hint("end it; or --socket, --state-dir and --bpffs make a second one beside it"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until nobody holds the state directory, but not for ever.
pub async fn wait_free(state_dir: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match OpenOptions::new().read(true).open(state_dir.join("lock")).map(flock) {
            Ok(Ok(None)) => tokio::time::sleep(LOOK).await,
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
    let state = match state_dir.is_dir() {
        true => match lock_state(state_dir)? {
            Some(lock) => Some(lock),
            None => return Ok(Err(state_dir.to_owned())),
        },
        false => None,
    };
    let pins = match File::open(bpffs) {
        Ok(directory) => match flock(directory)? {
            Some(lock) => Some(lock),
            None => return Ok(Err(bpffs.to_owned())),
        },
        // Nothing is pinned yet.
        Err(_) => None,
    };
    Ok(Ok(Locks { state, pins }))
}

/// The lock of a state directory, with this process's number in it; `None` while somebody else holds it.
fn lock_state(state_dir: &Path) -> Result<Option<Flock<File>>> {
    let path = state_dir.join("lock");
    let cannot = |error: std::io::Error| Error::failed(format!("lock {}: {error}", path.display()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
    let Some(mut lock) = flock(file)? else { return Ok(None) };
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(cannot)?;
    Ok(Some(lock))
}

impl Locks {
    /// Locks what was not there before: the state directory, the pins.
    pub fn and_new(mut self, state_dir: &Path, bpffs: &Path) -> Result<Self> {
        if self.state.is_none() {
            self.state = lock_state(state_dir)?;
        }
        if self.pins.is_none()
            && let Ok(directory) = File::open(bpffs)
        {
            self.pins = flock(directory)?;
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

/// Who holds the state directory, as it wrote itself.
fn holder(state_dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(state_dir.join("lock")).ok()?.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
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
        assert_eq!(try_both(&one, &pins).unwrap().unwrap_err(), one);
        assert_eq!(try_both(&other, &pins).unwrap().unwrap_err(), pins, "another state, the same pins");
        assert_eq!(holder(&one), Some(std::process::id()));
        drop(first);
        assert!(try_both(&one, &pins).unwrap().is_ok());
    }
}
