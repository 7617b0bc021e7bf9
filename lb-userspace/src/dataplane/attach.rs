//! Attaching the program to interfaces, by links that are pinned.

use std::fs;

use aya::programs::{
    ProgramError, XdpMode as Flags,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{DataPlane, pins};
use crate::{Error, Result, error::Context as _, state::XdpMode};

/// How an interface was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// `Native` or `Generic`.
    pub xdp: XdpMode,
    /// Why it is generic although `auto` was asked for.
    pub why: Option<String>,
}

impl DataPlane {
    /// Attaches to an interface; one whose link was taken over stays as it is. `Auto` is native where the driver has it, generic on a veth and elsewhere.
    ///
    /// # Errors
    /// Another program is attached; the driver has no native XDP (when it was asked for); the interface is gone.
    pub fn attach(&mut self, name: &str, ifindex: u32, is_veth: bool, mode: XdpMode) -> Result<Attached> {
        if let Some(xdp) = self.taken_over.get(name) {
            return Ok(Attached { xdp: *xdp, why: None });
        }
        let link = self.directory.join(format!("{}{name}", pins::LINK));
        if link.exists() {
            fs::remove_file(&link).context(format!("remove the stale link {}", link.display()))?;
        }
        match mode {
            XdpMode::Native => self.attach_as(name, ifindex, XdpMode::Native),
            XdpMode::Generic => self.attach_as(name, ifindex, XdpMode::Generic),
            XdpMode::Auto if is_veth => {
                let why = "a veth's far end may lack what native mode needs (GRO or an XDP program)";
                self.attach_as(name, ifindex, XdpMode::Generic)
                    .map(|done| Attached { why: Some(why.to_owned()), ..done })
            }
            XdpMode::Auto => self.attach_as(name, ifindex, XdpMode::Native).or_else(|native| {
                let done = self.attach_as(name, ifindex, XdpMode::Generic)?;
                Ok(Attached { why: Some(native.message), ..done })
            }),
        }
    }

    /// Attaches to another interface of a name that was attached before.
    pub fn attach_again(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> Result<Attached> {
        self.taken_over.remove(name);
        self.attach(name, ifindex, false, mode)
    }

    fn attach_as(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> Result<Attached> {
        let flags = if mode == XdpMode::Native { Flags::Driver } else { Flags::Skb };
        let pin = self.directory.join(format!("{}{name}", pins::LINK));
        let program = self.xdp_mut()?;
        let id = program.attach_to_if_index(ifindex, flags).map_err(|error| explain(name, mode, &error))?;
        let link = program.take_link(id).context(format!("attach {name}"))?;
        let link = FdLink::try_from(link).map_err(|_| {
            Error::failed(format!("attach {name} ({mode}): the kernel refuses a BPF link for it"))
                .hint("lb does not attach without one (it would end with the daemon): --xdp generic, or `lb doctor`")
        })?;
        link.pin(&pin).context(format!("pin the link of {name}"))?;
        Ok(Attached { xdp: mode, why: None })
    }

    /// Puts this binary's program behind a pinned link, without a moment in which there is none.
    pub(super) fn take_over(&mut self, name: &str) -> Result<()> {
        let pin = self.directory.join(format!("{}{name}", pins::LINK));
        let what = format!("take over the link of {name}");
        let link: FdLink = PinnedLink::from_pin(&pin).context(&what)?.into();
        let link = XdpLink::try_from(link).context(&what)?;
        let program = self.xdp_mut()?;
        let id = program.attach_to_link(link).context(&what)?;
        // Dropping the handle does not detach: the link is pinned.
        let _handle = program.take_link(id).context(&what)?;
        Ok(())
    }

    /// Ends forwarding on one interface.
    pub fn detach(&mut self, name: &str) -> Result<()> {
        self.taken_over.remove(name);
        let pin = self.directory.join(format!("{}{name}", pins::LINK));
        fs::remove_file(&pin).map_err(|error| {
            Error::not_found(format!("{name}: not attached ({}: {error})", pin.display()))
                .hint("`lb status` shows the attached interfaces")
        })
    }
}

/// What a refusal to attach means.
fn explain(name: &str, mode: XdpMode, error: &ProgramError) -> Error {
    let code = match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    };
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    let failed = |why: &str| Error::failed(format!("attach {name} ({mode}): {why}"));
    match code {
        Some(libc::EBUSY | libc::EEXIST) => {
            Error::refused(format!("attach {name}: another XDP program is attached to it"))
                .hint(format!("if nobody needs it: sudo ip link set dev {name} xdp off; it may also be a pinned link of that program's owner"))
        }
        Some(libc::EOPNOTSUPP) => failed("the driver has no native XDP").hint("--xdp generic"),
        Some(libc::ERANGE) => failed("the MTU is too large for the driver's XDP").hint("a smaller MTU, or --xdp generic"),
        Some(libc::EPERM) => failed("not permitted").hint("lb needs root, or CAP_BPF and CAP_NET_ADMIN"),
        Some(libc::ENODEV) => failed("there is no such interface").hint("`ip link` lists them"),
        _ => failed(&words).hint("`lb doctor` looks for known obstacles"),
    }
}

/// A loaded program's name, by its identity; naming a foreign program needs `CAP_SYS_ADMIN`.
#[must_use]
pub fn program_name(id: u32) -> Option<String> {
    let program = aya::programs::loaded_programs().flatten().find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}
