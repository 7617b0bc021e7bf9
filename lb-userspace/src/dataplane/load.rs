//! Loading a fresh data plane, and adopting a pinned one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{HashMap, Map, MapData, PerCpuArray, ProgramArray},
};
use lb_common::{
    LAYOUT_VERSION,
    maps::{self, name},
};

use super::{
    DataPlane, FlowTable, OBJECT, PROGRAM, SLOW_PROGRAM, clock, flows::Records, mapped::Mapped, pins, slots,
    slots::Slots,
};
use crate::{Error, Result, error::Context as _, reconcile::Tables};

/// How to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Directory of the pins, on a BPF file system.
    pub bpffs: PathBuf,
    /// Size of the flow table; an adopted one keeps its own.
    pub max_flows: u32,
    /// Level of the data path's log (0 = off, 1 = error .. 5 = trace).
    pub log_level: u8,
}

/// Largest flow table.
pub const MOST_FLOWS: u32 = lb_common::flow::entry::MAX_RECORDS;

impl DataPlane {
    /// Makes fresh maps, loads the program, pins everything. What an interrupted start left behind is removed first.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        if options.max_flows < 64 || options.max_flows > MOST_FLOWS {
            return Err(Error::usage(format!("--max-flows {}: out of range", options.max_flows))
                .hint(format!("64 to {MOST_FLOWS}")));
        }
        if pins::directory(&options.bpffs).exists() {
            pins::remove(&options.bpffs)?;
        }
        let directory = pins::prepare(&options.bpffs)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).context("draw a hash seed")?;
        let settings = maps::Settings {
            hash_seed: u64::from_ne_bytes(seed),
            layout: LAYOUT_VERSION,
            max_flows: options.max_flows,
            max_flows6: options.max_flows,
            ..maps::Settings::default()
        };
        let mut plane = Self::start(&directory, &settings, options.log_level).inspect_err(|_| {
            // Half a data plane is no use to anyone; the first error is the one to report.
            let _ = pins::remove(&options.bpffs);
        })?;
        plane.settings.write(0, settings);
        plane.pin_program()?;
        Ok(plane)
    }

    /// Takes over a pinned data plane with its flows, tables and settings; the program is replaced in place, link by
    /// link, by this binary's. Gives the interfaces whose links could not be taken over, with the reason.
    pub fn adopt(options: &LoadOptions) -> Result<(Self, BTreeMap<String, String>)> {
        let directory = pins::directory(&options.bpffs);
        check_shapes(&directory)?;
        let settings = Mapped::<maps::Settings>::new(name::SETTINGS, &pinned(&directory, name::SETTINGS)?)?.read(0);
        if settings.layout != LAYOUT_VERSION {
            return Err(mismatch(name::SETTINGS, &format!("layout {}", settings.layout), &LAYOUT_VERSION.to_string()));
        }
        let mut plane = Self::start(&directory, &settings, options.log_level)?;
        let mut lost = BTreeMap::new();
        for interface in pins::links(&options.bpffs) {
            match plane.take_over(&interface) {
                Ok(()) => {
                    let xdp = plane.mode_of(&interface);
                    plane.taken_over.insert(interface, xdp);
                }
                Err(error) => {
                    lost.insert(interface, error.message);
                }
            }
        }
        plane.pin_program()?;
        let recovered = plane.recover();
        plane.slots = Slots::new(
            maps::TABLE_SLOTS,
            recovered.services.values().flat_map(|service| {
                let (table, members) = (slots::halves(service.table), slots::halves(service.members));
                [table, (2 * members.0, 2 * members.1)]
            }),
        );
        plane.applied = plane.standing(recovered);
        Ok((plane, lost))
    }

    /// Loads the object against the maps pinned in `directory`, making those that are missing.
    ///
    /// The verifier writes no log, which would take as long as verifying; when it refuses the program, it is asked
    /// again for its reason.
    fn start(directory: &Path, settings: &maps::Settings, log_level: u8) -> Result<Self> {
        Self::load_object(directory, settings, log_level, VerifierLogLevel::DISABLE)
            .or_else(|_| Self::load_object(directory, settings, log_level, VerifierLogLevel::VERBOSE))
    }

    fn load_object(
        directory: &Path,
        settings: &maps::Settings,
        log_level: u8,
        verifier: VerifierLogLevel,
    ) -> Result<Self> {
        let paths: Vec<_> = name::PINNED.iter().map(|name| (*name, directory.join(name))).collect();
        let (buckets, buckets6) = (maps::buckets_for(settings.max_flows), maps::buckets_for(settings.max_flows6));
        let (mask, mask6) = (buckets - 1, buckets6 - 1);
        let jiffies = clock::jiffies();
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(verifier)
            .map_max_entries(name::FLOWS4, settings.max_flows)
            .map_max_entries(name::INDEX4, buckets)
            .map_max_entries(name::FLOWS6, settings.max_flows6)
            .map_max_entries(name::INDEX6, buckets6)
            .override_global("HASH_SEED", &settings.hash_seed, true)
            .override_global("MAX_FLOWS", &settings.max_flows, true)
            .override_global("INDEX_MASK", &mask, true)
            .override_global("MAX_FLOWS6", &settings.max_flows6, true)
            .override_global("INDEX_MASK6", &mask6, true)
            .override_global("JIFFIES_LENGTH", &jiffies.length, true)
            .override_global("JIFFIES_OFFSET", &jiffies.offset, true)
            .override_global(aya_log::LEVEL, &log_level, false);
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        let mut object = loader.load(OBJECT).context("load the data path")?;
        for program in [PROGRAM, SLOW_PROGRAM] {
            super::xdp_mut(&mut object, program)?.load().map_err(|error| explain_load(&error))?;
        }
        let mut slow_path =
            ProgramArray::try_from(take(&mut object, name::SLOW_PATH)?).context("open the map 'slow_path'")?;
        let slow = super::xdp_mut(&mut object, SLOW_PROGRAM)?.fd().context("the slow path's program")?;
        let slow = slow.try_clone().context("the slow path's program")?;
        let plane = Self::open(directory, object)?;
        slow_path.set(0, &slow, 0).context("write the map 'slow_path'")?;
        Ok(plane)
    }

    fn open(directory: &Path, mut object: Ebpf) -> Result<Self> {
        let backends: Mapped<maps::Backend> = mapped(&mut object, name::BACKENDS)?;
        let services: Mapped<maps::Service> = mapped(&mut object, name::SERVICES)?;
        Ok(Self {
            directory: directory.to_owned(),
            settings: mapped(&mut object, name::SETTINGS)?,
            interfaces: mapped(&mut object, name::INTERFACES)?,
            filter: mapped(&mut object, name::FILTER)?,
            ports: mapped(&mut object, name::PORTS)?,
            vips4: HashMap::try_from(take(&mut object, name::VIPS4)?).context("open the map 'vips4'")?,
            vips6: HashMap::try_from(take(&mut object, name::VIPS6)?).context("open the map 'vips6'")?,
            services,
            table_slots: Mapped::packed(name::TABLES, &array(&mut object, name::TABLES)?)?,
            next_hops: mapped(&mut object, name::NEXT_HOPS)?,
            nat_ports: mapped(&mut object, name::NAT_PORTS)?,
            snat: mapped(&mut object, name::SNAT)?,
            flows: FlowTable {
                v4: Records(mapped(&mut object, name::FLOWS4)?),
                v6: Records(mapped(&mut object, name::FLOWS6)?),
                backends: backends.clone(),
            },
            live: mapped(&mut object, name::LIVE)?,
            drift: BTreeMap::new(),
            backends,
            reasons: PerCpuArray::try_from(take(&mut object, name::REASONS)?).context("open the map 'reasons'")?,
            traffic: PerCpuArray::try_from(take(&mut object, name::TRAFFIC)?).context("open the map 'traffic'")?,
            refusals: PerCpuArray::try_from(take(&mut object, name::REFUSALS)?).context("open the map 'refusals'")?,
            slots: Slots::new(maps::TABLE_SLOTS, []),
            applied: Tables::default(),
            taken_over: BTreeMap::new(),
            object,
        })
    }
}

