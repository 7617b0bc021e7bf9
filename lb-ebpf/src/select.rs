//! Which backend a new flow goes to, by its service's scheduler. The same for both families: the client's address is a
//! word here.

use lb_common::{hash, maps::Service};

use crate::maps;

/// The backend that the service gives a new flow; `None` while it has no table. `client` is the client's address (IPv6:
/// folded), `ports` what else tells its flows apart (client port, protocol).
#[inline(always)]
pub fn select(service: &Service, client: u64, ports: u64) -> Option<u32> {
    // SAFETY: an aligned word of a map's value, which the control plane changes in one store.
    let table = unsafe { (&raw const service.table).read_volatile() };
    let (base, size) = (table as u32, (table >> 32) as u32);
    if size == 0 {
        return None;
    }
    slot(base, hash::below(hash::select(client, ports), size))
}

/// The backend in a slot of a table.
#[inline(always)]
fn slot(base: u32, slot: u32) -> Option<u32> {
    let slot = base.wrapping_add(slot);
    let [even, odd] = *maps::tables.get(slot / 2)?;
    let backend = if slot & 1 == 0 { even } else { odd };
    (backend != 0).then_some(backend)
}
