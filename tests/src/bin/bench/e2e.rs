//! Requests per second through lb, and through what one would use instead, in network namespaces of this machine.
//!
//! One client (wrk), one balancer, three web servers (nginx). *One-armed*: all on one network. *Two-armed*: the servers
//! behind the balancer, which is also their gateway. Every way through is measured in turn, several rounds of it; client
//! and servers share this machine's CPUs with what is measured, so only ratios within one run mean anything.

use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::e2e::{Setup, eventually};
use lb_userspace::lab::Host;
use serde_json::json;

use crate::report::{Report, least_and_median};

/// Rounds of each line.
const ROUNDS: usize = 3;
/// Seconds of each.
const SECONDS: u64 = 3;
/// Connections of the client.
const CONNECTIONS: u32 = 32;
/// Connections of the client when it fetches much.
const BULK_CONNECTIONS: u32 = 4;
/// Bytes of what it fetches then.
const BULK: usize = 64 << 20;
/// Where the servers listen.
const SERVER: u16 = 8080;

/// Ways from the client to the servers.
const WAYS: [Way; 6] = [Way::Direct, Way::Nftables, Way::Haproxy, Way::Nginx, Way::LbGeneric, Way::LbNative];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Nftables,
    Haproxy,
    Nginx,
    LbGeneric,
    LbNative,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nftables => "nftables DNAT + masquerade",
            Self::Haproxy => "HAProxy, TCP",
            Self::Nginx => "nginx stream",
            Self::LbGeneric => "lb, nat, generic XDP",
            Self::LbNative => "lb, nat, native XDP",
        }
    }

    /// Where its clients connect to.
    const fn port(self) -> u16 {
        match self {
            Self::Direct => SERVER,
            Self::Nftables => 81,
            Self::Haproxy => 82,
            Self::Nginx => 83,
            Self::LbGeneric | Self::LbNative => 80,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    KeepAlive,
    NewConnections,
    Bulk,
}

impl Load {
    const fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::NewConnections => "new connection each",
            Self::Bulk => "64 MB files",
        }
    }

    /// wrk's own arguments, and what it asks for.
    fn arguments(self) -> (String, &'static str) {
        let connections = if self == Self::Bulk { BULK_CONNECTIONS } else { CONNECTIONS };
        let path = if self == Self::Bulk { "bulk" } else { "" };
        (format!("-t1 -c{connections} -d{SECONDS}s --latency"), path)
    }
}

/// What wrk said, and what the machine spent.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Requests per second; of bulk, megabytes.
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

/// Runs it all.
pub fn run() -> Result<()> {
    let mut report = Report::new("e2e");
    println!(
        "wrk, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS} s each; medians. CPU: all of this machine\n"
    );
    for (lab, setup) in [("one-armed", Setup::new(3, 1500)?), ("two-armed", Setup::two_armed(3, 1500)?)] {
        let mut bench = Bench::new(setup, lab == "two-armed")?;
        println!(
            "{:<44} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}",
            lab, "/S OR MB/S", "x DIRECT", "x NFT", "P50 us", "P99 us", "CPU us"
        );
        for load in [Load::KeepAlive, Load::NewConnections, Load::Bulk] {
            bench.measure(&mut report, lab, load)?;
        }
    }
    report.write()
}

struct Bench {
    setup: Setup,
    two_armed: bool,
    processes: Vec<Child>,
    directory: PathBuf,
}

impl Bench {
    fn new(setup: Setup, two_armed: bool) -> Result<Self> {
        let directory = setup.directory().to_owned();
        let processes = Vec::new();
        let mut bench = Self { setup, two_armed, processes, directory };
        fs::write(bench.directory.join("bulk"), vec![b'b'; BULK]).context("write what is fetched")?;
        for host in bench.setup.backends.clone() {
            bench.web_server(&host)?;
        }
        bench.forwarding()?;
        bench.nftables()?;
        bench.proxies()?;
        for way in WAYS {
            bench.enter(way)?;
            let place = bench.place(way);
            let answers = || bench.setup.curl(&format!("http://{place}/")).is_ok();
            ensure!(eventually(answers), "{}: nobody answers on {place}", way.name());
            bench.leave(way)?;
        }
        Ok(bench)
    }

