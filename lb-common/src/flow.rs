//! A flow: one connection's record, the index that finds it, and its life.
//!
//! One record holds both directions of a connection. It stands in an array (`flows4`, `flows6`); two entries of the
//! *flow index* lead to it, one by what the client sends, one by what the backend sends (`nat` and `dnat` only).
//! Everything that a packet of a known flow needs, apart from the backend's next hop, is in the record's first line
//! (IPv6: two lines).
//!
//! **Who writes.** Only the data path makes and reclaims records: it takes a record by moving [`Head::seq`] from even
//! to odd with a compare-and-swap, writes, and makes it even again. A reader that sees an odd or a changed `seq` has
//! read nothing. User space only sets [`state::RESET`] and reads.

use core::mem::MaybeUninit;

use crate::{
    Be16, clock,
    family::{Family, V4, V6},
    hash::Seeded,
};

/// A flow's transport addresses as one direction's packets carry them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Tuple<F: Family> {
    /// Source address.
    pub source: F::Address,
    /// Destination address.
    pub destination: F::Address,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// IP protocol number (6 or 17).
    pub protocol: u8,
    /// Zero; two numbers, because the compiler clears three bytes by a call.
    pub pad: u8,
    /// Zero.
    pub pad2: u16,
}

/// Over IPv4.
pub type Tuple4 = Tuple<V4>;
/// Over IPv6.
pub type Tuple6 = Tuple<V6>;

impl<F: Family> Tuple<F> {
    /// A tuple from a packet's words: `ports` are both, source first, as they stand there.
    ///
    /// Ports and protocol are written as one word: whoever reads the tuple next reads it as one, and a CPU does not
    /// forward several narrow stores to a wider load.
    #[inline(always)]
    #[must_use]
    pub fn of_packet(source: F::Address, destination: F::Address, ports: u32, protocol: u8) -> Self {
        #[repr(C, align(8))]
        struct Words<F: Family> {
            source: F::Address,
            destination: F::Address,
            rest: u64,
        }
        const { assert!(size_of::<Words<F>>() == size_of::<Self>() && cfg!(target_endian = "little")) };
        let words = Words::<F> { source, destination, rest: u64::from(ports) | u64::from(protocol) << 32 };
        // SAFETY: both are `repr(C)` of the same size (asserted), without padding, and valid for every bit pattern.
        unsafe { core::mem::transmute_copy(&words) }
    }

    /// Ports and protocol as one word.
    #[inline(always)]
    #[must_use]
    pub const fn rest(&self) -> u64 {
        self.source_port.0 as u64 | (self.destination_port.0 as u64) << 16 | (self.protocol as u64) << 32
    }

    /// The tuple's hash in the flow index.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, seed: Seeded) -> u64 {
        F::hash_tuple(seed, self.source, self.destination, self.rest())
    }

    /// Whether both are the same; without looking at the padding.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.rest() == other.rest()
            && F::same(self.source, other.source)
            && F::same(self.destination, other.destination)
    }

    /// The unfolded sum of the addresses' 16-bit words.
    #[inline(always)]
    #[must_use]
    pub fn address_sum(&self) -> u32 {
        F::sum(self.source) + F::sum(self.destination)
    }

    /// The unfolded sum of the ports.
    #[inline(always)]
    #[must_use]
    pub const fn port_sum(&self) -> u32 {
        self.source_port.0 as u32 + self.destination_port.0 as u32
    }

    /// The tuple of packets in the opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            pad: 0,
            pad2: 0,
        }
    }

    /// Copies another one into this. Word by word: the compiler would call a function that copies byte by byte.
    #[inline(always)]
    pub fn copy(&mut self, other: &Self) {
        let (from, to) = (core::ptr::from_ref(other).cast::<u64>(), core::ptr::from_mut(self).cast::<u64>());
        let mut word = 0;
        while word < size_of::<Self>() / 8 {
            // SAFETY: both are aligned to eight bytes, and a whole number of words long.
            unsafe { to.add(word).write_volatile(from.add(word).read()) };
            word += 1;
        }
    }

    /// Makes a tuple of zeros in a place of the caller's; word by word, too.
    #[inline(always)]
    pub fn zero(place: &mut MaybeUninit<Self>) -> &mut Self {
        let to = place.as_mut_ptr().cast::<u64>();
        let mut word = 0;
        while word < size_of::<Self>() / 8 {
            // SAFETY: as in `copy`.
            unsafe { to.add(word).write_volatile(0) };
            word += 1;
        }
        // SAFETY: every byte was written, and zeros are valid.
        unsafe { place.assume_init_mut() }
    }
}

