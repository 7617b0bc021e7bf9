//! `lb demo`: the whole thing in a minute, on any Linux machine.
//!
//! A client, a balancer and three web servers in network namespaces; the real program, attached natively; real HTTP.
//! Then a server is killed, one is added, one is drained, and the table shows what happens to the requests.

mod table;
mod traffic;
mod web;

use std::{
    io::{IsTerminal as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
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
    state::{Admin, Change, Health},
};
use table::Row;
use traffic::Traffic;
use web::Web;

const PORT: u16 = 8080;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 2);
const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 55, 0, 1);
/// Time between two looks at the table.
const LOOK: Duration = Duration::from_secs(1);

struct Demo {
    servers: Vec<(SocketAddr, Web)>,
    /// None until there is somebody to answer.
    traffic: Option<Traffic>,
    daemon: Balancer,
    client: Host,
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
    println!(
        "lb demo: a client, a balancer and three web servers, each in a network namespace of its own. A moment ..."
    );
    // From here on Ctrl-C is heard, and everything is taken down in order.
    let mut signals = Signals::new()?;
    let mut demo = Demo::start()?;
    let ended = demo.show(keep, &mut signals).await;
    drop(demo);
    match ended {
        Ok(true) => {
            println!("\nThe lab is removed. Now on a real interface: sudo lb attach IFACE --backends ADDR:PORT,..");
        }
        Ok(false) => println!("\nInterrupted: the lab is removed."),
        Err(_) => {}
    }
    ended.map(|_| ())
}

/// What ends the demo early.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("watch for SIGTERM")?,
        })
    }

    /// Waits for one of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits; false if it was interrupted.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.any() => false,
        }
    }
}

