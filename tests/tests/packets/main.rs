//! Packet tests: frames through the real program by `BPF_PROG_TEST_RUN`, each named by the rule that it shows.

mod direct_icmp;
mod dnat;
mod dsr;
mod icmp;
mod moves;
mod nat;
mod nat6;
mod reuse;
mod schedulers;
mod tunnels;
