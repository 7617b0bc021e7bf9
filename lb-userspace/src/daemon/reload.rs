//! Reading the config file again (SIGHUP): all of it or nothing.

use std::path::Path;

use super::{Attachment, Daemon};
use crate::{
    Result,
    api::Changed,
    config::Config,
    say::count,
    state::{Source, XdpMode},
};

impl Daemon {
    /// Reads the file again. An error changes nothing; it is told on standard error and in `lb status`.
    pub(super) async fn reload(&mut self) {
        let Some(path) = self.config.clone() else { return };
        self.notify.reloading();
        match self.reload_from(&path).await {
            Ok(changed) => {
                self.reload_trouble = None;
                let what = changed.summary.join("; ");
                eprintln!("lb: {}: read again (generation {}): {what}", path.display(), changed.generation);
                for warning in &changed.warnings {
                    eprintln!("lb: warning: {warning}");
                }
                self.file_warnings = changed.warnings;
            }
            Err(error) => {
                for line in error.lines() {
                    eprintln!("{line}");
                }
                eprintln!("lb: {}: not taken over; what stood before goes on", path.display());
                let first = error.problems.first().map_or_else(|| error.message.clone(), ToString::to_string);
                let more = error.problems.len().saturating_sub(1);
                let more = if more > 0 {
                    format!(" (and {more} more: lb check -f {})", path.display())
                } else {
                    String::new()
                };
                self.reload_trouble =
                    Some(format!("{} was not taken over, what stood before goes on: {first}{more}", path.display()));
            }
        }
        let status = self.in_a_line();
        self.notify.ready(&status);
    }

    async fn reload_from(&mut self, path: &Path) -> Result<Changed> {
        let config = Config::read(path)?;
        let flags = self.desired.statements.of(&Source::Flags).settings.interfaces;
        let mut wanted = if flags.is_empty() { config.settings.interfaces.clone() } else { flags };
        if wanted.is_empty() {
            wanted.clone_from(&self.desired.settings.interfaces);
        }
        let before: Vec<_> = self.attached.keys().cloned().collect();
        // One that the file never named is somebody else's, and stays.
        let said = self.desired.statements.of(&Source::File).settings.interfaces;
        let result = match self.attach_more(&wanted).await {
            Ok(()) => self.change(&config.statement(), false, false).await.map_err(|error| config.located(path, error)),
            Err(error) => Err(error),
        };
        let leave = |name: &&String| match &result {
            Ok(_) => said.contains(name) && !wanted.contains(name),
            Err(_) => !before.contains(name),
        };
        for name in self.attached.keys().filter(leave).cloned().collect::<Vec<_>>() {
            self.plane.detach(&name)?;
            self.attached.remove(&name);
        }
        let changed = result?;
        self.aim_shared(config.shared)?;
        if self.see_network().await? {
            self.apply()?;
        }
        Ok(changed)
    }

    /// Attaches those that are not attached yet.
    async fn attach_more(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            if self.attached.contains_key(name) {
                continue;
            }
            let interface = self.view.net().interface(name).await?;
            let is_veth = interface.kind.as_deref() == Some("veth");
            let done = self.plane.attach(name, interface.index, is_veth, self.desired.settings.xdp)?;
            let attachment = Attachment { interface, xdp: done.xdp, gone: false, trouble: None };
            self.attached.insert(name.clone(), attachment);
        }
        Ok(())
    }

    /// What the file says and what is not so: a bad file, and settings that a running data path keeps.
    pub(super) fn file_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = self.reload_trouble.iter().chain(&self.file_warnings).cloned().collect();
        let said = self.desired.statements.of(&Source::File).settings;
        let stands = self.plane.flows().capacity();
        if let Some(flows) = said.max_flows.filter(|flows| *flows != stands) {
            warnings.push(format!("max_flows = {flows}: the running data path keeps its {stands} until `lb detach`"));
        }
        for (name, attachment) in &self.attached {
            let wanted = self.desired.settings.xdp;
            if wanted != XdpMode::Auto && wanted != attachment.xdp {
                warnings.push(format!("xdp = {wanted}: {name} is attached {} until `lb detach`", attachment.xdp));
            }
        }
        warnings
    }

    /// How things stand, for a supervisor's list.
    pub(super) fn in_a_line(&self) -> String {
        let (mut all, mut usable) = (0, 0);
        let tables = self.plane.applied();
        for service in self.desired.services.values() {
            all += service.backends.len();
            usable += tables.usable.get(&service.name).map_or(0, std::collections::BTreeSet::len);
        }
        let services = count(self.desired.services.len(), "service");
        let trouble = if self.reload_trouble.is_some() { "; the config file has errors, see lb status" } else { "" };
        format!("{services}, {usable} of {all} backends take new connections{trouble}")
    }
}
