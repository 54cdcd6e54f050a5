//! Trampolines for kernels that preempt.
//!
//! A program does not run on a processor on which it is running already
//! (kernel/bpf/trampoline.c:__bpf_prog_enter_recur). Where the kernel preempts, another task can
//! come there meanwhile, and what it does is not seen. These programs therefore stand where the
//! kernel holds a spinlock, which nobody preempts. A failed SETVAL, wait or lookup ends without one
//! and has two programs, of which the second does what the first was kept from. With
//! `PREEMPT_RT` spinlocks can be preempted, too; what is lost then is counted.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use dmtrace_common::{Counter, SemKey, control, has_cookie_magic};

use super::{OpsMemory, read_ops, syscall::IPC_CREAT};
use crate::{
    maps::{CONTROL, Pending, SET, SETS, TOLD, WAITS},
    offsets::{
        O_IPCNS_INUM, O_PARAMS_FLG, O_PARAMS_KEY, O_PARAMS_NSEMS, O_PERM_ID, O_PERM_KEY,
        O_PERM_MODE, O_SEMARRAY_NSEMS, O_SEMQUEUE_LIST, O_SEMQUEUE_NSOPS, O_SEMQUEUE_SLEEPER,
        O_SEMQUEUE_SOPS, SELF_TGID,
    },
    operate::{op_begins, op_ended, op_ended_for},
    pending::{forget_pending, keep_pending, mark_run, moves_on, notice_skip, read_pending},
    process::{current_task, current_thread, ipc_ns, other_thread},
    read::{Addr, u32_at, u64_at, u64_from},
    sem::{Creation, Entered, Ops, lookup_failed, maybe_cookie, set_created, value_set},
    stack::dmtrace_stack,
};

const EAGAIN: i32 = -11;
const ENOMEM: i32 = -12;
const ENOSPC: i32 = -28;
const ERANGE: i32 = -34;
const EIDRM: i32 = -43;

/// The key by which userspace asks which of two programs comes first: no cookie has base 0.
const ORDER_KEY: u32 = 0x0d4d_0000;

/// A set that was made.
struct MadeSet {
    ns: u32,
    semid: i32,
    key: u32,
    perm: Addr,
}

/// `int ipc_addid(struct ipc_ids *ids, struct kern_ipc_perm *new, int limit)` returns: on success
/// with `new->lock` held. Called by `newary`, after which nothing fails any more, and by those who
/// make other objects. `sem_perm` is the first field of `struct sem_array`.
#[inline(always)]
fn read_made(ctx: &FExitContext) -> Option<MadeSet> {
    // Out of the context by a helper: the verifier does not let a number be subtracted from what
    // it knows as a pointer.
    let ids = u64_from(ctx.as_ptr() as Addr);
    let perm: Addr = ctx.arg(1);
    // ksys_semget works in the caller's namespace. Its three `ipc_ids` stand at its beginning,
    // that of semaphores first. One is larger than 64 bytes.
    let (at, ns) = ipc_ns(current_task());
    (ctx.arg::<i32>(3) >= 0 && ids.wrapping_sub(at) < 64).then(|| MadeSet {
        ns,
        semid: u32_at(perm, &O_PERM_ID) as i32,
        key: u32_at(perm, &O_PERM_KEY),
        perm,
    })
}

/// A set is made.
#[fexit(function = "ipc_addid")]
pub(crate) fn addid_x(ctx: FExitContext) -> i32 {
    if let Some(made) = read_made(&ctx) {
        set_created(&Creation {
            ns: made.ns,
            key: made.key,
            nsems: u32_at(made.perm, &O_SEMARRAY_NSEMS),
            // What `newary` keeps of it.
            semflg: u32_at(made.perm, &O_PERM_MODE) & 0o777,
            ret: made.semid,
            quality: 0,
            doubt: 0,
        });
    }
    0
}

/// The call site of a cookie that is made.
#[fexit(function = "ipc_addid")]
pub(crate) fn stack_ax(ctx: FExitContext) -> i32 {
    if let Some(made) = read_made(&ctx)
        && has_cookie_magic(made.key)
    {
        dmtrace_stack(made.ns, made.semid as u32, made.key);
    }
    0
}

/// `int semctl_setval(struct ipc_namespace *ns, int semid, int semnum, int val)` is entered. A
/// kprobe, because its programs run with preemption off (kernel/kprobes.c).
#[kprobe]
pub(crate) fn setval_pe(ctx: ProbeContext) -> u32 {
    let semid = ctx.arg::<i32>(1).unwrap_or(-1);
    let id = bpf_get_current_pid_tgid();
    mark_run(id);
    if maybe_cookie(semid) {
        moves_on(id);
        keep_pending(
            id,
            &Pending {
                what: SETS,
                target: semid as u32,
                number: ctx.arg::<i32>(3).unwrap_or(0),
                ns: u32_at(ctx.arg(0).unwrap_or(0), &O_IPCNS_INUM),
            },
        );
    }
    0
}