/// What a refusal to load means.
fn explain_load(error: &aya::programs::ProgramError) -> Error {
    use aya::programs::ProgramError;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
            let hint = match io_error.raw_os_error() {
                Some(libc::EPERM) => "lb needs root, or CAP_BPF and CAP_NET_ADMIN".to_owned(),
                _ => format!("Linux 6.1 or newer is needed; the verifier's last word: {last}"),
            };
            Error::failed(format!("load the data path: {io_error}")).hint(hint)
        }
        other => Error::failed(format!("load the data path: {other}")),
    }
}

impl DataPlane {
    /// Pins the program in place of another, without a moment in which there is none. (BPF file systems take no dots
    /// in names.)
    fn pin_program(&mut self) -> Result<()> {
        let (new, path) = (self.directory.join("prog-new"), self.directory.join(pins::PROGRAM));
        if new.exists() {
            fs::remove_file(&new).context(format!("remove {}", new.display()))?;
        }
        self.xdp_mut()?.pin(&new).context("pin the program")?;
        fs::rename(&new, &path).context(format!("rename {} to {}", new.display(), path.display()))
    }
}

fn take(object: &mut Ebpf, name: &str) -> Result<Map> {
    object.take_map(name).ok_or_else(|| Error::failed(format!("the data path has no map '{name}'")))
}

