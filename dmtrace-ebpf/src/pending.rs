//! What one program knows of a thread's call and a later one of the same call takes up.

use dmtrace_common::Counter;

use crate::{
    emit,
    maps::{PENDING, Pending, SETS, WAITS},
};

/// What is known of the thread with this `pid_tgid`.
#[inline(always)]
pub fn pending(id: u64) -> Option<Pending> {
    // SAFETY: sixteen bytes, changed by the thread itself, or by one that wakes it, with the
    // semaphore locked.
    unsafe { PENDING.get(&id) }.copied()
}

/// Keeps it; tells whether there was room. Lack of room is counted.
#[inline(always)]
pub fn keep(id: u64, what: &Pending) -> bool {
    let kept = PENDING.insert(&id, what, 0).is_ok();
    if !kept {
        emit::count(Counter::CALL_MAP_FULL);
    }
    kept
}

/// Takes it away.
#[inline(always)]
pub fn forget(id: u64) {
    let _nothing_there = PENDING.remove(&id);
}

/// The thread does something else while it is still said to sleep or to set a value: all programs
/// that stand at the end of that call were kept from running.
#[inline(always)]
pub fn moves_on(id: u64) {
    if let Some(it) = pending(id) {
        if it.what == WAITS || it.what == SETS {
            emit::count(Counter::ENDS_UNSEEN);
        }
        forget(id);
    }
}
