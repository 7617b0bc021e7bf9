//! End to end: real clients and servers in network namespaces, the real `lb`. They run beside each other.

mod announce;
mod nat;
mod network;
