//! Every map that the kernel program and the control plane share: its name, key, value, and size.
//!
//! Arrays that the control plane writes are memory-mapped by it (`BPF_F_MMAPABLE`): an aligned store of up to eight
//! bytes is how a change becomes visible. Layouts have room for IPv6, all modes and all schedulers.

use crate::{
    Be16, Be32,
    family::{Family, V4, V6},
    flow::Idle,
};

/// Names of the maps, as in the ELF object and under the pin directory.
pub mod name {
    /// Array of one [`super::Settings`].
    pub const SETTINGS: &str = "settings";
    /// Array of [`super::Interface`], open addressing by ifindex.
    pub const INTERFACES: &str = "interfaces";
    /// Array of `u64`: 65 536 bits, one per hash of a destination address of interest, and as many for source addresses
    /// (from [`super::FILTER_SOURCES`] on).
    pub const FILTER: &str = "filter";
    /// Array of `u64`: 65 536 bits, one per destination port of interest.
    pub const PORTS: &str = "ports";
    /// Hash of [`super::Vip4Key`] to [`super::Vip`].
    pub const VIPS4: &str = "vips4";
    /// Hash of [`super::Vip6Key`] to [`super::Vip`].
    pub const VIPS6: &str = "vips6";
    /// Array of [`super::Service`].
    pub const SERVICES: &str = "services";
    /// Array of `[u32; 2]`: scheduler tables of all services, backend identities, two slots to an element; and their
    /// members ([`super::Service::members`]), one to an element.
    pub const TABLES: &str = "tables";
    /// Array of [`super::Backend`].
    pub const BACKENDS: &str = "backends";
    /// Array of [`super::NextHop`].
    pub const NEXT_HOPS: &str = "next_hops";
    /// Array of `u16` (host order): the ports that NAT may use; the first [`super::Settings::nat_ports`] count.
    pub const NAT_PORTS: &str = "nat_ports";
    /// Array of `[Be32; 4]`: addresses that NAT may use (IPv4 in the first word).
    pub const SNAT: &str = "snat";
    /// Array of [`crate::flow::Flow4`].
    pub const FLOWS4: &str = "flows4";
    /// Array of [`crate::flow::Bucket`]: the index of `flows4`.
    pub const INDEX4: &str = "index4";
    /// Array of [`crate::flow::Flow6`].
    pub const FLOWS6: &str = "flows6";
    /// Array of [`crate::flow::Bucket`]: the index of `flows6`.
    pub const INDEX6: &str = "index6";
    /// Per-CPU array of `u64`, by [`crate::reason::Reason`].
    pub const REASONS: &str = "reasons";
    /// Per-CPU array of [`super::Traffic`], by backend identity.
    pub const TRAFFIC: &str = "traffic";
    /// Per-CPU array of [`super::Refusals`], by service identity.
    pub const REFUSALS: &str = "refusals";
    /// Per-CPU array of [`super::Cursor`], one element for each family: where this CPU looks next for a free record.
    pub const CURSOR: &str = "cursor";
    /// Per-CPU array of [`super::PortCursor`], by a hash of a server's address, port and protocol: where this CPU looks next
    /// for a free port.
    pub const PORT_CURSOR: &str = "port_cursor";
    /// Array of `u32`, by backend identity: its live flows, as the data path counts them.
    pub const LIVE: &str = "live";
    /// Per-CPU array of `u32`, by service identity: round robin's turns.
    pub const TURNS: &str = "turns";
    /// LRU hash of [`super::AffinityKey`] to [`super::Affinity`].
    pub const AFFINITY: &str = "affinity";
    /// Array of [`super::Bucket`], by service identity: tokens for ICMP answers.
    pub const ICMP_TOKENS: &str = "icmp_tokens";
    /// Program array of one: what the fast path calls for packets that it has parked.
    pub const SLOW_PATH: &str = "slow_path";
    /// Per-CPU array of one: an IPv4 packet on its way from the fast path to the slow one. Pinned, so that they
    /// understand each other also while one daemon's programs replace another's.
    pub const PARKED4: &str = "parked4";
    /// The same for IPv6.
    pub const PARKED6: &str = "parked6";
    /// All of them that are pinned.
    pub const PINNED: [&str; 28] = [
        SETTINGS,
        INTERFACES,
        FILTER,
        PORTS,
        VIPS4,
        VIPS6,
        SERVICES,
        TABLES,
        BACKENDS,
        NEXT_HOPS,
        NAT_PORTS,
        SNAT,
        FLOWS4,
        INDEX4,
        FLOWS6,
        INDEX6,
        REASONS,
        TRAFFIC,
        REFUSALS,
        CURSOR,
        PORT_CURSOR,
        LIVE,
        TURNS,
        AFFINITY,
        ICMP_TOKENS,
        SLOW_PATH,
        PARKED4,
        PARKED6,
    ];
}

