//! From the tables that stand in the maps to others, in an order in which no packet meets half a change.
//!
//! What is named comes before what names it: backends, next hops and NAT ports, then slots, then services, then VIPs,
//! then the filter. What goes away goes in the opposite order.
//!
//! New tables are written beside the old ones. Where there is no room for all of them at once (ten thousand services
//! lose a server that they share) services are changed one after the other, and the places of old tables are used again.

use std::{collections::BTreeMap, mem::offset_of, net::IpAddr, sync::Arc, thread::sleep, time::Instant};

use aya::maps::{HashMap, MapData, MapError};
use lb_common::{
    Be32,
    family::{Family, V4, V6},
    maps::{self, Service, Vip, VipKey},
};

use super::{DataPlane, Plain, Recovered, slots::halves};
use crate::{Error, Result, error::Context as _, reconcile::Tables};

/// What an application did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries of maps that were written or removed.
    pub writes: usize,
    /// Tables of services that were put in place.
    pub tables: usize,
}

/// Where new tables (first slot) and members (first element) stand, by service.
#[derive(Debug, Default)]
struct Placed {
    slots: BTreeMap<u32, u32>,
    members: BTreeMap<u32, u32>,
    /// Only some are placed: the others are one after the other, when their services are changed.
    in_turns: bool,
}

impl DataPlane {
    /// Makes the maps say what `tables` says; only differences are written.
    ///
    /// # Errors
    /// No room for the slots (nothing is changed then), or the kernel refuses a VIP (what was done stands and is
    /// completed by the next call).
    pub fn apply(&mut self, tables: &Tables) -> Result<Applied> {
        let mut done = Applied::default();
        let placed = self.place(tables)?;
        let applied = self.apply_in_order(tables, placed, &mut done);
        // After a failure the maps are the truth of how far it came.
        self.applied = if applied.is_ok() { tables.clone() } else { self.standing(self.recover()) };
        applied.map(|()| done)
    }

    fn apply_in_order(&mut self, tables: &Tables, placed: Placed, done: &mut Applied) -> Result<()> {
        // Replies to a port that is about to be used must find its bit: first old and new bits, at the end the new.
        self.apply_filter(tables, true, done);
        self.apply_forwarding(tables, done)?;
        self.apply_services(tables, placed, done)?;
        self.apply_vips(tables, done)?;
        self.apply_filter(tables, false, done);
        self.forget_removed(tables, done)
    }

    /// The counters of an identity's former holder are not the new one's. (`live` is not touched: an identity is given
    /// again when no flow names it.)
    fn zero_traffic(&mut self, id: u32) -> Result<()> {
        let zeros = vec![Plain(maps::Traffic::default()); aya::util::nr_cpus().unwrap_or(1)];
        let zeros = aya::maps::PerCpuValues::try_from(zeros).context("zero the counters of a backend")?;
        self.traffic.set(id, zeros, 0).context("zero the counters of a backend")
    }

    /// Nor are a service's refusals.
    fn zero_refusals(&mut self, id: u32) -> Result<()> {
        let zeros = vec![Plain(maps::Refusals::default()); aya::util::nr_cpus().unwrap_or(1)];
        let zeros = aya::maps::PerCpuValues::try_from(zeros).context("zero the refusals of a service")?;
        self.refusals.set(id, zeros, 0).context("zero the refusals of a service")
    }

    /// Writes new tables and members to free slots, where nobody looks yet; gives where each stands.
    fn place(&mut self, tables: &Tables) -> Result<Placed> {
        let mut placed = Placed::default();
        for id in tables.services.keys() {
            if self.place_service(*id, tables, &mut placed) {
                continue;
            }
            for (id, base) in std::mem::take(&mut placed.slots) {
                self.slots.give_unused(base, tables.slots[&id].len() as u32);
            }
            for (id, base) in std::mem::take(&mut placed.members) {
                self.slots.give_unused(2 * base, 2 * tables.members[&id].len() as u32);
            }
            let slots = tables.slots.values().map(|slots| slots.len().next_multiple_of(2));
            let all = slots.chain(tables.members.values().map(|members| 2 * members.len())).sum::<usize>();
            if all > self.table_slots.length() as usize {
                return Err(no_room(all));
            }
            placed.in_turns = true;
            break;
        }
        Ok(placed)
    }

