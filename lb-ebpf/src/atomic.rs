//! Atomic instructions, which Rust does not offer on this target.

/// Adds `change` (wrapping) to the word at `address`, in one step.
///
/// # Safety
/// `address` must be an aligned word inside a map's value.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub unsafe fn add(address: *mut u32, change: u32) {
    // SAFETY: the caller vouches for the address; the instruction touches nothing else (BPF_ADD).
    unsafe {
        core::arch::asm!("lock *(u32 *)(r1 + 0) += w2", in("r1") address, in("r2") u64::from(change));
    }
}

/// The same for the checks that run on the host.
///
/// # Safety
/// `address` must be an aligned word.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(address: *mut u32, change: u32) {
    use core::sync::atomic::{AtomicU32, Ordering};
    // SAFETY: the caller vouches for the address.
    unsafe { AtomicU32::from_ptr(address) }.fetch_add(change, Ordering::Relaxed);
}

/// Puts `new` at `address` if `old` stands there, in one step; returns what stood there.
///
/// # Safety
/// `address` must be an aligned word inside a map's value.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub unsafe fn compare_and_swap(address: *mut u32, old: u32, new: u32) -> u32 {
    let mut seen = u64::from(old);
    // SAFETY: the caller vouches for the address; the instruction touches nothing else (BPF_CMPXCHG, Linux 5.12).
    unsafe {
        core::arch::asm!(
            "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
            in("r1") address,
            in("r2") u64::from(new),
            inout("r0") seen,
        );
    }
    seen as u32
}

/// The same for the checks that run on the host.
///
/// # Safety
/// `address` must be an aligned word.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn compare_and_swap(address: *mut u32, old: u32, new: u32) -> u32 {
    use core::sync::atomic::{AtomicU32, Ordering};
    // SAFETY: the caller vouches for the address.
    let word = unsafe { AtomicU32::from_ptr(address) };
    word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|seen| seen)
}