/// Elements of `interfaces`; an interface stands at `ifindex % INTERFACES` or one of the next [`INTERFACE_PROBES`] - 1.
pub const INTERFACES: u32 = 256;
/// How many places are looked at.
pub const INTERFACE_PROBES: u32 = 4;
/// Elements of `vips4` and of `vips6`.
pub const VIPS: u32 = 65_536;
/// Elements of `services`; identity 0 is nobody.
pub const SERVICES: u32 = 16_384;
/// Elements of `backends`; identity 0 is nobody.
pub const BACKENDS: u32 = 131_072;
/// Elements of `next_hops`; 0 means "not known".
pub const NEXT_HOPS: u32 = 4_096;
/// Elements of `snat`.
pub const SNAT: u32 = 4_096;
/// Elements of `cursor`: one for each family.
pub const CURSORS: u32 = 2;
/// Elements of `nat_ports`.
pub const NAT_PORTS: u32 = 65_536;
/// Slots in `tables` (two to an element): room for 10 000 services of 1 009 slots and a change of each in flight.
pub const TABLE_SLOTS: u32 = 12 << 20;
/// Elements of `affinity`: clients of all services with affinity, about 8 MB; when it is full, those go that were not seen
/// for longest.
pub const AFFINITIES: u32 = 65_536;
/// First bit of `filter` for source addresses: those of backends in mode `dnat`.
pub const FILTER_SOURCES: u32 = 1 << 16;
/// `u64` words of `ports`, and of each half of `filter`.
pub const BITMAP_WORDS: u32 = 1_024;
/// Flows by default.
pub const DEFAULT_MAX_FLOWS: u32 = 262_144;

/// Buckets of the flow index for a number of flows: a power of two, at most four entries to a bucket of 15 on average.
/// (With eight, one new flow in 3 000 met two full buckets when the table was full.)
#[must_use]
pub const fn buckets_for(flows: u32) -> u32 {
    let wanted = flows.div_ceil(2).next_power_of_two();
    if wanted < 64 { 64 } else { wanted }
}

/// What is fixed when the maps are made, so that an adopting daemon uses the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Seed of the flow index ([`crate::hash::Seeded`]).
    pub hash_seed: u64,
    /// [`crate::LAYOUT_VERSION`].
    pub layout: u32,
    /// Elements of `flows4`.
    pub max_flows: u32,
    /// Entries of `nat_ports` in use; may change.
    pub nat_ports: u32,
    /// Whether any VIP has port 0; may change.
    pub wildcard_vips: u32,
    /// Elements of `flows6`.
    pub max_flows6: u32,
    /// Zero.
    pub pad: [u32; 9],
}
const _: () = assert!(size_of::<Settings>() == 64);

/// An interface that lb is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// Its index; 0 = this place is free.
    pub ifindex: u32,
    /// [`interface_flag`].
    pub flags: u32,
    /// Largest layer-3 packet in bytes.
    pub mtu: u32,
    /// Its own MAC address.
    pub mac: [u8; 6],
    /// Another MAC address that it answers to (VRRP), or the same again.
    pub virtual_mac: [u8; 6],
}
const _: () = assert!(size_of::<Interface>() == 24);

/// Bits of [`Interface::flags`].
pub mod interface_flag {
    /// Send back out of this interface by redirect instead of `XDP_TX` (native mode on a veth).
    pub const REDIRECT: u32 = 1;
    /// Generic mode: frames may be super-packets longer than the MTU.
    pub const GENERIC: u32 = 2;
}

