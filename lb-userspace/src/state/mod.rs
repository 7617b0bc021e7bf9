//! The desired state: what people, files and registries want, each object with the source that stated it.
//!
//! [`words`] has the vocabulary (VIP, mode, scheduler, ...) with its parsing and printing; [`desired`] the state
//! itself; [`statements`] who said what, and how that merges; [`change`] how it changes; `guards` which changes are
//! refused; [`file`] keeps it on disk.

pub mod change;
pub mod desired;
pub mod file;
mod guards;
pub mod statements;
pub mod words;

pub use change::{Change, Facts, Outcome};
pub use desired::{BackendSpec, Desired, HealthCheck, Probe, ServiceOptions, ServiceSpec, Settings, SettingsOptions};
pub use statements::{ServiceStatement, Statement, Statements};
pub use words::{Admin, Health, Mode, OnDown, OnEmpty, OnExit, Protocol, Scheduler, Source, Vip, XdpMode};
