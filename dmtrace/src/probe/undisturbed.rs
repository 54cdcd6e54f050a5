//! System calls on maps that nobody interrupts.
//!
//! While a task is in a system call on a map, its processor runs no program of a kprobe or of a
//! tracepoint of the perf kind (`kernel/bpf/syscall.c:bpf_disable_instrumentation`). Where the
//! kernel preempts, it may stop there for as long as others run, and what they do is not seen. A
//! real-time task waits for nobody but others of its kind.

use std::io;

use super::{Preemption, ProgramPlan};

/// Makes a few short system calls on maps. Where the thread may not become a real-time one, they
/// are made all the same: the kernel counts what it skips.
pub(super) fn call_undisturbed<T>(calls: impl FnOnce() -> T) -> T {
    let preempts = Preemption::detect().plan() == ProgramPlan::Preempted;
    let _held = preempts.then(Scheduling::raise);
    calls()
}

/// How the thread is scheduled otherwise; so again when this is dropped.
struct Scheduling {
    policy: i32,
}

impl Scheduling {
    fn raise() -> Option<Self> {
        let policy = thread_policy()?;
        // Whoever has chosen another policy for us knows why. These two have no priority.
        if policy != libc::SCHED_OTHER && policy != libc::SCHED_BATCH {
            return None;
        }
        let (fifo, lowest_priority) = (libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
        set_policy(fifo, lowest_priority).ok()?;
        Some(Self { policy })
    }
}

impl Drop for Scheduling {
    fn drop(&mut self) {
        // Always permitted: it is a lower policy.
        let _back = set_policy(self.policy, 0);
    }
}

/// Of the calling thread. By system call: musl has no such functions.
fn thread_policy() -> Option<i32> {
    // SAFETY: takes no pointers; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    i32::try_from(policy).ok().filter(|policy| *policy >= 0)
}

fn set_policy(policy: i32, priority: i32) -> io::Result<()> {
    // SAFETY: the kernel's `struct sched_param` is one number, which outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_scheduled_as_before_afterwards() {
        let before = thread_policy();
        let raised = Scheduling::raise();
        if raised.is_some() {
            let fifo = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
            assert_eq!(thread_policy(), Some(fifo));
        }
        drop(raised);
        assert_eq!(thread_policy(), before);
        let _inside = call_undisturbed(thread_policy);
        assert_eq!(thread_policy(), before);
    }
}
