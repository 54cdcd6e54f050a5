//! Per-CPU counters: what was seen, what reached the ring, what did not.

use crate::{KINDS, Kind};

/// Index into the per-CPU counter array.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counter(pub u32);

impl Counter {
    /// Messages of this kind that a probe had to report.
    #[inline(always)]
    pub const fn seen(kind: Kind) -> Self {
        Self(kind as u32 * 3)
    }

    /// Messages of this kind that went into the ring.
    #[inline(always)]
    pub const fn submitted(kind: Kind) -> Self {
        Self(kind as u32 * 3 + 1)
    }

    /// Messages of this kind that found the ring full.
    #[inline(always)]
    pub const fn dropped(kind: Kind) -> Self {
        Self(kind as u32 * 3 + 2)
    }

    /// Sets that found the semaphore map full: announced in the ring only.
    pub const SEM_MAP_FULL: Self = Self(KINDS as u32 * 3);
    /// Processes that found the process map full: named by pid, start time and comm only.
    pub const PROC_MAP_FULL: Self = Self(KINDS as u32 * 3 + 1);
    /// Calls in flight that found the call map full: their result is unknown.
    pub const CALL_MAP_FULL: Self = Self(KINDS as u32 * 3 + 2);
    /// Records of removed sets dropped because userspace did not collect them in time.
    pub const HISTORY_LOST: Self = Self(KINDS as u32 * 3 + 3);
    /// Reads of kernel or user memory that failed where they should not.
    pub const READ_FAULT: Self = Self(KINDS as u32 * 3 + 4);
    /// Device-mapper ioctls with a cookie that were entered. What [`Kind::Ioctl`] has seen less
    /// is still running, or its return was lost (kretprobe).
    pub const DM_ENTERED: Self = Self(KINDS as u32 * 3 + 5);
    /// Calls whose end no program saw, because all its runs were skipped: of SETVAL, or of a wait
    /// that was not ended by the semaphore.
    pub const ENDS_UNSEEN: Self = Self(KINDS as u32 * 3 + 6);
    /// Calls of SETVAL whose first program was skipped, which a later one of the same call has
    /// noticed.
    pub const NOTICED_SETVAL: Self = Self(KINDS as u32 * 3 + 7);
    /// The same of look-ups and creations.
    pub const NOTICED_LOOKUP: Self = Self(KINDS as u32 * 3 + 8);
}

/// Length of the counter array.
pub const COUNTERS: u32 = KINDS as u32 * 3 + 9;

/// Slots of the control array, which both sides change atomically through shared memory.
pub mod control {
    /// Records of removed sets that wait for userspace.
    pub const TOMBSTONES: u32 = 0;
    /// Records of ended processes that wait for userspace.
    pub const PROC_TOMBSTONES: u32 = 1;
    /// Offset of `mapped_device.disk`, which is in the BTF of a module that may be loaded after
    /// the programs; 0 while it is not known.
    pub const MD_DISK: u32 = 2;
    /// The programs at the same place that a question of userspace has passed, one digit each.
    pub const ORDER: u32 = 3;
    /// When tracing began, nanoseconds since boot; 0 until what was there before is entered.
    pub const BEGAN: u32 = 4;
    /// When the process that has loaded the programs ended, nanoseconds since boot; 0 while it
    /// runs.
    pub const TRACER_ENDED: u32 = 5;
    /// What [`Counter::NOTICED_LOOKUP`](super::Counter::NOTICED_LOOKUP) counted before both programs
    /// were attached.
    pub const NOTICED_BEFORE: u32 = 6;
    /// Length of the control array.
    pub const SLOTS: u32 = 8;
}
