//! Syscall tracepoints: the last resort. They slow every syscall of the host by a little, do not
//! see the end of a namespace, and do not see 32-bit callers.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns},
    macros::tracepoint,
    programs::TracePointContext,
};
use dmtrace_common::{Counter, EVENT_BY_SYSCALL, OPS_KEPT, SEM_MAYBE_FOUND, SemBuf};

use super::{OpsMemory, read_ops};
use crate::{
    emit::count_event,
    maps::{CALLS, IN_CALL, PendingCall},
    operate::{op_begins, op_ended},
    process::{current_task, ipc_ns},
    read::Addr,
    sem::{
        Creation, Entered, Ops, SetEnd, is_known, lookup_failed, maybe_cookie, set_created,
        set_destroyed, tracked_cookie, value_set,
    },
};

/// `IPC_CREAT`.
pub(super) const IPC_CREAT: i32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;
const IPC_RMID: u32 = 0;
const SETVAL: u32 = 16;
/// Or'ed into the command of `semctl` by some C libraries.
const IPC_64: u32 = 0x100;
const EEXIST: i32 = -17;
const ENOMEM: i32 = -12;
const ENOSPC: i32 = -28;

/// Argument of a `sys_enter_*` tracepoint: after the common header (8 bytes) and the number of
/// the syscall, in slots of 8 bytes.
#[inline(always)]
fn syscall_arg(ctx: &TracePointContext, index: usize) -> u64 {
    let slot = ctx.as_ptr().cast::<u64>().wrapping_add(2 + index);
    // SAFETY: syscall tracepoints have six argument slots; the verifier checks the bound.
    unsafe { slot.read_volatile() }
}

/// Return value of a `sys_exit_*` tracepoint.
#[inline(always)]
pub(super) fn syscall_ret(ctx: &TracePointContext) -> i64 {
    syscall_arg(ctx, 0) as i64
}

#[inline(always)]
fn current_ns() -> u32 {
    ipc_ns(current_task()).1
}

#[inline(always)]
fn in_call(id: u64) -> Option<*mut u32> {
    IN_CALL.get_ptr_mut(id as u32 & 0x7fff)
}

/// Keeps the arguments of a call until it returns, and the time.
#[inline(always)]
pub(super) fn keep_call(call: PendingCall) {
    if !try_enter(call) {
        count_event(Counter::CALL_MAP_FULL);
    }
}

/// The same; tells whether there was room.
#[inline(always)]
pub(super) fn try_enter(mut call: PendingCall) -> bool {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: takes no pointers.
    call.began = unsafe { bpf_ktime_get_boot_ns() };
    if CALLS.insert(&id, &call, 0).is_err() {
        return false;
    }
    if let Some(flag) = in_call(id) {
        // SAFETY: a live map value. Never cleared by others: threads of the same slot make one
        // another look the call up in vain, no more.
        unsafe { *flag = 1 };
    }
    true
}

/// The arguments of the call that returns now.
#[inline(always)]
pub(super) fn take_call() -> Option<PendingCall> {
    leave_with(|call| *call)
}

/// What is wanted of the arguments of the call that returns now: a copy of all takes much of the
/// stack.
#[inline(always)]
fn leave_with<T>(wanted: impl FnOnce(&PendingCall) -> T) -> Option<T> {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: a live map value.
    if unsafe { *in_call(id)? } == 0 {
        return None;
    }
    // SAFETY: only this thread writes this entry.
    let wanted = unsafe { CALLS.get(&id) }.map(wanted);
    if wanted.is_some() {
        let _present = CALLS.remove(&id);
    }
    wanted
}

pub(super) const NO_OPS: [SemBuf; OPS_KEPT] = [SemBuf {
    num: 0,
    op: 0,
    flg: 0,
}; OPS_KEPT];

#[inline(always)]
fn semget_enters(key: u32, nsems: u32, semflg: u32) {
    keep_call(PendingCall {
        ns: current_ns(),
        target: key,
        count: nsems,
        value: semflg,
        ops: NO_OPS,
        sleeper: 0,
        began: 0,
    });
}

#[inline(always)]
fn semget_returns(ret: i32) {
    let wanted = |call: &PendingCall| (call.ns, call.target, call.count, call.value);
    let Some((ns, key, nsems, semflg)) = leave_with(wanted) else {
        return;
    };
    let private = key == 0;
    if semflg & IPC_CREAT as u32 == 0 && !private {
        if ret < 0 {
            lookup_failed(ns, key, ret, EVENT_BY_SYSCALL);
        }
        return;
    }
    let sure = private || semflg & IPC_EXCL != 0;
    if ret < 0 && ret != ENOSPC && ret != ENOMEM {
        if ret != EEXIST {
            lookup_failed(ns, key, ret, EVENT_BY_SYSCALL);
        }
        return;
    }
    if ret >= 0 && !sure && is_known(ns, ret) {
        return;
    }
    set_created(&Creation {
        ns,
        key,
        nsems,
        semflg,
        ret,
        quality: EVENT_BY_SYSCALL,
        doubt: if sure { 0 } else { SEM_MAYBE_FOUND },
    });
}

