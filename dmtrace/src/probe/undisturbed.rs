//! System calls on maps that nobody interrupts.
//!
//! While a task is in a system call on a map, its processor runs no program of a kprobe or of a
//! tracepoint of the perf kind (`kernel/bpf/syscall.c:bpf_disable_instrumentation`). Where the
//! kernel preempts, it may stop there for as long as others run, and what they do is not seen. A
//! real-time task waits for nobody but others of its kind.

use std::{io, sync::OnceLock};

use super::{Preemption, ProgramPlan};

/// Whether this kernel preempts: asked once, before the first call.
static PREEMPTS: OnceLock<bool> = OnceLock::new();

/// Makes a few short system calls on maps. Where the thread may not become a real-time one, they
/// are made all the same: the kernel counts what it skips.
pub(super) fn undisturbed<T>(calls: impl FnOnce() -> T) -> T {
    let preempts = PREEMPTS.get_or_init(|| Preemption::detect().plan() == ProgramPlan::Preempted);
    let _held = preempts.then(Scheduling::raise);
    calls()
}

/// How the thread is scheduled otherwise; so again when this is dropped.
struct Scheduling {
    policy: i32,
    param: libc::sched_param,
}

impl Scheduling {
    fn raise() -> Option<Self> {
        let mut before = Self {
            policy: 0,
            param: libc::sched_param { sched_priority: 0 },
        };
        // SAFETY: takes no pointers; 0 is the calling thread.
        before.policy = unsafe { libc::sched_getscheduler(0) };
        // Whoever has chosen a real-time policy for us, or the lowest one, knows why.
        if before.policy != libc::SCHED_OTHER && before.policy != libc::SCHED_BATCH {
            return None;
        }
        let lowest = libc::sched_param { sched_priority: 1 };
        set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &lowest).ok()?;
        Some(before)
    }
}

impl Drop for Scheduling {
    fn drop(&mut self) {
        // Back to a lower policy is always permitted.
        let _back = set(self.policy, &self.param);
    }
}

fn set(policy: i32, param: &libc::sched_param) -> io::Result<()> {
    // SAFETY: the parameter outlives the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: takes no pointers.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn the_thread_is_scheduled_as_before_afterwards() {
        let before = policy();
        let raised = Scheduling::raise();
        if raised.is_some() {
            assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
        }
        drop(raised);
        assert_eq!(policy(), before);
        let _inside = undisturbed(policy);
        assert_eq!(policy(), before);
    }
}
