//! What a data plane that is pinned already means for an attach that takes it over.

use std::path::Path;

use crate::{
    Error, Result,
    dataplane::pins,
    net::{Interface, View},
    say,
    state::XdpMode,
};

/// Interfaces that it runs on besides the named ones: they stay, because only detaching stops forwarding. One that is
/// gone has no forwarding to stop.
pub(super) async fn others(view: &View, bpffs: &Path, named: &[String]) -> Vec<Interface> {
    let mut others = Vec::new();
    for name in pins::links(bpffs).into_iter().filter(|name| !named.contains(name)) {
        if let Ok(interface) = view.net().interface(&name).await {
            say::sentence(&format!("{name}: stays attached; `lb detach {name}` ends it"));
            others.push(interface);
        }
    }
    others
}

/// An attached program keeps its mode: another needs a moment without any.
pub(super) fn refuse_other_mode(interfaces: &[Interface], bpffs: &Path, wanted: XdpMode) -> Result<()> {
    let ours = pins::links(bpffs);
    for interface in interfaces.iter().filter(|interface| ours.contains(&interface.name)) {
        let Some(now) = interface.xdp_mode.filter(|now| wanted != XdpMode::Auto && wanted != *now) else { continue };
        let name = &interface.name;
        return Err(Error::refused(format!("attach {name}: it is attached {now}, which does not become {wanted}"))
            .hint(format!(
                "--xdp {now}, or sudo lb detach {name} first (forwarding stops until it is attached again)"
            )));
    }
    Ok(())
}

/// The size of the flow table does not change under live flows.
pub(super) fn warn_of_size(said: Option<u32>, stands: u32) {
    if let Some(said) = said.filter(|said| *said != stands) {
        say::warning(&format!(
            "--max-flows {said}: the data path that is taken over keeps its table of {stands} flows; \
             `sudo lb detach` first for another"
        ));
    }
}
