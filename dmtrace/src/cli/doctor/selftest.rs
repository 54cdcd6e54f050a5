//! Quiet or blind? A cookie of our own tells.
//!
//! It lives in an IPC namespace of its own, on a thread of its own: whatever happens to this
//! program, the cookie ends with the namespace, and the namespace with the thread.

use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant},
};

use dmtrace_core::{
    event::{EventKind, decode_event},
    ids::{IpcNs, SemId},
};
use serde_json::json;

use super::DoctorReport;
use crate::{host::namespaces::own_ns, probe::Tracer, wording::cause_text};

/// Any key does: it is alone in its namespace.
const KEY: i32 = 0x0d4d_0001;
/// Why no cookie was made, where /proc is missing.
const UNKNOWN_NS: &str =
    "cannot tell which IPC namespace its thread is in: no /proc/thread-self/ns/ipc";
/// What the probes should report, in this order.
const STEPS: [&str; 5] = ["creation", "SETVAL", "+1", "-1", "removal"];
/// The ring is filled before the calls return.
const EVENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes and removes the cookie, and looks for it in the ring.
pub(super) fn check_selftest(tracer: &mut Tracer, report: &mut DoctorReport) {
    let Some(mut ring) = tracer.take_ring() else {
        return;
    };
    let made = thread::Builder::new()
        .name("self-test".to_owned())
        .spawn(play_cookie)
        .map(thread::JoinHandle::join);
    let sem = match made {
        Ok(Ok(Ok(sem))) => sem,
        Ok(Ok(Err(error))) | Err(error) => {
            report.add_warning(
                "self_test",
                format!(
                    "self-test: no cookie of its own could be made: {}",
                    cause_text(&error)
                ),
                fix_text(own_ns()),
            );
            return;
        }
        Ok(Err(_)) => {
            report.add_warning(
                "self_test",
                "self-test: its thread has ended",
                "please report this as a bug",
            );
            return;
        }
    };
    let mut seen = BTreeSet::new();
    let patience = Instant::now() + EVENT_TIMEOUT;
    while seen.len() < STEPS.len() && Instant::now() < patience {
        match ring.next() {
            Some(item) => seen.extend(
                decode_event(&item)
                    .ok()
                    .and_then(|event| step_of(&event.what, sem)),
            ),
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
    let missed: Vec<&str> = (0..STEPS.len())
        .filter(|step| !seen.contains(step))
        .filter_map(|step| STEPS.get(step).copied())
        .collect();
    report
        .more
        .push(("self_test", json!({ "expected": STEPS, "missed": missed })));
    if missed.is_empty() {
        report.add_pass(
            "self_test",
            format!(
                "self-test: made, used and removed a cookie, seen {0}/{0}",
                STEPS.len()
            ),
        );
    } else {
        report.add_failure(
            "self_test",
            format!(
                "self-test: a cookie was made, used and removed; not seen: {}",
                missed.join(", ")
            ),
            "do not trust this trace; try another --backend, and report the kernel version",
        );
    }
}

/// What lets the self-test make its cookie, where the thread is in `own` namespace.
const fn fix_text(own: Option<IpcNs>) -> &'static str {
    match own {
        Some(_) => "run as root, with IPC namespaces in the kernel",
        None => "mount -t proc proc /proc",
    }
}

/// Which step an event is.
fn step_of(what: &EventKind, ours: SemId) -> Option<usize> {
    Some(match what {
        EventKind::Created { sem, .. } if *sem == ours => 0,
        EventKind::SetVal { sem, .. } if *sem == ours => 1,
        EventKind::Op { sem, ops, .. } if *sem == ours => {
            if ops.first()?.op > 0 {
                2
            } else {
                3
            }
        }
        EventKind::Destroyed { sem, .. } if *sem == ours => 4,
        _ => return None,
    })
}

/// A whole life of a cookie, on the calling thread, which leaves its namespace for good.
fn play_cookie() -> io::Result<SemId> {
    // Without it nobody could tell the new namespace from the old one.
    let before = own_ns().ok_or_else(|| io::Error::other(UNKNOWN_NS))?;
    // SAFETY: one number. Only this thread moves.
    check_call(unsafe { libc::unshare(libc::CLONE_NEWIPC) })?;
    let ns: IpcNs = own_ns()
        .filter(|&ns| ns != before)
        .ok_or_else(|| io::Error::other("the thread is not in a namespace of its own"))?;
    // SAFETY: three numbers.
    let semid =
        check_call(unsafe { libc::semget(KEY, 1, 0o600 | libc::IPC_CREAT | libc::IPC_EXCL) })?;
    // SAFETY: `union semun` is passed as its `int` member, which SETVAL takes.
    check_call(unsafe { libc::semctl(semid, 0, libc::SETVAL, 1) })?;
    for op in [1, -1] {
        let mut operation = libc::sembuf {
            sem_num: 0,
            sem_op: op,
            sem_flg: libc::IPC_NOWAIT as i16,
        };
        // SAFETY: one operation, which outlives the call.
        check_call(unsafe { libc::semop(semid, &raw mut operation, 1) })?;
    }
    // SAFETY: IPC_RMID takes no argument.
    check_call(unsafe { libc::semctl(semid, 0, libc::IPC_RMID) })?;
    Ok(SemId { ns, semid })
}

fn check_call(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_proc_the_fix_is_to_mount_it() {
        assert_eq!(fix_text(None), "mount -t proc proc /proc");
        assert!(fix_text(Some(IpcNs::HOST)).contains("root"));
    }
}
