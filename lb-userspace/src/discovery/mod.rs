//! Where backends come from besides lists: registries and files that are watched.
//!
//! [`spec`] says what a source is and how it is written. Each sort of registry ([`consul`], [`dns`], [`etcd`], [`file`])
//! is a [`Registry`]: it yields whole sets of [`Instance`]s by address. [`guard`] decides how much of an answer is
//! believed, and [`sources`] runs all of it for the daemon's state task, which feeds the sets into the desired state: a
//! `line` asks each registry, its `standing` is what is shown. [`shared`] does the same for whole services.

pub mod consul;
pub mod dns;
pub mod etcd;
pub mod file;
pub mod guard;
pub mod http;
mod line;
pub mod shared;
pub mod sources;
pub mod spec;
mod standing;
mod written;

pub use sources::{Sources, Wish};
pub use spec::{SourceSpec, Vanish, Wanted};
use standing::Standing;

use std::{collections::BTreeMap, future::Future, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Result;
use guard::Set;

/// What a registry says of a backend besides its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// 0 takes no new flows.
    pub weight: u16,
    /// Words of the registry's.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Keys and values of the registry's.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

impl Instance {
    /// Nothing but a weight.
    #[must_use]
    pub const fn of_weight(weight: u16) -> Self {
        Self { weight, tags: Vec::new(), meta: BTreeMap::new() }
    }
}

/// A registry's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// All that it knows, by address.
    pub set: Set,
    /// It may know less than there is: nobody is removed on its word.
    pub partial: bool,
    /// What was left out and why, and what else the operator should know.
    pub warnings: Vec<String>,
}

impl Answered {
    /// A set that is all there is.
    #[must_use]
    pub const fn whole(set: Set) -> Self {
        Self { set, partial: false, warnings: Vec::new() }
    }
}

/// A number from 0 to 1, good enough to spread questions.
fn random() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let word = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (word >> 11) as f64 / (1u64 << 53) as f64
}

/// A sort of registry.
pub trait Registry: Send + 'static {
    /// Longest pause after errors.
    const LONGEST_PAUSE: Duration = line::LONGEST_PAUSE;

    /// The next answer: the first one at once, later ones when there may be news. `fresh`: at once, and not from
    /// anything that was heard before. It may be dropped while it waits, and is then called again.
    ///
    /// # Errors
    /// In words, what was asked and why there is no answer. It is called again after a pause.
    fn next(&mut self, fresh: bool) -> impl Future<Output = Result<Answered>> + Send;
}
