//! What the kernel programs put into the ring buffer.
//!
//! Every message starts with a [`Header`]; its `kind` tells which struct follows. The ring is a
//! notification only: each fact that a verdict needs is also in a [`SemRecord`](crate::SemRecord)
//! or a [`ProcRecord`](crate::ProcRecord), so a lost message never loses a semaphore.

use crate::{COMM_LEN, ProcKey, ProcRecord};

/// What a message reports. The numbers are part of the recording format.
#[repr(u16)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// A process image seen for the first time; a [`ProcRecord`] follows.
    Proc = 0,
    /// `semget` made a new set (`newary` returned a semid).
    Created = 1,
    /// `semget` wanted a new set and failed; `ret` is the errno (ENOSPC: the limits).
    CreateFailed = 2,
    /// `semctl(SETVAL)` on a cookie; `arg` is the value.
    SetVal = 3,
    /// `semop`/`semtimedop` on a cookie returned; `ops` and `ret` tell what and how.
    Op = 4,
    /// A thread is about to call an operation on a cookie that can sleep.
    WaitBegin = 5,
    /// The set was removed (`freeary`), by `semctl(IPC_RMID)` or with its namespace.
    Destroyed = 6,
    /// The last thread of a process that is in the process map ended; `arg` is `exit_code`.
    Exit = 7,
    /// A lookup of a key with the cookie magic failed; `ret` is the errno.
    LookupFailed = 8,
    /// A device-mapper ioctl that carried a cookie returned; a [`DmEvent`] follows.
    Ioctl = 9,
    /// device-mapper is about to send a uevent with a cookie; a [`DmEvent`] follows.
    Uevent = 10,
    /// The user stack of whoever made a cookie; a [`StackSample`](crate::StackSample) in a ring of
    /// its own. Never in a recording.
    Stack = 11,
}

/// Number of [`Kind`]s.
pub const KINDS: usize = 12;

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
        Self::Proc,
        Self::Created,
        Self::CreateFailed,
        Self::SetVal,
        Self::Op,
        Self::WaitBegin,
        Self::Destroyed,
        Self::Exit,
        Self::LookupFailed,
        Self::Ioctl,
        Self::Uevent,
        Self::Stack,
    ];

    /// The kind of a message, if this version knows it.
    pub const fn from_u16(raw: u16) -> Option<Self> {
        if (raw as usize) < KINDS {
            Some(Self::ALL[raw as usize])
        } else {
            None
        }
    }
}

/// Start of every message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u16,
    /// `EVENT_*` bits.
    pub flags: u16,
    /// Thread that ran the probe. A hint: work moves between threads (Go, tokio).
    pub tid: u32,
    /// `bpf_ktime_get_boot_ns` when the probe ran (`bpf_ktime_get_ns` plus suspend).
    pub ts: u64,
    /// The process that acted.
    pub actor: ProcKey,
}

/// The set was not in the map: made before the tracer, or while the map was full.
pub const EVENT_UNTRACKED: u16 = 1 << 0;
/// Removed because its IPC namespace ended: the actor is a kernel worker, not a culprit.
pub const EVENT_NS_TEARDOWN: u16 = 1 << 1;
/// Seen through syscall tracepoints: removal by namespace teardown and 32-bit callers are unseen.
pub const EVENT_BY_SYSCALL: u16 = 1 << 2;
/// The return value was not observable with this backend.
pub const EVENT_NO_RESULT: u16 = 1 << 3;
/// The message was rebuilt by userspace from the map because the original was dropped.
pub const EVENT_FROM_MAP: u16 = 1 << 4;
/// The number of the device was found by its name, by userspace, after the event.
pub const EVENT_DEVICE_BY_NAME: u16 = 1 << 5;

/// One element of a `semop` call, as the kernel's `struct sembuf`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SemBuf {
    /// Index of the semaphore in its set.
    pub num: u16,
    /// The operation: +n, -n, or 0 (wait for zero).
    pub op: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flg: i16,
}

/// Elements of one `semop` call that a message keeps; libdm always passes one.
pub const OPS_KEPT: usize = 4;

