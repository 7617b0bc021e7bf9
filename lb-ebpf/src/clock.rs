//! Reads the kernel's two coarse clocks at once, so that the control plane can tell the data path how to make the one
//! out of the other (`lb_common::clock`). Run once, before the data path is loaded.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(non_upper_case_globals, reason = "a map's name is its symbol's")]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(missing_docs, reason = "the macro makes a second function and leaves it bare")
)]

mod object;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated as raw,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};

/// Jiffies, and nanoseconds of `CLOCK_MONOTONIC_COARSE`.
#[map]
static readings: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Reads both clocks.
#[xdp]
pub fn clock(_: XdpContext) -> u32 {
    let Some(reading) = readings.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: no arguments; nobody else runs this program on this map.
    unsafe { *reading = [raw::bpf_jiffies64(), raw::bpf_ktime_get_coarse_ns()] };
    xdp_action::XDP_PASS
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
