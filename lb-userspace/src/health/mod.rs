//! Health checks: probes, and verdicts from their results.
//!
//! [`Checker`] is told what is to be probed and reports *verdicts*; results between them stay with it until somebody
//! asks. Backends of several services that are checked the same way at the same place share one probe. [`Tally`] turns
//! results into verdicts: an unknown backend is settled by its first result, a settled one changes after `fall`
//! failures or `rise` successes in a row, and while it may be changing it is probed twice a second.
//!
//! All probes run on one thread of their own ([`checker`]), so that ten thousand of them neither wait for the daemon
//! nor hold it up. [`probe`] has one probe's life; `tcp`, `http`, `udp` and `grpc` what each kind says on the wire;
//! `through_vip`, `ways` and `wire` how a probe reaches the VIP on one backend.

mod checker;
mod grpc;
mod http;
mod probe;
mod tcp;
mod through_vip;
mod udp;
mod ways;
mod wire;

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use jiff::Timestamp;

pub use checker::{Checker, Totals};
pub use ways::Ways;

use crate::{
    reconcile::BackendKey,
    state::{Health, HealthCheck, Mode, Probe, ServiceSpec, Via, Vip},
};

/// What is probed, and how; equal ones share a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The backend, and the port that is probed.
    pub address: SocketAddr,
    /// What a request says that it is for: the `Host` of HTTP, the `:authority` of gRPC; empty where it does not matter.
    pub host: String,
    /// Where the probe really goes when it goes through the VIP: the VIP, and the mode that takes packets from there to
    /// the backend.
    pub through: Option<(Vip, Mode)>,
    /// What is sent and expected, and when.
    pub check: HealthCheck,
}

impl Target {
    /// How a backend of a service is checked; `None` if it is not.
    #[must_use]
    pub fn new(service: &ServiceSpec, backend: SocketAddr) -> Option<Self> {
        let check = &service.health;
        let vip = service.vips.first();
        let host = match &check.probe {
            Probe::None => return None,
            Probe::Tcp(_) | Probe::Udp(_) => String::new(),
            Probe::Http(http) => http.host.clone().unwrap_or_else(|| authority(vip, 80)),
            Probe::Https { http, .. } => http.host.clone().unwrap_or_else(|| authority(vip, 443)),
            Probe::Grpc(grpc) => grpc.host.clone().unwrap_or_else(|| authority(vip, 0)),
        };
        let mut address = backend;
        address.set_port(check.port.unwrap_or_else(|| service.port_of(backend)));
        let through = vip.filter(|_| check.via == Via::Vip).map(|vip| (*vip, service.mode));
        Some(Self { address, host, through, check: check.clone() })
    }
}

/// The VIP as clients write it: without a port that goes without saying.
fn authority(vip: Option<&Vip>, usual: u16) -> String {
    let Some(vip) = vip else { return String::new() };
    let whole = SocketAddr::new(vip.address, vip.port).to_string();
    if vip.port != usual && vip.port != 0 {
        return whole;
    }
    whole.rsplit_once(':').map_or(whole.clone(), |(address, _)| address.to_owned())
}

/// A backend's health has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The backend.
    pub key: BackendKey,
    /// What checks say now.
    pub health: Health,
    /// What the last check said.
    pub reason: Cow<'static, str>,
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// When it began.
    pub at: Timestamp,
    /// Whether the backend answered as it should.
    pub ok: bool,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; "ok" otherwise.
    pub reason: Cow<'static, str>,
}

/// Results in a row, and what they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    health: Health,
    against: u32,
}

impl Tally {
    /// Begins with what was known before.
    #[must_use]
    pub const fn new(health: Health) -> Self {
        Self { health, against: 0 }
    }

    /// Takes a result; gives the verdict.
    pub fn take(&mut self, ok: bool, check: &HealthCheck) -> Health {
        let says = if ok { Health::Up } else { Health::Down };
        if self.health == says {
            self.against = 0;
            return says;
        }
        self.against += 1;
        let needed = match (self.health, ok) {
            (Health::Unknown, _) => 1,
            (_, true) => check.rise,
            (_, false) => check.fall,
        };
        if self.against >= needed {
            *self = Self::new(says);
        }
        self.health
    }

    /// The verdict.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Whether results speak against the verdict.
    #[must_use]
    pub const fn is_changing(&self) -> bool {
        self.against > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Protocol, Source};

    fn run(start: Health, results: &str) -> String {
        let check = HealthCheck::default_for(Protocol::Tcp);
        let mut tally = Tally::new(start);
        results
            .chars()
            .map(|result| match tally.take(result == '+', &check) {
                Health::Up => 'U',
                Health::Down => 'D',
                Health::Unknown => '?',
            })
            .collect()
    }

    #[test]
    fn three_failures_fall_and_two_successes_rise() {
        assert_eq!(run(Health::Up, "--+---"), "UUUUUD");
        assert_eq!(run(Health::Down, "+-++"), "DDDU");
    }

    #[test]
    fn the_first_result_settles_an_unknown_backend() {
        assert_eq!(run(Health::Unknown, "+"), "U");
        assert_eq!(run(Health::Unknown, "-"), "D");
    }

    #[test]
    fn the_host_is_the_vip_as_clients_write_it() {
        let host = |vip: &str, probe: &str| {
            let mut service = ServiceSpec::new(vip.parse().unwrap(), Source::Cli);
            service.health.probe = probe.parse().unwrap();
            service.health.port = Some(9);
            let target = Target::new(&service, "10.0.0.2:8080".parse().unwrap()).unwrap();
            assert_eq!(target.address.port(), 9);
            target.host
        };
        assert_eq!(host("10.0.0.1:80", "http"), "10.0.0.1");
        assert_eq!(host("10.0.0.1:8080", "http"), "10.0.0.1:8080");
        assert_eq!(host("[2001:db8::1]:443", "https"), "[2001:db8::1]");
        assert_eq!(host("[2001:db8::1]:443", "grpc"), "[2001:db8::1]:443");
        assert_eq!(host("10.0.0.1:80", "tcp"), "", "so that services can share a probe");
    }
}
