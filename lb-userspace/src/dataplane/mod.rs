//! The data plane: the kernel program, its maps, links and pins. The only module that touches aya.
//!
//! * [`DataPlane`] loads a fresh data plane or adopts a pinned one, attaches it, and gives it new [`Tables`]
//! * [`pins`]: where things are pinned, and how all of it is removed
//! * [`mapped`]: arrays of the kernel's in this process's memory
//! * [`slots`]: which part of the map `tables` belongs to which service
//! * [`apply`]: from the tables that stand in the maps to others, in an order in which no packet meets half a change
//! * [`clock`]: which time it is in the kernel
//! * [`flows`]: reading connections
//! * [`log`]: the program's own log
//! * [`sweep`]: keeping the counts of live flows true
//!
//! Everything is pinned below `<bpffs>/v<LAYOUT_VERSION>/`, so the data path goes on when this process ends, however
//! it ends; the next one adopts what it finds.

mod apply;
mod attach;
mod clock;
pub mod flows;
mod load;
pub mod log;
mod mapped;
pub mod pins;
mod slots;
mod sweep;

use std::{collections::BTreeMap, path::PathBuf};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{Program, Xdp},
};
use lb_common::{
    Be32,
    flow::{Bucket, Flow4, Flow6},
    maps,
    reason::Reason,
};

pub use apply::Applied;
pub use attach::{Attached, program_name};
pub use clock::now;
pub use flows::{Flow, FlowCounts, FlowTable, Side};
pub use load::LoadOptions;
use mapped::Mapped;
use slots::Slots;

use crate::{Error, Result, error::Context as _, reconcile::Tables, state::XdpMode};

/// The kernel program, as the build script left it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb.bpf.o"));
/// Programs for tests, the demo and the benchmark.
pub static LAB_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab.bpf.o"));

/// A map's key or value on its way through aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: only used with the `#[repr(C)]` types of `lb_common::maps`, which have no padding, no pointers, and are
// valid for every bit pattern.
unsafe impl<T: Copy + 'static> Pod for Plain<T> {}

/// A loaded and pinned data plane.
pub struct DataPlane {
    directory: PathBuf,
    object: Ebpf,
    settings: Mapped<maps::Settings>,
    interfaces: Mapped<maps::Interface>,
    filter: Mapped<u64>,
    ports: Mapped<u64>,
    vips4: HashMap<MapData, Plain<maps::Vip4Key>, Plain<maps::Vip>>,
    vips6: HashMap<MapData, Plain<maps::Vip6Key>, Plain<maps::Vip>>,
    services: Mapped<maps::Service>,
    table_slots: Mapped<u32>,
    backends: Mapped<maps::Backend>,
    next_hops: Mapped<maps::NextHop>,
    nat_ports: Mapped<u16>,
    snat: Mapped<[Be32; 4]>,
    flows: FlowTable,
    live: Mapped<u32>,
    /// By how much counts of live flows were off in the last sweep.
    drift: BTreeMap<u32, i32>,
    reasons: PerCpuArray<MapData, u64>,
    traffic: PerCpuArray<MapData, Plain<maps::Traffic>>,
    refusals: PerCpuArray<MapData, Plain<maps::Refusals>>,
    slots: Slots,
    applied: Tables,
    /// Interfaces whose links were taken over from an earlier daemon, and how they are attached.
    taken_over: BTreeMap<String, XdpMode>,
}

/// What the data path has counted.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets by reason, in the order of [`Reason::ALL`].
    pub reasons: Vec<u64>,
    /// Traffic by backend identity.
    pub traffic: BTreeMap<u32, maps::Traffic>,
    /// Refused flows by service identity.
    pub refusals: BTreeMap<u32, maps::Refusals>,
}

impl Counters {
    /// Packets that were counted under a reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.reasons.get(reason as usize).copied().unwrap_or(0)
    }
}

/// What stands in the maps of an adopted data plane.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Services in use, by identity.
    pub services: BTreeMap<u32, maps::Service>,
    /// Backends in use, by identity.
    pub backends: BTreeMap<u32, maps::Backend>,
    /// IPv4 VIPs and addresses.
    pub vips4: BTreeMap<maps::Vip4Key, maps::Vip>,
    /// IPv6 VIPs and addresses.
    pub vips6: BTreeMap<maps::Vip6Key, maps::Vip>,
}

impl DataPlane {
    /// Prints what the program logs, if it was loaded with a level above 0.
    pub fn follow_log(&mut self, level: u8) -> Result<()> {
        if level == 0 { Ok(()) } else { log::follow(&mut self.object) }
    }

    /// The program, for `BPF_PROG_TEST_RUN`.
    pub fn program(&self) -> Result<&Xdp> {
        match self.object.program(PROGRAM) {
            Some(Program::Xdp(program)) => Ok(program),
            _ => Err(no_program(PROGRAM)),
        }
    }

    /// The program's identity in the kernel.
    pub fn program_id(&self) -> Result<u32> {
        Ok(self.program()?.info().context("ask for the program's information")?.id())
    }

    fn xdp_mut(&mut self) -> Result<&mut Xdp> {
        xdp_mut(&mut self.object, PROGRAM)
    }

