//! `semctl(2)` for reading, as the kernel defines it.
//!
//! The C libraries disagree on these structures (glibc translates, musl lacks some), so the call
//! is made directly. Nothing here changes a semaphore.

use std::io;

/// `struct ipc64_perm` of the 64-bit ABIs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Perm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u16,
    pad: u16,
    unused: [u64; 2],
}

/// `struct semid64_ds`. x86 keeps a hole after each time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SemidDs {
    pub perm: Perm,
    pub otime: i64,
    #[cfg(target_arch = "x86_64")]
    hole1: u64,
    pub ctime: i64,
    #[cfg(target_arch = "x86_64")]
    hole2: u64,
    pub nsems: u64,
    unused: [u64; 2],
}

/// `struct seminfo`: limits with `IPC_INFO`, usage in the last two fields with `SEM_INFO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SemInfo {
    pub semmap: i32,
    pub semmni: i32,
    pub semmns: i32,
    pub semmnu: i32,
    pub semmsl: i32,
    pub semopm: i32,
    pub semume: i32,
    pub semusz: i32,
    pub semvmx: i32,
    pub semaem: i32,
}

const _: () = assert!(size_of::<Perm>() == 48);
#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<SemidDs>() == 104);
const _: () = assert!(size_of::<SemInfo>() == 40);

/// `linux/ipc.h`, `linux/sem.h`; libc has them for some C libraries only.
const IPC_INFO: i32 = 3;
const SEM_STAT_ANY: i32 = 20;

/// Limits of the caller's namespace.
pub(super) fn read_limits() -> io::Result<SemInfo> {
    let mut info = SemInfo::default();
    semctl(0, IPC_INFO, &raw mut info as u64)?;
    Ok(info)
}

/// Highest index in use, and how many sets there are (in `semusz`).
pub(super) fn read_usage() -> io::Result<(i32, i32)> {
    let mut info = SemInfo::default();
    let highest = semctl(0, libc::SEM_INFO, &raw mut info as u64)?;
    Ok((highest, info.semusz))
}

/// The set in slot `index`, and its semid. Needs no permission (`semctl_stat` skips `ipcperms`);
/// Linux 4.17.
pub(super) fn stat_any(index: i32) -> io::Result<(i32, SemidDs)> {
    let mut ds = SemidDs::default();
    let semid = semctl(index, SEM_STAT_ANY, &raw mut ds as u64)?;
    Ok((semid, ds))
}

/// The set `semid`.
pub(super) fn stat_set(semid: i32) -> io::Result<SemidDs> {
    let mut ds = SemidDs::default();
    semctl(semid, libc::IPC_STAT, &raw mut ds as u64)?;
    Ok(ds)
}

/// One number of semaphore 0: `GETVAL`, `GETPID`, `GETNCNT`, `GETZCNT`.
pub(super) fn get_number(semid: i32, what: i32) -> io::Result<i32> {
    semctl(semid, what, 0)
}

/// Whether an error of a call by semid means that the set has gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM))
}

fn semctl(id: i32, cmd: i32, arg: u64) -> io::Result<i32> {
    // SAFETY: `arg` is 0 for commands without argument, else the address of a structure that the
    // caller in this file owns and that has the size the command writes.
    let result = unsafe { libc::syscall(libc::SYS_semctl, id, 0, cmd, arg) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
