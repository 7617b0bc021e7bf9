//! What differs between the data paths of IPv4 and IPv6: their maps, their headers. Every step of a packet's life is
//! written once, generic over a [`Path`]; [`crate::ipv4`] and [`crate::ipv6`] are the two.

use aya_ebpf::{
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use lb_common::{
    family::Family,
    flow::{Bucket, Flow, Tuple},
    maps::{Vip, VipKey},
    reason::Reason,
};

use crate::{
    once::Once,
    packet::{Frame, Place},
    parse::Packet,
    ports::Search,
};

/// The maps that one family has for itself.
pub struct Maps<F: Family> {
    /// Records of flows.
    pub flows: &'static Array<Flow<F>>,
    /// The flow index.
    pub index: &'static Array<Bucket>,
    /// VIPs and addresses.
    pub vips: &'static HashMap<VipKey<F>, Vip>,
    /// A packet between steps that share no stack.
    pub parked: &'static PerCpuArray<Packet<F>>,
    /// A search for a port.
    pub search: &'static PerCpuArray<Search<F>>,
    /// Element of `cursor`.
    pub cursor: u32,
}

/// What an IP header says.
pub struct Ip {
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Layer-3 bytes.
    pub length: usize,
    /// IP protocol number of the transport header.
    pub protocol: u8,
}

/// An ICMP error that lb sends: type and code, as they stand in the packet.
pub struct Kinds {
    /// No usable backend.
    pub port_unreachable: u16,
    /// Fragmentation needed (RFC 1191), packet too big.
    pub too_big: u16,
    /// Time exceeded in transit.
    pub time_exceeded: u16,
}

/// A family's data path.
pub trait Path: Once {
    /// The Ethernet type, as it stands in a frame.
    const TYPE: u16;
    /// Bytes of an IP header without options.
    const HEADER: usize;
    /// IP protocol number of the family's ICMP.
    const ICMP: u8;
    /// Type and code of an echo request and of its reply, as they stand in the packet.
    const ECHO: (u16, u16);
    /// Types and codes of errors.
    const ERRORS: Kinds;
    /// Bytes behind the IP header and its options that an ICMP error quotes, if they are there (a multiple of four).
    const QUOTE: usize;
    /// Its maps.
    const MAPS: Maps<Self>;

    /// Elements of `flows`, at least 1.
    fn max_flows() -> u32;
    /// Elements of `index` less one.
    fn index_mask() -> u32;

    /// The source address of the IP header behind the Ethernet header at `head`.
    fn source(head: Place) -> Self::Address;
    /// Its destination address.
    fn destination(head: Place) -> Self::Address;
    /// Both addresses, source first.
    #[inline(always)]
    fn addresses(head: Place) -> (Self::Address, Self::Address) {
        (Self::source(head), Self::destination(head))
    }
    /// Writes both addresses, source first.
    fn set_addresses(head: Place, source: Self::Address, destination: Self::Address);
    /// Reads the IP header and whatever stands between it and the transport header (rules 26 to 29).
    fn ip(ctx: &XdpContext, frame: Frame, head: Place) -> Result<Ip, Reason>;
    /// IP protocol number that the header itself says.
    fn protocol(head: Place) -> u8;
    /// Layer-3 bytes that the header claims.
    fn length(head: Place) -> u32;
    /// TTL or hop limit.
    fn ttl(head: Place) -> u8;
    /// Whether the packet may be fragmented on its way.
    fn fragmentable(head: Place) -> bool;
    /// Gives the packet other addresses, which add `delta` to the sum of the header, and one TTL less.
    fn route(head: Place, tuple: &Tuple<Self>, delta: u16);
    /// Gives an ICMP packet the TTL of packets that lb makes.
    fn refresh(head: Place);
    /// Writes a fresh header without options: `length` bytes follow it; with the TTL of packets that lb makes.
    fn write(head: Place, length: u16, protocol: u8, source: Self::Address, destination: Self::Address);
    /// Whether an ICMP message of this type is an error, which quotes a packet.
    fn is_error(kind: u8) -> bool;
    /// The IP header of a quoted packet, fourteen bytes behind `head`: its length and its protocol; `None` if it is a
    /// later fragment, or something else stands in between.
    fn quoted(head: Place) -> Option<(usize, u8)>;
    /// Gives a quoted IP header other addresses, which add `delta` to its sum; gives the sums of the words that changed,
    /// before and after.
    fn requote(head: Place, old: &Tuple<Self>, new: &Tuple<Self>, delta: u16) -> (u32, u32);
    /// What ICMP's checksum covers besides the message: nothing, or the pseudo-header.
    fn icmp_sum(source: Self::Address, destination: Self::Address, length: u16) -> u64;
}

/// TTL of packets that lb makes.
pub const TTL: u8 = 64;
