//! What lb's tests share.
//!
//! * [`e2e`]: a lab of network namespaces with the real `lb` in it
//! * [`packet`]: packets as a client, a backend or a router would send them, and what is read off an answer; made and
//!   checked by a library that shares no code with lb
//! * [`packet6`]: the same over IPv6
//! * [`registry`]: Consul, etcd and dnsmasq, real ones, and a stand-in for where there is no Consul
//! * [`scenarios`]: what `cargo xtask example` shows
//! * [`whole`]: packets of the direct-return modes, wrapped and unwrapped
//! * [`world`]: the real program and maps, a desired state compiled by the real control plane, and packets through
//!   `BPF_PROG_TEST_RUN`

pub mod e2e;
pub mod packet;
pub mod packet6;
pub mod registry;
pub mod scenarios;
pub mod whole;
pub mod world;
