//! The contract between lb's kernel program and its control plane, and the pure algorithms that both sides share.
//!
//! * [`maps`]: every map's name, key and value, and the limits they are made with
//! * [`flow`]: a connection's record, the index that finds it, and its life (states and timeouts)
//! * [`family`]: what differs between IPv4 and IPv6
//! * [`reason`]: every verdict of the data path with its reason
//! * [`checksum`]: incremental Internet checksums (RFC 1624)
//! * [`hash`]: the seeded hash of the flow index and the fixed hash of the schedulers
//! * [`outer`]: outer headers of tunnels
//! * [`clock`]: the coarse clock in which records note times
//!
//! Nothing here allocates, panics or depends on an operating system. Values in maps are `#[repr(C)]` with explicit
//! padding and asserted sizes; fields in network byte order have the types [`Be16`] and [`Be32`].
#![no_std]

#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod clock;
pub mod family;
pub mod flow;
pub mod hash;
pub mod maps;
pub mod outer;
pub mod reason;

/// Version of the layout of all pinned maps. It is part of the pin path (`<bpffs>/v<LAYOUT_VERSION>/`), so that a
/// program never meets maps of another layout. Raise it with every change to [`maps`] or [`flow`], or to what
/// the data path parks for its slow path (`Packet` in lb-ebpf/src/parse.rs).
pub const LAYOUT_VERSION: u32 = 5;

/// A 16-bit number in network byte order, as it stands in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Be16(pub u16);

impl Be16 {
    /// From a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A 32-bit number in network byte order, as it stands in a packet (an IPv4 address, mostly).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Be32(pub u32);

impl Be32 {
    /// From a number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// The number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }
}
