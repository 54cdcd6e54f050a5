//! Memory that is not needed any more goes back to the system: a service lives for months.

/// Gives back what the allocator keeps for later.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; glibc locks its own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
}
