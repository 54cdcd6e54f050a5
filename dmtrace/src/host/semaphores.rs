//! All semaphore sets of all IPC namespaces.
//!
//! Reading allocates nothing in the kernel: it works with SEMMNI exhausted.
//!
//! The list comes from `SEM_STAT_ANY`: one call for each slot, for everybody's sets. Kernels
//! before 4.17 lack it; `/proc/sysvipc/sem` says the same there. It is the second choice because
//! `sysvipc_find_ipc` walks from slot 0 for each line before Linux 5.15: seconds for 32,000 sets.

use std::{collections::BTreeSet, io};

use dmtrace_core::{
    facts::{NsHolder, NsSnapshot, SemLimits, SemState, SetSnapshot, Snapshot},
    ids::{IpcNs, Key, UnixTime},
    parallel::{chunk_size, map},
};

use super::{
    HostError, Inside, NsSession, Roots, clock,
    namespaces::{Namespace, Search, discover_namespaces},
    processes::{self, ProcessList},
    sysv,
    text::parse_number,
};

/// Reads all namespaces, or those that `wanted` accepts.
pub fn take_snapshot(roots: &Roots, search: Search, wanted: impl Fn(IpcNs) -> bool) -> Snapshot {
    let mut out = Snapshot {
        began: clock::boot_now(),
        ..Snapshot::default()
    };
    let list = processes::list_processes(roots);
    let mut retry = false;
    let found = discover_namespaces(roots, &list, search);
    out.incomplete.extend(found.incomplete);
    for namespace in found.namespaces {
        if wanted(namespace.ns) {
            retry |= add_namespace(&mut out, roots, &namespace);
        }
    }
    if retry {
        // The ways into a namespace were processes that ended meanwhile; others may be in it.
        let list: ProcessList = processes::list_processes(roots);
        for namespace in discover_namespaces(roots, &list, search).namespaces {
            let known = out.namespaces.iter().any(|read| read.ns == namespace.ns)
                || out.unreadable.iter().any(|(ns, _)| *ns == namespace.ns);
            if !known && wanted(namespace.ns) {
                add_namespace(&mut out, roots, &namespace);
            }
        }
        out.namespaces
            .sort_by_key(|read| (read.ns != IpcNs::HOST, read.ns));
    }
    out.ended = clock::boot_now();
    out.wall = clock::wall_now();
    out
}

/// Adds one namespace; says whether it vanished.
fn add_namespace(out: &mut Snapshot, roots: &Roots, namespace: &Namespace) -> bool {
    match read_namespace(roots, namespace) {
        Ok(read) => out.namespaces.push(read),
        Err(HostError::Gone { .. }) => return true,
        Err(error) => out.unreadable.push((namespace.ns, error.to_string())),
    }
    false
}

/// Reads one namespace.
///
/// # Errors
/// It cannot be entered, or the kernel has no System V semaphores.
pub fn read_namespace(roots: &Roots, namespace: &Namespace) -> Result<NsSnapshot, HostError> {
    let session = NsSession::enter(namespace)?;
    let roots = roots.clone();
    let holder = namespace.holder.clone();
    session.run(move |inside| read_all(inside, &roots, holder))?
}

/// Reads the namespace of the calling thread.
///
/// # Errors
/// The kernel has no System V semaphores, or a sandbox forbids `semctl`.
pub fn read_all(inside: &Inside, roots: &Roots, holder: NsHolder) -> Result<NsSnapshot, HostError> {
    let limits = read_limits(inside)?;
    let mut sets = read_sets(inside, roots)?;
    add_states(&mut sets);
    Ok(NsSnapshot {
        ns: inside.namespace(),
        holder,
        limits,
        sets,
    })
}

/// `kernel.sem` of the namespace of the calling thread.
///
/// # Errors
/// The kernel has no System V semaphores, or a sandbox forbids `semctl`.
pub fn read_limits(inside: &Inside) -> Result<SemLimits, HostError> {
    let info = sysv::read_limits().map_err(|source| read_error(inside, source))?;
    Ok(SemLimits {
        semmsl: info.semmsl.max(0).unsigned_abs(),
        semmns: info.semmns.max(0).unsigned_abs(),
        semopm: info.semopm.max(0).unsigned_abs(),
        semmni: info.semmni.max(0).unsigned_abs(),
    })
}

/// Reads one set anew, by semid. `None` when it has gone. Values and waiters are filled whatever
/// its key, except where they are not readable.
///
/// # Errors
/// The set exists and may not be looked at.
pub fn read_one(inside: &Inside, semid: i32) -> Result<Option<SetSnapshot>, HostError> {
    let ds = match sysv::stat_set(semid) {
        Ok(ds) => ds,
        Err(error) if sysv::is_gone(&error) => return Ok(None),
        // Not ours to read by semid; the slot can be looked at by everybody.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            match sysv::stat_any(semid & SLOT_MASK) {
                Ok((found, ds)) if found == semid => ds,
                _ => return Err(read_error(inside, error)),
            }
        }
        Err(source) => return Err(read_error(inside, source)),
    };
    let mut set = set_of(semid, &ds);
    Ok(add_state(&mut set).is_ok().then_some(set))
}

/// Low bits of a semid that are its slot (`ipcid_to_idx`; 24 bits with `ipcmni_extend`, where the
/// comparison of the semid found there fails and the error stands).
const SLOT_MASK: i32 = 0x7fff;

/// The set has gone.
struct Vanished;