/// What a record says besides its addresses; 32 bytes, the rest of an IPv4 record's first line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Head {
    /// Sequence: even = stable, odd = being written. It grows by two with every new flow in this record.
    pub seq: u32,
    /// Identity of the flow's backend: an index into `backends`; 0 is nobody.
    pub backend: u32,
    /// What translating a client's packet adds to the sum of its IP addresses ([`crate::checksum`]).
    pub address_delta: u16,
    /// The same for addresses and ports together: the delta of the transport checksum.
    pub transport_delta: u16,
    /// [`crate::maps::mode`].
    pub mode: u8,
    /// [`state`].
    pub state: u8,
    /// [`flag`].
    pub flags: u16,
    /// Tick of the client's latest packet.
    pub seen_client: u32,
    /// Tick of the backend's latest packet; the tick of creation until there is one.
    pub seen_backend: u32,
    /// Tick of creation.
    pub created: u32,
    /// Identity of the flow's service: an index into `services`.
    pub service: u32,
}

/// What a record says that most packets only read, or count; 64 bytes, the second line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Tail {
    /// Destination and source MAC of the client's latest packet, as received.
    pub ethernet: [u8; 12],
    /// Interface of the client's latest packet.
    pub ifindex: u32,
    /// VLAN tags (TCI, network order) of the client's latest packet, outer first; 0xffff each = none.
    pub vlan: [Be16; 2],
    /// Index entry of the client's direction: 16 times the bucket plus the position in it, or [`NO_SLOT`].
    pub slot_client: u32,
    /// Index entry of the backend's direction, or [`NO_SLOT`].
    pub slot_backend: u32,
    /// Outer UDP source port (`gue`) or outer IPv6 flow label.
    pub entropy: u32,
    /// Packets from the client.
    pub packets_in: u64,
    /// Packets from the backend.
    pub packets_out: u64,
    /// Identity of the backend whose live flows this one is counted among (the map `live`); 0 = of nobody's.
    pub counted: u32,
    /// With [`flag::RESTS`]: the sequence number behind the client's FIN (host order).
    pub rest_sequence: u32,
    /// With [`flag::RESTS`] and [`flag::STAMPED`]: the timestamp of the client's FIN (host order, RFC 7323).
    pub rest_timestamp: u32,
    /// Zero.
    pub pad: [u8; 4],
}

/// "No index entry", in [`Tail::slot_client`] and [`Tail::slot_backend`].
pub const NO_SLOT: u32 = u32::MAX;

/// A connection; two cache lines over IPv4, three over IPv6.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Flow<F: Family> {
    /// As the client's packets carry it: source = client, destination = VIP.
    pub client: Tuple<F>,
    /// As the backend's packets carry it: source = backend, destination = the address and port that lb uses (`nat`),
    /// or the client (`dnat`). Tunnels: source = backend, destination = outer source.
    pub backend: Tuple<F>,
    /// What most packets need besides.
    pub head: Head,
    /// Zero.
    pub pad: F::Pad,
    /// The last line.
    pub tail: Tail,
}

/// Over IPv4.
pub type Flow4 = Flow<V4>;
/// Over IPv6.
pub type Flow6 = Flow<V6>;

const _: () = assert!(size_of::<Tuple4>() == 16 && size_of::<Tuple6>() == 40 && size_of::<Head>() == 32);
const _: () = assert!(size_of::<Tail>() == 64 && size_of::<Flow4>() == 128 && size_of::<Flow6>() == 192);

