//! `semop` on a cookie.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use dmtrace_common::{
    Counter, EVENT_UNTRACKED, Kind, OPS_KEPT, ProcKey, SEM_OPS_DROPPED, SEM_RELEASED, SemEvent,
    SemKey, SemRecord,
};

use crate::{
    atomic::add32,
    dm::settle_ioctl,
    emit,
    maps::SEMS,
    process::{Current, current_task, current_thread, intern_process, task_comm},
    sem::{Entered, Ops, event_header, increment_field, tracked_cookie},
};

const EAGAIN: i32 = -11;

#[inline(always)]
fn op_event(kind: Kind, who: &Current, sem: SemKey, key: u32, ops: &Ops) -> SemEvent {
    SemEvent {
        header: event_header(kind, 0, who),
        ns: sem.ns,
        semid: sem.semid,
        key,
        extra: ops.count,
        ops: ops.list,
        comm: task_comm(who.task),
        ..SemEvent::default()
    }
}

/// An operation begins. Only one that can sleep is worth an event: the others return at once.
#[inline(always)]
pub(crate) fn op_begins(ns: u32, semid: i32, ops: &Ops, quality: u16) {
    if !ops.can_sleep() {
        return;
    }
    let Some(record) = tracked_cookie(ns, semid) else {
        return;
    };
    let who = current_thread();
    if ops.waits_for_zero() {
        increment_field(&raw mut record.waits);
        record.waiter = who.key;
        record.wait_since = who.now;
    }
    emit::count_event(Counter::seen(Kind::WaitBegin));
    intern_process(&who);
    let mut event = op_event(Kind::WaitBegin, &who, SemKey { ns, semid }, record.key, ops);
    event.header.flags = quality;
    if !emit::send_event(Kind::WaitBegin, &event) {
        record.state |= SEM_OPS_DROPPED;
    }
}

/// An operation of the current thread returned.
#[inline(always)]
pub(crate) fn op_ended(ns: u32, semid: i32, ops: &Ops, ret: i32, quality: u16, entered: Entered) {
    let who = current_thread();
    op_ended_for(&who, SemKey { ns, semid }, ops, ret, quality, entered);
}

/// An operation of a thread returned; not of the current one where a sleeper's operation is
/// carried out by whoever wakes it.
#[inline(always)]
pub(crate) fn op_ended_for(
    who: &Current,
    sem: SemKey,
    ops: &Ops,
    ret: i32,
    quality: u16,
    entered: Entered,
) {
    let mut event = op_event(Kind::Op, who, sem, entered.key, ops);
    event.began = entered.began;
    event.ret = ret;
    event.header.flags = quality;
    let Some(record) = tracked_cookie(sem.ns, sem.semid) else {
        // The set was removed before this was told: under a sleeper, who gets EIDRM, or by the
        // waiter that this very decrement has woken. It still belongs into the cookie's story.
        if ops.can_sleep() || entered.key != 0 {
            emit::count_event(Counter::seen(Kind::Op));
            event.header.flags |= EVENT_UNTRACKED;
            emit::send_event(Kind::Op, &event);
        }
        return;
    };
    event.key = record.key;
    note_op(sem, record, who, ops, ret, entered.began);
    if who.task == current_task() {
        intern_process(who);
        settle_ioctl();
    }
    emit::count_event(Counter::seen(Kind::Op));
    if !emit::send_event(Kind::Op, &event) {
        record.state |= SEM_OPS_DROPPED;
    }
}

/// Keeps the sums that a verdict needs when messages were dropped.
#[inline(always)]
fn note_op(sem: SemKey, record: &mut SemRecord, who: &Current, ops: &Ops, ret: i32, began: u64) {
    let op = ops.list[0].op;
    if ops.waits_for_zero() {
        increment_field(&raw mut record.waits_done);
        if same_process(record.waiter, who.key) {
            record.wait_since = 0;
        }
    }
    if ret != EAGAIN {
        record.last_op = who.now;
    }
    if ret < 0 {
        if ret == EAGAIN {
            increment_field(&raw mut record.failed_decrements);
        } else {
            record.last_error = ret;
        }
        return;
    }
    let sum = total_delta(ops);
    // Whoever decrements to zero wakes the waiter, whose hook may run first.
    if sum >= 0 || record.state & SEM_RELEASED == 0 {
        // A wait takes effect when it ends, not when it begins.
        let began = if sum == 0 && ops.waits_for_zero() {
            0
        } else {
            began
        };
        note_operator(sem, record, who, began);
    }
    if sum > 0 {
        record.state &= !SEM_RELEASED;
    } else if sum == 0 && ops.waits_for_zero() {
        record.state |= SEM_RELEASED;
    }
    if sum != 0 {
        // SAFETY: an aligned field of a live map value.
        unsafe { add32((&raw mut record.value).cast(), sum as u32) };
    }
    let owner = same_process(record.creator, who.key);
    match (owner, op > 0, op < 0) {
        (true, true, _) => increment_field(&raw mut record.owner_inc),
        (true, _, true) => increment_field(&raw mut record.owner_dec),
        (false, true, _) => increment_field(&raw mut record.other_inc),
        (false, _, true) => increment_field(&raw mut record.other_dec),
        _ => {}
    }
}

/// Keeps who may have done the last operation that succeeded. `began` as [`Entered::began`].
#[inline(always)]
pub(crate) fn note_operator(sem: SemKey, record: &mut SemRecord, who: &Current, began: u64) {
    record.last_actor = who.key;
    let began = if began == 0 { who.now } else { began };
    let set = u64::from(sem.ns) << 32 | u64::from(sem.semid as u32);
    dmtrace_operated(set, u64::from(who.key.tgid), began, who.now);
}

/// Puts an operation where it belongs among those that may have been the last.
///
/// Exported, as `dmtrace_capture`: its many branches are verified once, not once for each state in
/// which it is called. So it takes numbers only, and finds the record itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_operated(set: u64, tgid: u64, began: u64, ended: u64) -> u64 {
    let sem = SemKey {
        ns: (set >> 32) as u32,
        semid: set as i32,
    };
    let Some(record) = SEMS.get_ptr_mut(&sem) else {
        return 0;
    };
    // SAFETY: a live map value; what another processor writes meanwhile makes the last operator
    // unknown, never a wrong one.
    let operators = unsafe { &mut (*record).operators };
    // SAFETY: takes no pointers.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let place = operators.place_of(cpu, began, ended);
    // Behind the optimizer's back: the verifier wants to see the comparison.
    let place = place.map(core::hint::black_box);
    if let Some(place) = place
        && let Some(place) = operators.places.get_mut(place)
    {
        place.replace(tgid as u32, began, ended);
    }
    0
}

#[inline(always)]
fn total_delta(ops: &Ops) -> i32 {
    let mut sum = 0;
    for index in 0..OPS_KEPT {
        if (index as u32) < ops.count {
            sum += i32::from(ops.list[index].op);
        }
    }
    sum
}

#[inline(always)]
fn same_process(a: ProcKey, b: ProcKey) -> bool {
    a.tgid == b.tgid && a.start == b.start
}