/// `int update_queue(struct sem_array *sma, int semnum, struct wake_q_head *wake_q)`: called by
/// `semctl_setval` when the value is set, with the set still locked. A thread is preempted when it
/// unlocks: told later, a snapshot would know the value before the ledger. `semop` comes here, too;
/// by then [`atomic_x`] has taken the mark of a SETVAL away, if there was one.
#[fentry(function = "update_queue")]
pub(crate) fn setval_pu(ctx: FEntryContext) -> i32 {
    if maybe_cookie(u32_at(ctx.arg(0), &O_PERM_ID) as i32) {
        set_ended(0);
    }
    0
}

/// `semctl_setval` returns: it failed, or [`setval_pe`] was skipped. The kernel skips the programs
/// of kprobes while it has preempted a task in a system call on a map (`bpf_prog_active`).
#[fexit(function = "semctl_setval")]
pub(crate) fn setval_px(ctx: FExitContext) -> i32 {
    let semid = ctx.arg::<i32>(1);
    let id = bpf_get_current_pid_tgid();
    notice_skip(id, Counter::NOTICED_SETVAL);
    if maybe_cookie(semid) {
        let told = read_pending(id).is_some_and(|it| it.what == SET && it.target == semid as u32);
        forget_pending(id);
        if !told {
            let ns = u32_at(ctx.arg(0), &O_IPCNS_INUM);
            value_set(ns, semid, ctx.arg::<i32>(3), ctx.arg::<i32>(4), 0, 0);
        }
    }
    0
}

/// See [`setval_px`], before or after which it runs. Loses returns while many threads are in the
/// function, and only then.
#[kretprobe]
pub(crate) fn setval_pk(ctx: RetProbeContext) -> u32 {
    set_ended(ctx.ret::<i32>());
    0
}

/// Tells of the SETVAL that the thread is in, and marks it as told.
#[inline(always)]
fn set_ended(ret: i32) {
    let id = bpf_get_current_pid_tgid();
    if let Some(mut call) = read_pending(id)
        && call.what == SETS
    {
        call.what = SET;
        keep_pending(id, &call);
        value_set(call.ns, call.target as i32, call.number, ret, 0, 0);
    }
}

/// `int perform_atomic_semop(struct sem_array *sma, struct sem_queue *q)` returns with the
/// semaphore locked: 0 done, 1 must sleep, or a negative errno. Called once by each `semop`, and
/// for each sleeper by whoever changes the set.
#[fexit(function = "perform_atomic_semop")]
pub(crate) fn atomic_x(ctx: FExitContext) -> i32 {
    let semid = u32_at(ctx.arg(0), &O_PERM_ID) as i32;
    if maybe_cookie(semid) {
        operation_worked(semid, ctx.arg(1), ctx.arg::<i32>(2));
    }
    0
}

#[inline(always)]
fn operation_worked(semid: i32, queue: Addr, ret: i32) {
    let other = in_a_list(queue);
    if other && ret > 0 {
        // The sleeper goes on sleeping.
        return;
    }
    let ns = ipc_ns(current_task()).1;
    let sops = u64_at(queue, &O_SEMQUEUE_SOPS);
    let ops = read_ops(sops, u32_at(queue, &O_SEMQUEUE_NSOPS), OpsMemory::Kernel);
    let who = if other {
        other_thread(u64_at(queue, &O_SEMQUEUE_SLEEPER))
    } else {
        current_thread()
    };
    let id = u64::from(who.key.tgid) << 32 | u64::from(who.tid);
    if other {
        forget_pending(id);
    } else {
        moves_on(id);
        op_begins(ns, semid, &ops, 0);
        if ret > 0 {
            keep_pending(
                id,
                &Pending {
                    what: WAITS,
                    target: semid as u32,
                    number: 0,
                    ns,
                },
            );
            return;
        }
    }
    op_ended_for(&who, SemKey { ns, semid }, &ops, ret, 0, Entered::default());
}

/// Whether an operation waits in the set's list: then this is not its own call. `q->list` is not
/// initialized before; but no list has an element in a call that is not in it.
#[inline(always)]
fn in_a_list(queue: Addr) -> bool {
    let list = queue + u64::from(O_SEMQUEUE_LIST.load());
    let next = u64_from(list);
    // `struct list_head`: next, prev.
    next != list && next != 0 && u64_from(next + 8) == list
}

/// `__do_semtimedop` returns. What it did it did in `perform_atomic_semop`, unless it failed.
#[fexit(function = "__do_semtimedop")]
pub(crate) fn semend_a(ctx: FExitContext) -> i32 {
    let ret = ctx.arg::<i64>(5) as i32;
    if ret < 0 {
        operation_failed(&ctx, ret, true);
    }
    0
}

/// The second of two, see [`semend_a`].
#[fexit(function = "__do_semtimedop")]
pub(crate) fn semend_b(ctx: FExitContext) -> i32 {
    let ret = ctx.arg::<i64>(5) as i32;
    if ret < 0 {
        operation_failed(&ctx, ret, false);
    }
    0
}

