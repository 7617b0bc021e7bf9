//! The data path of IPv6: its maps, its header and its extension headers (RFC 8200).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16, Be32,
    family::{Family as _, V6},
    flow::Tuple6,
    reason::Reason,
};

use crate::{
    helpers, maps,
    packet::{ETHERNET, Frame, IPV6, PROTOCOL_ICMP6, Place, ipv6},
    path::{Ip, Kinds, Maps, Path, TTL},
};

type Address = [Be32; 4];

/// Extension headers that are walked over.
const DEPTH: u32 = 8;
/// Next-header values of extension headers (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

impl Path for V6 {
    const TYPE: u16 = 0x86dd_u16.to_be();
    const HEADER: usize = IPV6;
    const ICMP: u8 = PROTOCOL_ICMP6;
    const ECHO: (u16, u16) = (u16::from_ne_bytes([128, 0]), u16::from_ne_bytes([129, 0]));
    const ERRORS: Kinds = Kinds {
        port_unreachable: u16::from_ne_bytes([1, 4]),
        too_big: u16::from_ne_bytes([2, 0]),
        time_exceeded: u16::from_ne_bytes([3, 0]),
    };
    const QUOTE: usize = 64;
    const MAPS: Maps<Self> = Maps {
        flows: &maps::flows6,
        index: &maps::index6,
        vips: &maps::vips6,
        parked: &maps::parked6,
        search: &maps::search6,
        cursor: 1,
    };

    #[inline(always)]
    fn max_flows() -> u32 {
        maps::MAX_FLOWS6.load()
    }

    #[inline(always)]
    fn index_mask() -> u32 {
        maps::INDEX_MASK6.load()
    }

    #[inline(always)]
    fn source(head: Place) -> Address {
        load(head, ETHERNET + ipv6::SOURCE)
    }

    #[inline(always)]
    fn destination(head: Place) -> Address {
        load(head, ETHERNET + ipv6::DESTINATION)
    }

    #[inline(always)]
    fn set_addresses(head: Place, source: Address, destination: Address) {
        store(head, ETHERNET + ipv6::SOURCE, source);
        store(head, ETHERNET + ipv6::DESTINATION, destination);
    }

    #[inline(always)]
    fn ip(ctx: &XdpContext, frame: Frame, head: Place) -> Result<Ip, Reason> {
        let length = Self::length(head) as usize;
        if !frame.reaches(ETHERNET + length) && ETHERNET as u32 + length as u32 > helpers::frame_length(ctx) {
            return Err(Reason::Truncated);
        }
        if head.load::<u8>(ETHERNET) >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let protocol = Self::protocol(head);
        if !is_extension(protocol) {
            return Ok(Ip { transport: ETHERNET + IPV6, length, protocol });
        }
        match walk(ctx, protocol as u32) {
            WALK_TRUNCATED => Err(Reason::Truncated),
            WALK_FRAGMENT => Err(Reason::Fragment),
            WALK_TOO_DEEP => Err(Reason::HeaderChain),
            found => {
                let transport = (found >> 8 & 0x7fff) as usize;
                if transport > ETHERNET + length {
                    return Err(Reason::Malformed);
                }
                Ok(Ip { transport, length, protocol: found as u8 })
            }
        }
    }

    #[inline(always)]
    fn protocol(head: Place) -> u8 {
        head.load(ETHERNET + ipv6::NEXT_HEADER)
    }

    #[inline(always)]
    fn length(head: Place) -> u32 {
        Be16(head.load::<u16>(ETHERNET + ipv6::PAYLOAD_LENGTH)).get() as u32 + IPV6 as u32
    }

    #[inline(always)]
    fn ttl(head: Place) -> u8 {
        head.load(ETHERNET + ipv6::HOP_LIMIT)
    }

    #[inline(always)]
    fn fragmentable(_: Place) -> bool {
        false
    }

    #[inline(always)]
    fn route(head: Place, tuple: &Tuple6, _: u16) {
        let hops = head.load::<u8>(ETHERNET + ipv6::HOP_LIMIT);
        head.store(ETHERNET + ipv6::HOP_LIMIT, hops.wrapping_sub(1));
        Self::set_addresses(head, tuple.source, tuple.destination);
    }

    #[inline(always)]
    fn refresh(head: Place) {
        head.store(ETHERNET + ipv6::HOP_LIMIT, TTL);
    }

    #[inline(always)]
    fn write(head: Place, length: u16, protocol: u8, source: Address, destination: Address) {
        head.store(ETHERNET, 0x6000_0000_u32.to_be());
        head.store(ETHERNET + 4, u32::from_be_bytes([(length >> 8) as u8, length as u8, protocol, TTL]).to_be());
        Self::set_addresses(head, source, destination);
    }

    /// Unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn quoted(head: Place) -> Option<(usize, u8)> {
        let next = Self::protocol(head);
        (!is_extension(next)).then_some((IPV6, next))
    }

    #[inline(always)]
    fn requote(head: Place, old: &Tuple6, new: &Tuple6, _: u16) -> (u32, u32) {
        Self::set_addresses(head, new.source, new.destination);
        (old.address_sum(), new.address_sum())
    }

    #[inline(always)]
    fn icmp_sum(source: Address, destination: Address, length: u16) -> u64 {
        let addresses = V6::sum(source) as u64 + V6::sum(destination) as u64;
        addresses + length.to_be() as u64 + (PROTOCOL_ICMP6 as u16).to_be() as u64
    }
}

#[inline(always)]
fn load(head: Place, offset: usize) -> Address {
    let (high, low) = (head.load::<u64>(offset), head.load::<u64>(offset + 8));
    [Be32(high as u32), Be32((high >> 32) as u32), Be32(low as u32), Be32((low >> 32) as u32)]
}

#[inline(always)]
fn store(head: Place, offset: usize, [a, b, c, d]: Address) {
    head.store(offset, a.0 as u64 | (b.0 as u64) << 32);
    head.store(offset + 8, c.0 as u64 | (d.0 as u64) << 32);
}

/// What [`walk`] says instead of a place.
const WALK_TRUNCATED: u64 = 1 << 32;
const WALK_FRAGMENT: u64 = 2 << 32;
const WALK_TOO_DEEP: u64 = 3 << 32;

/// Rule 28: walks over extension headers; gives the protocol behind them (8 bits) and where it stands (above those).
/// A fragment that is the whole packet (RFC 6946) is none.
#[inline(never)]
fn walk(ctx: &XdpContext, first: u32) -> u64 {
    let frame = Frame::of(ctx);
    let (mut next, mut offset) = (first as u8, ETHERNET + IPV6);
    let mut depth = 0;
    while depth < DEPTH {
        let Some(header) = frame.at(offset, 8) else { return WALK_TRUNCATED };
        let bytes = match next {
            FRAGMENT => {
                if header.load::<u16>(2) & ipv6::FRAGMENTED != 0 {
                    return WALK_FRAGMENT;
                }
                8
            }
            _ => (header.load::<u8>(1) as usize + 1) * 8,
        };
        next = header.load(0);
        offset += bytes;
        if !is_extension(next) {
            return next as u64 | (offset as u64) << 8;
        }
        depth += 1;
    }
    WALK_TOO_DEEP
}
