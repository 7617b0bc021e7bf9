//! A lab with the real `lb` in it: a client, a balancer, backends, one bridge.
//!
//! [`servers`] has what runs on the backends, [`clients`] what asks them, [`checked`] what health checks look at;
//! [`direct`] makes backends ready for the direct-return modes, and [`unwrap`] is their end of a tunnel.
//! Everything ends, by its own process number, when its owner is dropped.

pub mod checked;
pub mod clients;
pub mod direct;
pub mod servers;
pub mod unwrap;

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::{
    dataplane::pins,
    lab::{Host, Lab},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub use clients::{connect, ping};
pub use servers::echo;
use servers::{Echo, Server};

/// The balancer's address, and that of its VIPs.
pub const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// The IPv6 address that goes with it.
pub const BALANCER6: Ipv6Addr = Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 1);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
/// The VIP that tests use unless they say otherwise: a port of the balancer's address.
#[must_use]
pub fn vip(port: u16) -> SocketAddr {
    SocketAddr::from((BALANCER, port))
}

/// The same of the balancer's IPv6 address.
#[must_use]
pub fn vip6(port: u16) -> SocketAddr {
    SocketAddr::from((BALANCER6, port))
}

/// Bytes of which no two stretches look alike.
#[must_use]
pub fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// The modes of XDP that most tests run in.
pub const MODES: [&str; 2] = ["native", "generic"];
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub struct Setup {
    daemon: Option<Server>,
    servers: Vec<Server>,
    echoes: Vec<Echo>,
    /// The client.
    pub client: Host,
    /// The balancer.
    pub balancer: Host,
    /// The backends.
    pub backends: Vec<Host>,
    directory: tempfile::TempDir,
    bpffs: PathBuf,
    binary: PathBuf,
    /// Where more hosts and networks come from. Last: what runs in it ends first.
    pub lab: Lab,
}

impl Setup {
    /// A lab with some backends and an MTU, all on one network; nothing runs yet.
    pub fn new(backends: u8, mtu: u32) -> Result<Self> {
        Self::lab(mtu, |lab, _| {
            let host = |n| lab.host(&format!("b{n}"), Ipv4Addr::new(10, 66, 0, 10 + n), mtu);
            (1..=backends).map(host).collect()
        })
    }

    /// The same with the backends on a network of their own, behind the balancer's `eth1`.
    pub fn two_armed(backends: u8, mtu: u32) -> Result<Self> {
        Self::lab(mtu, |lab, balancer| {
            lab.switch("inside")?;
            lab.plug(balancer, "eth1", "inside", Ipv4Addr::new(10, 67, 0, 1), mtu)?;
            let host = |n| lab.host_behind("inside", &format!("b{n}"), Ipv4Addr::new(10, 67, 0, 10 + n), mtu);
            (1..=backends).map(host).collect()
        })
    }

