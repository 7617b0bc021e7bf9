//! A backend as files and etcd's keys say it: `ADDR:PORT[=WEIGHT]`, or `{"address", "weight", "tags", "meta"}` as JSON.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;

use super::Instance;
use crate::{Result, state::typed::parse_backend};

/// The form in JSON.
#[derive(Deserialize)]
pub(super) struct Written {
    address: String,
    weight: Option<u16>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    meta: BTreeMap<String, String>,
}

impl Written {
    /// What it means; `weight` is for those that say none.
    pub(super) fn meaning(self, weight: u16) -> Result<(SocketAddr, Instance)> {
        let Self { address, weight: own, tags, meta } = self;
        let (address, instance) = of_text(&address, weight)?;
        Ok((address, Instance { weight: own.unwrap_or(instance.weight), tags, meta }))
    }
}

/// What the form as text means.
pub(super) fn of_text(text: &str, weight: u16) -> Result<(SocketAddr, Instance)> {
    let (address, said) = parse_backend(text.trim())?;
    Ok((address, Instance::of_weight(if text.contains('=') { said } else { weight })))
}
