//! `cargo xtask setup`: finds what building and testing need, and installs what is missing.
//!
//! Building the kernel programs needs a compiler for the BPF target (Debian: `rustc-web` with its compiled `core`; or
//! rustup's with `rust-src`) and bpf-linker, built against an LLVM at least as new as the compiler's. Tests need a few
//! network tools. With nothing missing it prints nothing.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::shell::{has, output, privileged, run, typed};

/// What is to be prepared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Building lb.
    Build,
    /// Building and testing it.
    Test,
    /// What the end-to-end benchmark compares it with, besides.
    Bench,
}

/// Version of bpf-linker that fits aya 0.14.
const BPF_LINKER: &str = "0.13.0";

/// Programs that tests call, the Debian packages that have them, and why.
const TOOLS: [(&str, &str, &str); 14] = [
    ("ip", "iproute2", "network namespaces"),
    ("ethtool", "ethtool", "settings of veth pairs that native XDP needs"),
    ("sysctl", "procps", "a look at the balancer's ip_forward"),
    ("python3", "python3", "backends that never heard of lb"),
    ("curl", "curl", "a client that never heard of lb"),
    ("nginx", "nginx", "backends that never heard of lb"),
    ("dnsmasq", "dnsmasq-base", "DNS servers that never heard of lb"),
    ("openssl", "openssl", "certificates for servers whose health is checked, expired ones too"),
    ("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio", "a gRPC server whose health is checked"),
    ("wrk", "wrk", "requests without a pause, whose failures are counted"),
    ("iperf3", "iperf3", "a stream in which a stall shows"),
    ("node", "nodejs", "apps of the examples"),
    ("npm", "npm", "packages that they need"),
    ("etcd", "etcd-server", "an etcd whose keys are backends"),
];

/// Programs that only the end-to-end benchmark calls.
const RIVALS: [(&str, &str, &str); 5] = [
    ("wrk", "wrk", "the benchmark's client"),
    ("nginx", "nginx-light", "the benchmark's web servers"),
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", "a rival: nginx stream"),
    ("haproxy", "haproxy", "a rival: HAProxy"),
    ("nft", "nftables", "a rival: DNAT by nftables"),
];

/// Prepares the machine.
pub fn setup(part: Part) -> Result<()> {
    let apt = has("apt-get");
    if compiler().is_none() {
        let packages = ["rustc-web", "libstd-rust-web-dev-bpf"];
        install(apt, &packages, "a Rust compiler for the kernel programs", "rustup component add rust-src")?;
    }
    if !has("bpf-linker") {
        install_linker(apt)?;
    }
    if part != Part::Build {
        let rivals = if part == Part::Bench { RIVALS.as_slice() } else { &[] };
        let missing: Vec<_> = TOOLS.iter().chain(rivals).filter(|(program, ..)| !there(program)).collect();
        for (_, package, why) in missing {
            install(apt, &[package], why, &format!("install {package} with this system's package manager"))?;
        }
        crate::consul::provide();
        crate::node::provide()?;
    }
    Ok(())
}

/// Whether a program is in PATH, or a file where it belongs.
fn there(program: &str) -> bool {
    if program.starts_with('/') { Path::new(program).exists() } else { has(program) }
}

/// A compiler that can build for the BPF target, by the same rules as lb-userspace/build.rs.
fn compiler() -> Option<String> {
    let candidates = [std::env::var("LB_EBPF_RUSTC").ok(), Some("/usr/bin/rustc".into()), Some("rustc".into())];
    candidates.into_iter().flatten().find(|rustc| {
        let Some(sysroot) = output(Command::new(rustc).args(["--print", "sysroot"])) else { return false };
        let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
        rustlib.join("bpfel-unknown-none/lib").is_dir() || rustlib.join("src/rust/library/core/Cargo.toml").exists()
    })
}

/// Builds bpf-linker against the LLVM of the compiler that it will serve.
fn install_linker(apt: bool) -> Result<()> {
    let version = compiler().and_then(|rustc| output(Command::new(rustc).arg("-vV"))).unwrap_or_default();
    let Some(llvm) = llvm_major(&version) else {
        bail!("cannot tell the LLVM version of the BPF compiler:\n{version}")
    };
    let packages =
        [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"), "zlib1g-dev".into(), "libzstd-dev".into()];
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    if !Path::new(&format!("/usr/lib/llvm-{llvm}/lib/libLLVM.so")).exists() || !has("llvm-objcopy") {
        install(apt, &names, "LLVM for bpf-linker", &format!("install LLVM {llvm} with its headers"))?;
    }
    let feature = format!("llvm-{llvm}");
    let mut cargo = crate::shell::cargo();
    cargo.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")).args(["install", "bpf-linker", "--version", BPF_LINKER]);
    run(cargo.args(["--locked", "--no-default-features", "--features", &feature]))
}

/// The major version in the LLVM line of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.trim().parse().ok())
}

/// Installs Debian packages, saying why; elsewhere says what to do.
fn install(apt: bool, packages: &[&str], why: &str, elsewhere: &str) -> Result<()> {
    if !apt {
        bail!("missing: {why}. This is not Debian or Ubuntu; please {elsewhere}, then run this again");
    }
    eprintln!("xtask: installing {} ({why})", packages.join(" "));
    run(privileged("apt-get").args(["update", "-qq"]))?;
    let mut command = privileged("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"]);
    run(command.args(packages)).map_err(|error| error.context(typed(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_line_is_found() {
        assert_eq!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
