//! Atomic addition. The target has the instruction, but `core` offers no `fetch_add` on targets
//! without compare-and-swap.

use core::arch::asm;

/// `*word += by`, atomically.
///
/// # Safety
/// `word` must point to an aligned word of a live map value.
#[inline(always)]
pub(crate) unsafe fn add64(word: *mut u64, by: u64) {
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by, options(nostack));
    }
}

/// `*word += by`, atomically.
///
/// # Safety
/// `word` must point to an aligned word of a live map value.
#[inline(always)]
pub(crate) unsafe fn add32(word: *mut u32, by: u32) {
    let by = u64::from(by);
    // SAFETY: the caller vouches for the pointer; the verifier checks it.
    unsafe {
        asm!("lock *(u32 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by, options(nostack));
    }
}