    fn lab(mtu: u32, backends: impl FnOnce(&mut Lab, &Host) -> lb_userspace::Result<Vec<Host>>) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut lab = Lab::new().context("these tests need root: they make network namespaces")?;
        pins_of_the_dead();
        let client = lab.host("client", CLIENT, mtu)?;
        let balancer = lab.host("lb", BALANCER, mtu)?;
        let backends = backends(&mut lab, &balancer)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            daemon: None,
            servers: Vec::new(),
            echoes: Vec::new(),
            client,
            balancer,
            backends,
            directory: tempfile::tempdir()?,
            bpffs: PathBuf::from(format!("/sys/fs/bpf/lb-e2e-{}-{number}", std::process::id())),
            binary: binary()?,
            lab,
        })
    }

    /// The backends' addresses with a port, as `--backends` takes them.
    #[must_use]
    pub fn list(&self, port: u16) -> String {
        self.backends.iter().map(|host| format!("{}:{port}", host.address)).collect::<Vec<_>>().join(",")
    }

    /// The same of their IPv6 addresses.
    #[must_use]
    pub fn list6(&self, port: u16) -> String {
        self.backends.iter().map(|host| format!("[{}]:{port}", host.address6)).collect::<Vec<_>>().join(",")
    }

    /// A directory of this test's own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the data path is pinned.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Gives the balancer another interface, on a switch of the lab.
    pub fn plug(&mut self, device: &str, switch: &str, address: Ipv4Addr) -> Result<()> {
        Ok(self.lab.plug(&self.balancer, device, switch, address, 1500)?)
    }

    /// The binary `lb`.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command `lb ...` on the balancer; another `instance` than "" has a socket, a state and pins of its own.
    #[must_use]
    pub fn command(&self, instance: &str, arguments: &str) -> Command {
        let mut command = self.balancer.command(&self.binary);
        command.env("LB_SOCKET", self.directory().join(format!("lb{instance}.sock")));
        command.env("LB_STATE_DIR", self.directory().join(format!("state{instance}")));
        command.env("LB_BPFFS", self.pins(instance)).env_remove("NO_COLOR").stdin(Stdio::null());
        command.args(arguments.split_whitespace());
        command
    }

    /// Where an instance's data path is pinned.
    #[must_use]
    pub fn pins(&self, instance: &str) -> PathBuf {
        if instance.is_empty() { self.bpffs.clone() } else { self.bpffs.join(instance) }
    }

    /// Starts `lb attach eth0 ...` and waits for its last line.
    pub fn attach(&mut self, arguments: &str) -> Result<()> {
        self.daemon = None;
        self.daemon = Some(self.start("", &format!("attach eth0 {arguments}"))?);
        Ok(())
    }

    /// Starts a command that stays, as `lb attach`, and waits for the last line of its start.
    pub fn start(&self, instance: &str, arguments: &str) -> Result<Server> {
        self.start_in(instance, arguments, &[])
    }

    /// The same with more in its environment.
    pub fn start_in(&self, instance: &str, arguments: &str, environment: &[(&str, &str)]) -> Result<Server> {
        let log = self.directory().join(format!("lb{instance}.log"));
        let errors = OpenOptions::new().create(true).append(true).open(&log)?;
        let begun = std::fs::metadata(&log)?.len();
        let mut command = self.command(instance, arguments);
        command.envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn()?;
        let said = child.stdout.take().context("standard output")?;
        let server = Server::new(child);
        for line in BufReader::new(said).lines() {
            if line? == "lb: ready" {
                return Ok(server);
            }
        }
        let (error, status) = (std::fs::read(&log)?, server.ended()?);
        bail!("lb {arguments}: {status}: {}", String::from_utf8_lossy(&error[begun as usize..]))
    }

    /// What daemons wrote to their standard error.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("lb.log")).unwrap_or_default()
    }

    /// Runs `lb ...` on the balancer.
    pub fn lb(&self, arguments: &str) -> Result<Output> {
        let child = self.command("", arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(child.wait_with_output()));
        let Ok(output) = told.recv_timeout(3 * PATIENCE) else {
            kill(pid, Signal::SIGKILL)?;
            bail!("lb {arguments}: still running after {:?}", 3 * PATIENCE);
        };
        Ok(output?)
    }

    /// Runs `lb ...`, which must succeed; gives what it printed.
    pub fn done(&self, arguments: &str) -> Result<String> {
        let output = self.lb(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lb {arguments}: {}: {error}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `lb ... -o json` and reads the answer.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.done(&format!("{arguments} -o json"))?)?)
    }

    /// Kills the daemon where it stands.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.take().context("no daemon")?.kill();
        Ok(())
    }

    /// The running daemon.
    pub fn daemon(&mut self) -> Result<&mut Server> {
        self.daemon.as_mut().context("no daemon")
    }

    /// Serves a directory of each backend by python's own web server, and waits until it answers.
    pub fn serve_files(&mut self, port: u16, files: &[(&str, &[u8])]) -> Result<()> {
        self.serve(port, files, servers::python)
    }

    /// Serves the same by nginx.
    pub fn serve_nginx(&mut self, port: u16, files: &[(&str, &[u8])]) -> Result<()> {
        self.serve(port, files, servers::nginx)
    }

    /// Starts a server on every backend that has none of this kind yet: each serves the file `name`, which says its
    /// address, and some more.
    fn serve(
        &mut self,
        port: u16,
        files: &[(&str, &[u8])],
        start: impl Fn(&Host, &Path, u16) -> Result<Server>,
    ) -> Result<()> {
        for host in &self.backends {
            let directory = self.directory().join(format!("{}-{port}", host.address));
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join("name"), host.address.to_string())?;
            for (name, bytes) in files {
                std::fs::write(directory.join(name), bytes)?;
            }
            let server = start(host, &directory, port)?;
            self.servers.push(server);
        }
        self.wait_listening(port)
    }

    /// Waits until every backend accepts connections on a port.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let places: Vec<_> = self.backends.iter().map(|host| SocketAddr::from((host.address, port))).collect();
        let limit = Duration::from_secs(1);
        let silent = self.balancer.spawn(move || {
            places.into_iter().find(|place| !eventually(|| TcpStream::connect_timeout(place, limit).is_ok()))
        });
        match silent.join().map_err(|_| anyhow::anyhow!("looking for servers failed"))?? {
            Some(place) => bail!("{place} does not answer; servers said:\n{}", self.server_logs()),
            None => Ok(()),
        }
    }

    /// What servers wrote to their logs.
    fn server_logs(&self) -> String {
        let files = std::fs::read_dir(self.directory()).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|name| name == "log" || name == "error"));
        let texts =
            logs.map(|path| format!("{}: {}", path.display(), std::fs::read_to_string(&path).unwrap_or_default()));
        texts.collect()
    }

    /// Echoes on a port of every backend's own addresses, TCP and UDP.
    pub fn serve_echo(&mut self, port: u16) -> Result<()> {
        for host in &self.backends {
            self.echoes.push(Echo::start(host, host.address, port)?);
            self.echoes.push(Echo::start(host, host.address6, port)?);
        }
        Ok(())
    }

    /// The same on an address that every backend has.
    pub fn serve_echo_at(&mut self, address: IpAddr, port: u16) -> Result<()> {
        for host in &self.backends {
            self.echoes.push(Echo::start(host, address, port)?);
        }
        Ok(())
    }

    /// Keeps a server until the end.
    pub fn keep(&mut self, server: Server) {
        self.servers.push(server);
    }

    /// Kills the server that was started as the n-th.
    pub fn kill_server(&mut self, index: usize) -> Result<()> {
        self.servers.get_mut(index).context("no such server")?.kill();
        Ok(())
    }

    /// Sets a sysctl of a host's network.
    pub fn sysctl(host: &Host, setting: &str) -> Result<()> {
        ensure!(host.command("sysctl").args(["-qw", setting]).status()?.success(), "sysctl {setting}");
        Ok(())
    }

    /// Runs `ip ...` on a host.
    pub fn ip(host: &Host, arguments: &str) -> Result<String> {
        let output = host.command("ip").args(arguments.split_whitespace()).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {arguments}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until this many backends of the only service take new flows.
    pub fn wait_usable(&self, wanted: u64) -> Result<()> {
        let usable = || self.json("status").ok().and_then(|status| status["services"][0]["usable"].as_u64());
        ensure!(eventually(|| usable() == Some(wanted)), "{:?} usable, not {wanted}", usable());
        Ok(())
    }

    /// curl on the client: what it got, or its exit code.
    pub fn curl(&self, url: &str) -> Result<Vec<u8>> {
        let output = self.client.command("curl").args(["-sS", "--fail", "--max-time", "20", url]).output()?;
        ensure!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the daemon said:\n{}", self.log());
        }
        self.daemon = None;
        self.servers.clear();
        self.echoes.clear();
        if let Err(error) = remove_pins(&self.bpffs) {
            eprintln!("clean up: {error}");
        }
    }
}

/// Removes pins, those of further instances too.
fn remove_pins(bpffs: &Path) -> lb_userspace::Result<()> {
    for entry in std::fs::read_dir(bpffs).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with('v') {
            pins::remove(&entry.path())?;
        }
    }
    pins::remove(bpffs).map(|_| ())
}

/// Removes what tests whose process is gone (interrupted, killed) left pinned.
fn pins_of_the_dead() {
    for entry in std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("lb-e2e-").or(name.strip_prefix("lb-test-"));
        if pid.and_then(|rest| rest.split('-').next()).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may be doing the same.
            let _ = remove_pins(&entry.path());
        }
    }
}

/// Whether something becomes true in time.
pub fn eventually(mut check: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if check() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// The binary `lb`, built beside the benchmark, or in the directory above the tests.
fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    // A test is one directory deeper than a program.
    let beside = test.ancestors().skip(1).take(2).map(|directory| directory.join("lb")).find(|path| path.is_file());
    beside.context("lb is missing beside the tests: cargo xtask test builds it")
}
