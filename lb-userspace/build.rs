//! Builds the kernel programs and leaves them at `$OUT_DIR/NAME.bpf.o`: `lb`, `clock` and `lab`.
//!
//! Two kinds of Rust toolchain can build for `bpfel-unknown-none`: one that ships a compiled `core` for it (Debian:
//! `libstd-rust-web-dev-bpf`), and one that ships `rust-src`, from which cargo's `-Zbuild-std=core` compiles it. The
//! first kind is looked for, then the second. `LB_EBPF_RUSTC` names a compiler outright, and `LB_EBPF_OBJECTS` a
//! directory with all three finished, in which case nothing is built.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

const PACKAGE: &str = "lb-ebpf";
const PROGRAMS: [&str; 3] = ["lb", "clock", "lab"];
/// What the build script of cargo's host build says of *its* compiler and target must not reach the other one.
const LEAKS: [&str; 9] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
];
const LEAKING_PREFIXES: [&str; 3] = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_"];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR")?);
    for variable in ["LB_EBPF_OBJECTS", "LB_EBPF_RUSTC", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Some(finished) = env::var_os("LB_EBPF_OBJECTS").map(PathBuf::from) {
        return PROGRAMS.iter().try_for_each(|name| {
            let from = finished.join(format!("{name}.bpf.o"));
            println!("cargo::rerun-if-changed={}", from.display());
            copy(&from, &out.join(format!("{name}.bpf.o")))
        });
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace root")?;
    for directory in ["lb-ebpf", "lb-common", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(directory).display());
    }
    build(root, &out)
}

fn build(root: &Path, out: &Path) -> Result<()> {
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => "bpfel-unknown-none",
        _ => "bpfeb-unknown-none",
    };
    let toolchain = Toolchain::find(target)?;
    ensure!(
        Command::new("bpf-linker").arg("--version").output().is_ok(),
        "bpf-linker is not in PATH: run `cargo xtask setup`"
    );
    let target_directory = out.join("ebpf-target");
    let mut cargo = Command::new(env::var_os("CARGO").context("CARGO")?);
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if LEAKS.contains(&&*name) || LEAKING_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(&key);
        }
    }
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::var("CARGO_CFG_TARGET_ARCH")?);
    // v3 has compare-and-swap and 32-bit registers (Linux 5.12).
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", &architecture];
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", PACKAGE, "--bins", "--target", target])
        .arg("--target-dir")
        .arg(&target_directory)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]).env("RUSTC_BOOTSTRAP", "1");
    } else {
        // Inline assembly for this target is unstable: only the crates that need it may have it on a stable compiler.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,lb,lab");
    }
    let status = cargo.status().context("run cargo for the kernel programs")?;
    ensure!(status.success(), "building {PACKAGE} with {toolchain:?} failed: {status}");
    PROGRAMS.iter().try_for_each(|name| {
        copy(&target_directory.join(target).join("release").join(name), &out.join(format!("{name}.bpf.o")))
    })
}

/// Copies an object; without its debug information where a tool to strip it is at hand (346 KB become 45).
fn copy(from: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("llvm-objcopy").arg("--strip-debug").args([from, to]).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

#[derive(Debug)]
struct Toolchain {
    rustc: PathBuf,
    build_std: bool,
}

impl Toolchain {
    fn find(target: &str) -> Result<Self> {
        let mut candidates = Vec::new();
        if let Some(named) = env::var_os("LB_EBPF_RUSTC") {
            candidates.push(PathBuf::from(named));
        } else {
            candidates.extend(env::var_os("RUSTC").map(PathBuf::from));
            candidates.push("/usr/bin/rustc".into());
            candidates.extend(rustup_nightly());
        }
        let known: Vec<_> = candidates.into_iter().filter_map(|rustc| Some((sysroot(&rustc)?, rustc))).collect();
        let has_core = |sysroot: &Path| {
            fs::read_dir(sysroot.join("lib/rustlib").join(target).join("lib")).is_ok_and(|files| {
                files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
            })
        };
        let has_source = |sysroot: &Path| sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists();
        if let Some((_, rustc)) = known.iter().find(|(sysroot, _)| has_core(sysroot)) {
            return Ok(Self { rustc: rustc.clone(), build_std: false });
        }
        if let Some((_, rustc)) = known.iter().find(|(sysroot, _)| has_source(sysroot)) {
            return Ok(Self { rustc: rustc.clone(), build_std: true });
        }
        bail!(
            "no Rust toolchain here can build for {target}. Do one of:\n  \
             cargo xtask setup                                  (installs what is missing)\n  \
             rustup component add rust-src\n  \
             apt install rustc-web libstd-rust-web-dev-bpf      (Debian)\n  \
             LB_EBPF_OBJECTS=DIRECTORY                          (with finished lb.bpf.o, clock.bpf.o and lab.bpf.o)"
        )
    }
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).env_remove("LD_LIBRARY_PATH").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}

fn rustup_nightly() -> Option<PathBuf> {
    let output = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}
