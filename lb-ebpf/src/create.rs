//! Making a flow: a record, the tuple that its replies will carry, and two index entries; all of it or nothing.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum::delta,
    flow::{Flow4, Head, NO_SLOT, Tail, Tuple4, entry, state},
    maps::{Backend, mode},
    reason::Reason,
};

use crate::{answer, helpers, maps, parse::Packet, ports, records, table};

/// Makes the flow of `packet` to a backend; gives its record's number, or what became of the packet.
#[inline(always)]
pub fn create(ctx: &XdpContext, packet: &Packet, service: u32, id: u32) -> Result<u32, Reason> {
    let Some(backend) = maps::backends.get(id) else { return Err(Reason::NoService) };
    let mut replies = Tuple4::default();
    if ports::allocate(id, u32::from(packet.tuple.protocol), &raw mut replies) == 0 {
        maps::refuse(service, |counters| &mut counters.no_port);
        return Err(match packet.is_tcp() {
            true => answer::reset(ctx, packet, Reason::PortsExhausted),
            false => Reason::PortsExhaustedUdp,
        });
    }
    let index = records::claim();
    if index == records::NO_RECORD {
        maps::refuse(service, |counters| &mut counters.table_full);
        return Err(Reason::TableFull);
    }
    let Some(flow) = table::record(index) else { return Err(Reason::TableFull) };
    fill(flow, packet, &replies, id, backend);
    flow.head.service = service;
    flow.tail.slot_client = table::insert(&raw const packet.tuple, 0, index);
    flow.tail.slot_backend = table::insert(&raw const replies, entry::FROM_BACKEND, index);
    if flow.tail.slot_client == NO_SLOT || flow.tail.slot_backend == NO_SLOT {
        records::forget(flow, index);
        records::publish(flow);
        return Err(Reason::Contended);
    }
    records::publish(flow);
    if let Some(counters) = maps::traffic.get_ptr_mut(id) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { (*counters).flows += 1 };
    }
    Ok(index)
}

/// Writes the record; its sequence is odd and stays so.
#[inline(always)]
fn fill(flow: &mut Flow4, packet: &Packet, replies: &Tuple4, id: u32, backend: &Backend) {
    let now = helpers::now();
    let (client, backend_side) = (&packet.tuple, replies);
    let addresses = (client.address_sum(), backend_side.address_sum());
    flow.client = *client;
    flow.backend = *backend_side;
    flow.head = Head {
        seq: flow.head.seq,
        backend: id,
        address_delta: delta(addresses.0, addresses.1),
        transport_delta: delta(addresses.0 + client.port_sum(), addresses.1 + backend_side.port_sum()),
        mode: mode::NAT,
        state: if packet.is_tcp() { state::SYN } else { state::UDP },
        flags: 0,
        seen_client: now,
        seen_backend: now,
        created: now,
        service: backend.service,
    };
    flow.tail = Tail { ifindex: packet.ingress, slot_client: NO_SLOT, slot_backend: NO_SLOT, ..Tail::default() };
}
