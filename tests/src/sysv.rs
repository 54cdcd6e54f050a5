//! System V semaphores, called as libdm calls them.

use std::io;

/// Sizes of `semop` calls that the C libraries make.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Abi {
    /// `semtimedop(2)` without a timeout: glibc.
    #[default]
    SemTimedOp,
    /// `semop(2)`: musl, Go, old glibc.
    SemOp,
}

#[cfg(target_arch = "x86_64")]
const SYS_SEMOP: libc::c_long = 65;
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
const SYS_SEMOP: libc::c_long = 193;

#[cfg(not(target_arch = "x86"))]
const SYS_SEMTIMEDOP: libc::c_long = libc::SYS_semtimedop;
/// `semtimedop_time64`, which 32-bit glibc calls.
#[cfg(target_arch = "x86")]
const SYS_SEMTIMEDOP: libc::c_long = 420;

/// `semget(2)`.
///
/// # Errors
/// Those of the call.
pub fn get_set(key: u32, nsems: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: three numbers; no memory is involved.
    check_result(unsafe { libc::semget(key.cast_signed(), nsems, flags) })
}

/// `SETVAL` of semaphore 0.
///
/// # Errors
/// Those of the call.
pub fn set_value(semid: i32, value: i32) -> io::Result<()> {
    // SAFETY: `union semun` is passed as its `int` member, which SETVAL takes.
    check_result(unsafe { libc::semctl(semid, 0, libc::SETVAL, value) }).map(drop)
}

/// `GETVAL` of semaphore 0.
///
/// # Errors
/// Those of the call.
pub fn get_value(semid: i32) -> io::Result<i32> {
    // SAFETY: GETVAL takes no argument.
    check_result(unsafe { libc::semctl(semid, 0, libc::GETVAL) })
}

/// `GETZCNT` of semaphore 0: how many wait for it to become zero.
///
/// # Errors
/// Those of the call.
pub fn count_waiters(semid: i32) -> io::Result<i32> {
    // SAFETY: GETZCNT takes no argument.
    check_result(unsafe { libc::semctl(semid, 0, libc::GETZCNT) })
}

/// Key and semid of the set `semid`, if it exists.
///
/// # Errors
/// Those of `IPC_STAT`.
pub fn get_key(semid: i32) -> io::Result<u32> {
    // The key is the first member of `struct semid_ds` in every C library; the buffer is larger
    // than any of them.
    let mut buffer = [0_u64; 32];
    // SAFETY: the buffer is aligned for and larger than `struct semid_ds`.
    check_result(unsafe { libc::semctl(semid, 0, libc::IPC_STAT, buffer.as_mut_ptr()) })?;
    let [first, ..] = buffer;
    let bytes = first.to_ne_bytes();
    Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// `IPC_SET` of the permission bits; owner and group become 0.
///
/// # Errors
/// Those of the calls.
pub fn set_mode(semid: i32, mode: u16) -> io::Result<()> {
    // `ipc_perm` is the first member of `struct semid_ds` in every C library; the buffer is larger
    // than any of them, and all zeros is valid.
    let mut ds = [0_u64; 32];
    let perm = ds.as_mut_ptr().cast::<libc::ipc_perm>();
    // SAFETY: the buffer is aligned for and larger than `struct ipc_perm`.
    unsafe { (*perm).mode = widen_number(mode) };
    // SAFETY: IPC_SET reads a semid_ds, of which only uid, gid and mode count.
    check_result(unsafe { libc::semctl(semid, 0, libc::IPC_SET, ds.as_mut_ptr()) }).map(drop)
}

/// A number in the type that a C library has for it.
fn widen_number<T: From<u16>>(number: u16) -> T {
    T::from(number)
}

/// `IPC_RMID`.
///
/// # Errors
/// Those of the call.
pub fn remove_set(semid: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no argument.
    check_result(unsafe { libc::semctl(semid, 0, libc::IPC_RMID) }).map(drop)
}

/// One operation on semaphore 0.
///
/// # Errors
/// Those of the call; `EINTR` is not retried.
pub fn semop_one(abi: Abi, semid: i32, op: i16, flags: i32) -> io::Result<()> {
    let mut buf = libc::sembuf {
        sem_num: 0,
        sem_op: op,
        sem_flg: flags as i16,
    };
    let result = match abi {
        Abi::SemTimedOp => {
            let forever: *const libc::timespec = std::ptr::null();
            // SAFETY: one sembuf that outlives the call, and no timeout.
            unsafe { libc::syscall(SYS_SEMTIMEDOP, semid, &raw mut buf, 1_usize, forever) }
        }
        // 32-bit programs have no semop(2): ipc(2) multiplexes it, as number 1.
        #[cfg(target_arch = "x86")]
        // SAFETY: one sembuf that outlives the call.
        Abi::SemOp => unsafe { libc::syscall(libc::SYS_ipc, 1, semid, 1_usize, 0, &raw mut buf) },
        #[cfg(not(target_arch = "x86"))]
        // SAFETY: one sembuf that outlives the call.
        Abi::SemOp => unsafe { libc::syscall(SYS_SEMOP, semid, &raw mut buf, 1_usize) },
    };
    check_result(i32::try_from(result).unwrap_or(-1)).map(drop)
}

pub(crate) fn check_result(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
