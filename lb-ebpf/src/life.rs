//! The life of a flow: what a packet does to its state, and whether the flow is over.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    flow::{Flow, flag, next_state, state, tcp},
    maps::{Backend, backend_flag},
    reason::Reason,
};

use crate::{direct::is_direct, live, maps, parse::Packet, path::Path, records, select, service, table::Found, time};

/// What is to be done with a packet of a flow.
pub enum Life {
    /// Forward it.
    Goes,
    /// The flow is over and its record given up: treat the packet as if it had none.
    Over,
    /// The packet was answered or is to be dropped.
    Done(Reason),
}

/// Ticks before a verdict in which a backend's packet still shows that it lives: a client's acknowledgement of it may
/// come right after the verdict. A dead one has been silent for longer, since its checks had to fail first.
const GRACE: i32 = 1;

/// Takes a packet into its flow's life.
#[inline(always)]
pub fn step<F: Path>(ctx: &XdpContext, packet: &Packet<F>, found: &mut Found<F>) -> Life {
    let now = time::now();
    let head = &mut found.flow.head;
    let seen = if found.from_backend { &mut head.seen_backend } else { &mut head.seen_client };
    if *seen != now {
        if records::expired(head, now) {
            F::release(found.index, found.seq);
            return Life::Over;
        }
        let seen = if found.from_backend { &mut head.seen_backend } else { &mut head.seen_client };
        *seen = now;
        if head.flags & flag::AFFINITY != 0 {
            let (service, backend) = (head.service, head.backend);
            let [high, low] = service::client::<F>(found.flow.client.source);
            select::touch(service, high, low, backend);
        }
    }
    if found.from_backend { from_backend(found.flow, packet) } else { from_client(ctx, found, packet) }
}

#[inline(always)]
fn from_backend<F: Path>(flow: &mut Flow<F>, packet: &Packet<F>) -> Life {
    let now = flow.head.state;
    if packet.is_tcp() && (now != state::ESTABLISHED || packet.flags & (tcp::FIN | tcp::RST) != 0) {
        enter(flow, next_state(now, packet.flags, true, false));
    }
    Life::Goes
}

#[inline(always)]
fn from_client<F: Path>(ctx: &XdpContext, found: &mut Found<F>, packet: &Packet<F>) -> Life {
    let flow = &mut *found.flow;
    let Some(backend) = maps::backends.get(flow.head.backend) else { return Life::Over };
    if flow.head.state == state::RESET || backend.flags & backend_flag::ATTENTION != 0 {
        match backend_gone(flow, backend, packet) {
            Gone::No => {}
            Gone::Over => {
                F::release(found.index, found.seq);
                return Life::Over;
            }
            Gone::Silent => return Life::Done(Reason::Abandoned),
            Gone::Reset(reason) => return Life::Done(F::reset(ctx, packet, reason)),
        }
    }
    let now = flow.head.state;
    if packet.is_tcp() && (now != state::ESTABLISHED || packet.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0) {
        // Rule 11: a SYN on a connection that is closing begins a new one.
        if packet.is_syn() && now >= state::FIN_CLIENT {
            F::release(found.index, found.seq);
            return Life::Over;
        }
        let next = next_state(now, packet.flags, false, is_direct(flow.head.mode));
        enter(flow, next);
        if now == state::FIN_BACKEND && next == state::CLOSED && packet.flags & tcp::FIN != 0 {
            F::rest(ctx, found.index, packet.transport, packet.length);
        }
    }
    Life::Goes
}

/// Gives a flow a state; a closed one is no longer counted among its backend's.
#[inline(always)]
fn enter<F: Path>(flow: &mut Flow<F>, next: u8) {
    flow.head.state = next;
    if next == state::CLOSED {
        live::end(&mut flow.tail);
    }
}

/// What a gone backend means for a client's packet.
enum Gone {
    /// Nothing: the flow goes on.
    No,
    /// The flow is over.
    Over,
    /// The flow is closed, and the packet must not be answered.
    Silent,
    /// The flow is closed, and the client is told.
    Reset(Reason),
}

/// Rule 14: the flow's backend is down, in maintenance, or removed by force; or an operator flushed the flow.
#[inline(always)]
fn backend_gone<F: Path>(flow: &mut Flow<F>, backend: &Backend, packet: &Packet<F>) -> Gone {
    let flags = backend.flags;
    let flushed = flow.head.state == state::RESET;
    if !packet.is_tcp() {
        return if flushed || flags & backend_flag::MOVE_UDP != 0 { Gone::Over } else { Gone::No };
    }
    // Nothing came from it since it fell.
    let silent = backend.down_since.wrapping_sub(flow.head.seen_backend) as i32 > GRACE;
    let down = flags & backend_flag::RESET != 0 || (flags & backend_flag::RESET_SILENT != 0 && silent);
    if !flushed && !down {
        return Gone::No;
    }
    if packet.is_syn() {
        return Gone::Over;
    }
    enter(flow, state::CLOSED);
    if packet.flags & tcp::RST != 0 {
        return Gone::Silent;
    }
    Gone::Reset(if flushed { Reason::ResetFlushed } else { Reason::ResetDown })
}
