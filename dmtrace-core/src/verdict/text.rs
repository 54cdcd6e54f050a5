//! Verdicts in words.

use std::fmt;

use super::{LeakKind, MissingStep, NotACookie, Signature, StuckCause, Undecided};
use crate::{
    event::ExitStatus,
    ledger::{UserStage, WhyUnknown},
    wording,
};

impl fmt::Display for StuckCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UdevdDown => f.write_str("no udevd runs"),
            Self::RuleMissing => f.write_str("95-dm-notify.rules is missing or masked"),
            Self::NamespaceSplit {
                looked_in: Some(ns),
            } => write!(f, "udev completes in another IPC namespace ({ns})"),
            Self::NamespaceSplit { looked_in: None } => {
                f.write_str("udev completes in the host's IPC namespace")
            }
            Self::RunCleared => f.write_str("a rule clears what udev is to run"),
            Self::DmsetupMissing => f.write_str("udevd cannot run dmsetup"),
            Self::QueueStopped => f.write_str("udevd is stopped, or its queue is"),
            Self::NotReceived => f.write_str("udevd was started after the uevent was sent"),
            Self::EventDropped => {
                f.write_str("udev is idle: a worker was killed or the event was dropped")
            }
            Self::NoUevent => f.write_str("the operation sent no uevent that udev could complete"),
            Self::EventLost => f.write_str("udev's timeout has passed without a completion"),
        }
    }
}

impl fmt::Display for LeakKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OwnerKilled { signal, step } => {
                write!(f, "owner {} {step}", ExitStatus::Signal(signal))
            }
            Self::OwnerExited { status, step } => {
                write!(f, "owner {} {step}", ExitStatus::Code(status))
            }
            Self::OwnerGone { step: Some(step) } => write!(f, "owner is gone; it was {step}"),
            Self::OwnerGone { step: None } => f.write_str("owner is gone"),
            Self::NeverWaited => f.write_str("owner moved on and never waited"),
            Self::AbandonedOnEintr => f.write_str("owner's wait was interrupted and not resumed"),
            Self::FinishedAfterDeath { step } => {
                write!(f, "owner ended {step}; completed only then")
            }
            Self::TransactionAbandoned => {
                f.write_str("a transaction of dmsetup that nobody released")
            }
            Self::Signature { fields } => write!(f, "{fields}"),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverSet => "made and never set",
            Self::NeverUsed => "set and never used",
            Self::NotCompleted => "used, not completed, not waited for",
            Self::OneLeft => "used, not waited for or not completed",
            Self::NotRemoved => "completed and not removed",
        })
    }
}

impl fmt::Display for NotACookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { nsems } => write!(f, "{nsems} semaphores where a cookie has one"),
            Self::Mode { mode } => write!(f, "mode {mode:04o} where a cookie has 0600"),
            Self::Owner { uid, cuid } => {
                write!(f, "made by uid {cuid}, owned by uid {uid}, not by root")
            }
        }
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreatorUnknown(WhyUnknown::BeforeTracer) => "no trace in use saw it made",
            Self::CreatorUnknown(WhyUnknown::Missed) => "its creation was not seen",
            Self::CreatorUnknown(WhyUnknown::MaybeFound) => {
                "its creation cannot be told apart from a look-up with this backend"
            }
            Self::PossibleOwners => "processes that may own it are alive",
            Self::ProcessesUnreadable => "the process list is not complete",
            Self::CarriersUnreadable => "not every environment and command line could be read",
            Self::Young => "too recent to tell",
            Self::Unreadable => "the semaphore could not be read",
            Self::EventsLost => "events may be missing",
            Self::Contradiction => "the kernel's state and the events seen disagree",
            Self::Crowded => "too many processes use it",
            Self::MaybeStopped => "its owner's wait was interrupted; it may be stopped or traced",
            Self::RemovalUnseen => "its removal was not seen",
            Self::NamespaceEnded => "it ended with its IPC namespace",
            Self::MaybeHandedOn => {
                "it may have been handed on, as by dmsetup udevcreatecookie, and was removed"
            }
            Self::ClockSet => {
                "the wall clock was set since boot, or may have been: its age is not known"
            }
        })
    }
}

impl fmt::Display for UserStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "between making it and setting it to 1",
            Self::Ready => "before announcing its first operation",
            Self::Armed => "after announcing an operation, before waiting",
            Self::Done => "after everything was completed, before waiting",
            Self::SelfCompleted => "after its own decrement, before waiting",
            Self::Waiting => "while waiting for udev",
            Self::Interrupted => "after its wait was interrupted",
            Self::WaitFailed => "after its wait had failed",
            Self::DecrementFailed => "after its decrement found the value at 0",
            Self::Released => "after the wait, before the removal",
        })
    }
}

impl fmt::Display for MissingStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetVal => f.write_str("SETVAL 1 by the owner"),
            Self::Increment => f.write_str("the increment by the owner (dm_task_set_cookie)"),
            Self::Completion { count } => {
                let completions = wording::count_noun(*count, "completion", "completions");
                write!(f, "{completions} by udev (dmsetup udevcomplete)")
            }
            Self::SelfCompletion { count } => write!(
                f,
                "{} by the owner for what sent no uevent (dm_udev_complete)",
                wording::count_noun(*count, "decrement", "decrements")
            ),
            Self::Wait => f.write_str("the wait by the owner (dm_udev_wait)"),
            Self::WaitAgain => f.write_str("another wait by the owner after EINTR"),
            Self::Removal => f.write_str("the removal by the owner (IPC_RMID)"),
            Self::Release => f.write_str("dmsetup udevreleasecookie"),
        }
    }
}
