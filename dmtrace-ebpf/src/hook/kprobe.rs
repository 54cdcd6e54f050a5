//! kprobes: for kernels that refuse trampolines. Return probes only where the function does not
//! sleep: a sleeping one occupies an instance, and beyond the kernel's small number of instances
//! returns are lost without a trace.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use dmtrace_common::{EVENT_NO_RESULT, OPS_KEPT, SemBuf, SemKey};

use super::{
    OpsMemory, read_ops,
    syscall::{keep_call, take_call},
    trampoline::set_freed,
};
use crate::{
    maps::PendingCall,
    offsets::{
        O_IPCNS_INUM, O_PARAMS_FLG, O_PARAMS_KEY, O_PARAMS_NSEMS, O_PERM_ID, O_SEMQUEUE_NSOPS,
        O_SEMQUEUE_PID, O_SEMQUEUE_SLEEPER, O_SEMQUEUE_SOPS, O_TASK_LEADER, O_TASK_PID,
    },
    operate::{op_begins, op_ended, op_ended_for},
    process::{current_task, ipc_ns, other_thread},
    read::{Addr, u32_at, u64_at},
    sem::{Creation, Entered, Ops, maybe_cookie, set_created, value_set},
};

const NO_OPS: [SemBuf; OPS_KEPT] = [SemBuf {
    num: 0,
    op: 0,
    flg: 0,
}; OPS_KEPT];

#[inline(always)]
fn kprobe_argument(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

/// `newary` is entered.
#[kprobe]
pub(crate) fn newary_ke(ctx: ProbeContext) -> u32 {
    let params: Addr = kprobe_argument(&ctx, 1);
    keep_call(PendingCall {
        ns: u32_at(kprobe_argument(&ctx, 0), &O_IPCNS_INUM),
        target: u32_at(params, &O_PARAMS_KEY),
        count: u32_at(params, &O_PARAMS_NSEMS),
        value: u32_at(params, &O_PARAMS_FLG),
        ops: NO_OPS,
        sleeper: 0,
        began: 0,
    });
    0
}

/// `newary` returns.
#[kretprobe]
pub(crate) fn newary_kx(ctx: RetProbeContext) -> u32 {
    let Some(call) = take_call() else { return 0 };
    set_created(&Creation {
        ns: call.ns,
        key: call.target,
        nsems: call.count,
        semflg: call.value,
        ret: ctx.ret::<i32>(),
        quality: 0,
        doubt: 0,
    });
    0
}

/// `freeary` is entered.
#[kprobe]
pub(crate) fn freeary_ke(ctx: ProbeContext) -> u32 {
    set_freed(kprobe_argument(&ctx, 0), kprobe_argument(&ctx, 1));
    0
}

/// `semctl_setval` is entered.
#[kprobe]
pub(crate) fn setval_ke(ctx: ProbeContext) -> u32 {
    let semid = kprobe_argument(&ctx, 1) as i32;
    if maybe_cookie(semid) {
        keep_call(PendingCall {
            ns: u32_at(kprobe_argument(&ctx, 0), &O_IPCNS_INUM),
            target: semid as u32,
            count: 0,
            value: kprobe_argument(&ctx, 3) as u32,
            ops: NO_OPS,
            sleeper: 0,
            began: 0,
        });
    }
    0
}

/// `semctl_setval` returns.
#[kretprobe]
pub(crate) fn setval_kx(ctx: RetProbeContext) -> u32 {
    if let Some(call) = take_call() {
        value_set(
            call.ns,
            call.target as i32,
            call.value as i32,
            ctx.ret::<i32>(),
            0,
            call.began,
        );
    }
    0
}

/// `__do_semtimedop` is entered (since 5.15).
#[kprobe]
pub(crate) fn semop_ke(ctx: ProbeContext) -> u32 {
    let semid = kprobe_argument(&ctx, 0) as i32;
    if maybe_cookie(semid) {
        let ns = u32_at(kprobe_argument(&ctx, 4), &O_IPCNS_INUM);
        let ops = read_ops(
            kprobe_argument(&ctx, 1),
            kprobe_argument(&ctx, 2) as u32,
            OpsMemory::Kernel,
        );
        op_begins(ns, semid, &ops, EVENT_NO_RESULT);
    }
    0
}

/// `do_semtimedop` is entered (before 5.15).
#[kprobe]
pub(crate) fn semop_old_ke(ctx: ProbeContext) -> u32 {
    let semid = kprobe_argument(&ctx, 0) as i32;
    if maybe_cookie(semid) {
        let ns = ipc_ns(current_task()).1;
        let ops = read_ops(
            kprobe_argument(&ctx, 1),
            kprobe_argument(&ctx, 2) as u32,
            OpsMemory::User,
        );
        op_begins(ns, semid, &ops, EVENT_NO_RESULT);
    }
    0
}

/// `int perform_atomic_semop(struct sem_array *sma, struct sem_queue *q)` is entered: by the
/// caller of semop, or for a sleeper by the one who wakes it.
#[kprobe]
pub(crate) fn semop_do_ke(ctx: ProbeContext) -> u32 {
    // `sem_perm` is the first field of `struct sem_array`.
    let semid = u32_at(kprobe_argument(&ctx, 0), &O_PERM_ID) as i32;
    if maybe_cookie(semid) {
        let queue: Addr = kprobe_argument(&ctx, 1);
        let sops = u64_at(queue, &O_SEMQUEUE_SOPS);
        let ops = read_ops(sops, u32_at(queue, &O_SEMQUEUE_NSOPS), OpsMemory::Kernel);
        let task = current_task();
        // `q->pid` is always set; `q->sleeper` only once its owner sleeps, and then another
        // process works on it. A waker out of the sleeper's own process counts as the sleeper.
        let own = u64_at(u64_at(task, &O_TASK_LEADER), &O_TASK_PID);
        let foreign = u64_at(queue, &O_SEMQUEUE_PID) != own;
        let sleeper = if foreign {
            u64_at(queue, &O_SEMQUEUE_SLEEPER)
        } else {
            0
        };
        keep_call(PendingCall {
            ns: ipc_ns(task).1,
            target: semid as u32,
            count: ops.count,
            value: 0,
            ops: ops.list,
            sleeper,
            began: 0,
        });
    }
    0
}

/// `perform_atomic_semop` returns, with the semaphore locked: 0 done, 1 must sleep, or a negative
/// errno.
#[kretprobe]
pub(crate) fn semop_do_kx(ctx: RetProbeContext) -> u32 {
    let Some(call) = take_call() else { return 0 };
    let ret = ctx.ret::<i32>();
    if ret > 0 {
        return 0;
    }
    let ops = Ops {
        count: call.count,
        list: call.ops,
    };
    if call.sleeper == 0 {
        op_ended(
            call.ns,
            call.target as i32,
            &ops,
            ret,
            0,
            Entered::default(),
        );
    } else {
        let sem = SemKey {
            ns: call.ns,
            semid: call.target as i32,
        };
        op_ended_for(
            &other_thread(call.sleeper),
            sem,
            &ops,
            ret,
            0,
            Entered::default(),
        );
    }
    0
}