/// Entries of one bucket of the flow index; the bucket's last word is [`OVERFLOWED`] or 0.
pub const BUCKET_ENTRIES: u32 = 15;

/// A bucket of the flow index: one cache line of entries (see [`entry`]) and the overflow mark.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Bucket {
    /// [`BUCKET_ENTRIES`] entries; 0 = empty. The last word: [`OVERFLOWED`] once an entry had to go to the second bucket.
    pub words: [u32; 16],
}

/// Value of a bucket's last word when a lookup that misses must go on in the second bucket.
pub const OVERFLOWED: u32 = 1;

/// Entries of the flow index: tag (9 bits), direction (1 bit), record + 1 (22 bits).
pub mod entry {
    /// Records that an entry can name.
    pub const MAX_RECORDS: u32 = (1 << 22) - 1;
    /// The direction bit: set in entries for packets from backends.
    pub const FROM_BACKEND: u32 = 1 << 22;
    /// Where the tag starts.
    pub const TAG_SHIFT: u32 = 23;

    /// Makes an entry; `record` is below [`MAX_RECORDS`].
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, direction: u32, record: u32) -> u32 {
        tag(hash) << TAG_SHIFT | direction | (record + 1)
    }

    /// The tag of a hash.
    #[inline(always)]
    #[must_use]
    pub const fn tag(hash: u64) -> u32 {
        (hash >> 55) as u32
    }

    /// The record that an entry names.
    #[inline(always)]
    #[must_use]
    pub const fn record(entry: u32) -> u32 {
        (entry & (FROM_BACKEND - 1)).wrapping_sub(1)
    }

    /// First and second bucket of a hash; `mask` is the number of buckets (a power of two) less one.
    #[inline(always)]
    #[must_use]
    pub const fn buckets(hash: u64, mask: u32) -> (u32, u32) {
        let first = hash as u32 & mask;
        (first, (first ^ ((tag(hash) << 1 | 1).wrapping_mul(0x5bd1_e995))) & mask)
    }
}

/// Bits of [`Head::flags`].
pub mod flag {
    /// The client's packets renew its affinity.
    pub const AFFINITY: u16 = 1;
    /// Closed, and by the backend first: there the connection rests in TIME_WAIT.
    pub const RESTS: u16 = 2;
    /// The client's FIN had a timestamp.
    pub const STAMPED: u16 = 4;
}

/// States of a flow ([`Head::state`]).
pub mod state {
    /// Never used, or tidied up.
    pub const FREE: u8 = 0;
    /// TCP: the client's SYN is forwarded.
    pub const SYN: u8 = 1;
    /// TCP: the backend answered with SYN and ACK.
    pub const SYN_ACK: u8 = 2;
    /// TCP: the client acknowledged.
    pub const ESTABLISHED: u8 = 3;
    /// TCP: the client has sent FIN.
    pub const FIN_CLIENT: u8 = 4;
    /// TCP: the backend has sent FIN.
    pub const FIN_BACKEND: u8 = 5;
    /// TCP: both FINs or a RST were seen.
    pub const CLOSED: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 7;
    /// The client's next packet is answered with RST and the flow is then [`CLOSED`]; set by user space.
    pub const RESET: u8 = 8;

    /// The state's word in `lb conn list` and its `--state` filter.
    #[must_use]
    pub const fn name(state: u8) -> &'static str {
        match state {
            FREE => "free",
            SYN => "syn",
            SYN_ACK => "syn-ack",
            ESTABLISHED => "established",
            FIN_CLIENT => "fin-client",
            FIN_BACKEND => "fin-backend",
            CLOSED => "closed",
            UDP => "udp",
            RESET => "reset",
            _ => "unknown",
        }
    }
}

