//! What a verdict can be.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    event::ExitStatus,
    ids::IpcNs,
    ledger::{ActorRef, DepartureLimits, UserStage, WhyUnknown},
    search::orphan::OrphanStage,
};

/// What a set is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "class", content = "detail")]
pub enum Class {
    /// A cookie in good order.
    Healthy(Healthy),
    /// Somebody waits for a completion that does not come.
    Stuck(StuckCause),
    /// Nobody will remove it.
    Leaked(LeakKind),
    /// Older than any trace, and no process holds its number: nobody can need it.
    Orphaned(OrphanStage),
    /// More was completed than there was to complete.
    OverCompleted,
    /// Removed while in use.
    Accident,
    /// A leaked cookie that somebody has removed.
    CleanedUp(LeakKind),
    /// The key is a cookie's, the set is not: never touch it.
    Foreign(NotACookie),
    /// A set without a cookie's key.
    Ordinary,
    /// Not decided.
    Unknown(Undecided),
}

/// A cookie in good order.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Healthy {
    /// In use, nobody waits yet.
    Open,
    /// Its owner waits for udev.
    Waiting,
    /// Its owner waits for udev for longer than usual, within udev's timeout.
    SlowUdev,
    /// Removed as the protocol says.
    Finished,
}

/// Why a waiter is stuck.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum StuckCause {
    /// No udevd runs.
    UdevdDown,
    /// `95-dm-notify.rules` is missing or masked.
    RuleMissing,
    /// udev completes in another IPC namespace.
    NamespaceSplit {
        /// Where the completion was looked for.
        looked_in: Option<IpcNs>,
    },
    /// A rule empties the list of programs to run: udev handles the event and completes nothing.
    RunCleared,
    /// The program that completes is missing or not executable.
    DmsetupMissing,
    /// udevd is stopped, or takes nothing from its queue.
    QueueStopped,
    /// udevd was started after the uevent had been sent.
    NotReceived,
    /// udev is idle before its timeout: a worker was killed, or the event was dropped on its way.
    EventDropped,
    /// The operation sent no uevent; its owner had to complete it by itself.
    NoUevent,
    /// udev's timeout has passed: the event was dropped, its worker killed, or its RUN list
    /// cleared.
    EventLost,
}

/// How a cookie leaked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum LeakKind {
    /// Its owner was killed.
    OwnerKilled {
        /// By this signal.
        signal: u8,
        /// How far it had come.
        step: UserStage,
    },
    /// Its owner exited without removing it.
    OwnerExited {
        /// With this status.
        status: u8,
        /// How far it had come.
        step: UserStage,
    },
    /// Its owner is gone; how it ended was not seen.
    OwnerGone {
        /// How far it had come, if known.
        step: Option<UserStage>,
    },
    /// Its owner went on to later cookies and never waited for this one.
    NeverWaited,
    /// Its owner's wait was interrupted by a signal, and it did not wait again.
    AbandonedOnEintr,
    /// udev completed it after its owner had ended.
    FinishedAfterDeath {
        /// How far the owner had come.
        step: UserStage,
    },
    /// A transaction (`dmsetup udevcreatecookie`) that nobody released.
    TransactionAbandoned,
    /// Older than the tracer; its fields show this signature.
    Signature {
        /// Fields of the set that were compared.
        fields: Signature,
    },
}

/// The signatures of a leaked cookie in a snapshot, as numbered in the documentation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signature {
    /// L1: value 0, no operation, no SETVAL.
    NeverSet,
    /// L2: value 1, no operation.
    NeverUsed,
    /// L3 or L6 or L8: value above 1, or incremented and not completed.
    NotCompleted,
    /// L4 or L5 or L8: value 1 after operations.
    OneLeft,
    /// L9: value 0 after operations.
    NotRemoved,
}

/// Why a set with a cookie's key is no cookie.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "because")]
pub enum NotACookie {
    /// A cookie has one semaphore.
    Size {
        /// This one has so many.
        nsems: u32,
    },
    /// A cookie has mode 0600.
    Mode {
        /// This one has these permission bits.
        mode: u32,
    },
    /// A cookie is made and owned by root.
    Owner {
        /// Owner of this one.
        uid: u32,
        /// Creator of this one.
        cuid: u32,
    },
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "confidence", content = "reason")]
pub enum Confidence {
    /// Every fact that it rests on was seen.
    Observed,
    /// The best explanation of what was seen.
    Inferred,
    /// Every process that could act was searched for the cookie's number.
    Searched,
    /// Not decided, for this reason.
    Unknown(Undecided),
}

