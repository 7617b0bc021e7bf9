//! Raw kernel calls, each wrapped once.

use aya_ebpf::{EbpfContext as _, bindings::xdp_md, helpers::generated as raw, programs::XdpContext};
use lb_common::checksum::fold64;

/// The number of this CPU.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: no arguments.
    unsafe { raw::bpf_get_smp_processor_id() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { raw::bpf_get_prandom_u32() }
}

/// The frame's length in bytes, fragments included.
#[inline(always)]
pub fn frame_length(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the program's own (Linux 5.18).
    unsafe { raw::bpf_xdp_get_buff_len(ctx.as_ptr().cast::<xdp_md>()) as u32 }
}

/// Moves the frame's start; every pointer into the packet is dead afterwards.
#[inline(always)]
pub fn adjust_head(ctx: &XdpContext, delta: i32) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { raw::bpf_xdp_adjust_head(ctx.as_ptr().cast::<xdp_md>(), delta) == 0 }
}

/// Cuts the frame to `length` bytes; every pointer into the packet is dead afterwards.
#[inline(always)]
pub fn truncate(ctx: &XdpContext, length: u32) -> bool {
    let excess = frame_length(ctx) as i32 - length as i32;
    // SAFETY: the context is the program's own.
    excess <= 0 || unsafe { raw::bpf_xdp_adjust_tail(ctx.as_ptr().cast::<xdp_md>(), -excess) == 0 }
}

/// Says that the frame shall leave by an interface; the program must then return `XDP_REDIRECT`.
#[inline(always)]
pub fn redirect(ifindex: u32) {
    // SAFETY: plain numbers; without flags the answer is always XDP_REDIRECT.
    unsafe { raw::bpf_redirect(ifindex, 0) };
}

/// Calls `body(0..rounds, state)` until it returns 1 (`bpf_loop`, Linux 5.17).
#[inline(always)]
pub fn repeat<T>(rounds: u32, body: extern "C" fn(u32, *mut T) -> u64, state: &mut T) {
    // SAFETY: the verifier checks the body against a pointer to this very stack object.
    unsafe {
        raw::bpf_loop(rounds, body as *mut core::ffi::c_void, core::ptr::from_mut(state).cast(), 0);
    }
}

/// Bytes that [`sum`] reads at a time.
const CHUNK: usize = 32;

/// What [`sum`] knows.
#[repr(C)]
struct Sum {
    context: *mut xdp_md,
    offset: u32,
    left: u32,
    sum: u64,
}

extern "C" fn add(_: u32, state: *mut Sum) -> u64 {
    // SAFETY: bpf_loop hands back the pointer that it was given, to an object of the caller's that is still there.
    let state = unsafe { &mut *state };
    let length = if state.left < CHUNK as u32 { state.left } else { CHUNK as u32 };
    if length == 0 {
        return 1;
    }
    let mut words = [0u64; CHUNK / 8];
    // SAFETY: the context is the program's own; the buffer has room for a chunk (Linux 5.18).
    let read = unsafe { raw::bpf_xdp_load_bytes(state.context, state.offset, words.as_mut_ptr().cast(), length) };
    if read != 0 {
        return 1;
    }
    for word in words {
        state.sum += (word & 0xffff_ffff) + (word >> 32);
    }
    state.offset += length;
    state.left -= length;
    0
}

/// What `length` bytes at `offset` of the frame add up to, wherever they are; `None` if they are not all there.
#[inline(always)]
pub fn sum(ctx: &XdpContext, offset: u32, length: u32) -> Option<u16> {
    let mut state = Sum { context: ctx.as_ptr().cast(), offset, left: length, sum: 0 };
    repeat(65_536 / CHUNK as u32, add, &mut state);
    (state.left == 0).then(|| fold64(state.sum))
}
