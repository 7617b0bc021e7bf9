//! NAT ports: which address and port of lb's a new flow uses towards its backend.
//!
//! There is no list of free ports either. What the backend's replies would carry is looked up in the flow index; if
//! no flow has it, the port is free.
//!
//! A client's port has a place of its own ([`preferred`]): when the client uses it again, lb does too, and the backend,
//! where the old connection may rest in TIME_WAIT, sees numbers and timestamps go on that belong together. If somebody
//! else is there, a cursor, each CPU and server its own, goes round all addresses and ports, so that a port rests as
//! long as possible before it is used again. Order of reuse: free, longest closed, closed but in TIME_WAIT at the
//! backend in a way that would refuse the SYN ([`rest`]), oldest that never got beyond the handshake. Only when every
//! port carries an established flow is there none (rule 2).

use lb_common::{
    Be16,
    family::Family,
    flow::{Flow, Opening, Tuple, state},
    hash::{below, mix},
    maps::{BACKENDS, Backend, PortCursor},
};

use crate::{helpers, maps, path::Path, records, rest, table::Found, time};

/// Ports that are looked at for a new flow whose client's own place is taken.
const WINDOW: u32 = 16;
/// Ports that are looked at before one is taken whose flow's handshake is under way: just behind another CPU's cursor
/// every flow has only begun, however many are closed further on.
const HANDSHAKES: u32 = 64;
/// Most ports that are looked at when none of those would do: every port of one address, and more.
const SEARCH: u32 = 1 << 17;

/// How good a port is; the lowest is taken.
const FREE: u32 = 0;
const CLOSED: u32 = 1;
const RESTS: u32 = 2;
const HANDSHAKE: u32 = 3;
const NONE: u32 = 4;

/// A search for a port; `tuple` is what the backend's packets would carry. It stands in a map: the stack has no room.
#[repr(C)]
pub struct Search<F: Family> {
    tuple: Tuple<F>,
    opening: Opening,
    now: u32,
    /// The place that is looked at first, and the place before those that are looked at then.
    preferred: u32,
    start: u32,
    addresses: u32,
    ports: u32,
    first_address: u32,
    /// The best round so far, how good its port is, how long that was idle, and who holds it.
    best: u32,
    class: u32,
    idle: u32,
    holder: u32,
    seq: u32,
    looked: u32,
}

impl<F: Path> Search<F> {
    /// Puts the address and port of a round into the tuple. False: there is none.
    #[inline(always)]
    fn aim(&mut self, round: u32) -> bool {
        let place = if round == 0 { self.preferred } else { self.start.wrapping_add(round) };
        put(&mut self.tuple, place, self.first_address, self.addresses, self.ports)
    }

    /// Looks at one port; true when the search is over.
    #[inline(always)]
    fn look(&mut self, round: u32) -> bool {
        self.looked = round + 1;
        if !self.aim(round) {
            return true;
        }
        let (class, idle, (holder, seq)) = match Found::new(&self.tuple) {
            None => (FREE, 0, (0, 0)),
            Some(found) => {
                let (class, idle) = held(found.flow, &self.opening, self.now);
                (class, idle, (found.index, found.seq))
            }
        };
        if class < self.class || (class == self.class && class != NONE && idle > self.idle) {
            (self.best, self.class, self.idle) = (round, class, idle);
            (self.holder, self.seq) = (holder, seq);
        }
        let enough = if self.class < RESTS { WINDOW } else { HANDSHAKES };
        class == FREE || (round >= enough && self.class < NONE)
    }
}

/// How good a port is that a flow holds, and how long the flow was idle.
#[inline(always)]
fn held<F: Path>(flow: &Flow<F>, opening: &Opening, now: u32) -> (u32, u32) {
    let (head, idle) = (&flow.head, flow.head.idle(now));
    let class = match head.state {
        state::CLOSED if rest::rests(flow, idle, opening) => RESTS,
        state::CLOSED => CLOSED,
        _ if records::expired(head, now) => CLOSED,
        state::SYN | state::SYN_ACK => HANDSHAKE,
        _ => NONE,
    };
    (class, idle)
}

/// This CPU's search.
#[inline(always)]
fn current<F: Path>() -> Option<&'static mut Search<F>> {
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    F::MAPS.search.get_ptr_mut(0).map(|search| unsafe { &mut *search })
}

/// `bpf_loop` would hand on what stands on the stack; the search does not, and is found again by its map.
extern "C" fn look<F: Path>(round: u32, _: *mut u32) -> u64 {
    u64::from(current::<F>().is_none_or(|search| search.look(round)))
}

