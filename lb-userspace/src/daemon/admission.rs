//! What is asked before anything is touched: may this process do it, can this kernel, and has nobody else the place.

use std::path::Path;

use crate::{
    Error, Result,
    dataplane::{pins, program_name},
    doctor,
    net::Interface,
};

/// Whether this process and this kernel can do it at all.
pub(super) fn able(command: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::failed(format!("{command}: lb loads programs into the kernel, which needs root"))
            .hint(format!("sudo lb {command} ..")));
    }
    let release = doctor::kernel_release();
    if !doctor::kernel_is_new_enough(&release) {
        return Err(Error::failed(format!("{command}: this kernel is too old: Linux {release}"))
            .hint("lb needs Linux 6.1 or newer"));
    }
    Ok(())
}

/// Another program on an interface is somebody else's, and so is another lb's.
pub(super) fn not_foreign(interfaces: &[Interface], bpffs: &Path) -> Result<()> {
    let ours = pins::links(bpffs);
    for interface in interfaces.iter().filter(|interface| !ours.contains(&interface.name)) {
        let Some(id) = interface.xdp_program else { continue };
        let name = interface.name.as_str();
        let program = program_name(id).unwrap_or_else(|| "?".to_owned());
        let (text, fix) = if program == "lb" {
            let fix =
                format!("one interface serves one instance; to end the other: lb --bpffs ITS_DIRECTORY detach {name}");
            ("another XDP program is attached to it, that of another instance of lb".to_owned(), fix)
        } else {
            let fix = format!("end its owner; if it has none any more: sudo ip link set dev {name} xdp off");
            (format!("another XDP program is attached to it (id {id}, name '{program}')"), fix)
        };
        return Err(Error::refused(format!("attach {name}: {text}")).hint(fix));
    }
    Ok(())
}
