//! The desired state: what people, files and registries want, each object with the source that stated it.
//!
//! [`words`] has the vocabulary (VIP, mode, scheduler, ...) and [`typed`] how people type it, [`check`] health checks and
//! [`idle`] idle timeouts; [`desired`] the state itself; [`statements`] who said what, and how that merges; [`change`]
//! how it changes; `guards` which changes are refused, `modes` what a mode asks of backends; [`file`] keeps it on disk.

pub mod change;
pub mod check;
pub mod desired;
mod draft;
pub mod file;
pub(crate) mod guards;
pub mod idle;
mod modes;
pub mod statements;
pub mod typed;
pub mod words;

pub use change::{Change, Facts, Outcome};
pub use check::{Exchange, GrpcCheck, HealthCheck, HttpCheck, Payload, Probe, StatusSet, TlsCheck};
pub use desired::{BackendSpec, Desired, ServiceOptions, ServiceSpec, Settings, SettingsOptions};
pub use idle::IdleTimeouts;
pub use statements::{ServiceStatement, Statement, Statements};
pub use words::{Admin, Health, Mode, OnDown, OnEmpty, OnExit, Protocol, Scheduler, Source, Via, Vip, XdpMode};
