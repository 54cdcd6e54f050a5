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
    if !try_keep_call(call) {
        count_event(Counter::CALL_MAP_FULL);
    }
}

/// The same; tells whether there was room.
#[inline(always)]
pub(super) fn try_keep_call(mut call: PendingCall) -> bool {
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
    let id = bpf_get_current_pid_tgid();
    // SAFETY: a live map value.
    if unsafe { *in_call(id)? } == 0 {
        return None;
    }
    // SAFETY: only this thread writes this entry.
    let call = unsafe { CALLS.get(&id) }.copied();
    if call.is_some() {
        let _present = CALLS.remove(&id);
    }
    call
}

pub(super) const NO_OPS: [SemBuf; OPS_KEPT] = [SemBuf {
    num: 0,
    op: 0,
    flg: 0,
}; OPS_KEPT];

/// `semget(key, nsems, semflg)`.
#[tracepoint]
pub(crate) fn semget_te(ctx: TracePointContext) -> i32 {
    keep_call(PendingCall {
        ns: current_ns(),
        target: syscall_arg(&ctx, 0) as u32,
        count: syscall_arg(&ctx, 1) as u32,
        value: syscall_arg(&ctx, 2) as u32,
        ops: NO_OPS,
        sleeper: 0,
        began: 0,
    });
    0
}

/// `semget` returns.
#[tracepoint]
pub(crate) fn semget_tx(ctx: TracePointContext) -> i32 {
    let ret = syscall_ret(&ctx) as i32;
    let Some(call) = take_call() else { return 0 };
    let private = call.target == 0;
    if call.value & IPC_CREAT as u32 == 0 && !private {
        if ret < 0 {
            lookup_failed(call.ns, call.target, ret, EVENT_BY_SYSCALL);
        }
        return 0;
    }
    let sure = private || call.value & IPC_EXCL != 0;
    if ret < 0 && ret != ENOSPC && ret != ENOMEM {
        if ret != EEXIST {
            lookup_failed(call.ns, call.target, ret, EVENT_BY_SYSCALL);
        }
        return 0;
    }
    if ret >= 0 && !sure && is_known(call.ns, ret) {
        return 0;
    }
    set_created(&Creation {
        ns: call.ns,
        key: call.target,
        nsems: call.count,
        semflg: call.value,
        ret,
        quality: EVENT_BY_SYSCALL,
        doubt: if sure { 0 } else { SEM_MAYBE_FOUND },
    });
    0
}

#[inline(always)]
fn semop_enters(ctx: &TracePointContext) {
    let semid = syscall_arg(ctx, 0) as i32;
    if !maybe_cookie(semid) {
        return;
    }
    let ns = current_ns();
    let ops = read_ops(
        syscall_arg(ctx, 1),
        syscall_arg(ctx, 2) as u32,
        OpsMemory::User,
    );
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
fn semop_returns(ctx: &TracePointContext) {
    if let Some(call) = take_call() {
        let ops = Ops {
            count: call.count,
            list: call.ops,
        };
        op_ended(
            call.ns,
            call.target as i32,
            &ops,
            syscall_ret(ctx) as i32,
            EVENT_BY_SYSCALL,
            Entered::of_call(&call),
        );
    }
}

/// `semop(semid, sops, nsops)`.
#[tracepoint]
pub(crate) fn semop_te(ctx: TracePointContext) -> i32 {
    semop_enters(&ctx);
    0
}

/// `semop` returns.
#[tracepoint]
pub(crate) fn semop_tx(ctx: TracePointContext) -> i32 {
    semop_returns(&ctx);
    0
}

/// `semtimedop(semid, sops, nsops, timeout)`: what glibc's `semop` calls.
#[tracepoint]
pub(crate) fn semtimedop_te(ctx: TracePointContext) -> i32 {
    semop_enters(&ctx);
    0
}

/// `semtimedop` returns.
#[tracepoint]
pub(crate) fn semtimedop_tx(ctx: TracePointContext) -> i32 {
    semop_returns(&ctx);
    0
}

/// `semctl(semid, semnum, cmd, arg)`: only removals, and SETVAL on what may be a cookie.
#[tracepoint]
pub(crate) fn semctl_te(ctx: TracePointContext) -> i32 {
    let semid = syscall_arg(&ctx, 0) as i32;
    let cmd = syscall_arg(&ctx, 2) as u32 & !IPC_64;
    if cmd == IPC_RMID || (cmd == SETVAL && maybe_cookie(semid)) {
        keep_call(PendingCall {
            ns: current_ns(),
            target: semid as u32,
            count: cmd,
            value: syscall_arg(&ctx, 3) as u32,
            ops: NO_OPS,
            sleeper: 0,
            began: 0,
        });
    }
    0
}

/// `semctl` returns.
#[tracepoint]
pub(crate) fn semctl_tx(ctx: TracePointContext) -> i32 {
    let Some(call) = take_call() else { return 0 };
    let (semid, ret) = (call.target as i32, syscall_ret(&ctx) as i32);
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
    0
}
