//! Reading kernel memory, and small helpers that keep the verifier content.

use aya_ebpf::Global;
use aya_ebpf::helpers::{
    bpf_probe_read_kernel_buf, bpf_probe_read_user_buf,
    generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user},
};

use crate::offsets::ABSENT;

/// Address of a kernel object.
pub(crate) type Addr = u64;

/// Reads a field: 0 where the field does not exist or the read fails.
#[inline(always)]
pub(crate) fn u32_at(base: Addr, offset: &Global<u32>) -> u32 {
    let offset = offset.load();
    let mut value = 0u32;
    if base != 0 && offset != ABSENT {
        // SAFETY: the helper checks the address and writes exactly four bytes or zeros.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast(),
                4,
                (base + u64::from(offset)) as *const _,
            )
        };
    }
    value
}

/// Reads a 64-bit field or a pointer: 0 where the field does not exist or the read fails.
#[inline(always)]
pub(crate) fn u64_at(base: Addr, offset: &Global<u32>) -> u64 {
    let offset = offset.load();
    if base == 0 || offset == ABSENT {
        0
    } else {
        u64_from(base + u64::from(offset))
    }
}

/// Reads 64 bits: 0 if the read fails.
#[inline(always)]
pub(crate) fn u64_from(address: Addr) -> u64 {
    let mut value = 0u64;
    // SAFETY: the helper checks the address and writes exactly eight bytes or zeros.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const _) };
    value
}

/// Reads 32 bits: 0 if the read fails.
#[inline(always)]
pub(crate) fn u32_from(address: Addr) -> u32 {
    let mut value = 0u32;
    // SAFETY: the helper checks the address and writes exactly four bytes or zeros.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 4, address as *const _) };
    value
}

/// Reads bytes of kernel memory into a buffer; the buffer is zeroed if the read fails.
#[inline(always)]
pub(crate) fn kernel_bytes(address: Addr, into: &mut [u8]) -> bool {
    // SAFETY: the helper checks the address; the buffer is a valid slice.
    unsafe { bpf_probe_read_kernel_buf(address as *const u8, into) }.is_ok()
}

/// Reads bytes of user memory into a buffer.
#[inline(always)]
pub(crate) fn user_bytes(address: Addr, into: &mut [u8]) -> bool {
    // SAFETY: the helper checks the address; the buffer is a valid slice.
    unsafe { bpf_probe_read_user_buf(address as *const u8, into) }.is_ok()
}

/// Reads up to `len` bytes of user memory; `len` must be bounded in the verifier's eyes.
#[inline(always)]
pub(crate) fn user_some(address: Addr, into: *mut u8, len: u32) -> bool {
    // SAFETY: the verifier proves that `into..into+len` stays inside its map value.
    unsafe { bpf_probe_read_user(into.cast(), len, address as *const _) == 0 }
}

/// Reads a C string of the kernel; the length with its NUL, or a negative errno.
#[inline(always)]
pub(crate) fn kernel_string(address: Addr, into: *mut u8, len: u32) -> i64 {
    // SAFETY: the verifier proves that `into..into+len` stays inside its map value.
    unsafe { bpf_probe_read_kernel_str(into.cast(), len, address as *const _) }
}

/// `value & mask`, kept by the optimizer even where it can prove that the mask changes nothing:
/// the verifier cannot.
#[inline(always)]
pub(crate) fn bounded_index(value: u64, mask: u64) -> u64 {
    core::hint::black_box(value) & mask
}