    /// Attaches lb, if this is its turn: it is not in the others' way.
    fn enter(&mut self, way: Way) -> Result<()> {
        let xdp = match way {
            Way::LbGeneric => "generic",
            Way::LbNative => "native",
            _ => return Ok(()),
        };
        let second = if self.two_armed { "eth1 " } else { "" };
        let backends = self.setup.list(SERVER);
        self.setup.attach(&format!("{second}--xdp {xdp} --vip 80 --backends {backends} --health none"))
    }

    fn leave(&mut self, way: Way) -> Result<()> {
        if !matches!(way, Way::LbGeneric | Way::LbNative) {
            return Ok(());
        }
        let output = self.setup.lb("detach")?;
        ensure!(output.status.success(), "lb detach: {}", String::from_utf8_lossy(&output.stderr));
        self.setup.kill_daemon()
    }

    fn place(&self, way: Way) -> SocketAddrV4 {
        let host = if way == Way::Direct { &self.setup.backends[0] } else { &self.setup.balancer };
        SocketAddrV4::new(host.address, way.port())
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.processes.push(child.with_context(|| format!("start {:?}: cargo xtask setup", command.get_program()))?);
        Ok(())
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn web_server(&mut self, host: &Host) -> Result<()> {
        let name = host.address.to_string();
        let text = format!(
            "daemon off; master_process off; pid {}/{name}.pid; error_log /dev/null; worker_rlimit_nofile 65536;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log off; sendfile on; keepalive_requests 1000000000; server {{ listen {name}:{SERVER} backlog=4096;\n\
             root {}; location = / {{ return 200 'ok'; }} }} }}\n",
            self.directory.display(),
            self.directory.display()
        );
        let path = self.file(&format!("web-{name}.conf"), &text)?;
        let mut command = host.command("nginx");
        command.arg("-c").arg(path);
        self.start(command)
    }

    /// The balancer routes (for the others: lb needs no setting), and in the two-armed lab the hosts' ways lead through it.
    fn forwarding(&self) -> Result<()> {
        done(self.setup.balancer.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
        if self.two_armed {
            let gateway = self.setup.balancer.address.to_string();
            done(self.setup.client.command("ip").args(["route", "add", "10.67.0.0/24", "via", &gateway]))?;
            for host in &self.setup.backends {
                done(host.command("ip").args(["route", "add", "default", "via", "10.67.0.1"]))?;
            }
        }
        Ok(())
    }

    fn nftables(&self) -> Result<()> {
        let servers: Vec<_> = self.setup.backends.iter().map(|host| host.address.to_string()).collect();
        let (own, port) = (self.setup.balancer.address, Way::Nftables.port());
        let [a, b, c] = servers.as_slice() else { bail!("three servers") };
        let text = format!(
            "table ip bench {{\n\
             chain before {{ type nat hook prerouting priority -100; ip daddr {own} tcp dport {port} dnat to numgen inc mod 3 map {{ 0: {a}, 1: {b}, 2: {c} }}:{SERVER}; }}\n\
             chain after {{ type nat hook postrouting priority 100; ip daddr {{ {a}, {b}, {c} }} masquerade; }}\n}}\n"
        );
        let path = self.file("nftables.conf", &text)?;
        done(self.setup.balancer.command("nft").arg("-f").arg(path))
    }

    fn proxies(&mut self) -> Result<()> {
        let (own, directory) = (self.setup.balancer.address, self.directory.display().to_string());
        let servers = |form: &dyn Fn(usize, String) -> String| {
            let each = self.setup.backends.iter().enumerate();
            each.map(|(n, host)| form(n, format!("{}:{SERVER}", host.address))).collect::<Vec<_>>().join("\n")
        };
        let haproxy = format!(
            "global\n maxconn 4000\n nbthread 2\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen bench\n bind {own}:{}\n balance roundrobin\n{}\n",
            Way::Haproxy.port(),
            servers(&|n, place| format!(" server s{n} {place}"))
        );
        let nginx = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off; worker_processes 2; pid {directory}/stream.pid; error_log /dev/null; worker_rlimit_nofile 65536;\n\
             events {{ worker_connections 8192; }}\n\
             stream {{ upstream servers {{\n{}\n}} server {{ listen {own}:{} backlog=4096; proxy_pass servers; }} }}\n",
            servers(&|_, place| format!("server {place};")),
            Way::Nginx.port()
        );
        let (haproxy, nginx) = (self.file("haproxy.cfg", &haproxy)?, self.file("stream.conf", &nginx)?);
        let mut command = self.setup.balancer.command("haproxy");
        command.arg("-db").arg("-f").arg(haproxy);
        self.start(command)?;
        let mut command = self.setup.balancer.command("nginx");
        command.arg("-c").arg(nginx);
        self.start(command)
    }

    /// One line for each way, measured in turn.
    fn measure(&mut self, report: &mut Report, lab: &str, load: Load) -> Result<()> {
        let mut figures = vec![Vec::new(); WAYS.len()];
        for _ in 0..ROUNDS {
            for (way, figures) in WAYS.iter().zip(&mut figures) {
                self.enter(*way)?;
                figures.push(self.wrk(*way, load)?);
                self.leave(*way)?;
            }
        }
        let median = |figures: &[Figures], of: fn(&Figures) -> f64| {
            least_and_median(&figures.iter().map(of).collect::<Vec<_>>()).1
        };
        let (direct, nftables) = (median(&figures[0], |f| f.rate), median(&figures[1], |f| f.rate));
        for (way, figures) in WAYS.iter().zip(&figures) {
            let rate = median(figures, |f| f.rate);
            let (p50, p99, cpu) =
                (median(figures, |f| f.p50_us), median(figures, |f| f.p99_us), median(figures, |f| f.cpu_us));
            let name = format!("{}, {}", way.name(), load.name());
            let ratios = (rate / direct, rate / nftables);
            println!("{name:<44} {rate:>10.0} {:>10.2} {:>10.2} {p50:>9.0} {p99:>9.0} {cpu:>9.1}", ratios.0, ratios.1);
            report.add(json!({
                "lab": lab, "way": way.name(), "load": load.name(), "unit": if load == Load::Bulk { "MB/s" } else { "requests/s" },
                "rate": rate, "of_direct": ratios.0, "of_nftables": ratios.1, "p50_us": p50, "p99_us": p99,
                "cpu_us_each": cpu, "rates": figures.iter().map(|f| f.rate).collect::<Vec<_>>(),
            }));
        }
        Ok(())
    }

    fn wrk(&self, way: Way, load: Load) -> Result<Figures> {
        let (arguments, path) = load.arguments();
        let mut command = self.setup.client.command("wrk");
        command.args(arguments.split(' '));
        if load == Load::NewConnections {
            command.args(["-H", "Connection: close"]);
        }
        let place = self.place(way);
        let before = busy()?;
        let output = command.arg(format!("http://{place}/{path}")).output().context("run wrk: cargo xtask setup")?;
        let busy = busy()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || format!("{}: wrk said:\n{text}", way.name());
        let word = |name: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(name)?.split_whitespace().next().map(str::to_owned))
        };
        ensure!(!text.contains("Non-2xx"), said());
        let rate = if load == Load::Bulk {
            word("Transfer/sec:").and_then(|text| megabytes(&text))
        } else {
            word("Requests/sec:").and_then(|text| text.parse().ok())
        };
        let rate = rate.filter(|rate| *rate > 0.0).with_context(said)?;
        let time = |name| word(name).and_then(|time| microseconds(&time)).with_context(said);
        let all = rate * Duration::from_secs(SECONDS).as_secs_f64();
        Ok(Figures { rate, p50_us: time("50%")?, p99_us: time("99%")?, cpu_us: busy * 1e6 / all.max(1.0) })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in &mut self.processes {
            // SIGTERM, so that a master ends its workers.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Seconds that all CPUs of this machine were busy.
fn busy() -> Result<f64> {
    let stat = fs::read_to_string(Path::new("/proc/stat"))?;
    let times: Vec<f64> =
        stat.lines().next().context("stat")?.split_whitespace().skip(1).flat_map(str::parse).collect();
    let idle = times.get(3).context("idle")? + times.get(4).context("iowait")?;
    Ok((times.iter().take(8).sum::<f64>() - idle) / 100.0)
}

/// `1.23ms`, `456.00us` or `1.20s` in microseconds.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

/// `1.23GB`, `456.00MB` or `7.00KB` (of 1024 each) in megabytes of a million bytes.
fn megabytes(text: &str) -> Option<f64> {
    let units = [("GB", 1_073.741_824), ("MB", 1.048_576), ("KB", 0.001_024)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}