impl Demo {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", CLIENT, 1500)?;
        let balancer = lab.host("lb", BALANCER, 1500)?;
        let mut servers = Vec::new();
        for number in 1..=3 {
            servers.push(server(&mut lab, number)?);
        }
        let addresses: Vec<_> = servers.iter().map(|(address, _)| *address).collect();
        let daemon = Balancer::start(balancer, &addresses)?;
        Ok(Self { servers, traffic: None, daemon, client, drawn: 0, lab })
    }

    /// The story; false if it was interrupted.
    async fn show(&mut self, keep: bool, signals: &mut Signals) -> Result<bool> {
        if !self.all_usable(signals).await? {
            return Ok(false);
        }
        self.traffic = Some(Traffic::start(&self.client, SocketAddr::from((BALANCER, 80))));
        self.say(
            "1. The balancer rewrites packets in the driver. Watch: three servers share the requests, none fails.",
        );
        if !self.watch(6, signals).await? || !self.kill(signals).await? {
            return Ok(false);
        }
        let (new, web) = server(&mut self.lab, 4)?;
        self.servers.push((new, web));
        self.change(Change::AddBackends { service: None, backends: vec![(new, 1)] }).await?;
        self.say(&format!(
            "3. lb backend add {new}. Watch: it takes its share as soon as it is up, and nothing fails."
        ));
        if !self.watch(6, signals).await? {
            return Ok(false);
        }
        let first = self.servers[0].0;
        self.change(Change::SetAdmin { service: None, backends: vec![first], admin: Admin::Drain }).await?;
        self.say(&format!(
            "4. lb backend drain {first}. Watch: it gets no new connections, those that it has end in peace, and nothing fails."
        ));
        if !self.watch(6, signals).await? {
            return Ok(false);
        }
        let ((requests, failed), killed) = (self.total(), self.servers[1].0);
        println!(
            "\n{requests} requests. {failed} failed: those that {killed} was given after its death and before its verdict."
        );
        if keep {
            self.keep(signals).await;
        }
        Ok(true)
    }

    /// The step in which requests fail; false if it was interrupted.
    async fn kill(&mut self, signals: &mut Signals) -> Result<bool> {
        let killed = self.servers[1].0;
        self.servers[1].1.kill();
        self.say(&format!(
            "2. {killed} is killed. Watch: until its health check has failed three times, about two seconds, requests that it\n   \
             is given fail; then its health turns down, the others take its share, and nothing fails any more."
        ));
        let before = self.total().1;
        let mut at_verdict = None;
        for _ in 0..7 {
            if !self.watch(1, signals).await? {
                return Ok(false);
            }
            if at_verdict.is_none() && self.health(killed).await? == Some(Health::Down) {
                at_verdict = Some(self.total().1);
            }
        }
        let failed = self.total().1;
        match at_verdict {
            Some(until) => {
                println!("   {} requests failed before the verdict, {} after it.", until - before, failed - until);
            }
            None => println!("   {} requests failed, and there is no verdict yet.", failed - before),
        }
        Ok(true)
    }

    /// Waits until all servers take requests; false if it was interrupted.
    async fn all_usable(&self, signals: &mut Signals) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let status: Status = self.daemon.client().ask(&Request::Status).await?;
            if status.services.first().is_some_and(|service| service.usable == self.servers.len()) {
                return Ok(true);
            }
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(Error::failed("demo: not all servers were up after 20 s")
                    .hint("is the machine very busy? Try again"));
            }
            if !signals.pause(Duration::from_millis(50)).await {
                return Ok(false);
            }
        }
    }

    async fn health(&self, address: SocketAddr) -> Result<Option<Health>> {
        let status: Status = self.daemon.client().ask(&Request::Status).await?;
        let mut backends = status.services.iter().flat_map(|service| &service.backends);
        Ok(backends.find(|backend| backend.address == address).map(|backend| backend.health))
    }

    /// Requests so far, and how many of them failed.
    fn total(&self) -> (u64, u64) {
        self.traffic.as_ref().map_or((0, 0), Traffic::total)
    }

    fn say(&mut self, sentence: &str) {
        println!("\n{sentence}");
        self.drawn = 0;
    }

    /// Shows the table for some seconds; false if it was interrupted.
    async fn watch(&mut self, seconds: u32, signals: &mut Signals) -> Result<bool> {
        for _ in 0..seconds {
            if !signals.pause(LOOK).await {
                return Ok(false);
            }
            self.draw().await?;
        }
        Ok(true)
    }

    async fn draw(&mut self) -> Result<()> {
        let status: Status = self.daemon.client().ask(&Request::Status).await?;
        let seen = self.traffic.as_ref().map(Traffic::since_last).unwrap_or_default();
        let backends: Vec<_> = status.services.iter().flat_map(|service| &service.backends).collect();
        let states: Vec<_> = backends
            .iter()
            .map(|b| if b.admin == Admin::Ready { b.health.to_string() } else { b.admin.to_string() })
            .collect();
        let rows: Vec<_> = backends
            .iter()
            .zip(&states)
            .map(|(backend, state)| {
                let answers = seen.get(&backend.address.ip()).copied().unwrap_or_default();
                Row { address: backend.address, requests: answers.count, latency: answers.mean(), state }
            })
            .collect();
        let mut out = std::io::stdout();
        let terminal = out.is_terminal();
        let coloured = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut lines = table::rows(&rows, coloured);
        let (requests, failed) = self.total();
        lines.push(format!("   {requests} requests so far, {failed} failed"));
        // In a terminal the table is drawn over the last one; elsewhere lines follow each other below one head.
        if terminal && self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
        }
        if terminal || self.drawn == 0 {
            lines.insert(0, table::head(coloured));
        }
        self.drawn = lines.len();
        println!("{}", lines.join("\n"));
        out.flush().context("write to the terminal")
    }

    async fn change(&self, change: Change) -> Result<()> {
        self.daemon.client().send(&Request::Change { change, force: false, dry_run: false }).await.map(drop)
    }

    async fn keep(&mut self, signals: &mut Signals) {
        let at = self.daemon.host.shell();
        // `lb` may be in no directory of PATH.
        let lb = std::env::current_exe().map_or_else(|_| "lb".to_owned(), |path| path.display().to_string());
        let [first, _, third] = [0, 1, 2].map(|n| self.servers[n].0);
        println!("\nThe lab stays until Ctrl-C. In another terminal, as root:");
        println!("  export LB_SOCKET={}", self.daemon.socket().display());
        println!("  {lb} status");
        println!("  {lb} backend ready {first} --wait");
        println!("  {lb} backend weight {third} 5");
        println!("  {lb} conn list --limit 5");
        println!("  {lb} drops");
        println!("  {} curl -s http://{BALANCER}/      (several times: who answers?)", self.client.shell());
        println!("  {at} bash                          (a shell on the balancer)");
        signals.any().await;
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
        // Ctrl-C is the demo's: it ends the daemon itself, last of all.
        command.process_group(0);
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
