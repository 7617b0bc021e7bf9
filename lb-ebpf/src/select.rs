//! Which backend a new flow goes to: affinity first, then the service's scheduler. The same for both families: a
//! client's address is two words here.

use lb_common::{
    clock, hash,
    maps::{Affinity, AffinityKey, Service, backend_flag, scheduler},
};

use crate::{atomic, helpers, maps, time};

/// `BPF_NOEXIST`: only if there is none yet.
const NEW: u64 = 1;
/// `least-conn` looks at all members up to this many; of more it looks at [`CHOICES`] random ones.
const ALL: u32 = 64;
/// See [`ALL`]. Of two random choices the better one is already close to the best of all (Mitzenmacher 2001); weights that
/// differ widely need a few more.
const CHOICES: u32 = 16;

/// The backend that service `id` gives a new flow of a client; 0 while it has no table. The client's address is two words
/// for affinity (IPv4: in the first), and folded into one, `word`, for hashing; `ports` is what else tells the client's
/// flows apart (its port, the protocol).
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn select(id: u32, high: u64, low: u64, word: u64, ports: u64) -> u32 {
    let Some(service) = maps::services.get(id) else { return 0 };
    if halves(&service.table).1 == 0 {
        return 0;
    }
    if service.affinity == 0 {
        return schedule(id, word, ports);
    }
    let (now, key) = (time::now(), AffinityKey { client: [high, low], service: id, pad: 0 });
    let held = held(&key);
    if let Some(held) = held {
        let before = read(held);
        if clock::since(now, before.seen) <= service.affinity && takes(before.backend, id) {
            touch_value(held, now);
            return before.backend;
        }
    }
    let chosen = schedule(id, word, ports);
    if chosen == 0 {
        return 0;
    }
    // Another CPU may be as far with another flow of this client: the first one says.
    let theirs = match held {
        Some(held) => replace(held, chosen, now),
        None if maps::affinity.insert(key, Affinity { backend: chosen, seen: now }, NEW).is_ok() => chosen,
        None => self::held(&key).map_or(chosen, |held| read(held).backend),
    };
    if takes(theirs, id) { theirs } else { chosen }
}

/// A packet of a flow has come: its client's affinity lasts longer, if it is (still) to this backend.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn touch(id: u32, high: u64, low: u64, backend: u32) -> u32 {
    let key = AffinityKey { client: [high, low], service: id, pad: 0 };
    let Some(held) = held(&key) else { return 0 };
    if read(held).backend != backend {
        return 0;
    }
    touch_value(held, time::now());
    1
}

/// Whether the service's table alone decides where a new flow goes.
#[inline(always)]
pub fn table_decides(service: &Service) -> bool {
    service.affinity == 0 && matches!(service.scheduler, scheduler::MAGLEV | scheduler::SOURCE_HASH)
}

/// The backend that the service's table gives a flow, whatever its scheduler: for segments of connections that another
/// balancer may have begun. `None` while there is no table. `client` is its address folded into a word.
#[inline(always)]
pub fn by_table(service: &Service, client: u64, ports: u64) -> Option<u32> {
    let ports = if service.scheduler == scheduler::SOURCE_HASH { 0 } else { ports };
    let (base, size) = halves(&service.table);
    if size == 0 {
        return None;
    }
    slot(base, hash::below(hash::select(client, ports), size))
}

/// The backend by the service's scheduler; 0 while there is no table.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn schedule(id: u32, client: u64, ports: u64) -> u32 {
    let Some(service) = maps::services.get(id) else { return 0 };
    let chosen = match service.scheduler {
        scheduler::ROUND_ROBIN => next_turn(id, service),
        scheduler::LEAST_CONN => least_loaded(service),
        scheduler::RANDOM => {
            let (base, size) = halves(&service.table);
            slot(base, hash::below(helpers::random(), size))
        }
        _ => None,
    };
    // A service whose members are just being replaced has its table.
    chosen.or_else(|| by_table(service, client, ports)).unwrap_or(0)
}

