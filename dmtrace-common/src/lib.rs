//! Types that cross the border between the kernel programs of dmtrace and its userspace.
//!
//! Everything here is `#[repr(C)]`, free of implicit padding and asserted in size, because the
//! same bytes are written by a kernel program, read from a ring buffer or a BPF map, stored in a
//! recording, and read again on another machine. A change of any layout must raise [`ABI`].
#![no_std]

mod counter;
mod event;
mod key;
mod operators;
mod record;
mod stack;

#[cfg(feature = "user")]
mod user;

pub use counter::*;
pub use event::*;
pub use key::*;
pub use operators::*;
pub use record::*;
pub use stack::*;

/// Version of every layout in this crate. A recording carries it; a reader refuses a newer one.
pub const ABI: u32 = 3;

/// Bytes kept of a process's name, as `TASK_COMM_LEN` in the kernel.
pub const COMM_LEN: usize = 16;

/// Slots of the prefilter: the index half of a semid (`semid & 0x7fff`, ipc/util.h:ipcid_to_idx).
pub const PREFILTER_SLOTS: u32 = 0x8000;

/// `DM_COOKIE_MAGIC` of libdm, the high half of the key of every udev cookie.
pub const COOKIE_MAGIC: u32 = 0x0d4d;

/// Whether a System V key has the magic of a udev cookie. The key alone does not make a cookie:
/// any program may own such a key.
#[inline(always)]
pub const fn has_cookie_magic(key: u32) -> bool {
    key >> 16 == COOKIE_MAGIC
}