#[inline(always)]
fn semop_enters(semid: i32, sops: Addr, nsops: u32) {
    if !maybe_cookie(semid) {
        return;
    }
    let ns = current_ns();
    let ops = read_ops(sops, nsops, OpsMemory::User);
    keep_call(PendingCall {
        ns,
        target: semid as u32,
        count: ops.count,
        value: tracked_cookie(ns, semid).map_or(0, |record| record.key),
        ops: ops.list,
        sleeper: 0,
        began: 0,
    });
    op_begins(ns, semid, &ops, EVENT_BY_SYSCALL);
}

#[inline(always)]
fn semop_returns(ret: i32) {
    if let Some(call) = take_call() {
        let ops = Ops {
            count: call.count,
            list: call.ops,
        };
        op_ended(
            call.ns,
            call.target as i32,
            &ops,
            ret,
            EVENT_BY_SYSCALL,
            Entered::of_call(&call),
        );
    }
}

/// Only removals, and SETVAL on what may be a cookie.
#[inline(always)]
fn semctl_enters(semid: i32, cmd: u32, value: u32) {
    let cmd = cmd & !IPC_64;
    if cmd == IPC_RMID || (cmd == SETVAL && maybe_cookie(semid)) {
        keep_call(PendingCall {
            ns: current_ns(),
            target: semid as u32,
            count: cmd,
            value,
            ops: NO_OPS,
            sleeper: 0,
            began: 0,
        });
    }
}

#[inline(always)]
fn semctl_returns(ret: i32) {
    let Some(call) = take_call() else { return };
    let semid = call.target as i32;
    if call.count == SETVAL {
        value_set(
            call.ns,
            semid,
            call.value as i32,
            ret,
            EVENT_BY_SYSCALL,
            call.began,
        );
    } else if ret == 0 {
        set_destroyed(call.ns, semid, 0, SetEnd::Removed, EVENT_BY_SYSCALL);
    }
}

/// `semget(key, nsems, semflg)`.
#[tracepoint]
pub(crate) fn semget_te(ctx: TracePointContext) -> i32 {
    semget_enters(
        syscall_arg(&ctx, 0) as u32,
        syscall_arg(&ctx, 1) as u32,
        syscall_arg(&ctx, 2) as u32,
    );
    0
}

/// `semget` returns.
#[tracepoint]
pub(crate) fn semget_tx(ctx: TracePointContext) -> i32 {
    semget_returns(syscall_ret(&ctx) as i32);
    0
}

#[inline(always)]
fn semop_entry(ctx: &TracePointContext) -> i32 {
    semop_enters(
        syscall_arg(ctx, 0) as i32,
        syscall_arg(ctx, 1),
        syscall_arg(ctx, 2) as u32,
    );
    0
}

#[inline(always)]
fn semop_return(ctx: &TracePointContext) -> i32 {
    semop_returns(syscall_ret(ctx) as i32);
    0
}

/// `semop(semid, sops, nsops)`.
#[tracepoint]
pub(crate) fn semop_te(ctx: TracePointContext) -> i32 {
    semop_entry(&ctx)
}

/// `semop` returns.
#[tracepoint]
pub(crate) fn semop_tx(ctx: TracePointContext) -> i32 {
    semop_return(&ctx)
}

/// `semtimedop(semid, sops, nsops, timeout)`: what glibc's `semop` calls.
#[tracepoint]
pub(crate) fn semtimedop_te(ctx: TracePointContext) -> i32 {
    semop_entry(&ctx)
}

/// `semtimedop` returns.
#[tracepoint]
pub(crate) fn semtimedop_tx(ctx: TracePointContext) -> i32 {
    semop_return(&ctx)
}

/// `semctl(semid, semnum, cmd, arg)`.
#[tracepoint]
pub(crate) fn semctl_te(ctx: TracePointContext) -> i32 {
    semctl_enters(
        syscall_arg(&ctx, 0) as i32,
        syscall_arg(&ctx, 2) as u32,
        syscall_arg(&ctx, 3) as u32,
    );
    0
}

/// `semctl` returns.
#[tracepoint]
pub(crate) fn semctl_tx(ctx: TracePointContext) -> i32 {
    semctl_returns(syscall_ret(&ctx) as i32);
    0
}
