//! Now, in ticks (`lb_common::clock`).

use aya_ebpf::{Global, helpers::generated as raw};
use lb_common::clock::{Jiffies, ticks};

/// How ticks are made of jiffies; set when the program is loaded.
#[unsafe(no_mangle)]
static JIFFIES_LENGTH: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static JIFFIES_OFFSET: Global<u64> = Global::new(0);

/// Now. Both are constants to the verifier, which drops the way that is not taken.
#[inline(always)]
pub fn now() -> u32 {
    let jiffies = Jiffies { length: JIFFIES_LENGTH.load(), offset: JIFFIES_OFFSET.load() };
    if jiffies.length == 0 {
        // SAFETY: no arguments; available to XDP since Linux 5.11.
        return ticks(unsafe { raw::bpf_ktime_get_coarse_ns() });
    }
    // SAFETY: no arguments. The kernel makes a load of it, where the other clock is a call.
    ticks(jiffies.nanoseconds(unsafe { raw::bpf_jiffies64() }))
}
