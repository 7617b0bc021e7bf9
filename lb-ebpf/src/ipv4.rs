//! The data path of IPv4: its maps and its header (RFC 791).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16, Be32,
    checksum::{delta, fold, fold64, update},
    family::V4,
    flow::Tuple4,
    reason::Reason,
};

use crate::{
    helpers, maps,
    packet::{ETHERNET, Frame, IPV4, PROTOCOL_ICMP, Place, ipv4},
    path::{Ip, Kinds, Maps, Path, TTL},
};

impl Path for V4 {
    const TYPE: u16 = 0x0800_u16.to_be();
    const HEADER: usize = IPV4;
    const ICMP: u8 = PROTOCOL_ICMP;
    const ECHO: (u16, u16) = (u16::from_ne_bytes([8, 0]), 0);
    const ERRORS: Kinds = Kinds {
        port_unreachable: u16::from_ne_bytes([3, 3]),
        too_big: u16::from_ne_bytes([3, 4]),
        time_exceeded: u16::from_ne_bytes([11, 0]),
    };
    const QUOTE: usize = 8;
    const MAPS: Maps<Self> = Maps {
        flows: &maps::flows4,
        index: &maps::index4,
        vips: &maps::vips4,
        parked: &maps::parked4,
        search: &maps::search4,
        cursor: 0,
    };

    #[inline(always)]
    fn max_flows() -> u32 {
        maps::MAX_FLOWS.load()
    }

    #[inline(always)]
    fn index_mask() -> u32 {
        maps::INDEX_MASK.load()
    }

    #[inline(always)]
    fn source(head: Place) -> Be32 {
        Be32(head.load(ETHERNET + ipv4::ADDRESSES))
    }

    #[inline(always)]
    fn destination(head: Place) -> Be32 {
        Be32(head.load(ETHERNET + ipv4::ADDRESSES + 4))
    }

    #[inline(always)]
    fn addresses(head: Place) -> (Be32, Be32) {
        let both = head.load::<u64>(ETHERNET + ipv4::ADDRESSES);
        (Be32(both as u32), Be32((both >> 32) as u32))
    }

    #[inline(always)]
    fn set_addresses(head: Place, source: Be32, destination: Be32) {
        head.store(ETHERNET + ipv4::ADDRESSES, source.0 as u64 | (destination.0 as u64) << 32);
    }

    #[inline(always)]
    fn ip(ctx: &XdpContext, frame: Frame, head: Place) -> Result<Ip, Reason> {
        let version_ihl = head.load::<u8>(ETHERNET + ipv4::VERSION_IHL);
        let header = (version_ihl as usize & 15) * 4;
        let length = Self::length(head) as usize;
        if !frame.reaches(ETHERNET + length) && ETHERNET as u32 + length as u32 > helpers::frame_length(ctx) {
            return Err(Reason::Truncated);
        }
        if version_ihl >> 4 != 4 || header < IPV4 || length < header {
            return Err(Reason::Malformed);
        }
        if head.load::<u16>(ETHERNET + ipv4::FRAGMENT) & ipv4::FRAGMENTED != 0 {
            return Err(Reason::Fragment);
        }
        Ok(Ip { transport: ETHERNET + header, length, protocol: Self::protocol(head) })
    }

    #[inline(always)]
    fn protocol(head: Place) -> u8 {
        head.load(ETHERNET + ipv4::PROTOCOL)
    }

    #[inline(always)]
    fn length(head: Place) -> u32 {
        Be16(head.load::<u16>(ETHERNET + ipv4::TOTAL_LENGTH)).get() as u32
    }

    #[inline(always)]
    fn ttl(head: Place) -> u8 {
        head.load(ETHERNET + ipv4::TTL)
    }

    #[inline(always)]
    fn fragmentable(head: Place) -> bool {
        head.load::<u16>(ETHERNET + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT == 0
    }

    #[inline(always)]
    fn route(head: Place, tuple: &Tuple4, delta: u16) {
        // The TTL is the first byte of its word; one less is 0xfffe more in one's complement, in memory order.
        let ttl = head.load::<u16>(ETHERNET + ipv4::TTL);
        head.store(ETHERNET + ipv4::TTL, ttl.wrapping_sub(1));
        let delta = fold(delta as u32 + 0xfffe);
        head.store(ETHERNET + ipv4::CHECKSUM, update(head.load(ETHERNET + ipv4::CHECKSUM), delta));
        Self::set_addresses(head, tuple.source, tuple.destination);
    }

    #[inline(always)]
    fn refresh(head: Place) {
        let old = head.load::<u16>(ETHERNET + ipv4::TTL);
        let new = u16::from_ne_bytes([TTL, PROTOCOL_ICMP]);
        let sum = update(head.load(ETHERNET + ipv4::CHECKSUM), delta(old as u32, new as u32));
        head.store(ETHERNET + ipv4::TTL, new);
        head.store(ETHERNET + ipv4::CHECKSUM, sum);
    }

    /// DF, no id (RFC 6864).
    #[inline(always)]
    fn write(head: Place, length: u16, protocol: u8, source: Be32, destination: Be32) {
        let length = length + IPV4 as u16;
        let first = u32::from_be_bytes([0x45, 0, (length >> 8) as u8, length as u8]).to_be();
        let second = u32::from_be_bytes([0, 0, 0x40, 0]).to_be();
        let third = u32::from_be_bytes([TTL, protocol, 0, 0]).to_be();
        let sum = first as u64 + second as u64 + third as u64 + source.0 as u64 + destination.0 as u64;
        head.store(ETHERNET, first);
        head.store(ETHERNET + 4, second);
        head.store(ETHERNET + 8, third);
        head.store(ETHERNET + ipv4::CHECKSUM, !fold64(sum));
        Self::set_addresses(head, source, destination);
    }

    /// Unreachable, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn quoted(head: Place) -> Option<(usize, u8)> {
        let header = (head.load::<u8>(ETHERNET) as usize & 15) * 4;
        let later = head.load::<u16>(ETHERNET + ipv4::FRAGMENT) & ipv4::OFFSET != 0;
        (header >= IPV4 && !later).then(|| (header, Self::protocol(head)))
    }

    #[inline(always)]
    fn requote(head: Place, old: &Tuple4, new: &Tuple4, delta: u16) -> (u32, u32) {
        let field = head.load::<u16>(ETHERNET + ipv4::CHECKSUM);
        let updated = update(field, delta);
        head.store(ETHERNET + ipv4::CHECKSUM, updated);
        Self::set_addresses(head, new.source, new.destination);
        (old.address_sum() + field as u32, new.address_sum() + updated as u32)
    }

    #[inline(always)]
    fn icmp_sum(_: Be32, _: Be32, _: u16) -> u64 {
        0
    }
}
