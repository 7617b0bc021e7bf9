//! A real Consul for the tests: Debian 11's package, unpacked beside the build, not installed.
//!
//! Debian 12 has none any more, but Debian 11's needs only the C library. It is fetched by apt from this machine's own
//! package sources with the suite changed, in directories of its own: the system's apt is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::shell::{has, output, root};

/// The last Debian release that has the package.
const SUITE: &str = "bullseye";

/// Puts the binary where the tests look for it, if it is not there; says loudly when that is not possible.
pub fn provide() {
    let directory = root().join("target/tools/consul");
    if has("consul") || directory.join("usr/bin/consul").is_file() {
        return;
    }
    eprintln!("xtask: fetching Debian 11's consul for the tests (unpacked in target/, not installed)");
    if let Err(error) = fetch(&directory) {
        eprintln!("\n*** xtask: NO REAL CONSUL: {error:#}; its tests run with a stand-in ***\n");
    }
}

fn fetch(directory: &Path) -> Result<()> {
    if !has("apt-get") || !has("dpkg-deb") {
        bail!("this is not Debian");
    }
    let work = directory.with_extension("apt");
    for name in ["parts", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(name))?;
    }
    sources(&work.join("parts"))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        let set = |key: &str, value: &Path| format!("{key}={}", value.display());
        command.args(["-qq", "-o", &set("Dir::Etc::SourceList", Path::new("/dev/null"))]);
        command.args(["-o", &set("Dir::Etc::SourceParts", &work.join("parts"))]);
        command.args(["-o", &set("Dir::State::Lists", &work.join("lists"))]);
        command.args(["-o", &set("Dir::Cache", &work.join("cache"))]);
        command.args([
            "-o",
            "APT::Sandbox::User=",
            "-o",
            "Acquire::Languages=none",
            "-o",
            "Acquire::Check-Valid-Until=false",
        ]);
        output(command.args(arguments).current_dir(&work)).with_context(|| format!("apt-get {}", arguments.join(" ")))
    };
    apt(&["update"])?;
    apt(&["download", "consul"])?;
    let package = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
    let package = package.filter(|path| path.extension().is_some_and(|ext| ext == "deb")).max();
    let package = package.context("apt-get download gave no package")?;
    output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(directory)).context("dpkg-deb -x")?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// This machine's own sources of its distribution, with the suite changed.
fn sources(parts: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_owned();
    let listed = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(listed);
    let mut found = 0;
    for file in files {
        let kind = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if matches!(kind, "list" | "sources") && text.contains(&codename) {
            found += 1;
            fs::write(parts.join(format!("{found}.{kind}")), text.replace(&codename, SUITE))?;
        }
    }
    if found == 0 {
        bail!("no source of packages names {codename}");
    }
    Ok(())
}