/// Where a client's port has its place: a client's ports towards one VIP have different places, as far as there are.
#[inline(always)]
pub fn preferred<F: Path>(client: &Tuple<F>) -> u32 {
    let vip = F::fold(client.destination).rotate_left(16) ^ u64::from(client.destination_port.0);
    (mix(F::fold(client.source), vip) >> 33) as u32 + u32::from(client.source_port.get())
}

/// Puts the address and port of a place into a tuple that a backend's packets carry. False: there is no such place.
#[inline(always)]
fn put<F: Path>(tuple: &mut Tuple<F>, place: u32, first_address: u32, addresses: u32, ports: u32) -> bool {
    let (Some(port), Some(turn)) = (place.checked_rem(ports), place.checked_div(ports)) else { return false };
    let Some(address) = turn.checked_rem(addresses) else { return false };
    let (Some(port), Some(address)) = (maps::nat_ports.get(port), maps::snat.get(first_address + address)) else {
        return false;
    };
    tuple.destination = F::address(address);
    tuple.destination_port = Be16::new(*port);
    true
}

/// As [`allocate`], but only if the place that the client prefers is free. `tuple` has the protocol, too.
#[inline(always)]
pub fn prefer<F: Path>(id: u32, preferred: u32, tuple: &mut Tuple<F>) -> u32 {
    let (Some(backend), Some(settings)) = (maps::backends.get(id), maps::settings.get(0)) else { return 0 };
    tuple.source = F::address(&backend.address);
    let placed = put(tuple, preferred, backend.snat, backend.snat_count as u32, settings.nat_ports);
    u32::from(placed && Found::at_once(tuple).is_none())
}

/// A server, as hash: address, port and protocol.
#[inline(always)]
fn server<F: Path>(backend: &Backend, tuple: &Tuple<F>) -> u32 {
    let place = u64::from(tuple.source_port.0) | u64::from(tuple.protocol) << 16;
    (mix(F::fold(F::address(&backend.address)), place) >> 32) as u32
}

/// Where the search for a port towards this server goes on. Services that share a server share its ports, and so its
/// cursor; so may, now and then, two servers.
#[inline(always)]
fn cursor(server: u32) -> Option<&'static mut PortCursor> {
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    maps::port_cursor.get_ptr_mut(server % BACKENDS).map(|cursor| unsafe { &mut *cursor })
}

/// Finds the tuple that the replies of a new flow to backend `id` shall carry, into `tuple`, which has the backend's
/// port and the protocol; whoever holds it and is over gives it up. 0: every port carries a live flow.
#[inline(always)]
pub fn allocate<F: Path>(id: u32, preferred: u32, opening: &Opening, tuple: &mut Tuple<F>) -> u32 {
    let (Some(backend), Some(settings)) = (maps::backends.get(id), maps::settings.get(0)) else { return 0 };
    let server = server(backend, tuple);
    let Some(cursor) = cursor(server) else { return 0 };
    let (addresses, ports) = (backend.snat_count as u32, settings.nat_ports);
    let total = addresses.wrapping_mul(ports);
    let Some(search) = current::<F>() else { return 0 };
    *search = Search {
        tuple: Tuple { source_port: tuple.source_port, protocol: tuple.protocol, ..Tuple::default() },
        opening: *opening,
        now: time::now(),
        preferred,
        start: cursor.next.wrapping_add(below(helpers::cpu().wrapping_mul(0x9e37_79b1), total)),
        addresses,
        ports,
        first_address: backend.snat,
        best: 0,
        class: NONE,
        idle: 0,
        holder: 0,
        seq: 0,
        looked: 0,
    };
    search.tuple.source = F::address(&backend.address);
    // Another server may share the cursor: whose search was in vain is in the mark.
    let exhausted = search.now ^ server;
    let most = if cursor.exhausted == exhausted { WINDOW } else { SEARCH };
    helpers::repeat(1 + if total < most { total } else { most }, look::<F>, &mut 0);
    let Some(search) = current::<F>() else { return 0 };
    let next = cursor.next.wrapping_add(search.looked.wrapping_sub(1));
    cursor.next = if next >= total { 0 } else { next };
    if search.class == NONE || !search.aim(search.best) {
        cursor.exhausted = exhausted;
        return 0;
    }
    if search.class != FREE {
        F::release(search.holder, search.seq);
    }
    tuple.copy(&search.tuple);
    1
}
