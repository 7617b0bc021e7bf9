//! NAT ports: which address and port of lb's a new flow uses towards its backend.
//!
//! There is no list of free ports either. What the backend's replies would carry is looked up in the flow index; if
//! no flow has it, the port is free. A cursor, each CPU and backend its own, goes round all addresses and ports, so
//! that a port rests as long as possible before it is used again. Order of reuse: free, longest closed, oldest that
//! never got beyond the handshake. Only when every port carries an established flow is there none (rule 2).

use lb_common::{
    Be16, Be32,
    flow::{Tuple4, state},
    hash::below,
};

use crate::{helpers, maps, records, table};

/// Ports that are looked at for every new flow.
const WINDOW: u32 = 16;
/// Most ports that are looked at when none of those would do: every port of one address, and more.
const SEARCH: u32 = 1 << 17;

/// How good a port is; the lowest is taken.
const FREE: u32 = 0;
const CLOSED: u32 = 1;
const HANDSHAKE: u32 = 2;
const NONE: u32 = 3;

/// A search for a port; `tuple` is what the backend's packets would carry.
#[repr(C)]
struct Search {
    tuple: Tuple4,
    best: Tuple4,
    now: u32,
    start: u32,
    addresses: u32,
    ports: u32,
    first_address: u32,
    class: u32,
    idle: u32,
    holder: u32,
    looked: u32,
}

impl Search {
    /// Looks at one port; true when the search is over.
    #[inline(always)]
    fn look(&mut self, round: u32) -> bool {
        self.looked = round + 1;
        let place = self.start.wrapping_add(round);
        let (Some(port), Some(turn)) = (place.checked_rem(self.ports), place.checked_div(self.ports)) else {
            return true;
        };
        let Some(address) = turn.checked_rem(self.addresses) else { return true };
        let (Some(port), Some(address)) = (maps::nat_ports.get(port), maps::snat.get(self.first_address + address))
        else {
            return false;
        };
        self.tuple.destination = address[0];
        self.tuple.destination_port = Be16::new(*port);
        let words = self.tuple.words();
        let (class, idle, holder) = match table::find(words, maps::seeded().hash(words)) {
            None => (FREE, 0, 0),
            Some(found) => held(found.record, self.now),
        };
        if class < self.class || (class == self.class && class != NONE && idle > self.idle) {
            self.best = self.tuple;
            (self.class, self.idle, self.holder) = (class, idle, holder);
        }
        class == FREE || (round >= WINDOW && self.class < NONE)
    }
}

/// How good a port is that a flow holds.
#[inline(always)]
fn held(index: u32, now: u32) -> (u32, u32, u32) {
    let Some(flow) = table::record(index) else { return (NONE, 0, 0) };
    let idle = flow.head.idle(now);
    let class = match flow.head.state {
        state::CLOSED => CLOSED,
        _ if records::expired(&flow.head, now) => CLOSED,
        state::SYN | state::SYN_ACK => HANDSHAKE,
        _ => NONE,
    };
    (class, idle, index)
}

extern "C" fn look(round: u32, search: *mut Search) -> u64 {
    // SAFETY: bpf_loop hands back the pointer that it was given, to an object of the caller's that is still there.
    u64::from(unsafe { (*search).look(round) })
}

/// Finds the tuple that the replies of a new flow to backend `id` shall carry, into `tuple`; whoever holds it and is
/// over gives it up. 0: every port carries a live flow.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn allocate(id: u32, protocol: u32, tuple: *mut Tuple4) -> u32 {
    // SAFETY: null or a tuple of the caller's; the verifier checks both this function and its callers.
    let (Some(tuple), Some(backend)) = (unsafe { tuple.as_mut() }, maps::backends.get(id)) else { return 0 };
    let (Some(cursor), Some(settings)) = (maps::port_cursor.get_ptr_mut(id), maps::settings.get(0)) else { return 0 };
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    let cursor = unsafe { &mut *cursor };
    let (addresses, ports) = (backend.snat_count as u32, settings.nat_ports);
    if addresses == 0 || ports == 0 {
        return 0;
    }
    let now = helpers::now();
    let total = addresses.wrapping_mul(ports);
    let start = cursor.next.wrapping_add(below(helpers::cpu().wrapping_mul(0x9e37_79b1), total));
    let mut search = Search {
        tuple: Tuple4 {
            source: backend.address[0],
            source_port: backend.port,
            destination: Be32(0),
            destination_port: Be16(0),
            protocol: protocol as u8,
            pad: [0; 3],
        },
        best: Tuple4::default(),
        now,
        start,
        addresses,
        ports,
        first_address: backend.snat,
        class: NONE,
        idle: 0,
        holder: 0,
        looked: 0,
    };
    let most = if cursor.exhausted == now { WINDOW } else { SEARCH };
    helpers::repeat(if total < most { total } else { most }, look, &mut search);
    let next = cursor.next.wrapping_add(search.looked);
    cursor.next = if next >= total { 0 } else { next };
    if search.class == NONE {
        cursor.exhausted = now;
        return 0;
    }
    if search.class != FREE {
        records::release(search.holder);
    }
    *tuple = search.best;
    1
}
