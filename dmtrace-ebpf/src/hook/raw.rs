//! The second program of a system call, for kernels that preempt.
//!
//! A program of the perf kind is skipped where a task was preempted in a system call on a map
//! (`bpf_prog_active`, `kernel/trace/bpf_trace.c:trace_call_bpf`); a raw one is not. It runs after
//! the first and does what that was kept from: the first leaves a mark in [`RAN`].

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use dmtrace_common::{CallEnd, Counter, SemCall};

use super::syscall::{
    is_entered, semctl_enters, semctl_returns, semget_enters, semget_returns, semop_enters,
    semop_returns,
};
use crate::{
    emit::count_event,
    maps::RAN,
    offsets::O_TASK_STATUS,
    process::current_task,
    read::{Addr, u32_at, u64_from},
};

/// `thread_info.status`: the system call was made in the 32-bit way. The first program does not
/// see these (`arch_trace_is_compat_syscall`), and their numbers mean other calls.
const TS_COMPAT: u32 = 2;

/// `pt_regs.orig_ax`.
const NUMBER: u64 = 15 * 8;
/// `pt_regs` has the arguments of a system call in `di`, `si`, `dx` and `r10`.
const ARGUMENTS: [u64; 4] = [14 * 8, 13 * 8, 12 * 8, 7 * 8];

#[inline(always)]
fn slot(id: u64, end: CallEnd) -> Option<*mut u32> {
    let slot = RAN.get_ptr_mut(id as u32 & 0x7fff)?;
    // SAFETY: a place in a live map value.
    Some(unsafe { (&raw mut (*slot)[end as usize]).cast() })
}

/// The first program of a call runs.
#[inline(always)]
pub(super) fn runs(end: CallEnd) {
    let id = bpf_get_current_pid_tgid();
    if let Some(slot) = slot(id, end) {
        // SAFETY: a live map value. Another thread of this slot makes a skipped run go unnoticed,
        // which then counts as lost.
        unsafe { *slot = id as u32 };
    }
}

/// The second runs: whether the first did. Counts if it certainly did not; what is not counted
/// here is taken for lost.
#[inline(always)]
fn first_ran(call: SemCall, end: CallEnd) -> bool {
    let id = bpf_get_current_pid_tgid();
    let Some(slot) = slot(id, end) else {
        return false;
    };
    // SAFETY: a live map value.
    let slot = unsafe { &mut *slot };
    if *slot == id as u32 {
        *slot = 0;
        return true;
    }
    if *slot == 0 {
        count_event(Counter::noticed_syscall(call, end));
    }
    false
}

/// The system call, if it is one on semaphores.
#[inline(always)]
fn sem_call(number: u64) -> Option<SemCall> {
    let call = match number {
        64 => SemCall::Semget,
        65 => SemCall::Semop,
        66 => SemCall::Semctl,
        220 => SemCall::Semtimedop,
        _ => return None,
    };
    (u32_at(current_task(), &O_TASK_STATUS) & TS_COMPAT == 0).then_some(call)
}

#[inline(always)]
fn word(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: both tracepoints have two arguments; the verifier checks the bound.
    unsafe {
        ctx.as_ptr()
            .cast::<u64>()
            .wrapping_add(index)
            .read_volatile()
    }
}

/// `sys_enter(struct pt_regs *regs, long id)`.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub(crate) fn sys_re(ctx: RawTracePointContext) -> i32 {
    let Some(call) = sem_call(word(&ctx, 1)) else {
        return 0;
    };
    if first_ran(call, CallEnd::Entry) || is_entered() {
        return 0;
    }
    let regs: Addr = word(&ctx, 0);
    let arg = |index: usize| u64_from(regs + ARGUMENTS[index]);
    match call {
        SemCall::Semget => semget_enters(arg(0) as u32, arg(1) as u32, arg(2) as u32),
        SemCall::Semctl => semctl_enters(arg(0) as i32, arg(2) as u32, arg(3) as u32),
        SemCall::Semop | SemCall::Semtimedop => {
            semop_enters(arg(0) as i32, arg(1), arg(2) as u32);
        }
    }
    0
}

/// Functions of their own: together they would take more of the stack than there is.
#[inline(never)]
fn semctl_ended(ret: i32) {
    semctl_returns(ret);
}

#[inline(never)]
fn semop_ended(ret: i32) {
    semop_returns(ret);
}

/// The system call that returns, and its result.
#[inline(always)]
fn returns(ctx: &RawTracePointContext) -> Option<(SemCall, i32)> {
    let call = sem_call(u64_from(word(ctx, 0) + NUMBER))?;
    Some((call, word(ctx, 1) as i32))
}

/// `sys_exit(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn sys_rx(ctx: RawTracePointContext) -> i32 {
    match returns(&ctx) {
        Some((SemCall::Semget, _)) | None => {}
        Some((call, _)) if first_ran(call, CallEnd::Return) => {}
        Some((SemCall::Semctl, ret)) => semctl_ended(ret),
        Some((_, ret)) => semop_ended(ret),
    }
    0
}

/// The same of `semget`, which takes all of the stack.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub(crate) fn semget_rx(ctx: RawTracePointContext) -> i32 {
    if let Some((call @ SemCall::Semget, ret)) = returns(&ctx)
        && !first_ran(call, CallEnd::Return)
    {
        semget_returns(ret);
    }
    0
}