/// Why something is not decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undecided {
    /// Its creator is not known.
    CreatorUnknown(WhyUnknown),
    /// Processes that may own it are alive.
    PossibleOwners,
    /// The process list is not complete.
    ProcessesUnreadable,
    /// Not all environments and command lines could be read.
    CarriersUnreadable,
    /// Too recent to tell.
    Young,
    /// Its semaphore could not be read.
    Unreadable,
    /// Messages were lost.
    EventsLost,
    /// The kernel's state and the seen events contradict each other.
    Contradiction,
    /// More processes use it than are told apart.
    Crowded,
    /// Its owner's wait was interrupted; it may be stopped or traced.
    MaybeStopped,
    /// It is gone; its removal was not seen.
    RemovalUnseen,
    /// It ended with its IPC namespace.
    NamespaceEnded,
    /// Somebody has removed it, and it may have been handed on to others before.
    MaybeHandedOn,
    /// The wall clock was set since boot, or may have been: its age is not known.
    ClockSet,
}

/// A step of the protocol that did not happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum MissingStep {
    /// `semctl(SETVAL, 1)` after the creation.
    SetVal,
    /// The increment before the ioctl (`dm_task_set_cookie`).
    Increment,
    /// udev's decrements (`dmsetup udevcomplete`).
    Completion {
        /// Number of decrements.
        count: u32,
    },
    /// The owner's own decrements: the ioctl failed or sent no uevent.
    SelfCompletion {
        /// Number of decrements.
        count: u32,
    },
    /// The wait (`dm_udev_wait`).
    Wait,
    /// Another wait after EINTR.
    WaitAgain,
    /// `semctl(IPC_RMID)` after the wait.
    Removal,
    /// `dmsetup udevreleasecookie`.
    Release,
}

/// Who is responsible.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Culprit {
    /// In which role.
    pub role: CulpritRole,
    /// Who.
    #[serde(flatten)]
    pub who: ActorRef,
    /// How it ended, if it has and that was seen.
    pub exit: Option<ExitStatus>,
}

/// In which role somebody is responsible.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CulpritRole {
    /// Made it and left it.
    Owner,
    /// Removed it while it was in use.
    Remover,
    /// Decremented it without need.
    Completer,
}

/// Limits of time that verdicts use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Nothing that happened within this time is held against anybody.
    pub young: Duration,
    /// A wait longer than this is slow.
    pub slow: Duration,
    /// udev's event timeout and its grace; `None` reads it from the host's facts.
    pub udev_timeout: Option<Duration>,
    /// A thread that ended its own operation by itself (the ioctl failed) and has since worked on
    /// other cookies for this long is taken to have left this one behind: inferred, not proven.
    pub moved_on: Duration,
    /// A living owner that has not touched its cookie for this long, and has done other things
    /// since, has abandoned it.
    pub abandoned: Duration,
    /// Age from which the fields of a cookie that is older than the tracer may be interpreted,
    /// and from which a cookie may be removed.
    pub old: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        let limits = DepartureLimits::default();
        Self {
            young: Duration::from_secs(1),
            slow: Duration::from_secs(10),
            udev_timeout: None,
            moved_on: limits.moved_on,
            abandoned: limits.abandoned,
            old: Duration::from_secs(600),
        }
    }
}

impl Thresholds {
    pub(super) const fn departure_limits(&self) -> DepartureLimits {
        DepartureLimits {
            moved_on: self.moved_on,
            abandoned: self.abandoned,
        }
    }
}

impl LeakKind {
    /// Of a user that went on without its cookie.
    pub(super) const fn of_departure(gave_up: bool) -> Self {
        if gave_up {
            Self::AbandonedOnEintr
        } else {
            Self::NeverWaited
        }
    }
}

impl Class {
    /// Whether the administrator should look at it.
    pub const fn is_finding(self) -> bool {
        self.state().is_finding()
    }

    /// The class as one word.
    pub const fn label(self) -> &'static str {
        self.state().name()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck(cause) => write!(f, "stuck: {cause}"),
            Self::Leaked(how) => write!(f, "leaked: {how}"),
            Self::CleanedUp(how) => write!(f, "cleaned up after a leak: {how}"),
            Self::Foreign(why) => write!(f, "foreign: {why}"),
            Self::Unknown(reason) => write!(f, "unknown: {reason}"),
            Self::Orphaned(_) => f.write_str("orphaned: no process holds it"),
            Self::Accident => f.write_str("removed while in use"),
            _ => f.write_str(self.label()),
        }
    }
}
