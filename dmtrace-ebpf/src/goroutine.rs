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

/// Fields of `runtime.g`. They are read one by one: the stacks of all functions of a program must
/// fit into 512 bytes.
mod g {
    pub(super) const LOW: u64 = 0;
    pub(super) const HIGH: u64 = 8;
    pub(super) const M: u64 = 48;
    pub(super) const SP: u64 = 56;
    pub(super) const PC: u64 = 64;
    /// Itself, for all but the system's own.
    pub(super) const SELF: u64 = 72;
}

/// A word of user memory; 0 if it cannot be read.
#[inline(always)]
fn read_word(address: Addr) -> u64 {
    let mut word = 0u64;
    if user_into(&raw mut word, address) {
        word
    } else {
        0
    }
}

/// Looks for a goroutine that waits for the code which runs with this stack pointer. Returns where
/// on the thread's stack that code begins (`g0.sched.sp`); 0 if there is no such goroutine.
#[inline(always)]
pub(crate) fn find_waiting(sp: u64, into: &mut GoroutineSample) -> Addr {
    let goroutine = dmtrace_curg(sp);
    if goroutine == 0 {
        return 0;
    }
    let g0 = read_word(read_word(goroutine + g::M));
    let entered = read_word(g0 + g::SP);
    if entered <= sp || entered > read_word(g0 + g::HIGH) {
        return 0;
    }
    into.g = goroutine;
    into.end = read_word(goroutine + g::HIGH);
    into.sp = read_word(goroutine + g::SP);
    into.pc = read_word(goroutine + g::PC);
    entered
}

/// The goroutine that the current thread has left for its own stack; 0 if there is none.
///
/// Exported, as are its two halves: see `process::dmtrace_capture`. Were they one function, the
/// verifier would look at the second loop once for each round of the first.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_curg(sp: u64) -> u64 {
    let g0 = dmtrace_g0(sp);
    if g0 == 0 { 0 } else { dmtrace_left(g0) }
}

/// The thread's own `g`, if its stack is the one in use; else 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_g0(sp: u64) -> u64 {
    let thread = u64_at(current_task(), &O_TASK_FSBASE);
    if thread == 0 {
        return 0;
    }
    for index in 1..=THREAD_WORDS {
        let g0 = read_word(thread - 8 * index);
        let is_it = g0 != 0
            && g0 & 7 == 0
            && read_word(g0 + g::LOW) < sp
            && sp <= read_word(g0 + g::HIGH)
            && read_word(read_word(g0 + g::M)) == g0;
        if is_it {
            return g0;
        }
    }
    0
}

/// `m.curg` of the thread with this g0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dmtrace_left(g0: u64) -> u64 {
    let m = read_word(g0 + g::M);
    for index in 0..CURG_WORDS {
        let address = read_word(m + CURG_FROM + 8 * index);
        let is_it = address != 0
            && address != g0
            && read_word(address + g::M) == m
            && read_word(address + g::SELF) == address
            && read_word(address + g::LOW) < read_word(address + g::SP)
            && read_word(address + g::SP) < read_word(address + g::HIGH);
        if is_it {
            return address;
        }
    }
    0
}
