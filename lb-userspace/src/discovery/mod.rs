//! Where backends come from besides lists: registries and files that are watched.
//!
//! [`spec`] says what a source is and how it is written.

pub mod spec;

pub use spec::{SourceSpec, Vanish, Wanted};
