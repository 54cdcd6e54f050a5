//! The end of a process, the same for every backend.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};

use crate::process::{image_replaced, process_exited};

/// `sched_process_exit`, fired by do_exit for each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn exit_e(_ctx: RawTracePointContext) -> i32 {
    process_exited();
    0
}

/// `sched_process_exec`, fired by exec_binprm once the new image is in place.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn exec_e(_ctx: RawTracePointContext) -> i32 {
    image_replaced();
    0
}

/// See [`exit_e`]: for kernels that preempt, where whichever comes second finds nothing to do.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub(crate) fn exit_f(_ctx: RawTracePointContext) -> i32 {
    process_exited();
    0
}

/// See [`exec_e`] and [`exit_f`].
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub(crate) fn exec_f(_ctx: RawTracePointContext) -> i32 {
    image_replaced();
    0
}

/// See [`exit_f`]. Tracepoints of the perf kind run with preemption off in every kernel
/// (include/trace/perf.h); raw ones do not any more since 7.0, and then are skipped where another
/// task has been preempted in them.
#[tracepoint]
pub(crate) fn exit_t(_ctx: TracePointContext) -> u32 {
    process_exited();
    0
}

/// See [`exec_e`] and [`exit_t`].
#[tracepoint]
pub(crate) fn exec_t(_ctx: TracePointContext) -> u32 {
    image_replaced();
    0
}