    /// The same for one service; false if there is no room now. What was placed of it stands in `placed`.
    fn place_service(&mut self, id: u32, tables: &Tables, placed: &mut Placed) -> bool {
        if let Some(slots) = tables.slots.get(&id)
            && !slots.is_empty()
            && !placed.slots.contains_key(&id)
            && self.applied.slots.get(&id) != Some(slots)
        {
            let Some(base) = self.write_slots(slots) else { return false };
            placed.slots.insert(id, base);
        }
        if let Some(members) = tables.members.get(&id)
            && !members.is_empty()
            && !placed.members.contains_key(&id)
            && self.applied.members.get(&id) != Some(members)
        {
            let Some(base) = self.write_slots(members.as_flattened()) else { return false };
            placed.members.insert(id, base / 2);
        }
        true
    }

    /// The same, when places of old tables have rested.
    fn place_in_turn(&mut self, id: u32, tables: &Tables, placed: &mut Placed) -> Result<()> {
        while !self.place_service(id, tables, placed) {
            let rested = self.slots.rested().ok_or_else(|| no_room(tables.slots.get(&id).map_or(0, |s| s.len())))?;
            sleep(rested.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn write_slots(&mut self, slots: &[u32]) -> Option<u32> {
        let base = self.slots.take(slots.len() as u32, Instant::now())?;
        for (slot, value) in (base..).zip(slots) {
            self.table_slots.write(slot, *value);
        }
        Some(base)
    }

    fn apply_forwarding(&mut self, tables: &Tables, done: &mut Applied) -> Result<()> {
        for (index, address) in (0..).zip(&tables.snat) {
            done.writes += write(&self.snat, index, *address);
        }
        for (index, port) in (0..).zip(&tables.nat_ports) {
            done.writes += write(&self.nat_ports, index, *port);
        }
        let wildcard = u32::from(tables.wildcard);
        let settings = self.settings.read(0);
        let wanted = maps::Settings { nat_ports: tables.nat_ports.len() as u32, wildcard_vips: wildcard, ..settings };
        done.writes += write(&self.settings, 0, wanted);
        for (place, hop) in tables.next_hops.entries() {
            done.writes += write(&self.next_hops, place, hop);
        }
        for (id, backend) in &tables.backends {
            if !self.applied.backends.contains_key(id) {
                self.zero_traffic(*id)?;
            }
            done.writes += write(&self.backends, *id, *backend);
        }
        Ok(())
    }

    fn apply_services(&mut self, tables: &Tables, mut placed: Placed, done: &mut Applied) -> Result<()> {
        for (id, service) in &tables.services {
            if placed.in_turns {
                self.place_in_turn(*id, tables, &mut placed)?;
            }
            done.tables += usize::from(placed.slots.contains_key(id));
            if !self.applied.services.contains_key(id) {
                self.zero_refusals(*id)?;
            }
            let standing = self.services.read(*id);
            let word = |base: Option<&u32>, count: usize, standing: u64| match base {
                Some(base) => Service::table_word(*base, count as u32),
                None if count == 0 => 0,
                None => standing,
            };
            let (slots, members) = (tables.slots.get(id), tables.members.get(id));
            let table = word(placed.slots.get(id), slots.map_or(0, |slots| slots.len()), standing.table);
            let members = word(placed.members.get(id), members.map_or(0, Vec::len), standing.members);
            // Members, then the rest; what the data path reads first on a miss changes last. Each in one store.
            if members != standing.members {
                self.services.write_word(*id, offset_of!(Service, members), members);
                let (base, count) = halves(standing.members);
                self.slots.give(2 * base, 2 * count, Instant::now());
                done.writes += 1;
            }
            let wanted = Service { table: standing.table, members, ..*service };
            done.writes += write(&self.services, *id, wanted);
            if table != standing.table {
                self.services.write_word(*id, offset_of!(Service, table), table);
                let (base, count) = halves(standing.table);
                self.slots.give(base, count, Instant::now());
                done.writes += 1;
            }
        }
        Ok(())
    }

    fn apply_vips(&mut self, tables: &Tables, done: &mut Applied) -> Result<()> {
        done.writes += insert(&mut self.vips4, &self.applied.vips4, &tables.vips4)?;
        done.writes += insert(&mut self.vips6, &self.applied.vips6, &tables.vips6)?;
        Ok(())
    }

    /// Writes the two bitmaps; `keep` leaves bits set that are no longer wanted.
    fn apply_filter(&mut self, tables: &Tables, keep: bool, done: &mut Applied) {
        let mut addresses = vec![0u64; 2 * maps::BITMAP_WORDS as usize];
        let sources = tables.filter_sources.iter().map(|address| bit_of(*address) | maps::FILTER_SOURCES);
        for bit in tables.filter.iter().map(|address| bit_of(*address)).chain(sources) {
            addresses[(bit >> 6) as usize] |= 1 << (bit & 63);
        }
        let mut ports = vec![if tables.wildcard { u64::MAX } else { 0 }; maps::BITMAP_WORDS as usize];
        for port in tables.vip_ports.iter().chain(&tables.nat_ports) {
            ports[usize::from(*port >> 6)] |= 1 << (port & 63);
        }
        for (map, words) in [(&self.filter, addresses), (&self.ports, ports)] {
            for (index, word) in (0..).zip(words) {
                let standing = if keep { map.read(index) } else { 0 };
                done.writes += write(map, index, word | standing);
            }
        }
    }

    /// Takes away what is no longer wanted; the filter has forgotten it already.
    fn forget_removed(&mut self, tables: &Tables, done: &mut Applied) -> Result<()> {
        done.writes += remove(&mut self.vips4, &self.applied.vips4, &tables.vips4)?;
        done.writes += remove(&mut self.vips6, &self.applied.vips6, &tables.vips6)?;
        for id in self.applied.services.keys().filter(|id| !tables.services.contains_key(id)) {
            let standing = self.services.read(*id);
            self.services.write_word(*id, offset_of!(Service, table), 0);
            self.services.write(*id, Service::default());
            let ((base, count), (first, members)) = (halves(standing.table), halves(standing.members));
            self.slots.give(base, count, Instant::now());
            self.slots.give(2 * first, 2 * members, Instant::now());
            done.writes += 1;
        }
        for id in self.applied.backends.keys().filter(|id| !tables.backends.contains_key(id)) {
            self.backends.write(*id, maps::Backend::default());
            done.writes += 1;
        }
        Ok(())
    }

    /// The tables that an adopted data plane stands for; what cannot be read back is written anew by the first `apply`.
    pub(super) fn standing(&self, recovered: Recovered) -> Tables {
        let slots = recovered.services.iter().map(|(id, service)| {
            let (base, size) = halves(service.table);
            (*id, Arc::new((base..base + size).map(|slot| self.table_slots.read(slot)).collect()))
        });
        let members = recovered.services.iter().filter(|(_, service)| service.members != 0).map(|(id, service)| {
            let (first, count) = halves(service.members);
            let read = |place| [self.table_slots.read(2 * place), self.table_slots.read(2 * place + 1)];
            (*id, (first..first + count).map(read).collect())
        });
        Tables {
            slots: slots.collect(),
            members: members.collect(),
            vips4: recovered.vips4,
            vips6: recovered.vips6,
            services: recovered.services,
            backends: recovered.backends,
            ..Tables::default()
        }
    }
}

fn no_room(slots: usize) -> Error {
    Error::failed(format!("no room for tables of {slots} slots"))
        .hint("fewer services, or fewer backends in the largest")
}

/// An address's bit in the map `filter`.
fn bit_of(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => V4::filter_bit(Be32::new(v4.to_bits())),
        IpAddr::V6(v6) => V6::filter_bit(crate::reconcile::words_of(v6)),
    }
}

/// VIPs of one family, as `Tables` has them.
type Vips<F> = BTreeMap<VipKey<F>, Vip>;
/// VIPs of one family, as the kernel has them.
type VipMap<F> = HashMap<MapData, Plain<VipKey<F>>, Plain<Vip>>;

/// Writes the VIPs that are new or say something else; gives how many.
fn insert<F: Family>(map: &mut VipMap<F>, standing: &Vips<F>, wanted: &Vips<F>) -> Result<usize> {
    let new: Vec<_> = wanted.iter().filter(|(key, vip)| standing.get(key) != Some(vip)).collect();
    for (key, vip) in &new {
        let name = F::VERSION;
        map.insert(Plain(**key), Plain(**vip), 0).context(format!("write the map 'vips{name}'"))?;
    }
    Ok(new.len())
}

/// Removes the VIPs that are no longer wanted; gives how many.
fn remove<F: Family>(map: &mut VipMap<F>, standing: &Vips<F>, wanted: &Vips<F>) -> Result<usize> {
    let gone: Vec<_> = standing.keys().filter(|key| !wanted.contains_key(key)).collect();
    for key in &gone {
        match map.remove(&Plain(**key)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(Error::failed(format!("remove from the map 'vips{}': {error}", F::VERSION))),
        }
    }
    Ok(gone.len())
}

/// Writes an element if something else stands there; 1 if it was written.
fn write<T: Copy + PartialEq>(map: &super::mapped::Mapped<T>, index: u32, value: T) -> usize {
    if map.read(index) == value {
        return 0;
    }
    map.write(index, value);
    1
}
