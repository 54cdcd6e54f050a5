//! What `watch` prints: one value for each change of state.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use super::{ActorRef, DecrementMeaning, Name, UserStage};
use crate::{
    event::{DmCommand, ExitStatus, UeventAction},
    ids::{BootTime, DevNum, IpcNs, Key, SemId},
};

/// One change of state.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Change {
    /// When.
    pub at: BootTime,
    /// The set; `semid` is -1 where there is none (failed creation or lookup).
    pub sem: SemId,
    /// Its key.
    pub key: Key,
    /// Who did it; `None` for a kernel worker, a reconciliation, an actor that was not captured.
    pub who: Option<ActorRef>,
    /// What.
    #[serde(flatten)]
    pub kind: ChangeKind,
}

impl Change {
    /// Whether it concerns a key with the cookie magic.
    pub const fn is_cookie(&self) -> bool {
        self.key.has_cookie_magic()
    }
}

/// What changed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum ChangeKind {
    /// A set was made.
    Created {
        /// Semaphores in it.
        nsems: u32,
    },
    /// A set entered the books that was made unseen.
    Found,
    /// `SETVAL`.
    Set {
        /// New value.
        to: i32,
    },
    /// Incremented.
    Up {
        /// New value, if known.
        to: Option<i32>,
    },
    /// Decremented. For a user of the cookie, [`ChangeKind::Waiting`] of the same thread right
    /// after this makes it the entry into the wait; otherwise it completed its own operation.
    Down {
        /// New value, if known.
        to: Option<i32>,
        /// Who it was in the protocol.
        meaning: DecrementMeaning,
    },
    /// A decrement found the value at 0 (EAGAIN): somebody completed too much.
    #[serde(rename = "starved")]
    DecrementFailed,
    /// A thread waits for zero.
    Waiting {
        /// Value that it waits to go away, if known.
        value: Option<i32>,
    },
    /// The wait ended because the value became zero.
    Released,
    /// The wait ended otherwise: EINTR, EIDRM.
    WaitFailed {
        /// Positive errno.
        errno: i32,
    },
    /// Removed.
    Destroyed {
        /// In which way.
        ending: EndKind,
    },
    /// A process that uses the cookie ended while the cookie is there: a candidate for a leak.
    OwnerExited {
        /// How; `None` if only its absence was noticed.
        status: Option<ExitStatus>,
        /// How far it had come.
        stage: UserStage,
    },
    /// A set could not be made.
    CreateFailed {
        /// Positive errno; ENOSPC for exhausted limits.
        errno: i32,
    },
    /// A cookie was looked up in vain.
    LookupFailed {
        /// Positive errno.
        errno: i32,
        /// Another namespace in which a cookie with this key lives.
        lives_in: Option<IpcNs>,
    },
    /// A device-mapper ioctl with the cookie returned.
    Ioctl {
        /// Which.
        command: DmCommand,
        /// 0, or a positive errno.
        errno: i32,
        /// The return, and with it the result, was lost (kretprobe).
        unseen: bool,
        /// The kernel has sent a uevent.
        uevent: bool,
        /// The device may be removed later.
        deferred: bool,
        /// Name of the device, as far as it is known.
        name: Name,
        /// Its new name.
        #[serde(skip_serializing_if = "Option::is_none")]
        new_name: Option<Name>,
        /// Its UUID.
        uuid: Option<Name>,
        /// Its number.
        device: Option<DevNum>,
    },
    /// A uevent with the cookie is sent.
    Uevent {
        /// What it announces.
        action: UeventAction,
        /// Name of the device, as far as it is known.
        name: Name,
        /// Its UUID.
        uuid: Option<Name>,
        /// Its number.
        device: Option<DevNum>,
    },
}

/// In which way a set ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// By the process that had waited for it: the normal end.
    ByWaiter,
    /// By its creator without a wait (libdm after an error, devicemapper-rs `cancel`), or an
    /// ordinary set by its creator.
    ByCreator,
    /// By somebody else while processes that use it live: an accident.
    WhileLive,
    /// By somebody else, nobody known to use it: a clean-up.
    ByOther,
    /// With its IPC namespace.
    WithNamespace,
    /// Its IPC namespace is no longer found (inferred).
    NamespaceGone,
    /// No longer there; its removal was not seen.
    Vanished,
}

impl EndKind {
    /// Whether the removal itself was seen.
    pub const fn is_observed(self) -> bool {
        !matches!(self, Self::NamespaceGone | Self::Vanished)
    }
}
