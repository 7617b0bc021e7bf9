//! What asks the backends: connections of our own, wrk, iperf3.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::{Child, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::lab::Host;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Longest that a client waits for anything.
const LIMIT: Duration = Duration::from_secs(10);

fn joined<T>(thread: JoinHandle<lb_userspace::Result<T>>) -> Result<T> {
    Ok(thread.join().map_err(|_| anyhow::anyhow!("a client's thread failed"))??)
}

/// Opens a connection from a host.
pub fn connect(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = joined(host.spawn(move || TcpStream::connect_timeout(&to, LIMIT)))?;
    let stream = stream.with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Sends a word and waits for it to come back.
pub fn ping(stream: &mut TcpStream, word: &str) -> Result<()> {
    let what = || format!("'{word}'");
    stream.write_all(word.as_bytes()).with_context(what)?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).with_context(what)?;
    ensure!(back == word.as_bytes(), "sent '{word}', got {back:02x?}");
    Ok(())
}

/// Sends bytes to an echo over a new connection and compares what comes back: full-size segments both ways.
pub fn ping_much(host: &Host, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut back = connect(host, to)?;
    let (mut there, sent) = (back.try_clone()?, bytes.to_vec());
    let writer = std::thread::spawn(move || there.write_all(&sent));
    let mut seen = vec![0; bytes.len()];
    let read = back.read_exact(&mut seen).with_context(|| format!("echo of {} bytes from {to}", bytes.len()));
    if read.is_err() {
        // The writer shall not wait for an echo that is over.
        let _ = back.shutdown(std::net::Shutdown::Both);
    }
    writer.join().map_err(|_| anyhow::anyhow!("writing failed"))?.context("write")?;
    read?;
    ensure!(seen == bytes, "another echo came from {to}");
    Ok(())
}

/// Sends a datagram from a new socket and waits for it to come back.
pub fn ping_udp(host: &Host, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let sent = bytes.to_vec();
    let answered = host.spawn(move || -> std::io::Result<bool> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect(to)?;
        socket.send(&sent)?;
        let mut back = vec![0; 65_536];
        let length = socket.recv(&mut back)?;
        Ok(back[..length] == sent)
    });
    ensure!(joined(answered)?.with_context(|| format!("UDP to {to}"))?, "another answer came from {to}");
    Ok(())
}

/// Short connections, one after the other on each of some threads: open, a word to an echo and back, close.
pub struct Storm {
    over: Arc<AtomicBool>,
    left: Arc<AtomicU32>,
    done: Arc<Mutex<Done>>,
    threads: Vec<JoinHandle<lb_userspace::Result<()>>>,
}

/// What became of a storm.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Connections that were fine.
    pub fine: u32,
    /// What was wrong with the others.
    pub failures: Vec<String>,
    /// The longest that a connection took.
    pub slowest: Duration,
}

impl Storm {
    /// Begins a storm from a host of so many connections (`u32::MAX`: until it is ended), so many at a time.
    #[must_use]
    pub fn begin(host: &Host, to: SocketAddr, connections: u32, at_a_time: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let left = Arc::new(AtomicU32::new(connections));
        let done = Arc::new(Mutex::new(Done::default()));
        let thread = |_| {
            let (over, left, done) = (Arc::clone(&over), Arc::clone(&left), Arc::clone(&done));
            host.spawn(move || {
                let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                while !over.load(Ordering::Relaxed) {
                    let Ok(number) = take() else { return };
                    let begun = Instant::now();
                    let result = short(to, number);
                    let took = begun.elapsed();
                    let Ok(mut done) = done.lock() else { return };
                    match result {
                        Ok(()) => done.fine += 1,
                        Err(error) => done.failures.push(format!("after {took:?}: {error:#}")),
                    }
                    done.slowest = done.slowest.max(took);
                }
            })
        };
        let threads = (0..at_a_time).map(thread).collect();
        Self { over, left, done, threads }
    }

    /// How it stands.
    #[must_use]
    pub fn so_far(&self) -> Done {
        self.done.lock().map(|done| done.clone()).unwrap_or_default()
    }

    /// Waits until it is over.
    pub fn wait(mut self) -> Result<Done> {
        for thread in std::mem::take(&mut self.threads) {
            joined(thread)?;
        }
        Ok(self.so_far())
    }

