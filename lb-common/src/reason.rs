//! Every verdict of the data path with its reason: each packet is counted under exactly one.

/// What the data path tells the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the host's network stack, untouched.
    Pass,
    /// Back out of the interface it came from.
    Tx,
    /// Out of another interface.
    Redirect,
    /// Thrown away.
    Drop,
    /// The program failed.
    Aborted,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $verdict:ident, $text:literal, $help:literal;)*) => {
        /// Why a packet got its verdict. The numbers are indices of the map `reasons`: append, never renumber.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason of a number.
            #[inline(always)]
            #[must_use]
            pub const fn from_number(number: u32) -> Self {
                if number < Self::ALL.len() as u32 {
                    // SAFETY: the numbers are dense (there is a test), and this one is below how many there are.
                    unsafe { core::mem::transmute::<u32, Self>(number) }
                } else {
                    Self::HelperFailed
                }
            }

            /// What it comes down to.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)* }
            }

            /// Its name in counters, metrics and `lb drops`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// A sentence that says what it means and what to do about it.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }
        }
    };
}

reasons! {
    /// Rule 1.
    ForwardedTx = 0, Tx, "forwarded-tx", "Forwarded out of the interface it came from.";
    /// Rule 1.
    ForwardedRedirect = 1, Redirect, "forwarded-redirect", "Forwarded out of another attached interface.";
    /// Invariant 1.
    NotOurs = 2, Pass, "not-ours", "For no VIP and of no flow: left to the host.";
    /// Rule 36.
    OtherMac = 3, Pass, "other-mac", "The frame's destination MAC is not this interface's (flooded, broadcast, multicast): left to the host.";
    /// Rule 25.
    NoService = 4, Pass, "no-service", "For a VIP's address but a port without a service: left to the host.";
    /// Rule 27.
    Fragment = 5, Pass, "fragment", "A fragment to a VIP that no known first fragment explains: left to the host to put together.";
    /// Rule 22.
    IcmpPassed = 6, Pass, "icmp-passed", "ICMP that quotes no flow: left to the host.";
    /// Rule 19.
    EchoReply = 7, Tx, "echo-reply", "An echo request to a VIP was answered.";
    /// Rule 24.
    RejectTcp = 8, Tx, "reject-tcp", "No usable backend: the SYN was answered with RST. See `lb health`.";
    /// Rule 24.
    RejectUdp = 9, Tx, "reject-udp", "No usable backend: answered with port unreachable. See `lb health`.";
    /// Rule 24.
    NoBackend = 10, Drop, "no-backend", "No usable backend and on-empty is drop, or the answer was over its rate limit. See `lb health`.";
    /// Rule 37.
    Unchecked = 11, Drop, "unchecked", "No backend has been checked yet: the client's next try will find one. See `lb health`.";
    /// Rule 12.
    NoFlow = 12, Tx, "no-flow", "A TCP segment of no known connection was answered with RST: it idled out, or began before lb did.";
    /// Rule 13.
    StrayRst = 13, Drop, "stray-rst", "A RST of no known connection.";
    /// Rule 2.
    PortsExhausted = 14, Tx, "ports-exhausted", "Every NAT port towards the backend carries an established flow: the SYN was answered with RST. Add addresses with --snat, or widen --snat-ports.";
    /// Rule 2.
    PortsExhaustedUdp = 15, Drop, "ports-exhausted-udp", "Every NAT port towards the backend carries a live flow. Add addresses with --snat, or widen --snat-ports.";
    /// Rule 16.
    TableFull = 16, Drop, "table-full", "The flow table is full of live flows: raise --max-flows.";
    /// Rule 14.
    ResetDown = 17, Tx, "reset-down", "A flow's backend is down, in maintenance or removed by force: the client got RST.";
    /// `lb conn flush`.
    ResetFlushed = 18, Tx, "reset-flushed", "A flow that an operator flushed: the client got RST.";
    /// Rule 7.
    TtlExceeded = 19, Tx, "ttl-exceeded", "The packet's TTL ran out here: answered with time exceeded. A routing loop?";
    /// Rule 23.
    TooBig = 20, Tx, "too-big", "Longer than the way to the other side allows, with DF set: answered with fragmentation needed.";
    /// Rule 23.
    TooBigDropped = 21, Drop, "too-big-dropped", "Longer than the way to the other side allows, with DF clear, or the answer was over its rate limit. Give both interfaces the same MTU.";
    /// Invariant 1 of the architecture.
    NextHopUnknown = 22, Drop, "next-hop-unknown", "The backend's neighbour has no MAC address yet: is it on the network? See `lb status` and `ip neigh`.";
    /// Rule 29.
    Truncated = 23, Drop, "truncated", "The frame is shorter than its headers claim.";
    /// Rule 29.
    Malformed = 24, Drop, "malformed", "A header contradicts itself (length, data offset, port 0).";
    /// The table changed at that very moment.
    Contended = 25, Drop, "contended", "Two CPUs made the same flow at once; the client's next try will pass.";
    /// Rule 14.
    Abandoned = 26, Drop, "abandoned", "A segment from a client of a backend that is gone, which must not be answered (a RST).";
    /// Rule 20.
    IcmpForwarded = 27, Tx, "icmp-forwarded", "An ICMP error that quotes a flow was translated and forwarded.";
    /// Rule 20.
    IcmpRedirected = 28, Redirect, "icmp-redirected", "An ICMP error that quotes a flow was translated and forwarded out of another interface.";
    /// A kernel helper failed.
    HelperFailed = 29, Drop, "helper-failed", "A kernel helper refused to change the packet (no head room?).";
    /// Rule 31.
    OtherProtocol = 30, Pass, "other-protocol", "For a VIP's address, but neither TCP, UDP nor ICMP: left to the host.";
    /// Rule 7.
    TtlDropped = 31, Drop, "ttl-dropped", "The packet's TTL ran out here, and the answer was over its rate limit.";
    /// Rule 28.
    HeaderChain = 32, Drop, "header-chain", "More than eight IPv6 extension headers in front of the transport header, to a VIP that the host does not own.";
    /// Rule 3.
    TupleTaken = 33, Drop, "tuple-taken", "Mode dnat: the client already talks from this port to the same server, by another VIP or past lb's knowledge, and the server's answers could not be told apart.";
    /// Invariant 1.
    NoSlowPath = 34, Pass, "no-slow-path", "The data plane is just being removed: what is not of a known flow is left to the host.";
}

/// Elements of the map `reasons`.
pub const REASONS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::from_number(i as u32), *reason);
            assert!(!reason.help().is_empty());
            assert_eq!(Reason::ALL.iter().filter(|r| r.name() == reason.name()).count(), 1, "{reason:?}");
        }
        assert!(Reason::ALL.len() < REASONS as usize);
    }
}
