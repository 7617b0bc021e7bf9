//! One probe of one backend, and what went wrong in words.

use std::{borrow::Cow, future::Future, io, pin::pin, task::Poll, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Target, grpc, http, tcp, through_vip::Road, udp};
use crate::state::Probe;

/// Why a probe failed: "STEP: WHY", or a status.
pub type Why = Cow<'static, str>;

/// Probes, by `road` where the probe goes to the VIP; the error says why in words.
pub async fn probe(target: &Target, road: Option<&Road>) -> Result<(), Why> {
    let clock = Clock::start(target.check.timeout);
    match &target.check.probe {
        Probe::None => Ok(()),
        Probe::Tcp(exchange) => tcp::check(target.address, exchange, road, clock).await,
        Probe::Udp(exchange) => udp::check(target.address, exchange, clock).await,
        Probe::Http(http) => http::check(target, http, None, road, clock).await,
        Probe::Https { http, tls } => http::check(target, http, Some(tls), road, clock).await,
        Probe::Grpc(grpc) => grpc::check(target, grpc, road, clock).await,
    }
}

/// When the whole of a probe must be over.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    end: Instant,
    limit: Duration,
}

impl Clock {
    /// From now on.
    pub fn start(limit: Duration) -> Self {
        Self { end: Instant::now() + limit, limit }
    }

    /// One step of a probe, named in the error.
    pub async fn step<T>(self, step: &'static str, work: impl Future<Output = Result<T, Why>>) -> Result<T, Why> {
        match timeout_at(self.end, work).await {
            Ok(done) => done.map_err(|why| format!("{step}: {why}").into()),
            Err(_) => Err(self.late(step)),
        }
    }

    /// The same; `None` when the time is over.
    pub async fn until_end<T>(self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.end, work).await.ok()
    }

    /// A step took too long.
    pub fn late(self, step: &str) -> Why {
        format!("{step}: timed out after {:?}", self.limit).into()
    }
}

/// The usual errors of sockets in the words that people look for.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn words(error: io::Error) -> Why {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "connection refused".into(),
        Kind::ConnectionReset | Kind::BrokenPipe => "connection reset".into(),
        Kind::HostUnreachable => "no route to host".into(),
        Kind::NetworkUnreachable => "network is unreachable".into(),
        Kind::UnexpectedEof => "the connection was closed".into(),
        Kind::TimedOut => "timed out".into(),
        _ => match error.raw_os_error() {
            Some(number) => nix::errno::Errno::from_raw(number).desc().into(),
            None => error.to_string().into(),
        },
    }
}

/// Whether `wanted` is somewhere in `bytes`.
pub fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Works over a connection, which is itself a future that somebody has to drive.
pub async fn over<T>(connection: impl Future, work: impl Future<Output = T>) -> T {
    let (mut connection, mut work) = (pin!(connection), pin!(work));
    let mut over = false;
    std::future::poll_fn(|cx| {
        // It may end first: what it got is still there for the work.
        over = over || connection.as_mut().poll(cx).is_ready();
        match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