/// Whose turn it is on this CPU. Each CPU goes round the same order on its own, from a place of its own.
#[inline(always)]
fn next_turn(id: u32, service: &Service) -> Option<u32> {
    let (first, count) = halves(&service.members);
    let turn = maps::turns.get_ptr_mut(id)?;
    // SAFETY: this CPU's own element, and XDP is not interrupted by itself.
    let turn = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    let start = hash::below(helpers::cpu().wrapping_mul(0x9e37_79b1), count);
    let [backend, _] = *maps::tables.get(first.wrapping_add(turn.wrapping_add(start).checked_rem(count)?))?;
    (backend != 0).then_some(backend)
}

/// A search for the member with the fewest flows by its weight.
#[repr(C)]
struct Search {
    first: u32,
    count: u32,
    start: u32,
    best: u32,
    flows: u32,
    weight: u32,
}

impl Search {
    #[inline(always)]
    fn look(&mut self, round: u32) -> Option<()> {
        let place = if self.count > ALL {
            hash::below(helpers::random(), self.count)
        } else {
            self.start.wrapping_add(round).checked_rem(self.count)?
        };
        let [id, weight] = *maps::tables.get(self.first.wrapping_add(place))?;
        let flows = maps::live.get(id)?;
        // SAFETY: a reference is valid for reads; other CPUs count up and down.
        let flows = unsafe { core::ptr::from_ref(flows).read_volatile() };
        // Whoever is over-counted down for a moment has none.
        let flows = if flows as i32 <= 0 { 1 } else { flows + 1 };
        let better = u64::from(flows) * u64::from(self.weight) < u64::from(self.flows) * u64::from(weight);
        if weight != 0 && (self.best == 0 || better) {
            (self.best, self.flows, self.weight) = (id, flows, weight);
        }
        Some(())
    }
}

extern "C" fn look(round: u32, search: *mut Search) -> u64 {
    // SAFETY: bpf_loop hands back the pointer that it was given, to an object of the caller's that is still there.
    u64::from(unsafe { (*search).look(round) }.is_none())
}

/// The member for which (flows + 1) / weight is least. The search begins at a random member, so that equals are equal.
#[inline(always)]
fn least_loaded(service: &Service) -> Option<u32> {
    let (first, count) = halves(&service.members);
    let start = hash::below(helpers::random(), count);
    let mut search = Search { first, count, start, best: 0, flows: 0, weight: 0 };
    helpers::repeat(if count > ALL { CHOICES } else { count }, look, &mut search);
    (search.best != 0).then_some(search.best)
}

/// The backend in a slot of a table.
#[inline(always)]
fn slot(base: u32, slot: u32) -> Option<u32> {
    let slot = base.wrapping_add(slot);
    let [even, odd] = *maps::tables.get(slot / 2)?;
    let backend = if slot & 1 == 0 { even } else { odd };
    (backend != 0).then_some(backend)
}

/// Low and high half of a word that the control plane changes in one store.
#[inline(always)]
fn halves(word: &u64) -> (u32, u32) {
    // SAFETY: a reference is valid for reads.
    let word = unsafe { core::ptr::from_ref(word).read_volatile() };
    (word as u32, (word >> 32) as u32)
}

/// Whether a backend takes new flows of a service.
#[inline(always)]
fn takes(backend: u32, service: u32) -> bool {
    maps::backends
        .get(backend)
        .is_some_and(|backend| backend.service == service && backend.flags & backend_flag::TAKES != 0)
}

#[inline(always)]
fn held(key: &AffinityKey) -> Option<*mut Affinity> {
    maps::affinity.get_ptr_mut(key)
}

#[inline(always)]
fn read(held: *mut Affinity) -> Affinity {
    // SAFETY: a value of a preallocated map: its memory stays, though it may become another client's.
    unsafe { held.read_volatile() }
}

#[inline(always)]
fn touch_value(held: *mut Affinity, now: u32) {
    // SAFETY: as in `read`; every writer writes about the same.
    unsafe { (&raw mut (*held).seen).write_volatile(now) };
}

/// Ties a client to another backend; if another CPU has just done so, to that one. Gives which.
#[inline(always)]
fn replace(held: *mut Affinity, chosen: u32, now: u32) -> u32 {
    let before = read(held).backend;
    // SAFETY: an aligned word of a map's value.
    let seen = unsafe { atomic::compare_and_swap(&raw mut (*held).backend, before, chosen) };
    touch_value(held, now);
    if seen == before { chosen } else { seen }
}