/// Fills `first`; it stays empty where it may not be read.
fn add_state(set: &mut SetSnapshot) -> Result<(), Vanished> {
    let read = |what| sysv::get_number(set.semid, what);
    let state = || -> io::Result<SemState> {
        Ok(SemState {
            value: read(libc::GETVAL)?,
            pid: read(libc::GETPID)?.max(0).unsigned_abs(),
            ncnt: read(libc::GETNCNT)?.max(0).unsigned_abs(),
            zcnt: read(libc::GETZCNT)?.max(0).unsigned_abs(),
        })
    };
    match state() {
        Ok(state) => set.first = Some(state),
        Err(error) if sysv::is_gone(&error) => return Err(Vanished),
        Err(_) => set.first = None,
    }
    Ok(())
}

/// Fills `first` of all cookies, and drops those that have gone.
fn add_states(sets: &mut Vec<SetSnapshot>) {
    let share = chunk_size(sets.len(), MIN_CHUNK);
    let gone = map(sets.chunks_mut(share), |part| -> Vec<i32> {
        let cookies = part.iter_mut().filter(|set| set.key.has_cookie_magic());
        let gone = cookies.filter_map(|set| add_state(set).is_err().then_some(set.semid));
        gone.collect()
    });
    let gone: BTreeSet<i32> = gone.into_iter().flatten().collect();
    if !gone.is_empty() {
        sets.retain(|set| !gone.contains(&set.semid));
    }
}

/// Fewer sets are read faster than a thread is started.
const MIN_CHUNK: usize = 4096;

fn read_sets(inside: &Inside, roots: &Roots) -> Result<Vec<SetSnapshot>, HostError> {
    let (highest, count) = sysv::read_usage().map_err(|source| read_error(inside, source))?;
    let share = chunk_size(usize::try_from(highest).unwrap_or(0), MIN_CHUNK);
    let parts = map((0..=highest).step_by(share), |first| {
        let mut sets = Vec::new();
        for index in (first..=highest).take(share) {
            match sysv::stat_any(index) {
                Ok((semid, ds)) => sets.push(set_of(semid, &ds)),
                Err(error) if sysv::is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sets)
    });
    // A security module. The file in /proc does not ask it.
    let refused = parts.iter().any(Result::is_err);
    let sets: Vec<SetSnapshot> = parts.into_iter().flatten().flatten().collect();
    if refused || (sets.is_empty() && count > 0) {
        let lines = roots
            .read_proc("sysvipc/sem")
            .map_err(|source| read_error(inside, source))?;
        return Ok(parse_sets(&lines));
    }
    Ok(sets)
}

fn set_of(semid: i32, ds: &sysv::SemidDs) -> SetSnapshot {
    SetSnapshot {
        semid,
        key: Key(ds.perm.key.cast_unsigned()),
        mode: ds.perm.mode & 0o777,
        nsems: u32::try_from(ds.nsems).unwrap_or(u32::MAX),
        uid: ds.perm.uid,
        gid: ds.perm.gid,
        cuid: ds.perm.cuid,
        cgid: ds.perm.cgid,
        otime: UnixTime(ds.otime),
        ctime: UnixTime(ds.ctime),
        first: None,
    }
}

fn read_error(inside: &Inside, source: io::Error) -> HostError {
    HostError::Read {
        ns: inside.namespace(),
        source,
    }
}

/// Reads the lines of `/proc/sysvipc/sem` (`sysvipc_sem_proc_show`): `key semid perms nsems uid
/// gid cuid cgid otime ctime`. What is not such a line is skipped.
pub fn parse_sets(lines: &[u8]) -> Vec<SetSnapshot> {
    lines
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<SetSnapshot> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    Some(SetSnapshot {
        key: Key(parse_number::<i32>(fields.next()?)?.cast_unsigned()),
        semid: parse_number(fields.next()?)?,
        mode: u32::from_str_radix(std::str::from_utf8(fields.next()?).ok()?, 8).ok()? & 0o777,
        nsems: parse_number(fields.next()?)?,
        uid: parse_number(fields.next()?)?,
        gid: parse_number(fields.next()?)?,
        cuid: parse_number(fields.next()?)?,
        cgid: parse_number(fields.next()?)?,
        otime: UnixTime(parse_number(fields.next()?)?),
        ctime: UnixTime(parse_number(fields.next()?)?),
        first: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let text = b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n \
              223155259          3   600          1     0     0     0     0          0 1795369761\n\
               -559038737      32771   666          3  1000  1000 65534 65534 1795369761 1795369760\n";
        let sets = parse_sets(text);
        assert_eq!(sets.len(), 2);
        assert_eq!(sets[0].key, Key(0x0d4d_143b));
        assert_eq!((sets[0].semid, sets[0].mode), (3, 0o600));
        assert!(sets[0].looks_like_cookie());
        assert_eq!(sets[1].key, Key(0xdead_beef));
        assert_eq!((sets[1].nsems, sets[1].cuid), (3, 65534));
        assert_eq!(sets[1].otime, UnixTime(1_795_369_761));
    }

    #[test]
    fn the_own_namespace_is_read_without_privilege() {
        let taken = take_snapshot(&Roots::host(), Search::default(), |_| true);
        let own = crate::host::namespaces::own_ns().unwrap();
        let read = taken.namespaces.iter().find(|read| read.ns == own).unwrap();
        assert!(read.limits.semmni > 0);
        assert!(taken.ended >= taken.began);
    }

    proptest! {
        #[test]
        fn no_line_panics(lines: Vec<u8>) {
            let _sets = parse_sets(&lines);
        }
    }
}
