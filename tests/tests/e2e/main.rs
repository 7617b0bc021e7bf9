//! End to end: real clients and servers in network namespaces, the real `lb`. They run beside each other.

mod announce;
mod changes;
mod config;
mod described;
mod dnat;
mod down;
mod dsr;
mod ending;
mod errors;
mod health;
mod ipv6;
mod life;
mod log;
mod network;
mod output;
mod registries;
mod shapes;
mod topology;
mod traffic;
mod tunnels;
