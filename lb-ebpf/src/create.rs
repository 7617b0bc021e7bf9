//! Making a flow: a record, the tuple that its replies will carry, and two index entries; all of it or nothing.

use core::mem::MaybeUninit;

use aya_ebpf::programs::XdpContext;
use lb_common::{
    Be16,
    checksum::delta,
    flow::{Flow, NO_SLOT, Tuple, entry, flag, next_state, state},
    maps::{Backend, mode},
    reason::Reason,
};

use crate::{
    direct::{entropy, is_direct},
    live, maps,
    parse::Packet,
    path::Path,
    ports, records, rest, table,
    table::Found,
    time,
};

/// Makes the flow of `packet` to a backend and gives its record's number; or what became of the packet if it could not.
#[inline(always)]
pub fn create<F: Path>(
    ctx: &XdpContext,
    packet: &Packet<F>,
    service: u32,
    of_mode: u8,
    id: u32,
) -> Result<u32, Reason> {
    let Some(backend) = maps::backends.get(id) else { return Err(Reason::NoService) };
    let direct = is_direct(of_mode);
    let mut place = MaybeUninit::uninit();
    let replies = Tuple::<F>::zero(&mut place);
    replies.source_port = server_port(packet, backend);
    if of_mode == mode::DNAT {
        as_the_client(packet, backend, replies);
        if !make_way(replies) {
            return Err(Reason::TupleTaken);
        }
    } else if !direct && allocate(ctx, packet, id, replies) == 0 {
        maps::refuse(service, |counters| &mut counters.no_port);
        return Err(match packet.is_tcp() {
            true => F::reset(ctx, packet, Reason::PortsExhausted),
            false => Reason::PortsExhaustedUdp,
        });
    }
    let index = F::claim();
    if index == records::NO_RECORD {
        maps::refuse(service, |counters| &mut counters.table_full);
        return Err(Reason::TableFull);
    }
    let Some(flow) = table::record::<F>(index) else { return Err(Reason::TableFull) };
    fill(flow, packet, replies, id, backend);
    flow.head.service = service;
    if maps::services.get(service).is_some_and(|service| service.affinity != 0) {
        flow.head.flags |= flag::AFFINITY;
    }
    flow.head.mode = of_mode;
    flow.tail.entropy = entropy(packet);
    flow.tail.slot_client = F::insert(&packet.tuple, 0, index);
    if !direct {
        flow.tail.slot_backend = F::insert(replies, entry::FROM_BACKEND, index);
    }
    if flow.tail.slot_client == NO_SLOT || (!direct && flow.tail.slot_backend == NO_SLOT) {
        records::forget(flow, index);
        records::publish(flow);
        return Err(Reason::Contended);
    }
    live::begin(&mut flow.tail, id);
    records::publish(flow);
    if let Some(counters) = maps::traffic.get_ptr_mut(id) {
        // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
        unsafe { (*counters).flows += 1 };
    }
    Ok(index)
}

/// Finds a port for the flow.
#[inline(always)]
fn allocate<F: Path>(ctx: &XdpContext, packet: &Packet<F>, id: u32, replies: &mut Tuple<F>) -> u32 {
    let preferred = ports::preferred(&packet.tuple);
    replies.protocol = packet.tuple.protocol;
    if F::prefer(id, preferred, replies) != 0 {
        return 1;
    }
    F::allocate(id, preferred, &rest::opening(ctx, packet), replies)
}

/// The backend's port: a backend without one of its own keeps the client's.
#[inline(always)]
fn server_port<F: Path>(packet: &Packet<F>, backend: &Backend) -> Be16 {
    if backend.port.0 == 0 { packet.tuple.destination_port } else { backend.port }
}

/// What the backend's packets carry when it sees the client as it is (rule 3); its port is there.
#[inline(always)]
fn as_the_client<F: Path>(packet: &Packet<F>, backend: &Backend, replies: &mut Tuple<F>) {
    let tuple = &packet.tuple;
    replies.source = F::address(&backend.address);
    replies.destination = tuple.source;
    replies.destination_port = tuple.source_port;
    replies.protocol = tuple.protocol;
}

/// Whether nobody else's packets carry this tuple; a flow that is over gives it up.
#[inline(always)]
fn make_way<F: Path>(replies: &Tuple<F>) -> bool {
    let Some(found) = Found::new(replies) else { return true };
    records::is_over(&found.flow.head, time::now()) && F::release(found.index, found.seq) != 0
}

/// The state that a flow begins in. In direct return it may have begun elsewhere (rule 12).
#[inline(always)]
fn first_state<F: Path>(packet: &Packet<F>) -> u8 {
    if !packet.is_tcp() {
        return state::UDP;
    }
    if packet.is_syn() { state::SYN } else { next_state(state::ESTABLISHED, packet.flags, false, true) }
}

/// Writes the record, but for service, mode and entropy; its sequence is odd and stays so.
#[inline(always)]
fn fill<F: Path>(flow: &mut Flow<F>, packet: &Packet<F>, replies: &Tuple<F>, id: u32, backend: &Backend) {
    let now = time::now();
    let addresses = (packet.tuple.address_sum(), replies.address_sum());
    flow.client.copy(&packet.tuple);
    flow.backend.copy(replies);
    // Field by field: whole values would be put together on the stack first.
    let head = &mut flow.head;
    head.backend = id;
    head.address_delta = delta(addresses.0, addresses.1);
    head.transport_delta = delta(addresses.0 + packet.tuple.port_sum(), addresses.1 + replies.port_sum());
    head.state = first_state(packet);
    head.flags = 0;
    head.seen_client = now;
    head.seen_backend = now;
    head.created = now;
    head.service = backend.service;
    let tail = &mut flow.tail;
    tail.ifindex = packet.ingress;
    tail.vlan = [Be16(u16::MAX); 2];
    tail.slot_client = NO_SLOT;
    tail.slot_backend = NO_SLOT;
    for count in [&mut tail.packets_in, &mut tail.packets_out] {
        // SAFETY: a reference is valid for writes. (Both at once would be cleared by a call.)
        unsafe { core::ptr::from_mut(count).write_volatile(0) };
    }
}
