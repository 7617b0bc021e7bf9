//! The API: what can be asked of a running daemon, as one enum, and the shapes of its answers.
//!
//! `POST /v1` with a [`Request`] as JSON does everything; `GET /v1/status`, `/v1/drops` and `/metrics` are there for
//! people with curl. Errors are `{"error": {"kind", "message", "hint"}}`. It is HTTP over a Unix socket; the CLI is its
//! first client.

pub mod client;
pub mod server;

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::{Admin, Change, Health, Mode, Scheduler, Source, Vip};

/// Everything that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// The whole picture: [`Status`].
    Status,
    /// Packets by reason: a list of [`Drop`].
    Drops,
    /// Live connections: a list of [`Conn`].
    Connections {
        /// Which.
        filter: ConnFilter,
    },
    /// How many connections: a number.
    CountConnections {
        /// Which.
        filter: ConnFilter,
    },
    /// Reset connections; gives how many.
    Flush {
        /// Which.
        filter: ConnFilter,
    },
    /// Change what is wanted: [`Changed`].
    Change {
        /// The change.
        change: Change,
        /// Override the guards that may be overridden; reset flows of what is removed.
        force: bool,
        /// Say what it would do, and do nothing.
        dry_run: bool,
    },
    /// End forwarding on these interfaces, or on all; gives their names. After the last one the daemon ends.
    Detach {
        /// Names; none = all.
        interfaces: Vec<String>,
    },
    /// Let go what the sources of this name hold; gives how many backends.
    ReleaseSource {
        /// Its name.
        name: String,
    },
    /// Prometheus text.
    Metrics,
}

/// Which connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnFilter {
    /// Of this service: name or VIP.
    pub service: Option<String>,
    /// To this backend.
    pub backend: Option<SocketAddr>,
    /// From this client address.
    pub client: Option<IpAddr>,
    /// In this state ([`lb_common::flow::state::name`]).
    pub state: Option<String>,
    /// No more than this many.
    pub limit: Option<usize>,
}

/// What an accepted change did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The generation after it.
    pub generation: u64,
    /// What it does, in sentences.
    pub summary: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Packets or bytes in both directions; "in" is client to backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    /// Client to backend.
    #[serde(rename = "in")]
    pub inward: u64,
    /// Backend to client.
    pub out: u64,
}

/// The whole picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// lb's version.
    pub version: String,
    /// Number of the desired state.
    pub generation: u64,
    /// Version of the maps' layout.
    pub layout: u32,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Services by name.
    pub services: Vec<Service>,
    /// The flow table.
    pub flows: FlowsStatus,
    /// What somebody should look at.
    pub warnings: Vec<String>,
    /// Registries and files that are asked for backends.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
}

/// How a source of backends stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name; its backends have the source `registry:NAME`.
    pub name: String,
    /// `consul`, `dns`, `etcd` or `file`.
    pub kind: String,
    /// Whose backends it finds.
    pub service: String,
    /// What it looks up.
    pub target: String,
    /// `waiting` (no answer yet), `ok`, `error` (the last good set stays) or `holding` (removals are not believed).
    pub state: String,
    /// Backends that it states and that its service has.
    pub backends: usize,
    /// Backends that it states and that its service has not: a guard refused them, or the operator removed them.
    #[serde(default)]
    pub left_out: usize,
    /// Seconds since its last answer.
    pub age_s: Option<u64>,
    /// The last error, and whether it is over.
    pub last_error: Option<SourceError>,
    /// Who would be gone if the registry were believed.
    pub held: Vec<HeldBackend>,
    /// What was left out of its answer and why, and what else is odd about it.
    pub warnings: Vec<String>,
    /// Answers so far.
    pub answers: u64,
    /// Errors so far.
    pub errors: u64,
    /// How often its set changed what is balanced.
    pub changes: u64,
}

/// Why a source did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceError {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// There was no answer since.
    pub now: bool,
}

/// A backend that a source does not name any more, but that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBackend {
    /// Its address.
    pub address: SocketAddr,
    /// Why the registry is not believed.
    pub reason: String,
    /// Seconds since.
    pub age_s: u64,
    /// A fresh answer after the hold said the same: it stays by policy (`on_empty=keep`).
    pub confirmed: bool,
}

/// An attached interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub xdp: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Identity of the program.
    pub program_id: u32,
}

/// How full the flow table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsStatus {
    /// Live flows.
    pub active: u64,
    /// Records.
    pub max: u64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<Vip>,
    /// Its mode.
    pub mode: Mode,
    /// Its scheduler.
    pub scheduler: Scheduler,
    /// Who stated it.
    pub source: Source,
    /// Backends that take new flows.
    pub usable: usize,
    /// Live flows.
    pub flows: u64,
    /// Packets.
    pub packets: Both,
    /// Layer-3 bytes.
    pub bytes: Both,
    /// Hash of its table; equal on balancers that choose alike.
    pub table_fingerprint: String,
    /// Its backends by address.
    pub backends: Vec<Backend>,
}

/// A backend of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// The service's name.
    pub service: String,
    /// Address and port.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u16,
    /// What the operator wants.
    pub admin: Admin,
    /// What checks say.
    pub health: Health,
    /// Whether it takes new flows.
    pub usable: bool,
    /// Who stated it.
    pub source: Source,
    /// Live flows.
    pub flows: u64,
    /// Its share of the service's table, 0 to 1.
    pub share: f64,
    /// Packets.
    pub packets: Both,
    /// Layer-3 bytes.
    pub bytes: Both,
    /// The last health check.
    pub last_check: Option<LastCheck>,
}

/// The last health check of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// When it began.
    pub at: Timestamp,
    /// Whether the backend answered as it should.
    pub ok: bool,
    /// How long it took.
    pub took_ms: u64,
    /// Why it failed; "ok" otherwise.
    pub reason: String,
}

/// A live connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conn {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The client.
    pub client: SocketAddr,
    /// What it talks to.
    pub vip: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// What the backend sees as its client.
    pub snat: SocketAddr,
    /// The service's name.
    pub service: String,
    /// Its state.
    pub state: String,
    /// Seconds since either side was heard of.
    pub idle_s: u64,
    /// Seconds since it began.
    pub age_s: u64,
    /// Packets.
    pub packets: Both,
}

/// Packets that were not simply forwarded, by reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// The reason's name.
    pub reason: String,
    /// Packets.
    pub count: u64,
    /// What it means and what to do about it.
    pub help: String,
}
