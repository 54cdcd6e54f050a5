//! fentry and fexit: exact, cheap, blind to nothing. The preferred backend.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use aya_log_ebpf::warn;

use super::{
    OpsMemory, read_ops,
    syscall::{NO_OPS, take_call, try_keep_call},
};
use crate::{
    maps::PendingCall,
    offsets::{
        ABSENT, O_IPCNS_INUM, O_PARAMS_FLG, O_PARAMS_KEY, O_PARAMS_NSEMS, O_PERM_ID, O_PERM_KEY,
    },
    operate::{op_begins, op_ended},
    process::{current_task, ipc_ns},
    read::{Addr, u32_at},
    sem::{
        Creation, Entered, Ops, SetEnd, lookup_failed, maybe_cookie, prefilter_add, set_created,
        set_destroyed, tracked_cookie, value_set,
    },
};

/// `int newary(struct ipc_namespace *ns, struct ipc_params *params)`: runs only for a real
/// creation, so there is no doubt about created or found.
#[fexit(function = "newary")]
pub(crate) fn newary_x(ctx: FExitContext) -> i32 {
    let (ns, params): (Addr, Addr) = (ctx.arg(0), ctx.arg(1));
    if O_PARAMS_KEY.load() == ABSENT {
        warn!(&ctx, "struct ipc_params is unknown: a creation has no key");
    }
    set_created(&Creation {
        ns: u32_at(ns, &O_IPCNS_INUM),
        key: u32_at(params, &O_PARAMS_KEY),
        nsems: u32_at(params, &O_PARAMS_NSEMS),
        semflg: u32_at(params, &O_PARAMS_FLG),
        ret: ctx.arg::<i32>(2),
        quality: 0,
        doubt: 0,
    });
    0
}

/// `void freeary(struct ipc_namespace *ns, struct kern_ipc_perm *ipcp)`: every removal, also with
/// a namespace.
#[fentry(function = "freeary")]
pub(crate) fn freeary_e(ctx: FEntryContext) -> i32 {
    set_freed(ctx.arg(0), ctx.arg(1));
    0
}

/// Common to fentry and kprobe on `freeary`.
#[inline(always)]
pub(super) fn set_freed(ns: Addr, perm: Addr) {
    // IPC_RMID works in the caller's namespace (semctl takes current->nsproxy->ipc_ns); free_ipcs
    // runs in a kernel worker since 5.8, before that in the last task to leave, whose nsproxy is
    // gone by then.
    let task = current_task();
    let end = if ipc_ns(task).0 == ns {
        SetEnd::Removed
    } else {
        SetEnd::NsTeardown
    };
    let semid = u32_at(perm, &O_PERM_ID) as i32;
    set_destroyed(
        u32_at(ns, &O_IPCNS_INUM),
        semid,
        u32_at(perm, &O_PERM_KEY),
        end,
        0,
    );
}

/// `int semctl_setval(struct ipc_namespace *ns, int semid, int semnum, int val)`.
#[fexit(function = "semctl_setval")]
pub(crate) fn setval_x(ctx: FExitContext) -> i32 {
    let semid = ctx.arg::<i32>(1);
    if maybe_cookie(semid) {
        let ns = u32_at(ctx.arg(0), &O_IPCNS_INUM);
        value_set(ns, semid, ctx.arg::<i32>(3), ctx.arg::<i32>(4), 0, 0);
    }
    0
}

/// `long __do_semtimedop(int semid, struct sembuf *sops, unsigned nsops,
/// const struct timespec64 *timeout, struct ipc_namespace *ns)`, since 5.15: every semop of the
/// host goes through here, 32-bit callers included.
#[fentry(function = "__do_semtimedop")]
pub(crate) fn semop_e(ctx: FEntryContext) -> i32 {
    if maybe_cookie(ctx.arg::<i32>(0)) {
        dmtrace_op_begins(ctx.as_ptr());
    }
    0
}

/// See [`semop_e`].
#[fexit(function = "__do_semtimedop")]
pub(crate) fn semop_x(ctx: FExitContext) -> i32 {
    if maybe_cookie(ctx.arg::<i32>(0)) {
        dmtrace_op_ended(ctx.as_ptr());
    }
    0
}

/// `long do_semtimedop(int semid, struct sembuf __user *tsops, unsigned nsops,
/// const struct timespec64 *timeout)`: the whole body of semop before 5.15.
#[fentry(function = "do_semtimedop")]
pub(crate) fn semop_old_e(ctx: FEntryContext) -> i32 {
    if maybe_cookie(ctx.arg::<i32>(0)) {
        dmtrace_old_op_begins(ctx.as_ptr());
    }
    0
}

