//! What one program knows of a thread's call and a later one of the same call takes up.

use dmtrace_common::Counter;

use crate::{
    emit,
    maps::{IN_CALL, PENDING, Pending, SETS, WAITS},
};

/// Two threads have come upon one another in a slot of [`IN_CALL`]: it says nothing from then on.
const MIXED_UP: u32 = u32::MAX;

#[inline(always)]
fn pending_slot(id: u64) -> Option<*mut u32> {
    IN_CALL.get_ptr_mut(id as u32 & 0x7fff)
}

/// The first program of a call runs.
#[inline(always)]
pub(crate) fn mark_run(id: u64) {
    let tid = id as u32;
    if let Some(slot) = pending_slot(id) {
        // SAFETY: a live map value.
        let slot = unsafe { &mut *slot };
        *slot = if *slot == 0 || *slot == tid {
            tid
        } else {
            MIXED_UP
        };
    }
}

/// A later program of the same call runs: notices whether the first was skipped. Where that is not
/// certain it does not count: what is not noticed is taken for lost.
#[inline(always)]
pub(crate) fn notice_skip(id: u64, skipped: Counter) {
    let tid = id as u32;
    if let Some(slot) = pending_slot(id) {
        // SAFETY: a live map value.
        let slot = unsafe { &mut *slot };
        if *slot == 0 {
            emit::count_event(skipped);
        } else if *slot == tid {
            *slot = 0;
        }
    }
}

/// What is known of the thread with this `pid_tgid`.
#[inline(always)]
pub(crate) fn read_pending(id: u64) -> Option<Pending> {
    // SAFETY: sixteen bytes, changed by the thread itself, or by one that wakes it, with the
    // semaphore locked.
    unsafe { PENDING.get(&id) }.copied()
}

/// Keeps it; tells whether there was room. Lack of room is counted.
#[inline(always)]
pub(crate) fn keep_pending(id: u64, what: &Pending) -> bool {
    let kept = PENDING.insert(&id, what, 0).is_ok();
    if !kept {
        emit::count_event(Counter::CALL_MAP_FULL);
    }
    kept
}

#[inline(always)]
pub(crate) fn forget_pending(id: u64) {
    let _nothing_there = PENDING.remove(&id);
}

/// The thread does something else while it is still said to sleep or to set a value: all programs
/// that stand at the end of that call were kept from running.
#[inline(always)]
pub(crate) fn moves_on(id: u64) {
    if let Some(it) = read_pending(id) {
        if it.what == WAITS || it.what == SETS {
            emit::count_event(Counter::ENDS_UNSEEN);
        }
        forget_pending(id);
    }
}
