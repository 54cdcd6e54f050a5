//! What to do and what not to do: the table of remedies.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Class, Healthy, LeakKind, StuckCause, Undecided};

/// What to do, in this order, and what not to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Advice {
    /// To do.
    pub remedy: &'static [Remedy],
    /// Not to do.
    pub avoid: &'static [Avoid],
}

/// Something to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Nothing.
    Leave,
    /// Wait for udev.
    Settle,
    /// Start udevd.
    StartUdevd,
    /// Install the rules.
    InstallRule,
    /// Repair the rule that clears the list of programs.
    RepairRule,
    /// Make `dmsetup` executable for udevd.
    InstallDmsetup,
    /// Let udevd go on.
    StartQueue,
    /// Read what udevd says.
    ReadJournal,
    /// Complete in the owner's place.
    CompleteOwn,
    /// Share the IPC namespace or switch off udev synchronisation.
    ShareIpc,
    /// Find the lost event, repair the nodes, then complete exactly what is missing.
    RepairThenComplete,
    /// Remove the set.
    Destroy,
    /// Find what kills its owner.
    FixKiller,
    /// Report the missing wait to the program's authors.
    ReportProgram,
    /// Find the second completer.
    FindCompleter,
    /// Look for devices left suspended.
    CheckSuspended,
    /// Trace from the start, or ask.
    Investigate,
    /// Release the transaction.
    Release,
    /// Look again as somebody who may read everything.
    ReadAll,
}

/// Something not to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Avoid {
    /// `dmsetup udevcomplete_all`.
    CompleteAll,
    /// Removing it.
    Destroy,
    /// Completing it.
    Complete,
    /// Killing the waiter.
    KillWaiter,
}

