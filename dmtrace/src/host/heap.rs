//! The memory of this process.

/// Gives back what the allocator keeps for later. That of musl keeps little.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; glibc locks its own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes all threads share one heap. Threads of glibc have one each, and what one of them has had
/// at the start stays resident for as long as the process lives. musl has one anyway.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
