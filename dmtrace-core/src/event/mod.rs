//! Owned, decoded events: what the rest of dmtrace works with.
//!
//! The same decoder reads the ring buffer and a recording.

mod call_site;
mod decode;
mod dm;
mod image;
mod package;
#[cfg(test)]
mod tests;
pub mod text;
pub mod workload;

pub use call_site::{
    BuildId, CallFrame, CallSite, ChainEnd, FrameSource, MAX_FRAMES, Module, Symbol,
};
pub use decode::{DecodeError, Plain, as_bytes, decode_event, read_plain, read_sem_record};
pub use dm::{DmCommand, DmIoctl, Uevent, UeventAction, errno_word};
pub use image::{Ancestor, CommandPrint, ExitStatus, ProcessImage};
pub use package::Package;

use serde::Serialize;

use crate::ids::{BootTime, IpcNs, Key, ProcId, SemId};

/// Something that happened in the kernel.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Event {
    /// When the probe ran.
    pub at: BootTime,
    /// When the call was entered (operations and `SETVAL`), if that was seen and can differ: it took
    /// effect between then and `at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<BootTime>,
    /// The process that acted.
    pub actor: Actor,
    /// Restrictions on how much this event proves.
    pub quality: Quality,
    /// What it did.
    #[serde(flatten)]
    pub what: EventKind,
}

/// Who acted, as far as the event itself says.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Actor {
    /// The process.
    pub id: ProcId,
    /// How many `execve` calls led to its image: finds the [`ProcessImage`].
    pub exec: u32,
    /// The thread, a hint.
    pub tid: u32,
    /// Name of the thread.
    pub comm: String,
}

/// How an event was observed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent bits of the kernel's message"
)]
pub struct Quality {
    /// The set was unknown to the kernel side.
    pub untracked: bool,
    /// Removed with its namespace: the actor is a kernel worker.
    pub ns_teardown: bool,
    /// Seen by syscall tracepoint.
    pub by_syscall: bool,
    /// The result could not be observed with this backend.
    pub no_result: bool,
    /// Rebuilt from the map because the message was dropped.
    pub from_map: bool,
    /// The number of the device was found by its name, after the event.
    pub device_by_name: bool,
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum EventKind {
    /// A process image is known from now on.
    Process(Box<ProcessImage>),
    /// A set was made.
    Created {
        /// Its identity.
        sem: SemId,
        /// Its key.
        key: Key,
        /// Semaphores in it.
        nsems: u32,
        /// `semflg` of the call.
        semflg: u32,
    },
    /// A set could not be made.
    CreateFailed {
        /// Namespace of the caller.
        ns: IpcNs,
        /// Wanted key.
        key: Key,
        /// Positive errno: `ENOSPC` for exhausted limits.
        errno: i32,
    },
    /// `SETVAL` on a cookie.
    SetVal {
        /// The set.
        sem: SemId,
        /// Its key.
        key: Key,
        /// New value.
        value: i32,
        /// 0, or a positive errno.
        errno: i32,
    },
    /// An operation on a cookie ended.
    Op {
        /// The set.
        sem: SemId,
        /// Its key.
        key: Key,
        /// The operations of the call; libdm passes one.
        ops: Vec<Operation>,
        /// 0, or a positive errno: `EAGAIN`, `EINTR`, `EIDRM`.
        errno: i32,
    },
    /// A thread is about to wait on a cookie.
    WaitBegin {
        /// The set.
        sem: SemId,
        /// Its key.
        key: Key,
        /// The operations of the call.
        ops: Vec<Operation>,
    },
    /// A set was removed.
    Destroyed {
        /// Namespace and semid.
        sem: SemId,
        /// System V key.
        key: Key,
    },
    /// A process that made a semaphore or touched a cookie has ended.
    Exit {
        /// How the process ended.
        status: ExitStatus,
    },
    /// A key with the cookie magic was looked up in vain.
    LookupFailed {
        /// Namespace of the caller.
        ns: IpcNs,
        /// The key.
        key: Key,
        /// Positive errno: `ENOENT` when the cookie lives in another namespace or nowhere.
        errno: i32,
    },
    /// A device-mapper ioctl that carried a cookie returned.
    Ioctl(Box<DmIoctl>),
    /// device-mapper is about to send a uevent with a cookie.
    Uevent(Box<Uevent>),
}

/// One element of a `semop` call.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Operation {
    /// Index of the semaphore in its set.
    pub num: u16,
    /// +n, -n, or 0 (wait for zero).
    pub op: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flg: i16,
}

impl Operation {
    /// Whether it waits for the value to become zero.
    pub const fn waits_for_zero(self) -> bool {
        self.op == 0 && (self.flg as i32) & libc::IPC_NOWAIT == 0
    }
}
