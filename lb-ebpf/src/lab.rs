//! Programs that only tests, the demo and the benchmark load: far ends of veth pairs, wrappers around the balancer,
//! and the floors that its cost is compared with.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unstable_features, reason = "inline assembly for this target"),
    feature(asm_experimental_arch)
)]
#![cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "on the host this crate is only checked"))]
#![expect(non_upper_case_globals, reason = "a map's name is its symbol's")]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(missing_docs, reason = "the macro makes a second function and leaves it bare")
)]

mod atomic;
mod helpers;
mod object;
mod packet;
mod words;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, LruHashMap, PerCpuArray, ProgramArray},
    programs::XdpContext,
};
use lb_common::flow::Flow4;
use packet::{ETHERNET, Frame, IPV4, PROTOCOL_TCP, Place, TCP, TYPE_IPV4, ipv4};

/// What the wrappers call: the balancer, or a floor.
#[map]
static jump: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The 64 bytes that `restore` writes over the packet's head, and how it varies them; each CPU its own.
#[map]
static template: PerCpuArray<Template> = PerCpuArray::with_max_entries(1, 0);
/// Flows that cannot be counted through, because their addresses and ports were chosen by the balancer.
#[map]
static listed: Array<Listed> = Array::with_max_entries(1 << 19, 0);
/// The floor's table.
#[map]
static floor_flows: LruHashMap<[u64; 2], [u64; 8]> = LruHashMap::with_max_entries(1 << 20, 0);
/// Comparison of tables: an LRU hash with an entry for each direction; the floor's has to stay as it is.
#[map]
static lru_flows: LruHashMap<[u64; 2], [u64; 8]> = LruHashMap::with_max_entries(1 << 20, 0);
/// Comparison of tables: a plain hash with an entry for each direction.
#[map]
static hash_flows: aya_ebpf::maps::HashMap<[u64; 2], [u64; 8]> = aya_ebpf::maps::HashMap::with_max_entries(1 << 20, 0);

/// See [`template`].
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    /// Head of the packet as it shall be before every run.
    head: [u64; 8],
    /// Length of the packet.
    length: u32,
    /// Flows that the packet shall belong to, one after the other: a power of two.
    flows: u32,
    /// Runs so far.
    run: u32,
    /// From one flow's number to the next: odd.
    stride: u32,
    /// VIPs, from the packet's destination address on, over which flows are spread.
    vips: u32,
    /// 0: flows differ by source address and port; 1: flows are those of [`listed`].
    kind: u32,
    /// Of the next run's flow.
    ahead: u32,
    /// Zero.
    pad: u32,
}

/// See [`listed`].
#[repr(C)]
#[derive(Clone, Copy)]
struct Listed {
    /// Source and destination; IPv4 in the first word.
    addresses: [u64; 4],
    /// Source and destination port.
    ports: u32,
    /// Zero.
    pad: u32,
}

