//! A web server that says its address, and can be killed.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{Result, error::Context as _, lab::Host};

/// A running server.
pub struct Web {
    dead: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Web {
    /// Serves on a host.
    pub fn start(host: &Host, place: SocketAddr) -> Result<Self> {
        let dead = Arc::new(AtomicBool::new(false));
        let (stop, (ready, bound)) = (Arc::clone(&dead), std::sync::mpsc::channel());
        let thread = host.spawn(move || {
            // Whoever waits for the answer reports it.
            let _ = ready.send(TcpListener::bind(place).map(|listener| serve(&listener, place, &stop)));
        });
        let server = Self { dead, thread: Some(thread) };
        match bound.recv_timeout(Duration::from_millis(300)) {
            Ok(Err(error)) => Err(error).context(format!("listen on {place}")),
            _ => Ok(server),
        }
    }

    /// Ends it; its port is closed from now on.
    pub fn kill(&mut self) {
        self.dead.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(listener: &TcpListener, place: SocketAddr, dead: &AtomicBool) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !dead.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => answer(stream, place),
            Err(_) => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

/// Reads a request's head and answers with the server's address.
fn answer(mut stream: TcpStream, place: SocketAddr) {
    let mut head = [0; 2048];
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(Duration::from_millis(500))));
    if ready.is_err() || stream.read(&mut head).unwrap_or(0) == 0 {
        return;
    }
    let body = format!("{place}\n");
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    // A client that has gone away is no concern of the server's.
    let _ = stream.write_all(text.as_bytes());
}
