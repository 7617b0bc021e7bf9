//! What runs on the backends: programs that never heard of lb, and an echo of our own.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::lab::Host;
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{PATIENCE, eventually};

/// A program that runs until this is dropped.
pub struct Server(Child);

impl Server {
    /// Takes a running program over.
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// Starts a program; its words go to a log in the directory. It does not outlive the thread that starts it.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = std::fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: between fork and exec a single system call is made, and nothing is shared.
        unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        let child = command.spawn().with_context(|| format!("start {}: cargo xtask setup", name(command)))?;
        Ok(Self(child))
    }

    /// Kills it where it stands.
    pub fn kill(&mut self) {
        // Dead already is dead enough.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id().cast_signed()), signal)?)
    }

    /// Its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for its end, but not for ever.
    pub fn ended(mut self) -> Result<ExitStatus> {
        ensure!(eventually(|| !self.runs()), "process {} does not end", self.id());
        Ok(self.0.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// A file beside a directory, of the same name but for its end. (Names are addresses: their dots are no extensions.)
fn beside(directory: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}.{end}", directory.display()))
}

/// Python's own web server, with a directory.
pub fn python(host: &Host, directory: &Path, port: u16) -> Result<Server> {
    let mut command = host.command("python3");
    command.args(["-m", "http.server", &port.to_string(), "--directory"]).arg(directory);
    Server::start(&mut command, &beside(directory, "log"))
}

/// nginx with a directory: one process, no log per request, connections that last.
pub fn nginx(host: &Host, directory: &Path, port: u16) -> Result<Server> {
    let place = directory.display();
    let text = format!(
        "daemon off; master_process off; worker_rlimit_nofile 20000; pid {place}.pid; error_log {place}.error info;\n\
         events {{ worker_connections 8000; }}\n\
         http {{ access_log off; keepalive_requests 100000000; sendfile on; tcp_nopush on; root {place};\n\
         client_body_temp_path {place}.t1; proxy_temp_path {place}.t2; fastcgi_temp_path {place}.t3;\n\
         uwsgi_temp_path {place}.t4; scgi_temp_path {place}.t5;\n\
         server {{ listen {port} backlog=4096 reuseport; listen [::]:{port} backlog=4096; }} }}\n"
    );
    let configuration = beside(directory, "conf");
    std::fs::write(&configuration, text)?;
    let mut command = host.command("nginx");
    command.arg("-e").arg(beside(directory, "start")).arg("-c").arg(&configuration);
    Server::start(&mut command, &beside(directory, "log"))
}

/// dnsmasq on port 53: `name.test` is the host's own address.
pub fn dnsmasq(host: &Host, directory: &Path) -> Result<Server> {
    let mut command = host.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--bind-interfaces", "--pid-file=", "--port=53", "--except-interface=lo"]);
    command.arg(format!("--listen-address={}", host.address)).arg(format!("--address=/name.test/{}", host.address));
    Server::start(&mut command, &directory.join(format!("dnsmasq-{}.log", host.address)))
}

/// iperf3's server.
pub fn iperf3(host: &Host, directory: &Path, port: u16) -> Result<Server> {
    let mut command = host.command("iperf3");
    command.args(["-s", "-p", &port.to_string()]);
    Server::start(&mut command, &directory.join(format!("iperf3-{}.log", host.address)))
}

/// An echo of TCP connections and UDP datagrams on a host, until this is dropped.
pub struct Echo {
    over: Arc<AtomicBool>,
    listener: TcpListener,
    streams: Arc<Mutex<HashMap<usize, TcpStream>>>,
}

impl Echo {
    /// Starts it on an address that the host has.
    pub fn start(host: &Host, address: impl Into<IpAddr>, port: u16) -> Result<Self> {
        let place = SocketAddr::new(address.into(), port);
        let over = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(HashMap::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, open) = (Arc::clone(&over), Arc::clone(&streams));
        host.spawn(move || {
            let sockets = TcpListener::bind(place).and_then(|tcp| Ok((tcp.try_clone()?, tcp, UdpSocket::bind(place)?)));
            let Ok((handle, tcp, udp)) = sockets else { return };
            if tell.send(handle).is_err() {
                return;
            }
            let udp_stop = Arc::clone(&stop);
            std::thread::spawn(move || echo_datagrams(&udp, &udp_stop));
            for number in 0.. {
                let Ok((stream, _)) = tcp.accept() else { return };
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                if let (Ok(copy), Ok(mut open)) = (stream.try_clone(), open.lock()) {
                    open.insert(number, copy);
                }
                let open = Arc::clone(&open);
                std::thread::spawn(move || {
                    echo_stream(stream);
                    // The connection ends with its last handle.
                    if let Ok(mut open) = open.lock() {
                        open.remove(&number);
                    }
                });
            }
        });
        let listener = told.recv_timeout(PATIENCE).with_context(|| format!("the echo on {place} does not start"))?;
        Ok(Self { over, listener, streams })
    }

    /// Ends it: its port is closed, and so are its connections.
    pub fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // A listening socket that is shut down wakes whoever accepts on it.
        if let Ok(copy) = self.listener.try_clone() {
            let _ = TcpStream::from(OwnedFd::from(copy)).shutdown(std::net::Shutdown::Both);
        }
        for (_, stream) in self.streams.lock().into_iter().flat_map(|mut streams| std::mem::take(&mut *streams)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Echoes every TCP connection and UDP datagram on a host, until the process ends.
pub fn echo(host: &Host, port: u16) -> Result<()> {
    // Its threads go on without it.
    std::mem::forget(Echo::start(host, host.address, port)?);
    Ok(())
}

fn echo_datagrams(udp: &UdpSocket, stop: &AtomicBool) {
    let mut datagram = [0; 2048];
    let _ = udp.set_read_timeout(Some(Duration::from_millis(100)));
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], from);
        }
    }
}

fn echo_stream(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(length) = stream.read(&mut bytes) {
        if length == 0 || stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}
