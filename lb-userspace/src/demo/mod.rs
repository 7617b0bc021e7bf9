//! `lb demo`: the whole thing in a minute, on any Linux machine.
//!
//! A client, a balancer and three web servers in network namespaces; the real program, attached natively; real HTTP.
//! Then a server is killed, one is added, one is drained, and the table shows what happens to the requests.

mod traffic;
mod web;

use std::{
    io::{IsTerminal as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    Error, Result,
    api::{Request, Status, client::Client},
    dataplane::pins,
    error::Context as _,
    lab::{Host, Lab},
    state::{Admin, Change},
};
use traffic::Traffic;
use web::Web;

const PORT: u16 = 8080;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 2);
const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 1);
/// Time between two looks at the table.
const LOOK: Duration = Duration::from_secs(1);

struct Demo {
    servers: Vec<(SocketAddr, Web)>,
    traffic: Traffic,
    daemon: Balancer,
    interrupt: Signal,
    terminate: Signal,
    drawn: usize,
    // Last: its hosts go when everything on them has ended.
    lab: Lab,
}

/// The balancer: `lb attach` in its own process, as a user would start it.
struct Balancer {
    process: Child,
    directory: tempfile::TempDir,
    bpffs: PathBuf,
    host: Host,
}

/// Runs the demo.
pub async fn run(keep: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::failed(
            "demo: it makes network namespaces and loads a program into the kernel, which needs root",
        )
        .hint("sudo lb demo, or cargo xtask run"));
    }
    println!("lb demo: a client, a balancer and three web servers, each in a network namespace of its own.\n");
    let mut demo = Demo::start().await?;
    let ended = demo.show(keep).await;
    println!(
        "{}",
        match ended {
            Ok(true) => "\nThe lab is removed. Now on a real interface: sudo lb attach IFACE --backends ADDR:PORT,..",
            _ => "\nInterrupted: the lab is removed.",
        }
    );
    ended.map(|_| ())
}

