//! The only place that touches the ring buffer, so that no drop can go uncounted.

use dmtrace_common::{Counter, DmEvent, Kind, PROC_ANNOUNCED, ProcRecord, SemEvent, StackSample};

use crate::{
    atomic::add64,
    maps::{COUNTS, RING, STACKS},
};

/// Adds one to a counter. Atomic although it is per CPU: a program of ours can be preempted by
/// another one on the same CPU.
#[inline(always)]
pub(crate) fn count_event(counter: Counter) {
    if let Some(slot) = COUNTS.get_ptr_mut(counter.0) {
        // SAFETY: the pointer is a live, aligned map value.
        unsafe { add64(slot, 1) };
    }
}

/// Sends an event; tells whether it went into the ring.
#[inline(always)]
pub(crate) fn send_event(kind: Kind, event: &SemEvent) -> bool {
    match RING.reserve::<SemEvent>(0) {
        Some(mut entry) => {
            entry.write(*event);
            entry.submit(0);
            count_event(Counter::submitted(kind));
            true
        }
        None => {
            count_event(Counter::dropped(kind));
            false
        }
    }
}

/// Sends an event of device-mapper, which is too large for the stack: `fill` writes it into the
/// ring, where it starts as zeros. Tells whether it went there.
#[inline(always)]
pub(crate) fn send_dm_event(kind: Kind, fill: impl FnOnce(&mut DmEvent)) -> bool {
    count_event(Counter::seen(kind));
    match RING.reserve::<DmEvent>(0) {
        Some(mut entry) => {
            let event = entry.as_mut_ptr();
            // SAFETY: the reserved space is large and aligned enough, and ours until submitted.
            unsafe { event.write_bytes(0, 1) };
            // SAFETY: all zeros are a valid event.
            fill(unsafe { &mut *event });
            entry.submit(0);
            count_event(Counter::submitted(kind));
            true
        }
        None => {
            count_event(Counter::dropped(kind));
            false
        }
    }
}

/// Sends a whole process record; tells whether it went into the ring.
#[inline(always)]
pub(crate) fn send_process(record: &mut ProcRecord) -> bool {
    count_event(Counter::seen(Kind::Proc));
    record.state |= PROC_ANNOUNCED;
    if RING.output::<ProcRecord>(&*record, 0).is_ok() {
        count_event(Counter::submitted(Kind::Proc));
        true
    } else {
        record.state &= !PROC_ANNOUNCED;
        count_event(Counter::dropped(Kind::Proc));
        false
    }
}

/// Sends a stack into the ring for stacks; `fill` gets the reserved space as it is, not zeroed:
/// it is large.
#[inline(always)]
pub(crate) fn send_stack(fill: impl FnOnce(*mut StackSample)) {
    count_event(Counter::seen(Kind::Stack));
    match STACKS.reserve::<StackSample>(0) {
        Some(mut entry) => {
            fill(entry.as_mut_ptr());
            entry.submit(0);
            count_event(Counter::submitted(Kind::Stack));
        }
        None => count_event(Counter::dropped(Kind::Stack)),
    }
}
