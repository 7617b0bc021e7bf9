//! Telling a supervisor how things stand: systemd's notification protocol (sd_notify(3)), a datagram to the socket
//! that NOTIFY_SOCKET names. Without one nothing happens.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// See the module.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    said: String,
}

impl Notify {
    /// What the environment says. A socket that cannot be used is logged and forgotten: lb works without.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty()) else { return Self::default() };
        let socket = open(&name).inspect_err(|error| tracing::warn!(%error, name, "NOTIFY_SOCKET")).ok();
        Self { socket, watchdog: watchdog(), said: String::new() }
    }

    /// How often the supervisor wants to hear that all is well, halved; `None` = it does not ask.
    #[must_use]
    pub const fn every(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Started, or read the file again; `status` is for people.
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.said);
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Begins to read the file again.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// How things stand; said when it is news.
    pub fn status(&mut self, status: &str) {
        if self.said != status {
            status.clone_into(&mut self.said);
            self.send(&format!("STATUS={status}"));
        }
    }

    /// All is well.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, text: &str) {
        let Some((socket, to)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), to) {
            tracing::warn!(%error, text, "tell the supervisor");
        }
    }
}

fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(abstracted) => SocketAddr::from_abstract_name(abstracted)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A supervisor that does not read must not hold up the daemon.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// WATCHDOG_USEC, if it is meant for this process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| for_us && *micros > 0).map(|micros| Duration::from_micros(micros) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let mut notify = Notify { socket: open(path.to_str().unwrap()).ok(), ..Notify::default() };
        notify.ready("1 service");
        notify.status("1 service");
        notify.status("2 services");
        notify.reloading();
        notify.alive();
        let next = || {
            let mut bytes = [0; 200];
            let length = supervisor.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(next(), "READY=1\nSTATUS=1 service");
        assert_eq!(next(), "STATUS=2 services");
        let reloading = next();
        let (begin, micros) = reloading.split_once("MONOTONIC_USEC=").unwrap();
        assert!(begin == "RELOADING=1\n" && micros.parse::<u64>().unwrap() > 0, "{reloading}");
        assert_eq!(next(), "WATCHDOG=1");
    }

    #[test]
    fn nobody_listening_harms_nothing() {
        Notify::default().alive();
        let gone = Notify { socket: open("/nonexistent/socket").ok(), ..Notify::default() };
        gone.alive();
    }
}
