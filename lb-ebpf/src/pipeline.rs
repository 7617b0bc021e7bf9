//! The steps of a packet's life, in order.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    family::{V4, V6},
    reason::Reason,
};

use crate::{
    forward,
    life::{self, Life},
    packet::{ETHERNET, Frame},
    parse::{Parsed, parse},
    path::Path,
    table::Found,
};

/// Takes a frame through all steps and says what became of it.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Reason {
    let Some(ethernet) = Frame::of(ctx).at(0, ETHERNET) else { return Reason::NotOurs };
    let kind = ethernet.load::<u16>(12);
    if kind == V4::TYPE {
        return steps::<V4>(ctx);
    }
    if kind == V6::TYPE { steps::<V6>(ctx) } else { Reason::NotOurs }
}

#[inline(always)]
fn steps<F: Path>(ctx: &XdpContext) -> Reason {
    if let Some(reason) = F::known(ctx) {
        return reason;
    }
    let Some(packet) = F::MAPS.parked.get_ptr(0) else { return Reason::HelperFailed };
    // SAFETY: this CPU's own element, which `known` has just written.
    match F::begin(ctx, unsafe { &*packet }) {
        Some(reason) => reason,
        None => F::known(ctx).unwrap_or(Reason::Contended),
    }
}

/// Everything but a new flow: `None` if the packet has no flow yet. It is parked then.
#[inline(always)]
pub fn known<F: Path>(ctx: &XdpContext) -> Option<Reason> {
    let packet = match parse::<F>(ctx) {
        Parsed::Flow(packet) => packet,
        Parsed::Icmp(at) => return Some(F::receive(ctx, at)),
        Parsed::Done(reason) => return Some(reason),
    };
    if let Some(mut found) = Found::new(&packet.tuple) {
        match life::step(ctx, &packet, &mut found) {
            Life::Goes => return Some(forward::forward(ctx, &packet, found)),
            Life::Over => {}
            Life::Done(reason) => return Some(reason),
        }
    }
    if let Some(parked) = F::MAPS.parked.get_ptr_mut(0) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { *parked = packet };
    }
    None
}