/// TCP flag bits as they stand in the header's 14th byte (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// The state after a TCP segment with `flags` from the client (`from_backend` false) or the backend.
///
/// `direct_return` says that the backend's segments do not come by: then the client's first segment after its SYN
/// makes the flow established.
#[inline(always)]
#[must_use]
pub const fn next_state(now: u8, flags: u8, from_backend: bool, direct_return: bool) -> u8 {
    if now == state::CLOSED || now == state::RESET {
        return now;
    }
    if flags & tcp::RST != 0 {
        return state::CLOSED;
    }
    if flags & tcp::FIN != 0 {
        return match (now, from_backend) {
            (state::FIN_CLIENT, true) | (state::FIN_BACKEND, false) => state::CLOSED,
            (_, true) => state::FIN_BACKEND,
            (_, false) => state::FIN_CLIENT,
        };
    }
    match (now, from_backend) {
        (state::SYN, true) if flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK => state::SYN_ACK,
        (state::SYN, false) if direct_return && flags & tcp::SYN == 0 => state::ESTABLISHED,
        (state::SYN_ACK, false) if flags & tcp::SYN == 0 => state::ESTABLISHED,
        _ => now,
    }
}

/// Idle timeouts of a backend's flows, in ticks ([`clock`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Idle {
    /// TCP before the handshake is complete.
    pub syn: u32,
    /// TCP established (RFC 5382: at least 2 h 4 min).
    pub established: u32,
    /// TCP after one FIN.
    pub half_closed: u32,
    /// TCP after both FINs or a RST; reclaimable at once all the same.
    pub closed: u32,
    /// UDP (RFC 4787: at least 2 min).
    pub udp: u32,
}

impl Idle {
    /// The timeout of a state; 0 for a record that is free.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, state: u8) -> u32 {
        match state {
            state::SYN | state::SYN_ACK => self.syn,
            state::ESTABLISHED => self.established,
            state::FIN_CLIENT | state::FIN_BACKEND => self.half_closed,
            state::CLOSED | state::RESET => self.closed,
            state::UDP => self.udp,
            _ => 0,
        }
    }
}

/// What a SYN says that a connection in TIME_WAIT judges it by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Opening {
    /// Its sequence number (host order).
    pub sequence: u32,
    /// Its timestamp (host order, RFC 7323), if `stamped` is not 0.
    pub timestamp: u32,
    /// Whether it has a timestamp.
    pub stamped: u32,
}

impl Opening {
    /// Whether a connection that rests in TIME_WAIT gives way to this SYN (RFC 6191; RFC 9293, section 3.10.7.4): its
    /// sequence number is beyond the old connection's and its timestamp is not older. Linux would be content with a newer
    /// timestamp alone, others look at the sequence number alone.
    #[inline(always)]
    #[must_use]
    pub const fn supersedes(&self, flags: u16, tail: &Tail) -> bool {
        let beyond = self.sequence.wrapping_sub(tail.rest_sequence) as i32 > 0;
        let both = self.stamped != 0 && flags & flag::STAMPED != 0;
        beyond && !(both && (self.timestamp.wrapping_sub(tail.rest_timestamp) as i32) < 0)
    }
}

