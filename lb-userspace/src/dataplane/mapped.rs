//! Arrays of the kernel's in this process's memory (`BPF_F_MMAPABLE`): reading costs nothing, and an aligned store of
//! up to eight bytes is seen by the data path whole or not at all.

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

use super::map_error;
use crate::Result;

/// An array map of `T`, shared with the kernel and with other threads.
///
/// `T` is one of the `#[repr(C)]` types of `lb_common`: valid for every bit pattern.
pub struct Mapped<T> {
    memory: Arc<MmapRaw>,
    length: u32,
    stride: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Mapped<T> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), length: self.length, stride: self.stride, of: PhantomData }
    }
}

impl<T: Copy> Mapped<T> {
    /// Maps an array whose elements are each a `T`.
    ///
    /// # Errors
    /// Its elements are not the size of a `T`, or the kernel refuses.
    pub fn new(name: &str, map: &MapData) -> Result<Self> {
        // The kernel rounds the distance of elements up to eight bytes.
        Self::map(name, map, 1, size_of::<T>().next_multiple_of(8))
    }

    /// Maps an array whose elements are eight bytes full of `T`; it is then read and written as an array of `T`.
    ///
    /// # Errors
    /// As [`Mapped::new`].
    pub fn packed(name: &str, map: &MapData) -> Result<Self> {
        Self::map(name, map, 8 / size_of::<T>(), size_of::<T>())
    }

    fn map(name: &str, map: &MapData, per_element: usize, stride: usize) -> Result<Self> {
        let info = map.info().map_err(|error| map_error(name, error))?;
        let (elements, element) = (info.max_entries(), info.value_size() as usize);
        if element != size_of::<T>() * per_element {
            return Err(map_error(name, format!("elements of {element} bytes, not {}", size_of::<T>() * per_element)));
        }
        let length = elements * per_element as u32;
        let memory = MmapOptions::new()
            .len(length as usize * stride)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .map_err(|error| map_error(name, format!("map it into memory: {error}")))?;
        Ok(Self { memory: Arc::new(memory), length, stride, of: PhantomData })
    }

    /// Number of elements.
    pub fn length(&self) -> u32 {
        self.length
    }

    fn place(&self, index: u32) -> *mut T {
        assert!(index < self.length, "index {index} of an array of {}", self.length);
        self.memory.as_mut_ptr().wrapping_add(index as usize * self.stride).cast()
    }

    /// Reads an element; the data path may be writing it at the same time.
    pub fn read(&self, index: u32) -> T {
        // SAFETY: inside the mapping (asserted by `place`), aligned like every element, and a `T` is valid for
        // every bit pattern.
        unsafe { self.place(index).read_volatile() }
    }

    /// Reads the aligned 32-bit word at a byte offset of an element.
    pub fn read_u32(&self, index: u32, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.stride, "word at offset {offset}");
        let place = self.place(index).cast::<u8>().wrapping_add(offset).cast::<u32>();
        // SAFETY: inside the element, and aligned (both asserted).
        unsafe { std::sync::atomic::AtomicU32::from_ptr(place).load(std::sync::atomic::Ordering::Acquire) }
    }

    /// Writes an element.
    pub fn write(&self, index: u32, value: T) {
        // SAFETY: as for `read`.
        unsafe { self.place(index).write_volatile(value) }
    }

    /// Writes the aligned 64-bit word at a byte offset of an element, in one store.
    pub fn write_word(&self, index: u32, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.stride, "word at offset {offset}");
        let place = self.place(index).cast::<u8>().wrapping_add(offset).cast::<u64>();
        // SAFETY: inside the element, and aligned (both asserted).
        unsafe { std::sync::atomic::AtomicU64::from_ptr(place).store(word, std::sync::atomic::Ordering::Release) }
    }

    /// Changes the aligned 32-bit word at a byte offset of an element from `old` to `new`, in one step; false if something
    /// else stood there.
    pub fn swap_u32(&self, index: u32, offset: usize, old: u32, new: u32) -> bool {
        use std::sync::atomic::{AtomicU32, Ordering};
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.stride, "word at offset {offset}");
        let place = self.place(index).cast::<u8>().wrapping_add(offset).cast::<u32>();
        // SAFETY: inside the element, and aligned (both asserted).
        let word = unsafe { AtomicU32::from_ptr(place) };
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Adds to an element's first 32-bit word, in one step.
    pub fn add_u32(&self, index: u32, change: i32) {
        use std::sync::atomic::{AtomicU32, Ordering};
        // SAFETY: inside the mapping (asserted by `place`); elements are aligned to eight bytes.
        let word = unsafe { AtomicU32::from_ptr(self.place(index).cast::<u32>()) };
        word.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    }

    /// Changes one byte of an element from `old` to `new`, in one step; false if something else stood there.
    pub fn swap_byte(&self, index: u32, offset: usize, old: u8, new: u8) -> bool {
        use std::sync::atomic::{AtomicU8, Ordering};
        assert!(offset < size_of::<T>(), "byte at offset {offset}");
        let place = self.place(index).cast::<u8>().wrapping_add(offset);
        // SAFETY: inside the element (asserted).
        let byte = unsafe { AtomicU8::from_ptr(place) };
        byte.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

// SAFETY: the memory is shared with the kernel anyway; accesses are volatile or atomic and never make references.
unsafe impl<T: Send> Sync for Mapped<T> {}
