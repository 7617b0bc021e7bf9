//! Builds the eBPF object and leaves it at `$OUT_DIR/lb.bpf.o`.
//!
//! Two kinds of Rust toolchain can build for `bpfel-unknown-none`:
//!   * one that ships a compiled `core` for it (Debian: `libstd-rust-web-dev-bpf`), or
//!   * one that ships `rust-src`, from which cargo's `-Zbuild-std=core` compiles it.
//!
//! We look for the first kind, then for the second; `LB_EBPF_RUSTC` names one outright and
//! `LB_EBPF_OBJECT` names a finished object, in which case nothing is built at all.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

const PACKAGE: &str = "lb-ebpf";
const BINARY: &str = "lb";

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR")?);
    let object = out.join("lb.bpf.o");
    for var in ["LB_EBPF_OBJECT", "LB_EBPF_RUSTC", "PATH"] {
        println!("cargo::rerun-if-env-changed={var}");
    }
    if let Some(prebuilt) = env::var_os("LB_EBPF_OBJECT").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", prebuilt.display());
        fs::copy(&prebuilt, &object).with_context(|| format!("copy {}", prebuilt.display()))?;
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace root")?;
    for dir in ["lb-ebpf", "lb-common"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).display());
    }

    let target = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => "bpfel-unknown-none",
        _ => "bpfeb-unknown-none",
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let toolchain = Toolchain::find(target)?;
    let target_dir = out.join("ebpf-target");

    let mut cargo = Command::new(env::var_os("CARGO").context("CARGO")?);
    // Cargo gives build scripts the *host* build's settings; none may leak into this one.
    for (key, _) in env::vars_os() {
        let key = key.to_string_lossy();
        let leaks = matches!(
            &*key,
            "RUSTC"
                | "RUSTC_WRAPPER"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "RUSTFLAGS"
                | "RUSTUP_TOOLCHAIN"
                | "CARGO_ENCODED_RUSTFLAGS"
                | "CARGO_BUILD_TARGET"
                | "CARGO_TARGET_DIR"
                | "LD_LIBRARY_PATH"
        ) || key.starts_with("CARGO_CFG_")
            || key.starts_with("CARGO_FEATURE_")
            || key.starts_with("CARGO_PROFILE_");
        if leaks {
            cargo.env_remove(&*key);
        }
    }
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", PACKAGE, "--bins", "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", &format!("--cfg=bpf_target_arch=\"{arch}\"")]
                .join("\x1f"),
        );
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]).env("RUSTC_BOOTSTRAP", "1");
    } else {
        // aya-ebpf uses `asm_experimental_arch`; let that one crate have it on a stable compiler.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,lb,lab");
    }
    let status = cargo.status().context("run cargo for the eBPF crate")?;
    ensure!(status.success(), "building {PACKAGE} with {toolchain:?} failed: {status}");
    let built = target_dir.join(target).join("release").join(BINARY);
    fs::copy(&built, &object).with_context(|| format!("copy {}", built.display()))?;
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
            fs::read_dir(sysroot.join("lib/rustlib").join(target).join("lib"))
                .is_ok_and(|files| files.flatten().any(|f| f.file_name().to_string_lossy().starts_with("libcore-")))
        };
        let has_source = |sysroot: &Path| sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists();
        if let Some((_, rustc)) = known.iter().find(|(s, _)| has_core(s)) {
            return Ok(Self { rustc: rustc.clone(), build_std: false });
        }
        if let Some((_, rustc)) = known.iter().find(|(s, _)| has_source(s)) {
            return Ok(Self { rustc: rustc.clone(), build_std: true });
        }
        bail!(
            "no Rust toolchain here can build for {target}. Do one of:\n  \
             rustup component add rust-src\n  \
             apt install rustc-web libstd-rust-web-dev-bpf     (Debian)\n  \
             LB_EBPF_OBJECT=path/to/lb.bpf.o                    (a finished object)"
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
