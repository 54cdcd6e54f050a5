//! Go programs that call C. C runs on the stack of the thread ("g0"); the stack of the goroutine
//! that called it is elsewhere.
//!
//! What is relied on is the same in Go 1.3 to 1.27 on x86-64: a word of the thread's own variables
//! leads to the `runtime.g` whose stack is in use, `g` begins with the bounds of its stack, `m` at
//! 48 and `sched` (`gobuf`: sp, pc, g) at 56, `m` begins with `g0`. Where the other fields are is
//! not relied on. Nothing is believed that does not prove itself.

use dmtrace_common::GoroutineSample;

use crate::{
    offsets::O_TASK_FSBASE,
    process::current_task,
    read::{Addr, u64_at},
    stack::user_into,
};

/// Words below the thread pointer that are searched for the `g` in use. It is the last one, unless
/// C code of the program itself has variables of the kind; libc has, in a static program.
const THREAD_WORDS: u64 = 48;
/// Where in `m` its current goroutine is looked for: at 184 or 192, behind its own signal handler's
/// and before the fields that link it with others.
const CURG_FROM: u64 = 128;
const CURG_WORDS: u64 = 24;

/// `runtime.g`, as far as it is used.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct G {
    low: u64,
    high: u64,
    /// Stack guards, the last panic, the last defer.
    _others: [u64; 4],
    m: Addr,
    sp: u64,
    pc: u64,
    /// Itself, for all but the system's own.
    g: Addr,
}

/// Looks for a goroutine that waits for the code which runs with this stack pointer. Returns where
/// on the thread's stack that code begins (`g0.sched.sp`); 0 if there is no such goroutine.
#[inline(always)]
pub fn waiting(sp: u64, into: &mut GoroutineSample) -> Addr {
    let address = dmtrace_curg(sp);
    let (mut goroutine, mut thread) = (G::default(), G::default());
    let mut g0 = 0u64;
    if address == 0
        || !user_into(&raw mut goroutine, address)
        || !user_into(&raw mut g0, goroutine.m)
        || !user_into(&raw mut thread, g0)
        || thread.sp <= sp
        || thread.sp > thread.high
    {
        return 0;
    }
    *into = GoroutineSample {
        g: address,
        end: goroutine.high,
        sp: goroutine.sp,
        pc: goroutine.pc,
    };
    thread.sp
}

/// The goroutine that the current thread has left for its own stack; 0 if there is none.
///
/// Exported: see `process::dmtrace_capture`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_curg(sp: u64) -> u64 {
    let thread = u64_at(current_task(), &O_TASK_FSBASE);
    if thread == 0 {
        return 0;
    }
    for word in 1..=THREAD_WORDS {
        let mut g0 = 0u64;
        if !user_into(&raw mut g0, thread - 8 * word) {
            return 0;
        }
        let m = m_of_thread(g0, sp);
        if m != 0 {
            return current_of(m, g0);
        }
    }
    0
}

/// `m` of a g0 whose stack is in use; 0 if it is none.
#[inline(always)]
fn m_of_thread(g0: Addr, sp: u64) -> Addr {
    let mut system = G::default();
    let mut back = 0u64;
    let is_it = g0 != 0
        && g0 & 7 == 0
        && user_into(&raw mut system, g0)
        && system.low < sp
        && sp <= system.high
        && user_into(&raw mut back, system.m)
        && back == g0;
    if is_it { system.m } else { 0 }
}

/// `m.curg`.
#[inline(always)]
fn current_of(m: Addr, g0: Addr) -> Addr {
    for word in 0..CURG_WORDS {
        let mut address = 0u64;
        if !user_into(&raw mut address, m + CURG_FROM + 8 * word) {
            return 0;
        }
        let mut g = G::default();
        let is_it = address != 0
            && address != g0
            && user_into(&raw mut g, address)
            && g.m == m
            && g.g == address
            && g.low < g.sp
            && g.sp < g.high;
        if is_it {
            return address;
        }
    }
    0
}