/// See [`semop_old_e`].
#[fexit(function = "do_semtimedop")]
pub(crate) fn semop_old_x(ctx: FExitContext) -> i32 {
    if maybe_cookie(ctx.arg::<i32>(0)) {
        dmtrace_old_op_ended(ctx.as_ptr());
    }
    0
}

// The rest of these four. Functions of their own, which take nothing but the context: the JIT saves
// all registers that a function uses when it begins (`emit_prologue`), and an ordinary semaphore
// would pay for those of a cookie.

#[inline(never)]
extern "C" fn dmtrace_op_begins(ctx: *mut c_void) -> u64 {
    let ctx = FEntryContext::new(ctx);
    let ns = u32_at(ctx.arg(4), &O_IPCNS_INUM);
    let ops = read_ops(ctx.arg(1), ctx.arg(2), OpsMemory::Kernel);
    operation_entered(ns, ctx.arg(0), &ops);
    op_begins(ns, ctx.arg(0), &ops, 0);
    0
}

#[inline(never)]
extern "C" fn dmtrace_op_ended(ctx: *mut c_void) -> u64 {
    let ctx = FExitContext::new(ctx);
    let ns = u32_at(ctx.arg(4), &O_IPCNS_INUM);
    let ops = read_ops(ctx.arg(1), ctx.arg(2), OpsMemory::Kernel);
    op_ended(
        ns,
        ctx.arg(0),
        &ops,
        ctx.arg::<i64>(5) as i32,
        0,
        take_entered(ctx.arg(0)),
    );
    0
}

#[inline(never)]
extern "C" fn dmtrace_old_op_begins(ctx: *mut c_void) -> u64 {
    let ctx = FEntryContext::new(ctx);
    let ops = read_ops(ctx.arg(1), ctx.arg(2), OpsMemory::User);
    let ns = ipc_ns(current_task()).1;
    operation_entered(ns, ctx.arg(0), &ops);
    op_begins(ns, ctx.arg(0), &ops, 0);
    0
}

#[inline(never)]
extern "C" fn dmtrace_old_op_ended(ctx: *mut c_void) -> u64 {
    let ctx = FExitContext::new(ctx);
    let ops = read_ops(ctx.arg(1), ctx.arg(2), OpsMemory::User);
    op_ended(
        ipc_ns(current_task()).1,
        ctx.arg(0),
        &ops,
        ctx.arg::<i64>(4) as i32,
        0,
        take_entered(ctx.arg(0)),
    );
    0
}

/// Keeps when an operation on a cookie was entered. Until it returns the prefilter lets it pass,
/// even if the set is gone by then: whoever it wakes may remove the set before its return is told.
#[inline(always)]
fn operation_entered(ns: u32, semid: i32, ops: &Ops) {
    let Some(key) = tracked_cookie(ns, semid).map(|record| record.key) else {
        return;
    };
    // Of a return that was not seen.
    if let Some(stale) = take_call() {
        prefilter_add(stale.target as i32, u32::MAX);
    }
    let call = PendingCall {
        ns,
        target: semid as u32,
        count: ops.count,
        value: key,
        ops: NO_OPS,
        sleeper: 0,
        began: 0,
    };
    if try_keep_call(call) {
        prefilter_add(semid, 1);
    }
}

/// What [`operation_entered`] has kept.
#[inline(always)]
fn take_entered(semid: i32) -> Entered {
    match take_call() {
        Some(call) => {
            prefilter_add(call.target as i32, u32::MAX);
            if call.target as i32 == semid {
                Entered::of_call(&call)
            } else {
                Entered::default()
            }
        }
        None => Entered::default(),
    }
}

/// `int ipcget(struct ipc_namespace *ns, struct ipc_ids *ids, const struct ipc_ops *ops, struct
/// ipc_params *params)`: lookups of cookies that are not there. The compiler inlines
/// `ksys_semget` into the system call of the same file.
#[fexit(function = "ipcget")]
pub(crate) fn ipcget_x(ctx: FExitContext) -> i32 {
    let (ns, ids, params): (Addr, Addr, Addr) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
    let ret = ctx.arg::<i32>(4);
    // The namespace's three `ipc_ids` stand at its beginning, that of semaphores first. One is
    // larger than 64 bytes.
    if ret >= 0 || ids.wrapping_sub(ns) >= 64 {
        return 0;
    }
    if u32_at(params, &O_PARAMS_FLG) & super::syscall::IPC_CREAT as u32 == 0 {
        lookup_failed(
            u32_at(ns, &O_IPCNS_INUM),
            u32_at(params, &O_PARAMS_KEY),
            ret,
            0,
        );
    }
    0
}