/// Far end of a veth pair: with it, the near end may send by `XDP_TX`.
#[xdp(frags)]
pub fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The cheapest program: what a run costs without one.
#[xdp(frags)]
pub fn null(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Rule 35: fills the head room with 0xff, then calls the balancer.
#[xdp(frags)]
pub fn poison(ctx: XdpContext) -> u32 {
    const ROOM: usize = 64;
    if !helpers::adjust_head(&ctx, -(ROOM as i32)) {
        return xdp_action::XDP_ABORTED;
    }
    if let Some(room) = Frame::of(&ctx).at(0, ROOM) {
        for word in 0..ROOM / 8 {
            room.store(word * 8, u64::MAX);
        }
    }
    if !helpers::adjust_head(&ctx, ROOM as i32) {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the map holds XDP programs of the same kind; if it is empty the call returns.
    unsafe { jump.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Restores the packet's head, as that of the next flow's packet, and calls what is measured.
#[xdp(frags)]
pub fn restore(ctx: XdpContext) -> u32 {
    let Some(as_it_was) = template.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: this CPU's own element, and a test run is not interrupted by another.
    let as_it_was = unsafe { &mut *as_it_was };
    // What was wrapped around the packet goes.
    let longer = helpers::frame_length(&ctx) as i32 - as_it_was.length as i32;
    if longer != 0 && !helpers::adjust_head(&ctx, longer) {
        return xdp_action::XDP_ABORTED;
    }
    let Some(place) = Frame::of(&ctx).at(0, 64) else { return xdp_action::XDP_ABORTED };
    for (word, head) in as_it_was.head.iter().enumerate() {
        place.store(word * 8, *head);
    }
    let run = as_it_was.run;
    as_it_was.run = run.wrapping_add(1);
    let flow = run.wrapping_mul(as_it_was.stride) & as_it_was.flows.wrapping_sub(1);
    let is_v4 = place.load::<u16>(12) == TYPE_IPV4;
    if as_it_was.kind != 0 {
        let Some(flow) = listed.get(flow) else { return xdp_action::XDP_ABORTED };
        become_listed(place, flow, is_v4);
        // The next run's is on its way while what is measured runs: in life packets bring their addresses with them.
        let next = as_it_was.run.wrapping_mul(as_it_was.stride) & as_it_was.flows.wrapping_sub(1);
        as_it_was.ahead = listed.get(next).map_or(0, |flow| flow.ports);
    } else if is_v4 {
        // Bits go to the source address's low 16 and the port's low 12; sums are not kept, nobody checks them here.
        vary::<{ ETHERNET + ipv4::ADDRESSES + 2 }, { ETHERNET + ipv4::ADDRESSES + 4 }, { ETHERNET + IPV4 }>(
            place,
            flow,
            as_it_was.vips,
        );
    } else {
        vary::<{ ETHERNET + IPV6_SOURCE + 14 }, { ETHERNET + IPV6_DESTINATION + 12 }, { ETHERNET + IPV6 }>(
            place,
            flow,
            as_it_was.vips,
        );
    }
    // SAFETY: as in `poison`.
    unsafe { jump.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Where the addresses stand in an IPv6 header, and its length (RFC 8200, section 3).
const IPV6_SOURCE: usize = 8;
const IPV6_DESTINATION: usize = 24;
const IPV6: usize = 40;

/// Makes the packet one of flow number `flow`: by the last two bytes of its source address, by its source port, and by the last
/// word of its destination address.
#[inline(always)]
fn vary<const SOURCE: usize, const DESTINATION: usize, const PORT: usize>(place: Place, flow: u32, vips: u32) {
    place.store(SOURCE, place.load::<u16>(SOURCE) ^ (flow >> 12) as u16);
    place.store(PORT, (u16::from_be(place.load::<u16>(PORT)) ^ (flow & 0xfff) as u16).to_be());
    if let Some(vip) = flow.checked_rem(vips) {
        place.store(DESTINATION, u32::from_be(place.load::<u32>(DESTINATION)).wrapping_add(vip).to_be());
    }
}

#[inline(always)]
fn become_listed(place: Place, flow: &Listed, is_v4: bool) {
    if is_v4 {
        place.store(ETHERNET + ipv4::ADDRESSES, flow.addresses[0]);
        place.store(ETHERNET + IPV4, flow.ports);
        return;
    }
    for (word, address) in flow.addresses.iter().enumerate() {
        place.store(ETHERNET + IPV6_SOURCE + word * 8, *address);
    }
    place.store(ETHERNET + IPV6, flow.ports);
}

/// What stands in the tables. Not on the stack, which would be cleared byte by byte every time.
static EMPTY: [u64; 8] = [0; 8];

/// See [`EMPTY`].
#[inline(always)]
fn empty() -> &'static [u64; 8] {
    &EMPTY
}

/// Parses, and gives the flow's key; the least that any balancer has to do.
#[inline(always)]
fn key(ctx: &XdpContext) -> Option<[u64; 2]> {
    let frame = Frame::of(ctx);
    let head = frame.at(0, ETHERNET + IPV4 + TCP)?;
    if head.load::<u16>(12) != TYPE_IPV4 || head.load::<u8>(ETHERNET + ipv4::PROTOCOL) != PROTOCOL_TCP {
        return None;
    }
    let ports = head.load::<u32>(ETHERNET + IPV4) as u64;
    Some([head.load::<u64>(ETHERNET + ipv4::ADDRESSES), ports | (PROTOCOL_TCP as u64) << 32])
}

#[inline(always)]
fn swap(ctx: &XdpContext) {
    if let Some(head) = Frame::of(ctx).at(0, 12) {
        head.set_macs(head.macs().turned());
    }
}

/// Floor: parse, swap MAC addresses, send.
#[xdp(frags)]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    if key(&ctx).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    swap(&ctx);
    xdp_action::XDP_TX
}

/// Floor: the same, and one lookup in an LRU hash.
#[xdp(frags)]
pub fn floor_lru(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else { return xdp_action::XDP_ABORTED };
    if floor_flows.get_ptr(key).is_none() && floor_flows.insert(key, empty(), 0).is_err() {
        return xdp_action::XDP_ABORTED;
    }
    swap(&ctx);
    xdp_action::XDP_TX
}

/// Comparison: a new flow is two entries of an LRU hash.
#[xdp(frags)]
pub fn table_lru(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else { return xdp_action::XDP_ABORTED };
    if lru_flows.get_ptr(key).is_none() {
        let _ = lru_flows.insert(key, empty(), 0);
        let _ = lru_flows.insert([key[0].rotate_left(32), key[1] ^ 0x5555], empty(), 0);
    }
    swap(&ctx);
    xdp_action::XDP_TX
}

/// Comparison: a new flow is two entries of a plain hash, which somebody must take out again.
#[xdp(frags)]
pub fn table_hash(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else { return xdp_action::XDP_ABORTED };
    let other = [key[0].rotate_left(32), key[1] ^ 0x5555];
    let _ = hash_flows.insert(key, empty(), 0);
    let _ = hash_flows.insert(other, empty(), 0);
    let _ = hash_flows.remove(key);
    let _ = hash_flows.remove(other);
    swap(&ctx);
    xdp_action::XDP_TX
}

const _: () = assert!(size_of::<Flow4>() == 128, "what the tables are compared with");

#[cfg(not(target_arch = "bpf"))]
fn main() {}
