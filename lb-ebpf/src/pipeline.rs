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

/// What the first steps found.
pub enum Known {
    /// What became of the packet.
    Done(Reason),
    /// It has no flow yet; it is parked.
    Not,
    /// It is ICMP, whose header stands here: a matter with a stack of its own.
    Icmp(usize),
}

#[inline(always)]
fn steps<F: Path>(ctx: &XdpContext) -> Reason {
    match F::known(ctx) {
        Known::Done(reason) => return reason,
        // Its steps share no stack either.
        Known::Icmp(at) => {
            return match F::receive(ctx, at) {
                Reason::IcmpPassed => F::about(ctx, at),
                reason => reason,
            };
        }
        Known::Not => {}
    }
    let Some(packet) = F::MAPS.parked.get_ptr(0) else { return Reason::HelperFailed };
    // SAFETY: this CPU's own element, which `known` has just written.
    if let Some(reason) = F::begin(ctx, unsafe { &*packet }) {
        return reason;
    }
    if let Known::Done(reason) = F::known(ctx) { reason } else { Reason::Contended }
}

/// All steps of a packet of a known flow.
#[inline(always)]
pub fn known<F: Path>(ctx: &XdpContext) -> Known {
    let packet = match parse::<F>(ctx) {
        Parsed::Flow(packet) => packet,
        Parsed::Icmp(at) => return Known::Icmp(at),
        Parsed::Done(reason) => return Known::Done(reason),
    };
    if let Some(mut found) = Found::new(&packet.tuple) {
        match life::step(ctx, &packet, &mut found) {
            Life::Goes => return Known::Done(forward::forward(ctx, &packet, found)),
            Life::Over => {}
            Life::Done(reason) => return Known::Done(reason),
        }
    }
    if let Some(parked) = F::MAPS.parked.get_ptr_mut(0) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { *parked = packet };
    }
    Known::Not
}
