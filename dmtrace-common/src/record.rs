//! Values of the BPF maps: the truth about what is outstanding.

use crate::{COMM_LEN, Header, Operators, ProcKey};

/// One semaphore set that the tracer knows: value of the map keyed by [`SemKey`](crate::SemKey).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SemRecord {
    /// Creation, nanoseconds since boot. 0 for a set that was there before the tracer.
    pub created: u64,
    /// Removal, nanoseconds since boot. 0 while the set exists.
    pub closed: u64,
    /// End of the last operation that succeeded or of the last wait, whatever its result,
    /// nanoseconds since boot. 0 for none.
    pub last_op: u64,
    /// When [`SemRecord::waiter`] began to wait, nanoseconds since boot. 0 if it does not.
    pub wait_since: u64,
    /// Who made the set. All zero for a set that was there before the tracer.
    pub creator: ProcKey,
    /// Who did the last successful operation.
    pub last_actor: ProcKey,
    /// Who entered the wait for zero last.
    pub waiter: ProcKey,
    /// Who removed the set (meaningful with [`SemRecord::closed`]).
    pub closer: ProcKey,
    /// System V key.
    pub key: u32,
    /// Semaphores in the set.
    pub nsems: u32,
    /// `semflg` of the creating `semget`, permission bits included.
    pub semflg: u32,
    /// `SEM_*` bits.
    pub state: u32,
    /// Thread that created the set.
    pub tid: u32,
    /// Real uid of the creator, in the initial user namespace.
    pub uid: u32,
    /// Value of semaphore 0 as the seen operations make it.
    pub value: i32,
    /// Return value of the last operation that failed for a reason other than EAGAIN.
    pub last_error: i32,
    /// Increments by the creator.
    pub owner_inc: u32,
    /// Decrements by the creator.
    pub owner_dec: u32,
    /// Increments by others.
    pub other_inc: u32,
    /// Decrements by others (udev's `dmsetup udevcomplete`).
    pub other_dec: u32,
    /// `SETVAL` calls.
    pub setvals: u32,
    /// Waits for zero that began.
    pub waits: u32,
    /// Waits for zero that ended, whatever the result.
    pub waits_done: u32,
    /// Decrements that failed with EAGAIN: the value was already 0.
    pub failed_decrements: u32,
    /// Name of the creating thread.
    pub comm: [u8; COMM_LEN],
    /// Last device-mapper ioctl with this cookie, its entry or its return, nanoseconds since boot.
    /// This field and those up to `minor` came with layout 2; they are 0 in older recordings.
    pub last_dm: u64,
    /// Device-mapper ioctls with this cookie that were entered.
    pub ioctls: u32,
    /// Of these, returned with an error.
    pub ioctls_failed: u32,
    /// Of these, returned with [`DM_UEVENT_GENERATED`](crate::DM_UEVENT_GENERATED): uevents that
    /// carry the cookie.
    pub uevents: u32,
    /// Return value of the last one that failed.
    pub ioctl_error: i32,
    /// Major number of the last device, 0 where it is not known.
    pub major: u32,
    /// Minor number of the last device.
    pub minor: u32,
    /// Who may have done the last successful operation. Came with layout 3; empty in older
    /// recordings.
    pub operators: Operators,
}

/// The set carries a key with the cookie magic; its operations are followed.
pub const SEM_COOKIE: u32 = 1 << 0;
/// The set was there before the tracer: entered by userspace from a snapshot.
pub const SEM_PREEXISTING: u32 = 1 << 1;
/// The creation went into the ring. Without it userspace learns of the set from the map.
pub const SEM_ANNOUNCED: u32 = 1 << 2;
/// The set is gone; the record waits for userspace, which missed its creation or its removal.
pub const SEM_TOMBSTONE: u32 = 1 << 3;
/// An operation on the set could not be put into the ring: read the counts here instead.
pub const SEM_OPS_DROPPED: u32 = 1 << 4;
/// The set ended with its IPC namespace.
pub const SEM_NS_TEARDOWN: u32 = 1 << 5;
/// The creation was inferred from a `semget` that may have found an existing set.
pub const SEM_MAYBE_FOUND: u32 = 1 << 6;
/// A message of a device-mapper ioctl or uevent was dropped: read the sums here instead.
pub const SEM_DM_DROPPED: u32 = 1 << 7;
/// A wait for zero succeeded, and nobody has incremented since: a decrement that returns later
/// was carried out before.
pub const SEM_RELEASED: u32 = 1 << 8;
/// With [`SEM_PREEXISTING`]: it was made while the tracer ran, and that was not seen.
pub const SEM_MISSED: u32 = 1 << 9;

