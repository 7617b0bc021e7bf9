//! Where things are pinned, and how all of it is removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_common::LAYOUT_VERSION;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

use crate::{Error, Result};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPFFS: i64 = 0xcafe_4a11;

/// Source of a BPF file system that lb mounted for itself, in /proc/mounts.
const OWN: &str = "lb";

/// What every link's pin begins with; the interface's name follows.
pub const LINK: &str = "link-";
/// The program's pin.
pub const PROGRAM: &str = "prog";

/// Where the pins of this layout are.
#[must_use]
pub fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{LAYOUT_VERSION}"))
}

/// Whether a data plane of this layout is pinned: its program is the last thing that a start pins.
#[must_use]
pub fn exists(bpffs: &Path) -> bool {
    directory(bpffs).join(PROGRAM).exists()
}

/// Interfaces that have a pinned link, by name.
#[must_use]
pub fn links(bpffs: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory(bpffs))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.strip_prefix(LINK)).map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Makes the directory of this layout; mounts a BPF file system where the nearest directory is not on one.
pub fn prepare(bpffs: &Path) -> Result<PathBuf> {
    let existing = bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !on_bpffs(existing) {
        let at = if bpffs.starts_with("/sys/fs/bpf") { Path::new("/sys/fs/bpf") } else { bpffs };
        fs::create_dir_all(at).map_err(|error| cannot("make", at, &error))?;
        // Where lb mounts one for itself, its name says so, and the last detach takes it away.
        let source = if at == bpffs { OWN } else { "bpf" };
        mount(Some(source), at, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|error| {
            Error::failed(format!("mount a BPF file system on {}: {error}", at.display()))
                .hint(format!("sudo mount -t bpf bpf {}", at.display()))
        })?;
    }
    let directory = directory(bpffs);
    fs::create_dir_all(&directory).map_err(|error| cannot("make", &directory, &error))?;
    Ok(directory)
}

fn on_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type().0 == BPFFS)
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Error {
    let error = Error::failed(format!("{what} {}: {error}", path.display()));
    error
        .hint("lb needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN), and a directory for its BPF file system: --bpffs")
}

/// Removes the links of some interfaces: forwarding ends there.
pub fn remove_links(bpffs: &Path, names: &[String]) -> Result<()> {
    for name in names {
        let path = directory(bpffs).join(format!("{LINK}{name}"));
        fs::remove_file(&path).map_err(|error| cannot("remove", &path, &error))?;
    }
    Ok(())
}

/// Removes every pin of this layout: links first, so that forwarding stops before tables go. Works without a daemon.
/// Gives the names of the interfaces that were attached.
pub fn remove(bpffs: &Path) -> Result<Vec<String>> {
    let directory = directory(bpffs);
    let interfaces = links(bpffs);
    remove_links(bpffs, &interfaces)?;
    // Then the program: without it this is no data plane, whatever is still there if this is interrupted.
    let program = directory.join(PROGRAM);
    if program.exists() {
        fs::remove_file(&program).map_err(|error| cannot("remove", &program, &error))?;
    }
    if directory.exists() {
        for entry in fs::read_dir(&directory).map_err(|error| cannot("read", &directory, &error))?.flatten() {
            fs::remove_file(entry.path()).map_err(|error| cannot("remove", &entry.path(), &error))?;
        }
        fs::remove_dir(&directory).map_err(|error| cannot("remove", &directory, &error))?;
    }
    unmount_own(bpffs);
    // The directory above goes if nothing else is in it; it may be a mount, or another layout's.
    match fs::remove_dir(bpffs) {
        Ok(()) | Err(_) => Ok(interfaces),
    }
}

/// Takes away a file system that lb mounted for itself and that nothing is left on.
fn unmount_own(bpffs: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).any(|words| {
        words.first() == Some(&OWN) && words.get(1).map(Path::new) == Some(bpffs) && words.get(2) == Some(&"bpf")
    });
    let empty = fs::read_dir(bpffs).is_ok_and(|mut entries| entries.next().is_none());
    if ours
        && empty
        && let Err(error) = nix::mount::umount(bpffs)
    {
        tracing::warn!(%error, directory = %bpffs.display(), "unmount");
    }
}
