//! Packets of no known flow: which service are they for, and may they begin one?

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16,
    flow::{Tuple, tcp},
    maps::{VipKey, on_empty, vip_flag},
    reason::Reason,
};

use crate::{
    create,
    direct::{self, is_direct},
    icmp::Problem,
    maps,
    parse::{Packet, address_flags},
    path::Path,
    select,
};

/// The service whose VIP a packet is for.
#[inline(always)]
pub fn lookup<F: Path>(tuple: &Tuple<F>) -> Option<u32> {
    let mut key = VipKey::<F>::new(tuple.destination, tuple.destination_port, tuple.protocol);
    // SAFETY: entries are made and freed by RCU (BPF_F_NO_PREALLOC), and only read here.
    if let Some(vip) = unsafe { F::MAPS.vips.get(key) } {
        return Some(vip.service);
    }
    if maps::settings.get(0)?.wildcard_vips == 0 {
        return None;
    }
    key.port = Be16(0);
    // SAFETY: as above.
    unsafe { F::MAPS.vips.get(key) }.map(|vip| vip.service)
}

/// A packet without a flow: makes one and gives its record's number, or says what became of the packet.
#[inline(always)]
pub fn begin<F: Path>(ctx: &XdpContext, packet: &Packet<F>) -> Result<u32, Reason> {
    let Some(id) = lookup(&packet.tuple) else {
        let known = address_flags::<F>(packet.tuple.destination) & vip_flag::VIP != 0;
        return Err(if known { Reason::NoService } else { Reason::NotOurs });
    };
    let Some(service) = maps::services.get(id) else { return Err(Reason::NoService) };
    let belongs_elsewhere = packet.is_tcp() && !packet.is_syn();
    if belongs_elsewhere && !is_direct(service.mode) {
        return Err(stray(ctx, packet));
    }
    let tuple = &packet.tuple;
    let ports = ports(tuple);
    let word = F::fold(tuple.source);
    let chosen = if belongs_elsewhere {
        // Rule 12: another balancer may have had the flow, or this one lost it. Whoever has the table knows.
        if packet.flags & (tcp::SYN | tcp::FIN) == tcp::SYN | tcp::FIN {
            return Err(Reason::Malformed);
        }
        select::by_table(service, word, ports)
    } else if select::table_decides(service) {
        select::by_table(service, word, ports)
    } else {
        let [high, low] = client::<F>(tuple.source);
        match select::select(id, high, low, word, ports) {
            0 => None,
            backend => Some(backend),
        }
    };
    let is_rst = packet.flags & tcp::RST != 0;
    let Some(backend) = chosen else {
        return Err(if is_rst { Reason::StrayRst } else { refuse(ctx, packet, id, service.on_empty) });
    };
    // Rule 13: a RST ends what it belongs to, and makes nothing.
    let made = if is_rst { Err(Reason::TableFull) } else { create::create(ctx, packet, id, service.mode, backend) };
    match made {
        // A flow may do without a record as long as its packets go where the table says.
        Err(Reason::TableFull) if is_direct(service.mode) => {
            let backend = select::by_table(service, word, ports).ok_or(Reason::TableFull)?;
            Err(direct::forward_stateless(ctx, packet, backend, service.mode))
        }
        made => made,
    }
}

/// What tells a client's flows apart besides its address, as the schedulers hash it.
#[inline(always)]
pub fn ports<F: Path>(client: &Tuple<F>) -> u64 {
    u64::from(client.source_port.get()) | u64::from(client.protocol) << 16
}

/// A client's address as affinity keeps it.
#[inline(always)]
pub fn client<F: Path>(address: F::Address) -> [u64; 2] {
    let [a, b, c, d] = F::words(address);
    [u64::from(a.0) | u64::from(b.0) << 32, u64::from(c.0) | u64::from(d.0) << 32]
}

/// Rules 12 and 13: a segment that belongs to nothing.
#[inline(always)]
fn stray<F: Path>(ctx: &XdpContext, packet: &Packet<F>) -> Reason {
    if packet.flags & tcp::RST != 0 {
        return Reason::StrayRst;
    }
    if packet.flags & (tcp::SYN | tcp::FIN) == tcp::SYN | tcp::FIN {
        return Reason::Malformed;
    }
    F::reset(ctx, packet, Reason::NoFlow)
}

/// Rule 24, in product.md's order.
#[inline(always)]
fn refuse<F: Path>(ctx: &XdpContext, packet: &Packet<F>, service: u32, policy: u8) -> Reason {
    if policy == on_empty::UNCHECKED && packet.is_tcp() {
        return Reason::Unchecked;
    }
    maps::refuse(service, |counters| &mut counters.no_backend);
    if policy != on_empty::REJECT {
        return Reason::NoBackend;
    }
    if packet.is_tcp() {
        return F::reset(ctx, packet, Reason::RejectTcp);
    }
    F::error(ctx, Problem::PortUnreachable, packet.transport, service, 0)
}
