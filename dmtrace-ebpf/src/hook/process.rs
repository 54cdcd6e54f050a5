//! The end of a process, the same for every backend.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::process::{exited, replaced};

/// `sched_process_exit`, fired by do_exit for each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_e(_ctx: RawTracePointContext) -> i32 {
    exited();
    0
}

/// `sched_process_exec`, fired by exec_binprm once the new image is in place.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_e(_ctx: RawTracePointContext) -> i32 {
    replaced();
    0
}
