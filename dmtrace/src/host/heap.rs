//! The memory of this process.

/// Gives back what the allocator keeps for later. That of musl keeps little.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; glibc locks its own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Large blocks for which glibc asks the kernel, and which it gives back when they are free.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 128 << 10;

/// For a process that lives long: all threads share one heap, and what is free goes back. Else each
/// thread of glibc has a heap of its own; and once a large block was freed, such as the types of the
/// kernel at the start, it keeps all that are not larger (`M_MMAP_THRESHOLD` in `mallopt(3)`). musl
/// has one heap and gives back anyway.
pub fn live_long() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, LARGE),
    ] {
        // SAFETY: numbers.
        unsafe { libc::mallopt(what, value) };
    }
}
