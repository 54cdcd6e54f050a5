//! The call site of a cookie, by backend. Programs of their own beside those that tell of the
//! creation: whatever the verifier of some kernel thinks of them, the creation is seen.

use aya_ebpf::{
    macros::{fexit, kretprobe, tracepoint},
    programs::{FExitContext, RetProbeContext, TracePointContext},
};
use dmtrace_common::has_cookie_magic;

use super::syscall::IPC_CREAT;
use crate::{
    offsets::{O_IPCNS_INUM, O_PARAMS_KEY},
    process::{current_task, ipc_ns},
    read::{Addr, u32_at},
    stack::{dmtrace_stack, user_call},
};

/// `int newary(struct ipc_namespace *ns, struct ipc_params *params)` returns.
#[fexit(function = "newary")]
pub(crate) fn stack_x(ctx: FExitContext) -> i32 {
    let (ns, params): (Addr, Addr) = (ctx.arg(0), ctx.arg(1));
    let semid = ctx.arg::<i32>(2);
    let key = u32_at(params, &O_PARAMS_KEY);
    if semid >= 0 && has_cookie_magic(key) {
        dmtrace_stack(u32_at(ns, &O_IPCNS_INUM), semid as u32, key);
    }
    0
}

/// `newary` returns. Its arguments are gone; those of the system call are still in the caller's
/// registers.
#[kretprobe]
pub(crate) fn stack_kx(ctx: RetProbeContext) -> u32 {
    let semid = ctx.ret::<i32>();
    if semid >= 0
        && let Some(call) = user_call()
        && has_cookie_magic(call.first)
    {
        dmtrace_stack(ipc_ns(current_task()).1, semid as u32, call.first);
    }
    0
}

/// `semget` returns. Whether it has made or found the set is not seen here: userspace takes the
/// stack only for a set that is known to be made by this call.
#[tracepoint]
pub(crate) fn stack_tx(ctx: TracePointContext) -> i32 {
    let semid = super::syscall::syscall_ret(&ctx) as i32;
    if semid >= 0
        && let Some(call) = user_call()
        && has_cookie_magic(call.first)
        && call.third & IPC_CREAT as u32 != 0
    {
        dmtrace_stack(ipc_ns(current_task()).1, semid as u32, call.first);
    }
    0
}
