//! The steps of a packet's life, in order.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    family::{V4, V6},
    flow::state,
    reason::Reason,
};

use crate::{
    forward,
    life::{self, Life},
    packet::{ETHERNET, Frame},
    parse::{Packet, Parsed, parse},
    path::Path,
    table::{self, Found},
};

/// Takes a frame through the first steps, which are all that packets of known flows need, and says what became of it;
/// `None`: it is parked for the slow path.
#[inline(always)]
pub fn fast(ctx: &XdpContext) -> Option<Reason> {
    let Some(ethernet) = Frame::of(ctx).at(0, ETHERNET) else { return Some(Reason::NotOurs) };
    let kind = ethernet.load::<u16>(12);
    if kind == V4::TYPE {
        return steps::<V4>(ctx);
    }
    if kind == V6::TYPE { steps::<V6>(ctx) } else { Some(Reason::NotOurs) }
}

/// Takes a parked frame through the other steps.
#[inline(always)]
pub fn slow(ctx: &XdpContext) -> Reason {
    let Some(ethernet) = Frame::of(ctx).at(0, ETHERNET) else { return Reason::NotOurs };
    let kind = ethernet.load::<u16>(12);
    if kind == V4::TYPE {
        return parked::<V4>(ctx);
    }
    if kind == V6::TYPE { parked::<V6>(ctx) } else { Reason::NotOurs }
}

#[inline(always)]
fn parked<F: Path>(ctx: &XdpContext) -> Reason {
    let Some(packet) = F::MAPS.parked.get_ptr(0) else { return Reason::HelperFailed };
    // SAFETY: this CPU's own element, which the fast path has just written.
    let packet = unsafe { &*packet };
    if packet.tuple.protocol == F::ICMP {
        // Steps that share no stack.
        return match F::receive(ctx, packet.transport) {
            Reason::IcmpPassed => F::about(ctx, packet.transport),
            reason => reason,
        };
    }
    match F::begin(ctx, packet) {
        Ok(index) => F::first(ctx, index),
        Err(reason) => reason,
    }
}

/// Forwards the parked packet, whose flow was just made: in record `index`.
#[inline(always)]
pub fn first<F: Path>(ctx: &XdpContext, index: u32) -> Reason {
    let Some(packet) = F::MAPS.parked.get_ptr(0) else { return Reason::HelperFailed };
    // SAFETY: as in `parked`.
    let packet = unsafe { &*packet };
    let Some(flow) = table::record::<F>(index) else { return Reason::Contended };
    let seq = table::read(&flow.head.seq);
    // Under pressure another CPU may have taken it already.
    if flow.head.state == state::FREE || !flow.client.is(&packet.tuple) {
        return Reason::Contended;
    }
    forward::forward(ctx, packet, Found { flow, index, seq, from_backend: false })
}

/// The steps of the fast path; `None`: it is parked, for it is ICMP, or its flow is not known.
#[inline(always)]
fn steps<F: Path>(ctx: &XdpContext) -> Option<Reason> {
    let packet = match parse::<F>(ctx) {
        Parsed::Flow(packet) => packet,
        Parsed::Icmp(at) => Packet::icmp(at, F::ICMP),
        Parsed::Done(reason) => return Some(reason),
    };
    if packet.tuple.protocol != F::ICMP
        && let Some(mut found) = Found::at_once(&packet.tuple)
    {
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
