//! Newtypes for the numbers that must not be mixed up.

use std::{fmt, time::Duration};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

pub use dmtrace_common::{ProcKey, SemKey};

/// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`). The only clock that verdicts use:
/// wall time jumps.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Time from `earlier` to `self`; zero if the order is reversed (events of two CPUs).
    pub const fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Seconds since 1970 in UTC, as the kernel keeps `sem_ctime` and `sem_otime`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(transparent)]
pub struct UnixTime(pub i64);

/// Inode number of an IPC namespace.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(transparent)]
pub struct IpcNs(pub u32);

impl IpcNs {
    /// The namespace of the host (`PROC_IPC_INIT_INO`, fixed in every kernel).
    pub const HOST: Self = Self(0xEFFF_FFFF);
}

impl fmt::Display for IpcNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::HOST {
            f.pad("host")
        } else {
            fmt::Display::fmt(&self.0, f)
        }
    }
}

/// System V key. For a udev cookie this is the cookie.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
#[serde(transparent)]
pub struct Key(pub u32);

impl Key {
    /// Whether the key carries the magic of udev cookies. Not yet a proof that it is one.
    pub const fn has_cookie_magic(self) -> bool {
        dmtrace_common::has_cookie_magic(self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#010x}", self.0))
    }
}

/// A semaphore set by namespace and semid, with the order and text that output uses.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct SemId {
    /// IPC namespace.
    pub ns: IpcNs,
    /// What `semget(2)` returned.
    pub semid: i32,
}

impl From<SemKey> for SemId {
    fn from(key: SemKey) -> Self {
        Self {
            ns: IpcNs(key.ns),
            semid: key.semid,
        }
    }
}

impl From<SemId> for SemKey {
    fn from(id: SemId) -> Self {
        Self {
            ns: id.ns.0,
            semid: id.semid,
        }
    }
}

/// Number of a block device.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct DevNum {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DevNum {
    /// From a kernel message, where zeros mean that it is not known.
    pub const fn from_kernel(major: u32, minor: u32) -> Option<Self> {
        if major == 0 {
            None
        } else {
            Some(Self { major, minor })
        }
    }
}

impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A process across `execve`: its number and its start. Numbers alone are reused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct ProcId {
    /// Process number in the initial PID namespace.
    pub tgid: u32,
    /// When it started.
    pub start: BootTime,
}

impl From<ProcKey> for ProcId {
    fn from(key: ProcKey) -> Self {
        Self {
            tgid: key.tgid,
            start: BootTime(key.start),
        }
    }
}

impl ProcId {
    /// Whether the number is known at all (a kernel record of zeros means unknown).
    pub const fn is_known(self) -> bool {
        self.tgid != 0
    }

    /// Start in the unit of field 22 of `/proc/PID/stat` (`USER_HZ` is 100 on every Linux ABI
    /// that dmtrace runs on; `nsec_to_clock_t` truncates like this division).
    pub const fn start_ticks(self) -> u64 {
        self.start.0 / 10_000_000
    }
}
