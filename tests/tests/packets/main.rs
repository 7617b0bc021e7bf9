//! Packet tests: frames through the real program by `BPF_PROG_TEST_RUN`, each named by the rule that it shows.

mod dsr;
mod nat;
mod reuse;
mod schedulers;
mod tunnels;