impl Head {
    /// Ticks since either side was heard of.
    #[inline(always)]
    #[must_use]
    pub const fn idle(&self, now: u32) -> u32 {
        let (client, backend) = (clock::since(now, self.seen_client), clock::since(now, self.seen_backend));
        if client < backend { client } else { backend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Be32;

    fn run(segments: &[(u8, bool)]) -> u8 {
        segments.iter().fold(state::SYN, |now, (flags, from_backend)| next_state(now, *flags, *from_backend, false))
    }

    #[test]
    fn a_connection_is_established_by_the_clients_ack() {
        assert_eq!(run(&[(tcp::SYN | tcp::ACK, true)]), state::SYN_ACK);
        assert_eq!(run(&[(tcp::SYN | tcp::ACK, true), (tcp::ACK, false)]), state::ESTABLISHED);
        assert_eq!(run(&[(tcp::ACK, false)]), state::SYN, "an ACK alone proves nothing where replies are seen");
        assert_eq!(next_state(state::SYN, tcp::ACK, false, true), state::ESTABLISHED);
    }

    #[test]
    fn both_fins_or_one_rst_close() {
        let open = [(tcp::SYN | tcp::ACK, true), (tcp::ACK, false)];
        let close = |rest: &[(u8, bool)]| run(&[&open[..], rest].concat());
        assert_eq!(close(&[(tcp::FIN | tcp::ACK, false)]), state::FIN_CLIENT);
        assert_eq!(close(&[(tcp::FIN | tcp::ACK, true)]), state::FIN_BACKEND);
        assert_eq!(close(&[(tcp::FIN | tcp::ACK, true), (tcp::FIN | tcp::ACK, true)]), state::FIN_BACKEND);
        assert_eq!(close(&[(tcp::FIN | tcp::ACK, false), (tcp::FIN | tcp::ACK, true)]), state::CLOSED);
        assert_eq!(close(&[(tcp::RST, true)]), state::CLOSED);
        assert_eq!(close(&[(tcp::RST, true), (tcp::ACK, false)]), state::CLOSED);
        assert_eq!(close(&[(tcp::RST, false)]), state::CLOSED);
        assert_eq!(run(&[(tcp::RST, false)]), state::CLOSED);
        assert_eq!(run(&[(tcp::RST, true)]), state::CLOSED);
    }

    #[test]
    fn a_connection_in_time_wait_gives_way_to_what_is_newer() {
        let tail = Tail { rest_sequence: 0xffff_fff0, rest_timestamp: 0xffff_ff00, ..Tail::default() };
        let syn = |sequence, timestamp| Opening { sequence, timestamp, stamped: 1 };
        let stamped = flag::RESTS | flag::STAMPED;
        assert!(syn(5, 5).supersedes(stamped, &tail), "both go round at 2^32");
        assert!(syn(5, 0xffff_ff00).supersedes(stamped, &tail), "as old is not older");
        assert!(!syn(5, 0xffff_feff).supersedes(stamped, &tail), "an older timestamp");
        assert!(!syn(0xffff_fff0, 5).supersedes(stamped, &tail), "not beyond");
        assert!(!syn(0xffff_ff00, 5).supersedes(stamped, &tail), "an older sequence number");
        assert!(syn(5, 0xffff_feff).supersedes(flag::RESTS, &tail), "timestamps count where both have one");
        assert!(Opening { sequence: 5, ..Opening::default() }.supersedes(stamped, &tail));
    }

    #[test]
    fn a_syn_retransmission_changes_nothing() {
        assert_eq!(next_state(state::SYN, tcp::SYN, false, false), state::SYN);
        assert_eq!(next_state(state::SYN_ACK, tcp::SYN, false, false), state::SYN_ACK);
        assert_eq!(next_state(state::ESTABLISHED, tcp::SYN, false, false), state::ESTABLISHED);
    }

    #[test]
    fn entries_give_back_what_was_put_in() {
        for record in [0, 1, 77, entry::MAX_RECORDS - 1] {
            for direction in [0, entry::FROM_BACKEND] {
                let e = entry::new(0xabcd_ef01_2345_6789, direction, record);
                assert_ne!(e, 0);
                assert_eq!(entry::record(e), record);
                assert_eq!(e & entry::FROM_BACKEND, direction);
                assert_eq!(e >> entry::TAG_SHIFT, entry::tag(0xabcd_ef01_2345_6789));
            }
        }
    }

    #[test]
    fn a_tuple_and_its_opposite_are_told_apart() {
        let t: Tuple4 = Tuple {
            source: Be32::new(0x0a00_0001),
            destination: Be32::new(0x0a00_0002),
            source_port: Be16::new(1),
            destination_port: Be16::new(2),
            protocol: 6,
            pad: 0,
            pad2: 0,
        };
        assert_ne!(t.hash(Seeded(1)), t.reversed().hash(Seeded(1)));
        assert!(t.is(&t) && !t.is(&t.reversed()));
        assert_eq!(t, t.reversed().reversed());
    }
}
