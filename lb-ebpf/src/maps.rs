//! Every map of the data path in one place. Names, values and sizes are the contract of `lb_common::maps`.
#![expect(non_upper_case_globals, reason = "a map's name is its symbol's")]

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray},
};
use lb_common::{
    Be32,
    family::{V4, V6},
    flow::{Bucket, Flow4, Flow6},
    hash::Seeded,
    maps as contract,
    reason::{REASONS, Reason},
};

use crate::{parse::Packet, ports::Search};

/// `BPF_F_MMAPABLE`: the control plane maps the array into its memory.
const MAPPED: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: memory for what is there.
const ON_DEMAND: u32 = 1;

#[map]
pub static settings: Array<contract::Settings> = Array::with_max_entries(1, MAPPED);
#[map]
pub static interfaces: Array<contract::Interface> = Array::with_max_entries(contract::INTERFACES, MAPPED);
#[map]
pub static filter: Array<u64> = Array::with_max_entries(2 * contract::BITMAP_WORDS, MAPPED);
#[map]
pub static ports: Array<u64> = Array::with_max_entries(contract::BITMAP_WORDS, MAPPED);
#[map]
pub static vips4: HashMap<contract::Vip4Key, contract::Vip> = HashMap::with_max_entries(contract::VIPS, ON_DEMAND);
#[map]
pub static vips6: HashMap<contract::Vip6Key, contract::Vip> = HashMap::with_max_entries(contract::VIPS, ON_DEMAND);
#[map]
pub static services: Array<contract::Service> = Array::with_max_entries(contract::SERVICES, MAPPED);
#[map]
pub static tables: Array<[u32; 2]> = Array::with_max_entries(contract::TABLE_SLOTS / 2, MAPPED);
#[map]
pub static backends: Array<contract::Backend> = Array::with_max_entries(contract::BACKENDS, MAPPED);
#[map]
pub static next_hops: Array<contract::NextHop> = Array::with_max_entries(contract::NEXT_HOPS, MAPPED);
#[map]
pub static nat_ports: Array<u16> = Array::with_max_entries(contract::NAT_PORTS, MAPPED);
#[map]
pub static snat: Array<[Be32; 4]> = Array::with_max_entries(contract::SNAT, MAPPED);
#[map]
pub static flows4: Array<Flow4> = Array::with_max_entries(contract::DEFAULT_MAX_FLOWS, MAPPED);
#[map]
pub static index4: Array<Bucket> = Array::with_max_entries(contract::buckets_for(contract::DEFAULT_MAX_FLOWS), MAPPED);
#[map]
pub static flows6: Array<Flow6> = Array::with_max_entries(1, MAPPED);
#[map]
pub static index6: Array<Bucket> = Array::with_max_entries(1, MAPPED);
#[map]
pub static reasons: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);
#[map]
pub static traffic: PerCpuArray<contract::Traffic> = PerCpuArray::with_max_entries(contract::BACKENDS, 0);
#[map]
pub static refusals: PerCpuArray<contract::Refusals> = PerCpuArray::with_max_entries(contract::SERVICES, 0);
#[map]
pub static cursor: PerCpuArray<contract::Cursor> = PerCpuArray::with_max_entries(contract::CURSORS, 0);
#[map]
pub static port_cursor: PerCpuArray<contract::PortCursor> = PerCpuArray::with_max_entries(contract::BACKENDS, 0);
#[map]
pub static live: Array<u32> = Array::with_max_entries(contract::BACKENDS, MAPPED);
#[map]
pub static turns: PerCpuArray<u32> = PerCpuArray::with_max_entries(contract::SERVICES, 0);
#[map]
pub static affinity: LruHashMap<contract::AffinityKey, contract::Affinity> =
    LruHashMap::with_max_entries(contract::AFFINITIES, 0);
#[map]
pub static icmp_tokens: Array<contract::Bucket> = Array::with_max_entries(contract::SERVICES, MAPPED);

/// The program `lb_slow`.
#[map]
pub static slow_path: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[map]
pub static parked4: PerCpuArray<Packet<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static parked6: PerCpuArray<Packet<V6>> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: nothing in it outlives a packet.
#[map]
pub static search4: PerCpuArray<Search<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static search6: PerCpuArray<Search<V6>> = PerCpuArray::with_max_entries(1, 0);

/// Seed of the flow index; set when the program is loaded, from `settings`.
#[unsafe(no_mangle)]
static HASH_SEED: Global<u64> = Global::new(0);
/// Elements of `flows4`; set when the program is loaded.
#[unsafe(no_mangle)]
pub static MAX_FLOWS: Global<u32> = Global::new(contract::DEFAULT_MAX_FLOWS);
/// Elements of `index4` less one; set when the program is loaded.
#[unsafe(no_mangle)]
pub static INDEX_MASK: Global<u32> = Global::new(contract::buckets_for(contract::DEFAULT_MAX_FLOWS) - 1);
/// Elements of `flows6`; set when the program is loaded.
#[unsafe(no_mangle)]
pub static MAX_FLOWS6: Global<u32> = Global::new(1);
/// Elements of `index6` less one; set when the program is loaded.
#[unsafe(no_mangle)]
pub static INDEX_MASK6: Global<u32> = Global::new(0);

/// The hash of the flow index.
#[inline(always)]
pub fn seeded() -> Seeded {
    Seeded(HASH_SEED.load())
}

/// Counts a packet under its reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = reasons.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

/// Counts a new flow that a service refused.
#[inline(always)]
pub fn refuse(service: u32, which: impl FnOnce(&mut contract::Refusals) -> &mut u64) {
    if let Some(counters) = refusals.get_ptr_mut(service) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { *which(&mut *counters) += 1 };
    }
}

/// Whether a bit of one of the two bitmaps is set; `bit` is below 65 536 (`filter`: 131 072).
#[inline(always)]
pub fn bit(bitmap: &Array<u64>, bit: u32) -> bool {
    bitmap.get(bit >> 6).is_some_and(|word| word >> (bit & 63) & 1 != 0)
}

/// The attached interface with this index.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<&'static contract::Interface> {
    let mut probe = 0;
    while probe < contract::INTERFACE_PROBES {
        let place = interfaces.get((ifindex + probe) % contract::INTERFACES)?;
        if place.ifindex == ifindex {
            return Some(place);
        }
        probe += 1;
    }
    None
}
