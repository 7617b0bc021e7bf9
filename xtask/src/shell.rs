//! Running other programs: what is run is shown, and a failure names it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// The workspace's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Cargo, as it runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command that needs root: through sudo, unless this is root.
pub fn privileged(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env=PATH,RUST_BACKTRACE,CI,TMPDIR,LB_CHURN_SECONDS").arg(program);
    command
}

/// Asks for the password now, if `sudo` wants one: later nobody may be listening.
pub fn authenticate() -> Result<()> {
    if is_root() { Ok(()) } else { run(Command::new("sudo").arg("--validate")) }
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Whether a program is in the path.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
    })
}

/// What a command looks like when typed.
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command and shows it first.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", typed(command));
    let status = command.status().with_context(|| format!("run {}", typed(command)))?;
    ensure!(status.success(), "{} failed: {status}", typed(command));
    Ok(())
}

/// What a command prints, if it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
