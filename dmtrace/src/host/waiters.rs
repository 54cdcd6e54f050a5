//! Threads that are blocked on a semaphore.
//!
//! System V tells how many wait (`GETNCNT`, `GETZCNT`), not who. `/proc/PID/task/TID/syscall` of a
//! sleeping thread shows the call and its arguments (`task_current_syscall`); the semid in there
//! is one of the thread's IPC namespace. It needs the right to ptrace.

use std::{collections::BTreeMap, io};

use dmtrace_core::{
    facts::{Snapshot, Waiter},
    ids::SemId,
};

use super::{
    Roots,
    processes::{self, ProcessList, list_tids},
};
use crate::wording::cause_text;

/// Who waits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FoundWaiters {
    /// By semaphore set.
    pub waiters: BTreeMap<SemId, Vec<Waiter>>,
    /// Why waiters may be missing.
    pub incomplete: Option<String>,
}

/// The sets on which threads wait according to a snapshot, and how many.
pub fn waited_for(snapshot: &Snapshot) -> BTreeMap<SemId, u32> {
    let waited = snapshot.sets().map(|(sem, set)| {
        let count = set.first.map_or(0, |state| state.ncnt + state.zcnt);
        (sem, count)
    });
    waited.filter(|&(_, count)| count > 0).collect()
}

/// Finds the threads that wait on `sets`. Costs nothing when there are none; else one file for
/// each thread of the processes in those namespaces, until all are found.
pub fn find_waiters(
    roots: &Roots,
    list: &ProcessList,
    sets: &BTreeMap<SemId, u32>,
) -> FoundWaiters {
    let mut out = FoundWaiters::default();
    let mut missing = sets.clone();
    let mut denied = None;
    for (&tgid, process) in &list.processes {
        if missing.is_empty() {
            break;
        }
        let single = process.threads < 2;
        // A thread can be in another namespace than its leader, so only the single are skipped.
        let elsewhere = process
            .live
            .ipc_ns
            .is_some_and(|ns| !missing.keys().any(|sem| sem.ns == ns));
        if process.kernel || (single && elsewhere) {
            continue;
        }
        let tids = if single {
            vec![tgid]
        } else {
            list_tids(roots, tgid)
        };
        for tid in tids {
            match waits_on(roots, tgid, tid, &missing) {
                Ok(None) => {}
                Ok(Some(sem)) => {
                    let waiters = out.waiters.entry(sem).or_default();
                    waiters.push(Waiter { tgid, tid });
                    if let Some(count) = missing.get_mut(&sem) {
                        *count -= 1;
                        if *count == 0 {
                            missing.remove(&sem);
                        }
                    }
                }
                Err(error) => {
                    denied.get_or_insert((tgid, error));
                }
            }
        }
    }
    // A waiter that was not found although all could be looked at has just woken.
    if let (false, Some((tgid, error))) = (missing.is_empty(), denied) {
        out.incomplete = Some(format!(
            "waiters: system call of process {tgid}: {}; run as root",
            cause_text(&error)
        ));
    }
    out
}

/// On which of `sets` a thread waits.
fn waits_on(
    roots: &Roots,
    tgid: u32,
    tid: u32,
    sets: &BTreeMap<SemId, u32>,
) -> io::Result<Option<SemId>> {
    let task = format!("{tgid}/task/{tid}");
    let line = match roots.read_patiently(format!("{task}/syscall")) {
        Ok(line) => line,
        Err(error) if processes::is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(semid) = semid_of(&line, |semid| sets.keys().any(|sem| sem.semid == semid)) else {
        return Ok(None);
    };
    let ns = processes::ipc_ns(roots, &task);
    Ok(ns
        .map(|ns| SemId { ns, semid })
        .filter(|sem| sets.contains_key(sem)))
}

/// The semid in a line of `/proc/PID/syscall` whose call is `semop` or `semtimedop`.
///
/// The file does not say in which ABI the call was made, so the numbers of all ABIs of this
/// machine are accepted; only semids that somebody waits on count, and no other call has one of
/// them as its argument while it sleeps.
fn semid_of(line: &[u8], wanted: impl Fn(i32) -> bool) -> Option<i32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split_ascii_whitespace();
    let number: u64 = fields.next()?.parse().ok()?;
    let mut arguments = fields.map(|field| {
        let digits = field.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    });
    let first = arguments.next()??;
    let semid = if DIRECT.contains(&number) {
        first
    } else if number == IPC && matches!(first & 0xffff, IPC_SEMOP | IPC_SEMTIMEDOP) {
        arguments.next()??
    } else {
        return None;
    };
    // An `int` argument: the upper half of the register is not part of it.
    let semid = (semid as u32).cast_signed();
    wanted(semid).then_some(semid)
}

/// Numbers of `semop`, `semtimedop`, `semtimedop_time64`, whose first argument is the semid.
/// glibc implements `semop()` by `semtimedop`.
#[cfg(target_arch = "x86_64")]
const DIRECT: &[u64] = &[65, 220, 420, X32 | 65, X32 | 220];
#[cfg(target_arch = "x86_64")]
const X32: u64 = 0x4000_0000;
/// `ipc(call, first, …)` of i386: the semid is the second argument.
#[cfg(target_arch = "x86_64")]
const IPC: u64 = 117;

/// Native `semtimedop` and `semop`, then `semop`, `semtimedop` and `semtimedop_time64` of 32-bit.
#[cfg(not(target_arch = "x86_64"))]
const DIRECT: &[u64] = &[192, 193, 298, 312, 420];
/// `ipc` exists with the old 32-bit ABI only and cannot be made by a 64-bit kernel's callers.
#[cfg(not(target_arch = "x86_64"))]
const IPC: u64 = u64::MAX;

const IPC_SEMOP: u64 = 1;
const IPC_SEMTIMEDOP: u64 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_of_all_abis() {
        let wanted = |semid| matches!(semid, 0x8003 | 5);
        let semid = |line: &str| semid_of(line.as_bytes(), wanted);
        assert_eq!(
            semid("220 0x8003 0x7ffd1 0x1 0x0 0x0 0x0 0x7ffd 0x7f\n"),
            Some(0x8003)
        );
        assert_eq!(
            semid("65 0x5 0x7ffd1 0x1 0x0 0x0 0x0 0x7ffd 0x7f\n"),
            Some(5)
        );
        assert_eq!(semid("117 0x4 0x5 0x1 0x0 0xff 0x0 0xff 0xf7\n"), Some(5));
        assert_eq!(semid("117 0x2 0x5 0x1 0x0 0xff 0x0 0xff 0xf7\n"), None);
        assert_eq!(semid("420 0xffffffff00000005 0x1 0x1\n"), Some(5));
        assert_eq!(semid("65 0x6 0x7ffd1\n"), None);
        assert_eq!(semid("202 0x5 0x7ffd1\n"), None);
        assert_eq!(semid("running\n"), None);
        assert_eq!(semid("-1 0x7ffd 0x7f\n"), None);
    }

    proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _semid = semid_of(&line, |_| true);
        }
    }
}