    /// The flow table.
    #[must_use]
    pub fn flows(&self) -> FlowTable {
        self.flows.clone()
    }

    /// What was fixed when the maps were made.
    #[must_use]
    pub fn settings(&self) -> maps::Settings {
        self.settings.read(0)
    }

    /// The tables that stand in the maps.
    #[must_use]
    pub fn applied(&self) -> &Tables {
        &self.applied
    }

    /// Number of instructions that the verifier walked through, of the fast and the slow path's program; `None` on
    /// kernels that do not say.
    pub fn verified_instructions(&self) -> Result<[Option<u32>; 2]> {
        let count = |name| match self.object.program(name) {
            Some(Program::Xdp(program)) => {
                Ok(program.info().context("ask for the program's information")?.verified_instruction_count())
            }
            _ => Err(no_program(name)),
        };
        Ok([count(PROGRAM)?, count(SLOW_PROGRAM)?])
    }

    /// Says which interfaces the data path runs on; replaces what was said before.
    ///
    /// # Errors
    /// Two interfaces whose places in the map collide too often (their indices differ by multiples of 256).
    pub fn set_interfaces(&mut self, interfaces: &[maps::Interface]) -> Result<()> {
        let mut places = vec![maps::Interface::default(); maps::INTERFACES as usize];
        for interface in interfaces {
            let place = (0..maps::INTERFACE_PROBES)
                .map(|probe| ((interface.ifindex + probe) % maps::INTERFACES) as usize)
                .find(|place| places[*place].ifindex == 0)
                .ok_or_else(|| {
                    Error::failed(format!(
                        "interface index {}: no place left for it beside the other interfaces",
                        interface.ifindex
                    ))
                    .hint("attach fewer interfaces, or remove and make it again, so that it gets another index")
                })?;
            places[place] = *interface;
        }
        for (place, interface) in (0..).zip(&places) {
            if self.interfaces.read(place) != *interface {
                self.interfaces.write(place, *interface);
            }
        }
        Ok(())
    }

    /// How an interface is attached, by what its place in the map says.
    fn mode_of(&self, name: &str) -> XdpMode {
        let index = nix::net::if_::if_nametoindex(name).unwrap_or(0);
        let generic = (0..maps::INTERFACES)
            .map(|place| self.interfaces.read(place))
            .any(|place| place.ifindex == index && place.flags & maps::interface_flag::GENERIC != 0);
        if generic { XdpMode::Generic } else { XdpMode::Native }
    }

    /// What the data path has counted; traffic and refusals of identities that are in use.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for reason in Reason::ALL {
            let values = self.reasons.get(&(*reason as u32), 0).context("read the map 'reasons'")?;
            counters.reasons.push(values.iter().sum());
        }
        for id in self.applied.backends.keys() {
            let mut sum = maps::Traffic::default();
            for Plain(cpu) in self.traffic.get(id, 0).context("read the map 'traffic'")?.iter() {
                sum.packets_in += cpu.packets_in;
                sum.bytes_in += cpu.bytes_in;
                sum.packets_out += cpu.packets_out;
                sum.bytes_out += cpu.bytes_out;
                sum.flows += cpu.flows;
            }
            counters.traffic.insert(*id, sum);
        }
        for id in self.applied.services.keys() {
            let mut sum = maps::Refusals::default();
            for Plain(cpu) in self.refusals.get(id, 0).context("read the map 'refusals'")?.iter() {
                sum.no_backend += cpu.no_backend;
                sum.no_port += cpu.no_port;
                sum.table_full += cpu.table_full;
            }
            counters.refusals.insert(*id, sum);
        }
        Ok(counters)
    }

    /// What stands in the maps.
    #[must_use]
    pub fn recover(&self) -> Recovered {
        Recovered {
            services: (1..maps::SERVICES)
                .map(|id| (id, self.services.read(id)))
                .filter(|(_, service)| service.name_hash != 0)
                .collect(),
            backends: (1..maps::BACKENDS)
                .map(|id| (id, self.backends.read(id)))
                .filter(|(_, backend)| backend.flags & maps::backend_flag::USED != 0)
                .collect(),
            vips4: self.vips4.iter().flatten().map(|(key, vip)| (key.0, vip.0)).collect(),
            vips6: self.vips6.iter().flatten().map(|(key, vip)| (key.0, vip.0)).collect(),
        }
    }
}

/// The most that a name of a map or a program may say about itself in an error.
fn map_error(name: &str, error: impl std::fmt::Display) -> Error {
    Error::failed(format!("map '{name}': {error}"))
}

const _: () = assert!(size_of::<Plain<maps::Vip4Key>>() == size_of::<maps::Vip4Key>());
const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Flow4>() == 128 && size_of::<Flow6>() == 192);
/// Name of the program in the object: the fast path.
pub(crate) const PROGRAM: &str = "lb";
/// Name of the slow path's, which the fast path calls.
const SLOW_PROGRAM: &str = "lb_slow";

fn no_program(name: &str) -> Error {
    Error::failed(format!("the data path has no XDP program '{name}'"))
}

fn xdp_mut<'object>(object: &'object mut Ebpf, name: &str) -> Result<&'object mut Xdp> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(no_program(name)),
    }
}
