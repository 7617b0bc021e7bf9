//! Changes of the desired state. What each does is said in [`super::draft`], which are refused in [`super::guards`].
//!
//! [`Desired::change`] is pure: it gives a whole new state or an error, never half of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{
    Admin, Desired, ServiceOptions, ServiceSpec, SettingsOptions, Source, Vip, draft::Draft,
    statements::ServiceStatement,
};
use crate::{
    Error, Result,
    net::{Listener, RouteTo},
    reconcile::BackendKey,
};

/// Something that somebody wants changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// `lb attach`: settings, and what its flags say of one service.
    Attach {
        /// What they say of the data plane; what they do not say stays as flags said it before.
        settings: Box<SettingsOptions>,
        /// The service that the flags describe; without one the former stays.
        service: Option<Box<ServiceSpec>>,
    },
    /// A source states all that it has to say: what it said before and does not say now is withdrawn.
    Restate {
        /// Who speaks.
        source: Source,
        /// What it says of the data plane.
        settings: Box<SettingsOptions>,
        /// Its services with their backends.
        services: Vec<ServiceSpec>,
    },
    /// A registry states the whole set of backends that it knows of a service. Those that it does not name any more
    /// take no new flows, while known ones go on; one that comes back resumes. Backends that cannot be are left out
    /// with a warning.
    Snapshot {
        /// The service's name.
        service: String,
        /// Which registry.
        source: Source,
        /// Addresses and weights.
        backends: Vec<(SocketAddr, u16)>,
    },
    /// A registry is not asked any more: what it said of a service is withdrawn.
    Withdraw {
        /// The service's name; it may be gone.
        service: String,
        /// Which registry.
        source: Source,
    },
    /// `lb service add`.
    AddService {
        /// The new service.
        service: Box<ServiceSpec>,
    },
    /// `lb service set`.
    SetService {
        /// Its name or a VIP.
        service: String,
        /// What is to be different.
        options: Box<ServiceOptions>,
        /// The new list of backends, if it is to be replaced.
        backends: Option<Vec<(SocketAddr, u16)>>,
    },
    /// `lb service remove`.
    RemoveService {
        /// Its name or a VIP.
        service: String,
    },
    /// `lb backend add`.
    AddBackends {
        /// The service's name or a VIP; may be left out while there is one.
        service: Option<String>,
        /// Addresses and weights.
        backends: Vec<(SocketAddr, u16)>,
    },
    /// `lb backend remove`.
    RemoveBackends {
        /// As above.
        service: Option<String>,
        /// Which.
        backends: Vec<SocketAddr>,
    },
    /// `lb backend weight`.
    SetWeight {
        /// As above.
        service: Option<String>,
        /// Which.
        backend: SocketAddr,
        /// The new weight.
        weight: u16,
    },
    /// `lb backend drain|ready|maint`.
    SetAdmin {
        /// As above.
        service: Option<String>,
        /// Which.
        backends: Vec<SocketAddr>,
        /// The new admin state.
        admin: Admin,
    },
}

/// What guards look at; filled by the daemon.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Addresses that this host owns.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Those that lb put there itself: they are the host's only because they are VIPs.
    pub announced: BTreeSet<IpAddr>,
    /// Sockets that listen on this host.
    pub listeners: Vec<Listener>,
    /// The host's own port range.
    pub local_port_range: (u16, u16),
    /// Attached interfaces, by index.
    pub attached: BTreeMap<u32, String>,
    /// Names of all interfaces, by index.
    pub interfaces: BTreeMap<u32, String>,
    /// Routes to the addresses of the change's backends; `None` = no route.
    pub routes: BTreeMap<IpAddr, Option<RouteTo>>,
    /// Live flows.
    pub flows: BTreeMap<BackendKey, u64>,
    /// Who takes new flows now.
    pub usable: BTreeMap<String, BTreeSet<SocketAddr>>,
}

/// What a change comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The new state.
    pub desired: Desired,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// What the change does, in sentences.
    pub summary: Vec<String>,
}

impl Change {
    /// Addresses of the backends that it brings.
    #[must_use]
    pub fn backends(&self) -> Vec<SocketAddr> {
        let of = |service: &ServiceSpec| service.backends.iter().map(|backend| backend.address).collect::<Vec<_>>();
        match self {
            Self::Attach { service: Some(service), .. } | Self::AddService { service } => of(service),
            Self::Restate { services, .. } => services.iter().flat_map(of).collect(),
            Self::AddBackends { backends, .. }
            | Self::SetService { backends: Some(backends), .. }
            | Self::Snapshot { backends, .. } => backends.iter().map(|(address, _)| *address).collect(),
            _ => Vec::new(),
        }
    }
}
impl Desired {
    /// The service of this name or with this VIP; without a name, the only one.
    pub fn service(&self, wanted: Option<&str>) -> Result<&ServiceSpec> {
        let names = || self.services.keys().cloned().collect::<Vec<_>>().join(" ");
        let Some(wanted) = wanted else {
            let mut all = self.services.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => {
                    Err(Error::not_found("there is no service").hint("lb service add VIP --backends ADDR:PORT,.."))
                }
                _ => Err(Error::usage("there are several services: which one?")
                    .hint(format!("-s NAME, one of: {}", names()))),
            };
        };
        let vip = wanted.parse::<Vip>().ok();
        let found = self
            .services
            .get(wanted)
            .or_else(|| self.services.values().find(|service| vip.is_some_and(|vip| service.vips.contains(&vip))));
        found.ok_or_else(|| {
            let known =
                if self.services.is_empty() { "there is none yet".to_owned() } else { format!("known: {}", names()) };
            Error::not_found(format!("service {wanted}: there is none of this name or VIP")).hint(known)
        })
    }

    /// The state after a change, or why it is refused; the same state if it changes nothing. `force` overrides the
    /// guards that may be overridden.
    pub fn change(&self, change: &Change, facts: &Facts, force: bool) -> Result<Outcome> {
        let change = &change.placed(self);
        let mut draft = Draft::new(self, facts, force);
        match change {
            Change::Attach { settings, service } => draft.attach(settings, service.as_deref()),
            Change::Restate { source, settings, services } => draft.restate(source, settings, services)?,
            Change::Snapshot { service, source, backends } => draft.snapshot(service, source, backends)?,
            Change::Withdraw { service, source } => {
                draft.statements.state(source.clone(), service, ServiceStatement::default());
            }
            Change::AddService { service } => draft.add_service(service)?,
            Change::SetService { service, options, backends } => {
                draft.set_service(service, options, backends.as_deref())?;
            }
            Change::RemoveService { service } => draft.remove_service(service)?,
            Change::AddBackends { service, backends } => draft.add_backends(service.as_deref(), backends)?,
            Change::RemoveBackends { service, backends } => draft.remove_backends(service.as_deref(), backends)?,
            Change::SetWeight { service, backend, weight } => {
                draft.set_weight(service.as_deref(), *backend, *weight)?;
            }
            Change::SetAdmin { service, backends, admin } => draft.set_admin(service.as_deref(), backends, *admin)?,
        }
        draft.finish()
    }
}

#[cfg(test)]
mod tests;
