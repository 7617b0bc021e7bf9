//! NAT ports: which address and port of lb's a new flow uses towards its backend.
//!
//! There is no list of free ports either. What the backend's replies would carry is looked up in the flow index; if
//! no flow has it, the port is free. A cursor, each CPU and backend its own, goes round all addresses and ports, so
//! that a port rests as long as possible before it is used again. Order of reuse: free, longest closed, closed but in
//! TIME_WAIT at the backend in a way that would refuse the SYN ([`rest`]), oldest that never got beyond the handshake.
//! Only when every port carries an established flow is there none (rule 2).

use lb_common::{
    Be16,
    flow::{Flow, Opening, Tuple, state},
    hash::below,
};

use crate::{helpers, maps, path::Path, records, rest, table::Found, time};

/// Ports that are looked at for every new flow.
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

/// A search for a port; `tuple` is what the backend's packets would carry.
#[repr(C)]
struct Search<F: Path> {
    tuple: Tuple<F>,
    opening: Opening,
    now: u32,
    start: u32,
    addresses: u32,
    ports: u32,
    first_address: u32,
    /// The best round so far, how good its port is, how long that was idle, and who holds it.
    best: u32,
    class: u32,
    idle: u32,
    holder: u32,
    looked: u32,
}

impl<F: Path> Search<F> {
    /// Puts the address and port of a round into the tuple. False: there is none.
    #[inline(always)]
    fn aim(&mut self, round: u32) -> bool {
        let place = self.start.wrapping_add(round);
        let (Some(port), Some(turn)) = (place.checked_rem(self.ports), place.checked_div(self.ports)) else {
            return false;
        };
        let Some(address) = turn.checked_rem(self.addresses) else { return false };
        let (Some(port), Some(address)) = (maps::nat_ports.get(port), maps::snat.get(self.first_address + address))
        else {
            return false;
        };
        self.tuple.destination = F::address(address);
        self.tuple.destination_port = Be16::new(*port);
        true
    }

    /// Looks at one port; true when the search is over.
    #[inline(always)]
    fn look(&mut self, round: u32) -> bool {
        self.looked = round + 1;
        if !self.aim(round) {
            return true;
        }
        let (class, idle, holder) = match Found::new(&self.tuple) {
            None => (FREE, 0, 0),
            Some(found) => {
                let (class, idle) = held(found.flow, &self.opening, self.now);
                (class, idle, found.index)
            }
        };
        if class < self.class || (class == self.class && class != NONE && idle > self.idle) {
            (self.best, self.class, self.idle, self.holder) = (round, class, idle, holder);
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

extern "C" fn look<F: Path>(round: u32, search: *mut Search<F>) -> u64 {
    // SAFETY: bpf_loop hands back the pointer that it was given, to an object of the caller's that is still there.
    u64::from(unsafe { (*search).look(round) })
}

/// Finds the tuple that the replies of a new flow to backend `id` shall carry, into `tuple`, which has the backend's
/// port; whoever holds it and is over gives it up. 0: every port carries a live flow.
#[inline(always)]
pub fn allocate<F: Path>(id: u32, protocol: u32, opening: &Opening, tuple: &mut Tuple<F>) -> u32 {
    let Some(backend) = maps::backends.get(id) else { return 0 };
    let (Some(cursor), Some(settings)) = (maps::port_cursor.get_ptr_mut(id), maps::settings.get(0)) else { return 0 };
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    let cursor = unsafe { &mut *cursor };
    let (addresses, ports) = (backend.snat_count as u32, settings.nat_ports);
    if addresses == 0 || ports == 0 {
        return 0;
    }
    let now = time::now();
    let total = addresses.wrapping_mul(ports);
    let mut search = Search::<F> {
        tuple: Tuple {
            source: F::address(&backend.address),
            source_port: tuple.source_port,
            protocol: protocol as u8,
            ..Tuple::default()
        },
        opening: *opening,
        now,
        start: cursor.next.wrapping_add(below(helpers::cpu().wrapping_mul(0x9e37_79b1), total)),
        addresses,
        ports,
        first_address: backend.snat,
        best: 0,
        class: NONE,
        idle: 0,
        holder: 0,
        looked: 0,
    };
    let most = if cursor.exhausted == now { WINDOW } else { SEARCH };
    helpers::repeat(if total < most { total } else { most }, look::<F>, &mut search);
    let next = cursor.next.wrapping_add(search.looked);
    cursor.next = if next >= total { 0 } else { next };
    if search.class == NONE || !search.aim(search.best) {
        cursor.exhausted = now;
        return 0;
    }
    if search.class != FREE {
        F::release(search.holder);
    }
    *tuple = search.tuple;
    1
}