/// Everything but [`Kind::Proc`], [`Kind::Ioctl`], [`Kind::Uevent`] and [`Kind::Stack`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SemEvent {
    /// Who, when, what.
    pub header: Header,
    /// IPC namespace.
    pub ns: u32,
    /// Semaphore set; -1 where there is none (failed creation, failed lookup, exit).
    pub semid: i32,
    /// System V key.
    pub key: u32,
    /// Return value of the call: semid, 0 or -errno.
    pub ret: i32,
    /// By kind: number of semaphores (Created), value (SetVal), exit code (Exit).
    pub arg: i32,
    /// By kind: `semflg` (Created), elements in the call (Op, WaitBegin).
    pub extra: u32,
    /// First elements of the call (Op, WaitBegin).
    pub ops: [SemBuf; OPS_KEPT],
    /// Name of the acting thread.
    pub comm: [u8; COMM_LEN],
    /// When the call was entered, nanoseconds since boot (Op, SetVal): it took effect between then
    /// and `header.ts`. 0 where the entry was not seen, or the probe ran with the set locked. Came
    /// with layout 3; older messages end before it.
    pub began: u64,
}

/// Bytes of a device's name, as `DM_NAME_LEN` of the kernel.
pub const DM_NAME_LEN: usize = 128;
/// Bytes of a device's UUID, as `DM_UUID_LEN` of the kernel.
pub const DM_UUID_LEN: usize = 129;

/// `DM_DEV_REMOVE`.
pub const DM_REMOVE: u32 = 4;
/// `DM_DEV_RENAME`.
pub const DM_RENAME: u32 = 5;
/// `DM_DEV_SUSPEND`, which resumes unless [`DM_SUSPEND_FLAG`] is set.
pub const DM_SUSPEND: u32 = 6;

/// `DM_SUSPEND_FLAG`: suspend instead of resume.
pub const DM_SUSPEND_FLAG: u32 = 1 << 1;
/// `DM_UEVENT_GENERATED_FLAG`: set on return when `kobject_uevent_env` returned 0.
pub const DM_UEVENT_GENERATED: u32 = 1 << 13;
/// `DM_UUID_FLAG`: a rename sets the UUID.
pub const DM_UUID_FLAG: u32 = 1 << 14;
/// `DM_DEFERRED_REMOVE`: a busy device is to be removed when it is closed.
pub const DM_DEFERRED_REMOVE: u32 = 1 << 17;

/// [`Kind::Ioctl`] and [`Kind::Uevent`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DmEvent {
    /// Who, when, what.
    pub header: Header,
    /// When the ioctl was entered, nanoseconds since boot.
    pub began: u64,
    /// IPC namespace of the caller.
    pub ns: u32,
    /// The cookie's set; -1 if the kernel side does not know it.
    pub semid: i32,
    /// The cookie: magic and the low half of `dm_ioctl.event_nr`.
    pub key: u32,
    /// `dm_ioctl.event_nr` at entry: udev flags and the low half of the cookie.
    pub word: u32,
    /// Number of the ioctl: [`DM_REMOVE`], [`DM_RENAME`], [`DM_SUSPEND`].
    pub command: u32,
    /// Return value (Ioctl).
    pub ret: i32,
    /// `dm_ioctl.flags` at entry.
    pub flags: u32,
    /// `dm_ioctl.flags` on return (Ioctl).
    pub flags_out: u32,
    /// `enum kobject_action` (Uevent).
    pub action: u32,
    /// Uevents that the ioctl has asked for so far.
    pub uevents: u32,
    /// Major number of the device; with minor 0 as 0 where it is not known.
    pub major: u32,
    /// Minor number of the device: it is called dm-MINOR.
    pub minor: u32,
    /// Name of the acting thread.
    pub comm: [u8; COMM_LEN],
    /// Name of the device: as in the ioctl, or as the kernel filled it in.
    pub name: [u8; DM_NAME_LEN],
    /// New name of the device (a rename that has succeeded).
    pub new_name: [u8; DM_NAME_LEN],
    /// UUID of the device.
    pub uuid: [u8; DM_UUID_LEN],
    /// Padding.
    pub _pad: [u8; 7],
}

/// Largest message.
pub const MESSAGE_MAX: usize = size_of::<ProcRecord>();

const _: () = assert!(size_of::<Header>() == 32);
const _: () = assert!(size_of::<SemBuf>() == 6);
const _: () = assert!(size_of::<SemEvent>() == 32 + 24 + 24 + 16 + 8);
const _: () = assert!(size_of::<DmEvent>() == 32 + 8 + 48 + 16 + 2 * 128 + 136);
const _: () = assert!(size_of::<ProcRecord>() >= size_of::<SemEvent>());
const _: () = assert!(size_of::<ProcRecord>() >= size_of::<DmEvent>());
