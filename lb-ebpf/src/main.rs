//! lb's data path: a packet's life.
//!
//! ```text
//!  driver -> lb() -> pipeline::fast
//!                      parse      is it for a VIP, or a reply to one of our NAT addresses?   no: pass, untouched
//!                      table      is its flow known?                                         no: park it, lb_slow()
//!                      life       does the flow go on?                                       no: park it, lb_slow()
//!                      forward    rewrite, next hop, out; direct: as it is, or wrapped
//!            lb_slow() -> pipeline::slow
//!                      icmp       echo; an error that quotes a flow
//!                      service    which service is it for, and may it begin a flow?          no: reject or pass
//!                      select     which backend does affinity, or the scheduler, say?
//!                      create     a NAT port, a record, two index entries
//!                      forward    as above
//!  -> leave: one verdict, one reason, counted once
//! ```
//!
//! The fast path makes no calls for packets of flows that go on (but one in the tunnels' modes): on many CPUs each return
//! costs as much as four reads of an array, since it must not be predicted (docs/design/flow-table.md).
//!
//! Every step is written once, generic over the address family; [`path`] says what differs, [`ipv4`] and [`ipv6`] how,
//! and [`once`] what the verifier need not walk through again for every caller.
//! [`maps`] has every map in one place; [`helpers`] every raw kernel call; [`atomic`] the one instruction that Rust
//! lacks on this target. The contract with user space (layouts, states, reasons) is the crate `lb_common`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unstable_features,
        reason = "inline assembly for this target: compare-and-swap, and what the verifier must not lose"
    ),
    feature(asm_experimental_arch)
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(missing_docs, reason = "the macro makes a second function and leaves it bare")
)]

mod answer;
mod atomic;
mod create;
mod direct;
mod forward;
mod helpers;
mod icmp;
mod ipv4;
mod ipv6;
mod life;
mod live;
mod log;
mod maps;
mod object;
mod once;
mod packet;
mod parse;
mod path;
mod pipeline;
mod ports;
mod quoted;
mod records;
mod rest;
mod select;
mod service;
mod table;
mod time;
mod tunnel;
mod words;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    maps::interface_flag,
    reason::{Reason, Verdict},
};

/// The balancer: the fast path. Its name is how the control plane and tests find it.
#[xdp(frags)]
pub fn lb(ctx: XdpContext) -> u32 {
    if let Some(reason) = pipeline::fast(&ctx) {
        return leave(&ctx, reason);
    }
    // SAFETY: the map holds the program below.
    unsafe { maps::slow_path.tail_call(&ctx, 0) };
    // The map is empty: its pin is gone, and the program's link will be.
    leave(&ctx, Reason::NoSlowPath)
}

/// Packets that the fast path has parked: of no known flow, and ICMP. A program of its own, for the sake of its stack:
/// both paths together would need more than there is.
#[xdp(frags)]
pub fn lb_slow(ctx: XdpContext) -> u32 {
    leave(&ctx, pipeline::slow(&ctx))
}

/// Counts the packet, and sends it on its way.
#[inline(always)]
fn leave(ctx: &XdpContext, reason: Reason) -> u32 {
    maps::count(reason);
    log::packet(ctx, reason);
    match reason.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Tx => back(ctx),
        Verdict::Redirect => xdp_action::XDP_REDIRECT,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Aborted => xdp_action::XDP_ABORTED,
    }
}

/// Out of the interface it came from. A veth in native mode takes `XDP_TX` only when its peer runs an XDP program; a
/// redirect to the interface itself asks less of it.
#[inline(always)]
fn back(ctx: &XdpContext) -> u32 {
    let ingress = ctx.ingress_ifindex() as u32;
    if maps::interface(ingress).is_some_and(|interface| interface.flags & interface_flag::REDIRECT != 0) {
        helpers::redirect(ingress);
        return xdp_action::XDP_REDIRECT;
    }
    xdp_action::XDP_TX
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
