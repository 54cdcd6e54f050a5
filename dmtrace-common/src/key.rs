//! Identities, as keys of BPF maps and as fields of events.

/// A semaphore set inside the kernel: the inode number of its IPC namespace and its semid.
///
/// A semid carries a sequence number (`seq << 15 | index`), so a pair does not come back before
/// 65,536 reuses of a slot; the creation time in the record settles even that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SemKey {
    /// `ipc_namespace.ns.inum`, what `readlink /proc/PID/ns/ipc` prints.
    pub ns: u32,
    /// What `semget(2)` returned.
    pub semid: i32,
}

/// A cookie by what device-mapper is told of it: the caller's IPC namespace and the key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CookieKey {
    /// `ipc_namespace.ns.inum`.
    pub ns: u32,
    /// System V key.
    pub key: u32,
}

/// A failed lookup of a cookie's key, by who looked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LookupKey {
    /// System V key.
    pub key: u32,
    /// Thread number in the initial PID namespace.
    pub tid: u32,
}

/// A process image: who ran, since when, and after how many `execve` calls.
///
/// `tgid` alone is reused by the kernel; with the start time it is not. `exec` tells two programs
/// apart that ran one after the other in the same process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProcKey {
    /// `group_leader->start_boottime`: nanoseconds since boot, suspend included. 0 is unknown.
    pub start: u64,
    /// Process number in the initial PID namespace.
    pub tgid: u32,
    /// Low half of `task_struct.self_exec_id`.
    pub exec: u32,
}

const _: () = assert!(size_of::<SemKey>() == 8);
const _: () = assert!(size_of::<CookieKey>() == 8);
const _: () = assert!(size_of::<ProcKey>() == 16);
