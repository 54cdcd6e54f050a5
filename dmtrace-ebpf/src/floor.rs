//! Empty programs: what it costs to be called at all, the floor of `cargo xtask bench`. Not part of
//! dmtrace.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, tracepoint},
        programs::{
            FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
            TracePointContext,
        },
    };

    /// A trampoline at an entry.
    #[fentry]
    pub(crate) fn floor_fentry(_ctx: FEntryContext) -> i32 {
        0
    }

    /// A trampoline at a return.
    #[fexit]
    pub(crate) fn floor_fexit(_ctx: FExitContext) -> i32 {
        0
    }

    #[kprobe]
    pub(crate) fn floor_ke(_ctx: ProbeContext) -> u32 {
        0
    }

    #[kretprobe]
    pub(crate) fn floor_kx(_ctx: RetProbeContext) -> u32 {
        0
    }

    /// A tracepoint of the perf kind.
    #[tracepoint]
    pub(crate) fn floor_tp(_ctx: TracePointContext) -> u32 {
        0
    }

    #[raw_tracepoint]
    pub(crate) fn floor_raw(_ctx: RawTracePointContext) -> i32 {
        0
    }
}

/// On the host this is an empty program, as that of `main.rs`.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel takes kprobes of GPL programs only for some helpers; as `main.rs`.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
