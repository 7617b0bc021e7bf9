//! lb's control plane: everything around the kernel program.
//!
//! **A change** comes from the command line ([`cli`]) or a config file ([`config`]) through the API ([`api`]) to the daemon's one state task
//! ([`daemon`]), which checks it ([`state`]), compiles desired state and observations into tables ([`reconcile`]) and
//! applies the difference to the maps ([`dataplane`], the only module that touches aya).
//!
//! **Observations** come through the same door: verdicts of health checks ([`health`]), interfaces, routes and
//! neighbours by netlink ([`net`]), and what registries and watched files say ([`discovery`]).
//!
//! Around it: [`observe`] (metrics), [`tls`] (towards registries and https checks), [`doctor`] (what stands in the way on this host), and [`demo`] in a [`lab`] of network namespaces.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod demo;
pub mod discovery;
pub mod doctor;
pub mod error;
pub mod health;
pub mod lab;
pub mod maglev;
pub mod net;
pub mod observe;
pub mod reconcile;
pub mod rotation;
pub mod say;
pub mod state;
pub mod tls;

pub use error::{Error, Result};