pub(super) const fn advice_for(class: Class) -> Advice {
    use {Avoid as A, Remedy as R};
    let (remedy, avoid): (&'static [Remedy], &'static [Avoid]) = match class {
        // The cookie is gone, and what made it leak may still be there.
        Class::CleanedUp(LeakKind::OwnerKilled { .. }) => (&[R::Leave, R::FixKiller], &[]),
        Class::CleanedUp(
            LeakKind::NeverWaited | LeakKind::AbandonedOnEintr | LeakKind::OwnerExited { .. },
        ) => (&[R::Leave, R::ReportProgram], &[]),
        Class::Healthy(Healthy::Finished) | Class::Ordinary | Class::CleanedUp(_) => {
            (&[R::Leave], &[])
        }
        Class::Healthy(Healthy::Open | Healthy::Waiting) => {
            (&[R::Leave], &[A::CompleteAll, A::Destroy, A::Complete])
        }
        Class::Healthy(Healthy::SlowUdev) => {
            (&[R::Settle], &[A::CompleteAll, A::Destroy, A::Complete])
        }
        Class::Stuck(StuckCause::UdevdDown) => (
            &[R::StartUdevd, R::RepairThenComplete],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::RuleMissing) => (
            &[R::InstallRule, R::RepairThenComplete],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::NamespaceSplit { .. }) => (
            &[R::ShareIpc, R::RepairThenComplete],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::RunCleared) => (
            &[R::RepairRule, R::RepairThenComplete],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::DmsetupMissing) => (
            &[R::InstallDmsetup, R::RepairThenComplete],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::QueueStopped) => (
            &[R::StartQueue],
            &[A::CompleteAll, A::Destroy, A::KillWaiter, A::Complete],
        ),
        Class::Stuck(StuckCause::NotReceived | StuckCause::EventDropped) => (
            &[R::RepairThenComplete, R::ReadJournal],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::NoUevent) => (
            &[R::CompleteOwn, R::ReportProgram],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Stuck(StuckCause::EventLost) => (
            &[R::RepairThenComplete, R::ReadJournal],
            &[A::CompleteAll, A::Destroy, A::KillWaiter],
        ),
        Class::Leaked(LeakKind::OwnerKilled { .. }) => {
            (&[R::Destroy, R::FixKiller], &[A::CompleteAll, A::Complete])
        }
        Class::Leaked(
            LeakKind::NeverWaited | LeakKind::AbandonedOnEintr | LeakKind::OwnerExited { .. },
        ) => (
            &[R::Destroy, R::ReportProgram],
            &[A::CompleteAll, A::Complete],
        ),
        Class::Leaked(LeakKind::TransactionAbandoned) => {
            (&[R::Release, R::Destroy], &[A::CompleteAll, A::Complete])
        }
        Class::Leaked(_) | Class::Orphaned(_) => (&[R::Destroy], &[A::CompleteAll, A::Complete]),
        Class::OverCompleted => (&[R::FindCompleter], &[A::CompleteAll, A::Complete]),
        Class::Accident => (&[R::CheckSuspended, R::Settle], &[A::CompleteAll]),
        Class::Foreign(_) => (&[R::Leave], &[A::CompleteAll, A::Destroy, A::Complete]),
        Class::Unknown(
            Undecided::Unreadable | Undecided::ProcessesUnreadable | Undecided::CarriersUnreadable,
        ) => (&[R::ReadAll], &[A::CompleteAll, A::Destroy, A::Complete]),
        Class::Unknown(
            Undecided::RemovalUnseen | Undecided::NamespaceEnded | Undecided::MaybeHandedOn,
        ) => (&[R::Leave], &[]),
        Class::Unknown(_) => (
            &[R::Investigate],
            &[A::CompleteAll, A::Destroy, A::Complete],
        ),
    };
    Advice { remedy, avoid }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leave => "leave it",
            Self::Settle => "wait: `udevadm settle`; look at the udev worker; raise event_timeout",
            Self::StartUdevd => {
                "start systemd-udevd; without udevd set DM_DISABLE_UDEV=1 or udev_sync=0"
            }
            Self::InstallRule => {
                "install 95-dm-notify.rules (in the initramfs too); look for RUN:= in later rules"
            }
            Self::RepairRule => {
                "write RUN+= instead of RUN= or RUN:= in that rule, then `udevadm control --reload`"
            }
            Self::InstallDmsetup => {
                "install dmsetup where the notify rule looks for it, executable for udevd"
            }
            Self::StartQueue => {
                "let udevd continue: `udevadm control --start-exec-queue`, or SIGCONT if it is \
                 stopped; it completes by itself then"
            }
            Self::ReadJournal => {
                "look for the reason: `journalctl -u systemd-udevd` (worker killed, timeout, \
                 failed to execute)"
            }
            Self::CompleteOwn => {
                "look at the device: if the operation is done, complete in the owner's place: \
                 `dmsetup udevcomplete COOKIE`"
            }
            Self::ShareIpc => {
                "run it with the host's IPC namespace (--ipc=host, hostIPC), or with udev_sync=0 \
                 or DM_DISABLE_UDEV=1; do not mount /run/udev"
            }
            Self::RepairThenComplete => {
                "check the device nodes, `udevadm trigger` if one is missing, then complete \
                 exactly what is missing: `dmtrace clean --complete`"
            }
            Self::Destroy => "remove it: `dmtrace clean`",
            Self::FixKiller => "find out who kills the owner and give it more time",
            Self::ReportProgram => "update the program, or report the missing wait to its authors",
            Self::FindCompleter => {
                "find the second completer: another udevd, a manual `dmsetup udevcomplete`"
            }
            Self::CheckSuspended => {
                "look for suspended devices (`dmsetup info`), resume them; check /dev/mapper"
            }
            Self::ReadAll => "run as root and look again: not everything could be read",
            Self::Investigate => {
                "name a recording of when it was made, or look again while a trace runs: \
                 `dmtrace watch`"
            }
            Self::Release => "if the script is gone: `dmsetup udevreleasecookie COOKIE`",
        })
    }
}

impl fmt::Display for Avoid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CompleteAll => "`dmsetup udevcomplete_all` removes every cookie, live ones too",
            Self::Destroy => "removing it would report success for work that is not done",
            Self::Complete => {
                "completing it would not remove it, or would release a waiter too early"
            }
            Self::KillWaiter => "killing the waiter would turn this into a leak",
        })
    }
}