/// Key of `vips4` and `vips6`. Protocol 0 and port 0: the address itself (is it a VIP, does the host own it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct VipKey<F: Family> {
    /// Destination address.
    pub address: F::Address,
    /// Destination port; 0 = every port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl<F: Family> VipKey<F> {
    /// A VIP's key; protocol 0 and port 0 for the address itself.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: F::Address, port: Be16, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// Key of `vips4`.
pub type Vip4Key = VipKey<V4>;
/// Key of `vips6`.
pub type Vip6Key = VipKey<V6>;
const _: () = assert!(size_of::<Vip4Key>() == 8 && size_of::<Vip6Key>() == 20);

/// Value of `vips4` and `vips6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// Identity of the service; 0 in an entry for an address.
    pub service: u32,
    /// [`vip_flag`].
    pub flags: u32,
}

/// Bits of [`Vip::flags`].
pub mod vip_flag {
    /// The address is a VIP: echo requests to it are answered.
    pub const VIP: u32 = 1;
    /// The host owns the address: what is unreadable passes to the stack instead of being dropped.
    pub const HOST: u32 = 2;
}

/// A service, as the miss path needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Service {
    /// Where its table stands in `tables`: first slot (low half) and number of slots (high half); 0 slots = no usable
    /// backend. One aligned store changes it.
    pub table: u64,
    /// [`crate::hash::name`] of the service's name; 0 = this identity is free.
    pub name_hash: u64,
    /// [`mode`].
    pub mode: u8,
    /// [`scheduler`].
    pub scheduler: u8,
    /// [`on_empty`], what happens to a new flow while there is no table.
    pub on_empty: u8,
    /// Zero.
    pub pad: u8,
    /// How long affinity holds, in ticks; 0 = no affinity.
    pub affinity: u32,
    /// Where its members stand in `tables`: first element (low half) and number of elements (high half), each a
    /// backend's identity and weight. `round-robin`: in the order of their turns, with repeats; `least-conn`: each once;
    /// other schedulers: none. One aligned store changes it.
    pub members: u64,
    /// Zero.
    pub pad2: [u32; 8],
}
const _: () = assert!(size_of::<Service>() == 64);

impl Service {
    /// First place and number of places of a table, or of members, as one word.
    #[must_use]
    pub const fn table_word(base: u32, size: u32) -> u64 {
        base as u64 | (size as u64) << 32
    }
}

/// Modes ([`Service::mode`], [`crate::flow::Head::mode`]).
pub mod mode {
    /// Full NAT.
    pub const NAT: u8 = 0;
    /// Destination NAT.
    pub const DNAT: u8 = 1;
    /// Direct return, layer 2.
    pub const DSR: u8 = 2;
    /// Direct return, IP in IP.
    pub const IPIP: u8 = 3;
    /// Direct return, IP in UDP.
    pub const GUE: u8 = 4;
}

/// Schedulers ([`Service::scheduler`]).
pub mod scheduler {
    /// Maglev hashing over the 5-tuple.
    pub const MAGLEV: u8 = 0;
    /// Weighted round robin.
    pub const ROUND_ROBIN: u8 = 1;
    /// Weighted least connections.
    pub const LEAST_CONN: u8 = 2;
    /// Maglev hashing over the client's address.
    pub const SOURCE_HASH: u8 = 3;
    /// Weighted random.
    pub const RANDOM: u8 = 4;
}

/// What happens to a new flow of a service without a table ([`Service::on_empty`]).
pub mod on_empty {
    /// TCP: RST; UDP: port unreachable.
    pub const REJECT: u8 = 0;
    /// Dropped.
    pub const DROP: u8 = 1;
    /// Dropped, because backends are still unchecked: the client will try again.
    pub const UNCHECKED: u8 = 2;
}