impl Demo {
    async fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", CLIENT, 1500)?;
        let balancer = lab.host("lb", BALANCER, 1500)?;
        let mut servers = Vec::new();
        for number in 1..=3 {
            servers.push(server(&mut lab, number)?);
        }
        let addresses: Vec<_> = servers.iter().map(|(address, _)| *address).collect();
        let daemon = Balancer::start(balancer, &addresses)?;
        let traffic = Traffic::start(&client, SocketAddr::from((BALANCER, 80)));
        Ok(Self {
            servers,
            traffic,
            daemon,
            interrupt: signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("watch for SIGTERM")?,
            drawn: 0,
            lab,
        })
    }

    /// The story; false if it was interrupted.
    async fn show(&mut self, keep: bool) -> Result<bool> {
        let first = self.servers[0].0;
        self.say("1. The balancer rewrites packets in the driver. Watch: three servers share the requests.");
        if !self.watch(6).await? {
            return Ok(false);
        }
        self.servers[1].1.kill();
        let killed = self.servers[1].0;
        self.say(&format!(
            "2. {killed} is killed. Watch: its health turns down within two seconds, the others take its share."
        ));
        if !self.watch(7).await? {
            return Ok(false);
        }
        let (new, web) = server(&mut self.lab, 4)?;
        self.servers.push((new, web));
        self.change(Change::AddBackends { service: None, backends: vec![(new, 1)] }).await?;
        self.say(&format!("3. lb backend add {new}. Watch: it takes its share as soon as it is up, no request fails."));
        if !self.watch(6).await? {
            return Ok(false);
        }
        self.change(Change::SetAdmin { service: None, backends: vec![first], admin: Admin::Drain }).await?;
        self.say(&format!(
            "4. lb backend drain {first}. Watch: known connections end in peace, new ones go elsewhere."
        ));
        if !self.watch(6).await? {
            return Ok(false);
        }
        let (requests, failed) = self.traffic.total();
        println!(
            "\n{requests} requests, {failed} failed (those to the killed server before its health check noticed)."
        );
        if keep {
            self.keep().await;
        }
        Ok(true)
    }

    fn say(&mut self, sentence: &str) {
        println!("\n{sentence}");
        self.drawn = 0;
    }

    /// Shows the table for some seconds; false if it was interrupted.
    async fn watch(&mut self, seconds: u32) -> Result<bool> {
        for _ in 0..seconds {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = self.interrupt.recv() => return Ok(false),
                _ = self.terminate.recv() => return Ok(false),
            }
            self.draw().await?;
        }
        Ok(true)
    }

    async fn draw(&mut self) -> Result<()> {
        let status: Status = self.daemon.client().ask(&Request::Status).await?;
        let seen = self.traffic.since_last();
        let all: u64 = seen.values().map(|answers| answers.count).sum();
        let mut lines =
            vec![format!("   {:<18} {:>8} {:>7} {:>9}  {}", "SERVER", "REQUESTS", "SHARE", "LATENCY", "HEALTH")];
        for backend in status.services.iter().flat_map(|service| &service.backends) {
            let answers = seen.get(&backend.address.ip()).copied().unwrap_or_default();
            let share = if all == 0 { 0.0 } else { 100.0 * answers.count as f64 / all as f64 };
            let state =
                if backend.admin == Admin::Ready { backend.health.to_string() } else { backend.admin.to_string() };
            lines.push(format!(
                "   {:<18} {:>8} {share:>6.1}% {:>6} µs  {state}",
                backend.address.to_string(),
                answers.count,
                answers.mean().as_micros()
            ));
        }
        let mut out = std::io::stdout();
        if out.is_terminal() && self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
        }
        self.drawn = lines.len();
        println!("{}", lines.join("\n"));
        out.flush().context("write to the terminal")
    }

    async fn change(&self, change: Change) -> Result<()> {
        self.daemon.client().send(&Request::Change { change, force: false, dry_run: false }).await.map(drop)
    }

    async fn keep(&mut self) {
        let at = self.daemon.host.shell();
        println!("\nThe lab stays until Ctrl-C. In another terminal, as root:");
        println!("  export LB_SOCKET={}", self.daemon.socket().display());
        println!("  {at} lb status");
        println!("  {at} lb backend ready {}", self.servers[0].0);
        println!("  {at} curl -s http://{}:{PORT}/", self.servers[0].0.ip());
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn server(lab: &mut Lab, number: u8) -> Result<(SocketAddr, Web)> {
    let address = Ipv4Addr::new(10, 55, 0, 10 + number);
    let host = lab.host(&format!("web{number}"), address, 1500)?;
    let place = SocketAddr::from((address, PORT));
    Ok((place, Web::start(&host, place)?))
}

impl Balancer {
    fn start(host: Host, backends: &[SocketAddr]) -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory for the demo")?;
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/lb-demo-{}", std::process::id()));
        let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
        let mut command = host.command(std::env::current_exe().context("find this program")?);
        command.arg("--socket").arg(directory.path().join("lb.sock"));
        command.arg("--state-dir").arg(directory.path()).arg("--bpffs").arg(&bpffs);
        command.args(["attach", "eth0", "--xdp", "native", "--vip", "80", "--health", "http", "--max-flows", "65536"]);
        command.args(["--backends", &backends.join(",")]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start lb attach")?;
        let mut balancer = Self { process, directory, bpffs, host };
        balancer.wait_until_ready()?;
        Ok(balancer)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.socket().exists() {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(Error::failed(format!("demo: lb attach ended ({status}); what it said is above")));
            }
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(Error::failed("demo: lb attach was not ready after 20 s"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("lb.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Killed, not asked: the demo removes everything itself, also when the daemon is beyond asking.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Err(error) = pins::remove(&self.bpffs) {
            eprintln!("lb: {error}");
        }
    }
}
