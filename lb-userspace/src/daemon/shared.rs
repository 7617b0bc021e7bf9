//! Services that a fleet of balancers shares (`shared` of the config file), on their way into the desired state.

use super::{Daemon, registries::takes};
use crate::{
    Result,
    api::SourceStatus,
    discovery::{
        SourceSpec,
        shared::{Shared, Told},
    },
    state::{Admin, BackendSpec, Change, ServiceSpec, SettingsOptions, Source},
};

impl Daemon {
    /// Follows this source of services and no other.
    ///
    /// # Errors
    /// Its address makes no sense; what was followed before goes on.
    pub(super) fn aim_shared(&mut self, wanted: Option<SourceSpec>) -> Result<()> {
        if self.shared.as_ref().map(Shared::source) == wanted.as_ref() {
            return Ok(());
        }
        self.shared_number += 1;
        let follow = |source: SourceSpec| {
            let known = self.said_before(&source.name);
            Shared::follow(source, self.shared_number, known, self.tell_shared.clone())
        };
        // What another one said before is an orphan from now on.
        self.shared = wanted.map(follow).transpose()?;
        self.state_soon();
        Ok(())
    }

    /// Services that a source stated, by the state that was kept.
    fn said_before(&self, name: &str) -> Vec<ServiceSpec> {
        let source = Source::Registry(name.to_owned());
        let said = self.desired.statements.of(&source).services.into_values();
        let whole = said.filter_map(|said| {
            let backend =
                |(address, weight)| BackendSpec { address, weight, admin: Admin::Ready, source: source.clone() };
            Some(ServiceSpec { backends: said.backends.into_iter().map(backend).collect(), ..said.spec? })
        });
        whole.collect()
    }

    /// Whether a source's statements are those of the shared services.
    pub(super) fn is_shared(&self, source: &str) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.source().name == source)
    }

    /// Takes an answer.
    pub(super) fn shared_heard(&mut self, told: Told) {
        if self.shared.as_mut().is_some_and(|shared| shared.heard(told)) {
            self.state_soon();
        }
    }

    /// States what changed: all of it or, when a guard refuses some, nothing.
    pub(super) async fn state_shared(&mut self) {
        let Some((source, services)) =
            self.shared.as_ref().and_then(|shared| Some((shared.as_source(), shared.changed()?)))
        else {
            return;
        };
        let settings = Box::new(SettingsOptions::default());
        let result = self.change(&Change::Restate { source, settings, services }, false, false).await;
        if let Some(shared) = &mut self.shared {
            shared.done(result.map(|changed| changed.warnings));
        }
    }

    /// How all sources stand.
    pub(super) fn all_sources(&self) -> Vec<SourceStatus> {
        let taken = |service: &str, address| takes(&self.desired, service, address);
        self.sources.list(taken).into_iter().chain(self.shared.as_ref().map(Shared::status)).collect()
    }
}