/// A backend of one service, as every packet of its flows needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// [`backend_flag`]; 0 = this identity is free.
    pub flags: u32,
    /// Tick of the verdict that took it down; kept while it is down.
    pub down_since: u32,
    /// Its next hop: an index into `next_hops`; 0 = not known.
    pub next_hop: u32,
    /// Identity of its service.
    pub service: u32,
    /// First of the addresses that NAT uses towards it: an index into `snat`.
    pub snat: u32,
    /// How many there are.
    pub snat_count: u16,
    /// Its port; 0 = the VIP's.
    pub port: Be16,
    /// Its address; IPv4 in the first word, the others 0.
    pub address: [Be32; 4],
    /// Idle timeouts of its flows.
    pub idle: Idle,
    /// Destination port of the outer UDP header (`gue`).
    pub outer_port: Be16,
    /// IP protocol number of the service's VIPs that it serves; 0 = both.
    pub protocol: u8,
    /// 4 or 6: the family of [`Backend::address`].
    pub family: u8,
}
const _: () = assert!(size_of::<Backend>() == 64);

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// The identity is in use.
    pub const USED: u32 = 1;
    /// The last verdict was "up".
    pub const UP: u32 = 2;
    /// The last verdict was "down". Neither bit: unknown.
    pub const DOWN: u32 = 4;
    /// Admin state `drain`.
    pub const DRAIN: u32 = 8;
    /// Admin state `maint`.
    pub const MAINT: u32 = 16;
    /// Removed from the service; kept for its flows.
    pub const REMOVED: u32 = 32;
    /// Its flows are reset now (`maint`, `remove --force`, `on_down = reset` and down).
    pub const RESET: u32 = 64;
    /// Its TCP flows are reset when nothing came from it since [`super::Backend::down_since`] (`on_down = auto`).
    pub const RESET_SILENT: u32 = 128;
    /// Its UDP flows move to another backend (it is down, in maintenance, or removed by force).
    pub const MOVE_UDP: u32 = 256;
    /// It is down, and the verdict before was "up": while all are down it may take new flows.
    pub const FELL: u32 = 512;
    /// New flows of its service go to it; without this bit no affinity holds.
    pub const TAKES: u32 = 1024;
    /// The bits that the data path has to look at on a hit.
    pub const ATTENTION: u32 = RESET | RESET_SILENT | MOVE_UDP;
}

/// Where packets towards a backend leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Destination and source MAC, as they stand in the frame.
    pub ethernet: [u8; 12],
    /// Interface; 0 = not resolved.
    pub ifindex: u32,
    /// Largest layer-3 packet in bytes on the way.
    pub mtu: u32,
    /// VLAN tag (TCI) that the frame needs, or 0xffff.
    pub vlan: Be16,
    /// Zero.
    pub pad: [u8; 10],
}
const _: () = assert!(size_of::<NextHop>() == 32);

/// Packets and layer-3 bytes of a backend, each CPU its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets from the backend.
    pub packets_out: u64,
    /// Bytes from the backend.
    pub bytes_out: u64,
    /// Flows begun.
    pub flows: u64,
}

/// Key of `affinity`: a client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address; IPv4 in the first word.
    pub client: [u64; 2],
    /// The service's identity.
    pub service: u32,
    /// Zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<AffinityKey>() == 24);

/// The backend that a client is tied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity {
    /// The backend's identity.
    pub backend: u32,
    /// Tick of the client's latest packet.
    pub seen: u32,
}

/// New flows that a service refused, each CPU its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refusals {
    /// No usable backend.
    pub no_backend: u64,
    /// No free port.
    pub no_port: u64,
    /// No free record.
    pub table_full: u64,
}

/// Where a CPU looks next for a free record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cursor {
    /// Records it has looked at; its place is this modulo the number of records.
    pub hand: u32,
    /// Tick in which a long search found nothing, xor the server's hash; until the next tick, searches are short.
    pub exhausted: u32,
}

/// Where a CPU looks next for a free port of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortCursor {
    /// Ports it has looked at.
    pub next: u32,
    /// Tick in which a long search found nothing, xor the server's hash; until the next tick, searches are short.
    pub exhausted: u32,
}

/// Tokens of a rate limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// Tick of the last refill.
    pub tick: u32,
    /// Tokens used since.
    pub used: u32,
}
