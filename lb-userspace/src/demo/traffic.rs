//! The client's requests, one after the other, each on a connection of its own.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{Result, lab::Host};

/// Time between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest that a request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers of one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    /// How many.
    pub count: u64,
    time: Duration,
}

impl Answers {
    /// How long one took on average.
    pub fn mean(&self) -> Duration {
        self.time.checked_div(u32::try_from(self.count).unwrap_or(u32::MAX)).unwrap_or_default()
    }
}

#[derive(Default)]
struct Seen {
    answers: BTreeMap<IpAddr, Answers>,
    requests: u64,
    failed: u64,
}

/// Running requests.
pub struct Traffic {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Traffic {
    /// Asks `vip` from `client` until dropped.
    pub fn start(client: &Host, vip: SocketAddr) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicBool::new(false)));
        let (tell, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = client.spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = get(vip);
                let mut seen = tell.lock().unwrap_or_else(PoisonError::into_inner);
                seen.requests += 1;
                match answer {
                    Some(server) => {
                        let answers = seen.answers.entry(server).or_default();
                        answers.count += 1;
                        answers.time += begun.elapsed();
                    }
                    None => seen.failed += 1,
                }
                drop(seen);
                std::thread::sleep(PAUSE);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Answers since this was last asked, by server.
    pub fn since_last(&self) -> BTreeMap<IpAddr, Answers> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).answers)
    }

    /// Requests and how many of them failed, since the start.
    pub fn total(&self) -> (u64, u64) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.requests, seen.failed)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request; gives who answered.
fn get(vip: SocketAddr) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let body = answer.split("\r\n\r\n").nth(1)?;
    body.trim().parse::<SocketAddr>().ok().map(|server| server.ip())
}
