//! Packets of no known flow: which service are they for, and may they begin one?

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16,
    flow::{Tuple4, tcp},
    maps::{Vip4Key, on_empty, vip_flag},
    reason::Reason,
};

use crate::{
    answer, create, icmp, maps,
    parse::{Packet, address_flags},
    select,
};

/// The service whose VIP a packet is for.
#[inline(always)]
pub fn lookup(tuple: &Tuple4) -> Option<u32> {
    let mut key =
        Vip4Key { address: tuple.destination, port: tuple.destination_port, protocol: tuple.protocol, pad: 0 };
    // SAFETY: entries are made and freed by RCU (BPF_F_NO_PREALLOC), and only read here.
    if let Some(vip) = unsafe { maps::vips4.get(key) } {
        return Some(vip.service);
    }
    if maps::settings.get(0)?.wildcard_vips == 0 {
        return None;
    }
    key.port = Be16(0);
    // SAFETY: as above.
    unsafe { maps::vips4.get(key) }.map(|vip| vip.service)
}

/// A packet without a flow: makes one and gives its record's number, or says what became of the packet.
#[inline(never)]
pub fn begin(ctx: &XdpContext, packet: &Packet) -> Result<u32, Reason> {
    let Some(id) = lookup(&packet.tuple) else {
        let known = address_flags(packet.tuple.destination) & vip_flag::VIP != 0;
        return Err(if known { Reason::NoService } else { Reason::NotOurs });
    };
    let Some(service) = maps::services.get(id) else { return Err(Reason::NoService) };
    if packet.is_tcp() && !packet.is_syn() {
        return Err(stray(ctx, packet));
    }
    let tuple = &packet.tuple;
    let ports = u64::from(tuple.source_port.get()) | u64::from(tuple.protocol) << 16;
    match select::select(service, u64::from(tuple.source.get()), ports) {
        Some(backend) => create::create(ctx, packet, id, backend),
        None => Err(refuse(ctx, packet, id, service.on_empty)),
    }
}

/// Rules 12 and 13: a segment that belongs to nothing.
#[inline(always)]
fn stray(ctx: &XdpContext, packet: &Packet) -> Reason {
    if packet.flags & tcp::RST != 0 {
        return Reason::StrayRst;
    }
    if packet.flags & (tcp::SYN | tcp::FIN) == tcp::SYN | tcp::FIN {
        return Reason::Malformed;
    }
    answer::reset(ctx, packet, Reason::NoFlow)
}

/// Rule 24, in product.md's order.
#[inline(always)]
fn refuse(ctx: &XdpContext, packet: &Packet, service: u32, policy: u8) -> Reason {
    if policy == on_empty::UNCHECKED && packet.is_tcp() {
        return Reason::Unchecked;
    }
    maps::refuse(service, |counters| &mut counters.no_backend);
    if policy != on_empty::REJECT {
        return Reason::NoBackend;
    }
    if packet.is_tcp() {
        return answer::reset(ctx, packet, Reason::RejectTcp);
    }
    icmp::error(ctx, service, &icmp::PORT_UNREACHABLE, 0)
}
