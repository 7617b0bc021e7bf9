//! A lab with the real `lb` in it: a client, a balancer, backends, one bridge.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::{
    dataplane::pins,
    lab::{Host, Lab},
};
use serde_json::Value;

/// The balancer's address, and that of its VIPs.
pub const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub struct Setup {
    daemon: Option<Child>,
    servers: Vec<Child>,
    /// The client.
    pub client: Host,
    /// The balancer.
    pub balancer: Host,
    /// The backends.
    pub backends: Vec<Host>,
    directory: tempfile::TempDir,
    bpffs: PathBuf,
    binary: PathBuf,
    // Last: what runs in it ends first.
    lab: Lab,
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
        let client = lab.host("client", CLIENT, mtu)?;
        let balancer = lab.host("lb", BALANCER, mtu)?;
        let backends = backends(&mut lab, &balancer)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            daemon: None,
            servers: Vec::new(),
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

    fn command(&self, arguments: &str) -> std::process::Command {
        let mut command = self.balancer.command(&self.binary);
        command.env("LB_SOCKET", self.directory().join("lb.sock"));
        command.env("LB_STATE_DIR", self.directory().join("state")).env("LB_BPFFS", &self.bpffs);
        command.args(arguments.split_whitespace());
        command
    }

    /// Starts `lb attach eth0 ...` and waits for its last line.
    pub fn attach(&mut self, arguments: &str) -> Result<()> {
        let mut command = self.command(&format!("attach eth0 {arguments}"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = child.stdout.take().context("standard output")?;
        for line in BufReader::new(said).lines() {
            if line? == "lb: ready" {
                self.daemon = Some(child);
                return Ok(());
            }
        }
        let mut error = String::new();
        child.stderr.take().context("standard error")?.read_to_string(&mut error)?;
        bail!("lb attach {arguments}: {}: {error}", child.wait()?)
    }

    /// Runs `lb ...` on the balancer.
    pub fn lb(&self, arguments: &str) -> Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output().context("run lb")
    }

    /// Runs `lb ... -o json` and reads the answer.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        let output = self.lb(&format!("{arguments} -o json"))?;
        ensure!(output.status.success(), "lb {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Kills the daemon where it stands.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Serves a directory of each backend by python's own web server, and waits until it answers.
    pub fn serve_files(&mut self, port: u16, files: &[(&str, &[u8])]) -> Result<()> {
        for host in self.backends.clone() {
            let directory = self.directory().join(host.address.to_string());
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join("name"), host.address.to_string())?;
            for (name, bytes) in files {
                std::fs::write(directory.join(name), bytes)?;
            }
            let mut command = host.command("python3");
            command.args(["-m", "http.server", &port.to_string(), "--directory"]).arg(&directory);
            self.servers.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
        let places: Vec<_> = self.backends.iter().map(|host| SocketAddrV4::new(host.address, port)).collect();
        let ready = self
            .balancer
            .spawn(move || places.into_iter().all(|place| eventually(|| TcpStream::connect(place).is_ok())));
        ensure!(
            ready.join().map_err(|_| anyhow::anyhow!("looking for them failed"))??,
            "the web servers do not answer"
        );
        Ok(())
    }

    /// Kills the web server of a backend.
    pub fn kill_server(&mut self, index: usize) -> Result<()> {
        self.servers[index].kill()?;
        self.servers[index].wait()?;
        Ok(())
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
        for child in self.servers.iter_mut().chain(&mut self.daemon) {
            // Dead already is dead enough.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = pins::remove(&self.bpffs) {
            eprintln!("clean up: {error}");
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

/// The binary `lb`, built beside the tests if need be.
fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let path = test.parent().and_then(Path::parent).context("target directory")?.join("lb");
    ensure!(path.exists(), "{} is missing: cargo xtask test builds it", path.display());
    Ok(path)
}

/// Echoes every TCP connection and UDP datagram on a host, until the process ends.
pub fn echo(host: &Host, port: u16) -> Result<()> {
    let place = SocketAddrV4::new(host.address, port);
    let (tell, told) = std::sync::mpsc::channel();
    host.spawn(move || {
        let sockets = TcpListener::bind(place).and_then(|tcp| Ok((tcp, UdpSocket::bind(place)?)));
        let Ok((tcp, udp)) = sockets else { return };
        std::thread::spawn(move || {
            let mut datagram = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut datagram) {
                let _ = udp.send_to(&datagram[..length], from);
            }
        });
        let _ = tell.send(());
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || echo_stream(stream));
        }
    });
    told.recv_timeout(PATIENCE).context("the echo server does not start")
}

fn echo_stream(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(length) = stream.read(&mut bytes) {
        if length == 0 || stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// Opens a connection from a host.
pub fn connect(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let opened = host.spawn(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let stream = opened.join().map_err(|_| anyhow::anyhow!("connecting failed"))???;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Sends a word and waits for it to come back.
pub fn ping(stream: &mut TcpStream, word: &str) -> Result<()> {
    stream.write_all(word.as_bytes())?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == word.as_bytes(), "sent '{word}', got {back:02x?}");
    Ok(())
}
