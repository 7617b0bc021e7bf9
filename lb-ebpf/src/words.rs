//! Words in packets. Headers are not aligned there, which BPF does not mind, but Rust does: it would read byte by byte.
//! So these few loads and stores are written down as the single instructions that they are.

/// Hides how a pointer was computed, so that the compiler does not compute it a second time in another register: the
/// verifier would not know that the bounds check of one holds for the other.
#[inline(always)]
pub fn opaque(pointer: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = pointer;
        // SAFETY: moves a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(pure, nomem, nostack)) };
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

/// Reads one of the context's packet pointers: a 32-bit load to the compiler, a whole pointer to the kernel, which is
/// why the compiler must not know that it is one (it would carry it in half a register).
///
/// # Safety
/// `context` must be a program's context and `FIELD` the offset of `data` (0) or `data_end` (4).
#[inline(always)]
pub unsafe fn packet_pointer<const FIELD: usize>(context: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let pointer: usize;
        // SAFETY: the caller vouches for the context.
        unsafe {
            core::arch::asm!(
                "{pointer} = *(u32 *)({context} + {field})",
                context = in(reg) context,
                field = const FIELD,
                pointer = lateout(reg) pointer,
                options(readonly, nostack),
            );
        }
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller vouches for the context.
    unsafe {
        ((context + FIELD) as *const u32).read() as usize
    }
}

/// A number that one instruction can read from, or write to, any place in a packet.
pub trait Word: Copy {
    /// Reads it.
    ///
    /// # Safety
    /// `address` must be inside the packet, with the word's bytes checked against its end.
    unsafe fn load(address: usize) -> Self;

    /// Writes it.
    ///
    /// # Safety
    /// As for [`Word::load`].
    unsafe fn store(self, address: usize);
}

macro_rules! word {
    ($($name:ty, $size:literal;)*) => {$(
        impl Word for $name {
            #[inline(always)]
            unsafe fn load(address: usize) -> Self {
                #[cfg(target_arch = "bpf")]
                {
                    let word: u64;
                    // SAFETY: the caller vouches for the address, and the verifier checks it.
                    unsafe {
                        core::arch::asm!(
                            concat!("{word} = *(", $size, " *)({address} + 0)"),
                            address = in(reg) address,
                            word = lateout(reg) word,
                            options(readonly, nostack),
                        );
                    }
                    word as Self
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller vouches for the address.
                unsafe { (address as *const Self).read_unaligned() }
            }

            #[inline(always)]
            unsafe fn store(self, address: usize) {
                #[cfg(target_arch = "bpf")]
                // SAFETY: the caller vouches for the address, and the verifier checks it.
                unsafe {
                    core::arch::asm!(
                        concat!("*(", $size, " *)({address} + 0) = {word}"),
                        address = in(reg) address,
                        word = in(reg) self as u64,
                        options(nostack),
                    );
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller vouches for the address.
                unsafe { (address as *mut Self).write_unaligned(self) }
            }
        }
    )*};
}

word! {
    u8, "u8";
    u16, "u16";
    u32, "u32";
    u64, "u64";
}