/// A call failed: a sleeper was woken by a signal, by a time-out or by the end of the set, or it
/// did not come so far. Only waits have two programs: without one nothing has changed.
#[inline(always)]
fn operation_failed(ctx: &FExitContext, ret: i32, first: bool) {
    let semid = ctx.arg::<i32>(0);
    let known = maybe_cookie(semid);
    // `freeary` has taken the set out of the prefilter already.
    if !known && ret != EIDRM {
        return;
    }
    let id = bpf_get_current_pid_tgid();
    let waited = read_pending(id).is_some_and(|it| it.what == WAITS && it.target == semid as u32);
    let ops = read_ops(ctx.arg(1), ctx.arg(2), OpsMemory::Kernel);
    if waited {
        forget_pending(id);
    } else if !first || !known || refused_at_once(&ops, ret) {
        return;
    }
    op_ended(
        u32_at(ctx.arg(4), &O_IPCNS_INUM),
        semid,
        &ops,
        ret,
        0,
        Entered::default(),
    );
}

/// Whether `perform_atomic_semop` has failed and [`atomic_x`] told it.
#[inline(always)]
fn refused_at_once(ops: &Ops, ret: i32) -> bool {
    ret == ERANGE || ret == EAGAIN && ops.any_nowait()
}

/// A `semget` that failed.
struct FailedGet {
    ns: u32,
    key: u32,
    nsems: u32,
    semflg: u32,
    ret: i32,
}

/// `ipcget` returns, see `trampoline::ipcget_x`; `newary` is called from inside of it.
#[inline(always)]
fn failed_get(ctx: &FExitContext) -> Option<FailedGet> {
    let (ns, ids, params): (Addr, Addr, Addr) = (ctx.arg(0), ctx.arg(1), ctx.arg(3));
    let ret = ctx.arg::<i32>(4);
    if ret >= 0 || ids.wrapping_sub(ns) >= 64 {
        return None;
    }
    let get = FailedGet {
        ns: u32_at(ns, &O_IPCNS_INUM),
        key: u32_at(params, &O_PARAMS_KEY),
        nsems: u32_at(params, &O_PARAMS_NSEMS),
        semflg: u32_at(params, &O_PARAMS_FLG),
        ret,
    };
    (get.is_creation() || !get.asks_to_create() && has_cookie_magic(get.key)).then_some(get)
}

impl FailedGet {
    /// Whether it was to make a set, and only that failed.
    #[inline(always)]
    fn is_creation(&self) -> bool {
        self.asks_to_create() && (self.ret == ENOSPC || self.ret == ENOMEM)
    }

    #[inline(always)]
    fn asks_to_create(&self) -> bool {
        self.key == 0 || self.semflg & IPC_CREAT as u32 != 0
    }

    #[inline(always)]
    fn send_failed(&self) {
        if self.is_creation() {
            set_created(&Creation {
                ns: self.ns,
                key: self.key,
                nsems: self.nsems,
                semflg: self.semflg,
                ret: self.ret,
                quality: 0,
                doubt: 0,
            });
        } else {
            lookup_failed(self.ns, self.key, self.ret, 0);
        }
    }

    #[inline(always)]
    fn is_question(&self) -> bool {
        self.key == ORDER_KEY && (bpf_get_current_pid_tgid() >> 32) as u32 == SELF_TGID.load()
    }

    #[inline(always)]
    fn matches(&self, pending: &Pending) -> bool {
        pending.what == TOLD && pending.target == self.key && pending.number == self.ret
    }
}

/// Failed creations, and lookups of cookies that are not there.
#[fexit(function = "ipcget")]
pub(crate) fn ipcget_a(ctx: FExitContext) -> i32 {
    mark_run(bpf_get_current_pid_tgid());
    let Some(get) = failed_get(&ctx) else {
        return 0;
    };
    if get.is_question() {
        append_digit(1);
        return 0;
    }
    let told = Pending {
        what: TOLD,
        target: get.key,
        number: get.ret,
        ns: get.ns,
    };
    // What does not fit is left to the second.
    if keep_pending(bpf_get_current_pid_tgid(), &told) {
        get.send_failed();
    }
    0
}

/// The second of two, see [`ipcget_a`].
#[fexit(function = "ipcget")]
pub(crate) fn ipcget_b(ctx: FExitContext) -> i32 {
    let id = bpf_get_current_pid_tgid();
    notice_skip(id, Counter::NOTICED_LOOKUP);
    let Some(get) = failed_get(&ctx) else {
        return 0;
    };
    if get.is_question() {
        append_digit(2);
        return 0;
    }
    if read_pending(id).is_some_and(|pending| get.matches(&pending)) {
        forget_pending(id);
    } else {
        get.send_failed();
    }
    0
}

/// Writes down which program runs, behind those that did before.
#[inline(always)]
fn append_digit(digit: u64) {
    if let Some(word) = CONTROL.get_ptr_mut(control::ORDER) {
        // SAFETY: a live map value, and only this thread writes it.
        let word = unsafe { &mut *word };
        *word = *word * 10 + digit;
    }
}