/// Ancestors kept of a process.
pub const PARENTS: usize = 6;
/// Bytes kept of a command line, NUL-separated arguments as in `/proc/PID/cmdline`.
pub const CMDLINE_LEN: usize = 256;
/// Bytes kept of a path in the kernel.
pub const PATH_LEN: usize = 384;
/// Bytes kept of one component of a path, its NUL included: a container's cgroup is named by 64
/// hexadecimal digits and some words.
pub const COMPONENT_LEN: usize = 128;

/// An ancestor of a process at the moment it was captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Parent {
    /// Nanoseconds since boot.
    pub start: u64,
    /// Process number in the initial PID namespace. 0 ends the chain.
    pub tgid: u32,
    /// Padding.
    pub _pad: u32,
    /// Its name.
    pub comm: [u8; COMM_LEN],
}

/// A process image, captured in the kernel when it first created a semaphore or touched a cookie.
///
/// Value of the map keyed by [`ProcKey`], and sent as it is as a message: the header comes first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcRecord {
    /// `kind` is [`Kind::Proc`](crate::Kind::Proc); `actor` is the key; `ts` the capture.
    pub header: Header,
    /// When its last thread ended, nanoseconds since boot. 0 while it runs.
    pub exited: u64,
    /// Identifier of its cgroup in the unified hierarchy.
    pub cgroup_id: u64,
    /// Sets that it made, and that exist.
    pub live: u64,
    /// Sets that it made.
    pub created: u64,
    /// Times that it got ENOSPC: a victim of the limits.
    pub enospc_failures: u64,
    /// As `wait(2)` encodes it: signal in the low 7 bits, status in the next 8.
    pub exit_code: i32,
    /// `PROC_*` bits.
    pub state: u32,
    /// Real uid, in the initial user namespace.
    pub uid: u32,
    /// Real gid, in the initial user namespace.
    pub gid: u32,
    /// Its process number in its own PID namespace.
    pub ns_pid: u32,
    /// Inode number of its PID namespace.
    pub pid_ns: u32,
    /// Inode number of its IPC namespace.
    pub ipc_ns: u32,
    /// Inode number of its mount namespace.
    pub mnt_ns: u32,
    /// Used bytes of [`ProcRecord::cmdline`].
    pub cmdline_len: u32,
    /// Used bytes of [`ProcRecord::exe`].
    pub exe_len: u32,
    /// Used bytes of [`ProcRecord::cgroup`].
    pub cgroup_len: u32,
    /// Padding.
    pub _pad: u32,
    /// Name of the process.
    pub comm: [u8; COMM_LEN],
    /// Parent, grandparent, ...
    pub parents: [Parent; PARENTS],
    /// Control group: names of the path's components, last one first, each ended by NUL.
    pub cgroup: [u8; PATH_LEN],
    /// Executable: names of the path's components, last one first, each ended by NUL.
    ///
    /// Not the last field: the kernel's verifier sees writes at up to 511 + [`COMPONENT_LEN`]
    /// bytes from the start of a path, and accepts what stays inside the record.
    pub exe: [u8; PATH_LEN],
    /// Command line.
    pub cmdline: [u8; CMDLINE_LEN],
}

/// The message with the whole record went into the ring.
pub const PROC_ANNOUNCED: u32 = 1 << 0;
/// The command line was longer than what is kept.
pub const PROC_CMDLINE_CUT: u32 = 1 << 1;
/// The path of the executable was longer than what is kept.
pub const PROC_EXE_CUT: u32 = 1 << 2;
/// The command line could not be read (a kernel thread, or its memory was gone).
pub const PROC_CMDLINE_UNREAD: u32 = 1 << 3;
/// The cgroup path was longer than what is kept.
pub const PROC_CGROUP_CUT: u32 = 1 << 4;
/// The executable's file had been unlinked.
pub const PROC_EXE_DELETED: u32 = 1 << 5;
/// The record is complete; without it another CPU is still filling it.
pub const PROC_READY: u32 = 1 << 6;
/// The message of its end was dropped.
pub const PROC_EXIT_DROPPED: u32 = 1 << 7;
/// The tracer's own process is among its ancestors: `dmtrace exec` started it, or a child of it.
pub const PROC_DESCENDANT: u32 = 1 << 9;
/// Its process has replaced it by another image (`execve`).
pub const PROC_REPLACED: u32 = 1 << 10;
/// It has ended, owns nothing, and waits for userspace, which was not told everything.
pub const PROC_TOMBSTONE: u32 = 1 << 8;

const _: () = assert!(size_of::<SemRecord>() == 32 + 64 + 64 + 16 + 32 + 48);
const _: () = assert!(size_of::<Parent>() == 32);
const _: () = assert!(size_of::<ProcRecord>() == 328 + 2 * PATH_LEN + CMDLINE_LEN);
const _: () = assert!(511 + COMPONENT_LEN < PATH_LEN + CMDLINE_LEN);
const _: () = assert!(size_of::<ProcRecord>().is_multiple_of(8));