fn mapped<T: Copy>(object: &mut Ebpf, name: &str) -> Result<Mapped<T>> {
    Mapped::new(name, &array(object, name)?)
}

fn array(object: &mut Ebpf, name: &str) -> Result<MapData> {
    match take(object, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(Error::failed(format!("map '{name}' is not an array"))),
    }
}

fn pinned(directory: &Path, name: &str) -> Result<MapData> {
    let path = directory.join(name);
    MapData::from_pin(&path).context(format!("open the pinned map {}", path.display()))
}

fn mismatch(name: &str, found: &str, wanted: &str) -> Error {
    Error::failed(format!("pinned map '{name}' has another shape: {found} instead of {wanted}"))
        .hint("`sudo lb detach` removes the pinned data plane (its flows end)")
}

/// Compares every pinned map with what this binary would make: a map of another shape is never reused. How large the
/// flow tables are was decided when they were made.
fn check_shapes(directory: &Path) -> Result<()> {
    const SIZED_AT_START: [&str; 4] = [name::FLOWS4, name::INDEX4, name::FLOWS6, name::INDEX6];
    let object = aya_obj::Object::parse(OBJECT).context("read the data path")?;
    for name in name::PINNED {
        let Some(wanted) = object.maps.get(name) else { continue };
        let info = pinned(directory, name)?.info().map_err(|error| super::map_error(name, error))?;
        let kind = aya::maps::MapType::try_from(
            aya_obj::generated::bpf_map_type::try_from(wanted.map_type())
                .map_err(|_| super::map_error(name, "of no known type"))?,
        )
        .map_err(|error| super::map_error(name, error))?;
        let found = info.map_type().map_err(|error| super::map_error(name, error))?;
        if found != kind {
            return Err(mismatch(name, &format!("a {found:?}"), &format!("a {kind:?}")));
        }
        let (found, wanted_sizes) = ((info.key_size(), info.value_size()), (wanted.key_size(), wanted.value_size()));
        if found != wanted_sizes {
            let words = |(key, value)| format!("keys of {key} and values of {value} bytes");
            return Err(mismatch(name, &words(found), &words(wanted_sizes)));
        }
        let (found, entries) = (info.max_entries(), wanted.max_entries());
        if found != entries && !SIZED_AT_START.contains(&name) {
            return Err(mismatch(name, &format!("{found} entries"), &entries.to_string()));
        }
    }
    Ok(())
}