    /// Ends it.
    pub fn end(self) -> Result<Done> {
        self.over.store(true, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
        self.wait()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn short(to: SocketAddr, number: u32) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
    stream.set_read_timeout(Some(LIMIT))?;
    ping(&mut stream, &format!("connection {number}"))
}

/// A program on a host whose answer is waited for.
pub struct Running(Option<Child>);

impl Running {
    fn start(host: &Host, program: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = host.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(Some(command.spawn().with_context(|| format!("start {program}: cargo xtask setup"))?)))
    }

    /// As Ctrl-C does.
    fn interrupt(&self) -> Result<()> {
        let child = self.0.as_ref().context("it was waited for already")?;
        Ok(kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?)
    }

    fn output(mut self) -> Result<Output> {
        Ok(self.0.take().context("it was waited for already")?.wait_with_output()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// wrk on a host.
pub struct Wrk(Running);

/// What wrk saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrked {
    /// Requests that were answered.
    pub requests: u64,
    /// Errors: connect, read, write, timeout, and answers other than 2xx and 3xx.
    pub errors: u64,
}

impl Wrk {
    /// Requests over connections that last, or (`close`) over a new one each.
    pub fn begin(host: &Host, url: &str, connections: u32, time: Duration, close: bool) -> Result<Self> {
        let (connections, seconds) = (connections.to_string(), format!("{}s", time.as_secs()));
        let mut arguments = vec!["-t2", "-c", &connections, "-d", &seconds, "--timeout", "5s"];
        if close {
            arguments.extend(["-H", "Connection: close"]);
        }
        arguments.push(url);
        Ok(Self(Running::start(host, "wrk", &arguments)?))
    }

    /// Ends it before its time.
    pub fn end(self) -> Result<Wrked> {
        self.0.interrupt()?;
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(self) -> Result<Wrked> {
        let output = self.0.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
        read_wrk(&text).with_context(|| format!("wrk said: {text}"))
    }
}

/// Reads `123 requests in 2.00s, ..`, `Socket errors: connect 0, read 1, write 0, timeout 2`, `Non-2xx or 3xx responses: 7`.
fn read_wrk(text: &str) -> Option<Wrked> {
    let mut seen =
        Wrked { requests: text.split(" requests in ").next()?.split_whitespace().last()?.parse().ok()?, errors: 0 };
    for line in text.lines().map(str::trim) {
        let counts = line.strip_prefix("Socket errors:").or(line.strip_prefix("Non-2xx or 3xx responses:"));
        for word in counts.into_iter().flat_map(|counts| counts.split([',', ' '])) {
            seen.errors += word.parse::<u64>().unwrap_or(0);
        }
    }
    Some(seen)
}

/// iperf3 on a host.
pub struct Iperf(Running);

/// What iperf3 saw.
#[derive(Clone, Debug)]
pub struct Iperfed {
    /// Bytes of every tenth of a second.
    pub bytes: Vec<u64>,
}

impl Iperf {
    /// One connection for a time; `reverse`: the server sends.
    pub fn begin(host: &Host, to: SocketAddr, time: Duration, reverse: bool) -> Result<Self> {
        let (address, port, seconds) = (to.ip().to_string(), to.port().to_string(), time.as_secs().to_string());
        let mut arguments = vec!["-c", &address, "-p", &port, "-t", &seconds, "-J", "-i", "0.1"];
        if reverse {
            arguments.push("-R");
        }
        Ok(Self(Running::start(host, "iperf3", &arguments)?))
    }

    /// Waits for its end; a reset or another error is an error.
    pub fn wait(self) -> Result<Iperfed> {
        let output = self.0.output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("iperf3: {}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(answer["error"].is_null() && output.status.success(), "iperf3: {}", answer["error"]);
        let intervals = answer["intervals"].as_array().context("iperf3 tells no intervals")?;
        let bytes = intervals.iter().map(|interval| interval["sum"]["bytes"].as_u64().unwrap_or(0)).collect();
        Ok(Iperfed { bytes })
    }
}

impl Iperfed {
    /// The longest time in which nothing came through.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        let longest = self.bytes.split(|bytes| *bytes > 0).map(<[u64]>::len).max().unwrap_or(0);
        Duration::from_millis(longest as u64 * 100)
    }
}
