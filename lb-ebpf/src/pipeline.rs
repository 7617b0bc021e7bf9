//! The steps of a packet's life, in order.

use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

use crate::{
    forward, icmp,
    life::{self, Life},
    maps,
    parse::{Packet, Parsed, parse},
    service,
    table::{self, Found},
};

/// Takes a frame through all steps and says what became of it.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Reason {
    match parse(ctx) {
        Parsed::Flow(packet) => flow(ctx, &packet),
        Parsed::Icmp => icmp::receive(ctx),
        Parsed::Done(reason) => reason,
    }
}

#[inline(always)]
fn flow(ctx: &XdpContext, packet: &Packet) -> Reason {
    let words = packet.tuple.words();
    let known = match table::find(words, maps::seeded().hash(words)) {
        Some(found) => match life::step(ctx, packet, found) {
            Life::Goes => Some(found),
            Life::Over => None,
            Life::Done(reason) => return reason,
        },
        None => None,
    };
    let found = match known {
        Some(found) => found,
        None => match service::begin(ctx, packet) {
            Ok(record) => Found { record, from_backend: false },
            Err(reason) => return reason,
        },
    };
    forward::forward(ctx, packet, found)
}
