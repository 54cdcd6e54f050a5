//! Arrays that kernel and userspace change at the same time, mapped into this process.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// A mapped BPF array (`BPF_F_MMAPABLE`). The kernel rounds each element up to eight bytes
/// (kernel/bpf/arraymap.c:array_map_alloc).
pub(super) struct SharedArray {
    base: NonNull<u8>,
    slots: u32,
}

const STRIDE: usize = 8;

impl SharedArray {
    /// Maps an array of `slots` elements of up to eight bytes.
    pub(super) fn map_array(fd: &impl AsFd, slots: u32) -> io::Result<Self> {
        // SAFETY: a fresh mapping of a file descriptor that we own; the kernel checks the length.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::byte_length(slots),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, slots })
    }

    const fn byte_length(slots: u32) -> usize {
        (slots as usize * STRIDE).next_multiple_of(4096)
    }

    fn slot_ptr(&self, index: u32) -> Option<NonNull<u8>> {
        // SAFETY: in bounds of the mapping.
        (index < self.slots).then(|| unsafe { self.base.add(index as usize * STRIDE) })
    }

    /// Adds to a 32-bit element.
    pub(super) fn add32(&self, index: u32, by: u32) {
        if let Some(slot) = self.slot_ptr(index) {
            // SAFETY: aligned, mapped for as long as `self`; the kernel uses atomics on it, too.
            let word = unsafe { AtomicU32::from_ptr(slot.as_ptr().cast()) };
            word.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Subtracts from a 64-bit element.
    pub(super) fn sub64(&self, index: u32, by: u64) {
        if let Some(slot) = self.slot_ptr(index) {
            // SAFETY: as in `add32`.
            let word = unsafe { AtomicU64::from_ptr(slot.as_ptr().cast()) };
            word.fetch_sub(by, Ordering::Relaxed);
        }
    }

    /// Sets a 64-bit element.
    pub(super) fn set64(&self, index: u32, value: u64) {
        if let Some(slot) = self.slot_ptr(index) {
            // SAFETY: as in `add32`.
            let word = unsafe { AtomicU64::from_ptr(slot.as_ptr().cast()) };
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Reads a 64-bit element.
    pub(super) fn get64(&self, index: u32) -> u64 {
        self.slot_ptr(index).map_or(0, |slot| {
            // SAFETY: as in `add32`.
            let word = unsafe { AtomicU64::from_ptr(slot.as_ptr().cast()) };
            word.load(Ordering::Relaxed)
        })
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::byte_length(self.slots)) };
    }
}

// SAFETY: all access is atomic; the mapping belongs to no thread.
unsafe impl Send for SharedArray {}
