//! The packet as a cursor of bounds-checked places. Every access is one check and one load or store of a whole word.

use aya_ebpf::{EbpfContext as _, programs::XdpContext};

use lb_common::{flow::Tail, maps::NextHop};

use crate::words::{Word, opaque, packet_pointer};

/// The linear part of a frame.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame as it is now; dead after a change of head or tail.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        let context = ctx.as_ptr() as usize;
        // SAFETY: the context is the program's own; the fields are `data` and `data_end`.
        unsafe { Self { start: packet_pointer::<0>(context), end: packet_pointer::<4>(context) } }
    }

    /// The place at `offset`, if `length` bytes are there.
    #[inline(always)]
    pub fn at(self, offset: usize, length: usize) -> Option<Place> {
        let place = opaque(self.start + offset);
        (place + length <= self.end).then_some(Place(place))
    }

    /// Whether the linear part has at least `length` bytes.
    #[inline(always)]
    pub fn reaches(self, length: usize) -> bool {
        self.start + length <= self.end
    }
}

/// A place in the packet; how many bytes may be touched is what [`Frame::at`] was asked for.
#[derive(Clone, Copy)]
pub struct Place(usize);

impl Place {
    /// The place `bytes` before this one; only what stands from here on may be touched.
    #[inline(always)]
    pub fn before(self, bytes: usize) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }

    /// Reads a word, `offset` bytes on.
    #[inline(always)]
    pub fn load<T: Word>(self, offset: usize) -> T {
        // SAFETY: `Frame::at` checked the bytes, and the verifier checks that it did.
        unsafe { T::load(self.0.wrapping_add(offset)) }
    }

    /// Writes a word, `offset` bytes on.
    #[inline(always)]
    pub fn store<T: Word>(self, offset: usize, value: T) {
        // SAFETY: as for `load`.
        unsafe { value.store(self.0.wrapping_add(offset)) }
    }

    /// Both MAC addresses, destination first, of a frame that begins here.
    #[inline(always)]
    pub fn macs(self) -> Macs {
        Macs([self.load(0), self.load(4), self.load(8)])
    }

    /// Writes both MAC addresses of a frame that begins here.
    #[inline(always)]
    pub fn set_macs(self, macs: Macs) {
        self.store(0, macs.0[0]);
        self.store(4, macs.0[1]);
        self.store(8, macs.0[2]);
    }
}

/// Destination and source MAC address as they stand in a frame, in three words of memory order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Macs(pub [u32; 3]);

impl Macs {
    /// Source first: the addresses of the answer.
    #[inline(always)]
    pub fn turned(self) -> Self {
        let [a, b, c] = self.0;
        Self([b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16])
    }

    /// Twelve bytes of a map's value.
    #[inline(always)]
    pub fn of(bytes: &[u8; 12]) -> Self {
        // SAFETY: in both layouts that hold such bytes they are aligned to four (asserted below).
        Self(unsafe { core::ptr::from_ref(bytes).cast::<[u32; 3]>().read() })
    }

    /// Writes them to twelve bytes of a map's value.
    #[inline(always)]
    pub fn put(self, bytes: &mut [u8; 12]) {
        // SAFETY: as for `of`.
        unsafe { core::ptr::from_mut(bytes).cast::<[u32; 3]>().write(self.0) }
    }
}

const _: () = assert!(core::mem::offset_of!(NextHop, ethernet) % 4 == 0 && align_of::<NextHop>() >= 4);
const _: () = assert!(core::mem::offset_of!(Tail, ethernet) % 4 == 0 && align_of::<Tail>() >= 4);

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = network_types::eth::EthHdr::LEN;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = network_types::ip::Ipv4Hdr::LEN;
/// Bytes of an IPv6 header.
pub const IPV6: usize = network_types::ip::Ipv6Hdr::LEN;
/// Bytes of a TCP header without options.
pub const TCP: usize = network_types::tcp::TcpHdr::LEN;
/// Bytes of a UDP header.
pub const UDP: usize = network_types::udp::UdpHdr::LEN;

/// Bytes of an ICMP header, over either family (RFC 792, RFC 4443).
pub const ICMP: usize = 8;

/// Ethernet type of IPv4, as it stands in the frame.
pub const TYPE_IPV4: u16 = 0x0800_u16.to_be();
/// Ethernet type of IPv6, as it stands in the frame.
pub const TYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// IP protocol numbers.
pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMP6: u8 = 58;

/// Offsets in an IPv4 header (RFC 791, section 3.1).
pub mod ipv4 {
    pub const VERSION_IHL: usize = 0;
    pub const TOTAL_LENGTH: usize = 2;
    pub const FRAGMENT: usize = 6;
    pub const TTL: usize = 8;
    pub const PROTOCOL: usize = 9;
    pub const CHECKSUM: usize = 10;
    /// Source and destination, eight bytes.
    pub const ADDRESSES: usize = 12;
    /// "Don't fragment" in the fragment word, as it stands in the packet.
    pub const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
    /// "More fragments" and the offset, as they stand in the packet.
    pub const FRAGMENTED: u16 = 0x3fff_u16.to_be();
    /// The offset alone, as it stands in the packet.
    pub const OFFSET: u16 = 0x1fff_u16.to_be();
}

/// Offsets in an IPv6 header (RFC 8200, section 3).
pub mod ipv6 {
    pub const PAYLOAD_LENGTH: usize = 4;
    pub const NEXT_HEADER: usize = 6;
    pub const HOP_LIMIT: usize = 7;
    pub const SOURCE: usize = 8;
    pub const DESTINATION: usize = 24;
    /// "More fragments" and the offset in a fragment header's second word, as they stand in the packet.
    pub const FRAGMENTED: u16 = 0xfff9_u16.to_be();
}

/// Offsets in a TCP header (RFC 9293, section 3.1).
pub mod tcp {
    /// Kinds of options: no operation, and timestamps (RFC 7323) with their length.
    pub const NOTHING: u8 = 1;
    pub const TIMESTAMPS: (u8, u8) = (8, 10);
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGEMENT: usize = 8;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const CHECKSUM: usize = 16;
}

/// Offsets in a UDP header (RFC 768).
pub mod udp {
    pub const LENGTH: usize = 4;
    pub const CHECKSUM: usize = 6;
}
