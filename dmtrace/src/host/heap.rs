//! The memory of this process.

/// Gives back what the allocator keeps for later. That of musl keeps little.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; glibc locks its own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
}
