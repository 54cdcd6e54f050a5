//! What verdicts rest on.

use std::time::Duration;

use serde::Serialize;

use crate::{
    event::{DmCommand, ExitStatus},
    ids::{BootTime, DevNum, IpcNs, Key},
    ledger::{ActorRef, Cookie, DepartureProof, UserStage},
    search::orphan::OrphanObstacle,
};

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "evidence")]
pub enum Evidence {
    /// An earlier trace has found it, and it is as it was.
    FoundEarlier {
        /// When.
        at: BootTime,
    },
    /// No process that could act on it has its number.
    HeldByNobody {
        /// So many were searched.
        searched: u64,
        /// So much memory was read.
        bytes: u64,
        /// When the search ended.
        at: BootTime,
        /// When an earlier one had ended that found nothing either.
        before: Option<BootTime>,
    },
    /// Why a search does not prove that nobody holds it.
    NotProvenBySearch {
        /// Why.
        why: OrphanObstacle,
    },
    /// Its creation was seen.
    CreatedBy {
        /// By whom.
        who: ActorRef,
        /// When.
        at: BootTime,
    },
    /// How far a user of the cookie has come.
    Stage {
        /// Who.
        who: ActorRef,
        /// How far.
        stage: UserStage,
    },
    /// A user of the cookie has ended, seen.
    Ended {
        /// Who.
        who: ActorRef,
        /// When.
        at: BootTime,
        /// How.
        status: ExitStatus,
    },
    /// A user of the cookie is not in the process list any more.
    Absent {
        /// Who.
        who: ActorRef,
    },
    /// A user of the cookie is alive.
    Alive {
        /// Who.
        who: ActorRef,
    },
    /// A thread waits for zero.
    Waiter {
        /// Its process.
        tgid: u32,
        /// The thread.
        tid: u32,
        /// Name of the process; empty if it is not known.
        name: String,
    },
    /// The kernel counts waiting threads.
    Waiters {
        /// How many.
        count: u32,
    },
    /// Nobody waits.
    NoWaiter,
    /// The kernel does not show this user the value, nor whether somebody waits.
    StateHidden,
    /// For how long somebody has waited at least: the wait began before it could be seen.
    WaitedAtLeast {
        /// Time.
        time: Duration,
    },
    /// For how long somebody has waited.
    WaitedFor {
        /// So long.
        time: Duration,
    },
    /// Value of the semaphore.
    Value {
        /// Value.
        value: i32,
    },
    /// Operations that are not completed.
    Outstanding {
        /// How many.
        count: u32,
    },
    /// Completions by udev.
    Completed {
        /// How many.
        count: u32,
    },
    /// Decrements by a user that no wait followed.
    SelfCompleted {
        /// How many.
        count: u32,
    },
    /// Decrements that found the value at 0.
    #[serde(rename = "starved")]
    DecrementsFailed {
        /// How many.
        count: u32,
    },
    /// Its owner completed a later cookie.
    MovedOn {
        /// Key of that cookie.
        key: Key,
        /// When that one was removed.
        closed: BootTime,
        /// On the very thread that touched this one last.
        same_thread: bool,
    },
    /// Its owner did something else after it touched this cookie last.
    ActiveSince {
        /// When.
        at: BootTime,
        /// On the very thread.
        same_thread: bool,
    },
    /// Time since somebody touched it.
    Quiet {
        /// So long.
        time: Duration,
    },
    /// A wait was interrupted.
    Interrupted {
        /// When.
        at: BootTime,
    },
    /// A process carries the cookie in its environment or command line.
    Carrier {
        /// Its number.
        pid: u32,
    },
    /// Its creator was `dmsetup udevcreatecookie`, which exits at once by design.
    Transaction,
    /// The parent of the transaction's creator is alive.
    ParentAlive {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// No udevd runs.
    NoUdevd {
        /// `/run/udev/control` is there all the same: libdm believes that udevd runs.
        socket: bool,
        /// systemd listens there, and starts udevd at the next event.
        activated: bool,
    },
    /// The notify rule is missing.
    NoNotifyRule,
    /// The program that the notify rule runs is missing or not executable.
    NoDmsetup,
    /// A rule empties the list of programs that are to be run.
    RunCleared {
        /// File and line.
        at: String,
    },
    /// udev processes events.
    QueueBusy,
    /// udev has nothing in its queue.
    UdevIdle,
    /// udevd is stopped by a signal, or traced.
    UdevFrozen {
        /// Its number.
        pid: u32,
    },
    /// udev has events in its queue and no worker.
    NoWorker,
    /// A worker of udevd.
    Worker {
        /// Its number.
        pid: u32,
        /// What it runs now.
        runs: Option<(u32, String)>,
    },
    /// udevd was started after the uevent had been sent.
    UdevYounger {
        /// Its number.
        pid: u32,
    },
    /// Operations that were announced, against ioctls that returned and uevents that were sent.
    NoUevent {
        /// Announced.
        announced: u32,
        /// Ioctls that returned.
        ioctls: u32,
        /// Uevents.
        uevents: u32,
    },
    /// A completion that was not started by udev.
    Stranger {
        /// Who made it.
        who: ActorRef,
    },
    /// Workers of several udevds completed it.
    SeveralUdevds {
        /// Their numbers.
        pids: Vec<u32>,
    },
    /// Somebody looked for it after its removal: a next operation, or udev's completion, failed.
    LookupAfter {
        /// Who.
        who: Option<ActorRef>,
    },
    /// A device is suspended now.
    Suspended {
        /// Its name.
        device: String,
    },
    /// Its key was looked up in vain elsewhere.
    LookupFailed {
        /// By whom.
        who: Option<ActorRef>,
        /// Where.
        ns: IpcNs,
    },
    /// It lives outside the namespace in which udev completes.
    OutsideHost {
        /// In this one.
        ns: IpcNs,
    },
    /// Messages were lost.
    EventsLost {
        /// How many.
        count: u64,
    },
    /// The recording ends before its trace did.
    RecordingUnclosed,
    /// Operations on it were not seen.
    OperationsUnseen,
    /// The kernel's value is not the one that the seen events make.
    ValueMismatch {
        /// By the events.
        events: i32,
        /// In the kernel.
        kernel: i32,
    },
    /// Who removed it.
    RemovedBy {
        /// Who.
        who: ActorRef,
        /// How many threads waited at that moment.
        waiters: u32,
    },
    /// It ended with its namespace.
    NamespaceEnded,
    /// Who operated on it last, by the kernel (`GETPID`); the number is from before.
    LastOperator {
        /// Its number.
        pid: u32,
        /// What became of that process.
        fate: ProcessFate,
    },
    /// A process that may own it.
    Candidate {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Time since its last SETVAL (its creation, for a cookie), by the wall clock.
    Age {
        /// So long.
        time: Duration,
    },
    /// The same, where the wall clock was set since boot or may have been.
    AgeInDoubt {
        /// So long at least,
        least: Duration,
        /// and so long at most.
        most: Duration,
        /// By so many seconds the clock was set last, if that is known.
        step: Option<i64>,
    },
    /// The set is not what libdm makes.
    NotACookie,
    /// A device-mapper ioctl with the cookie, the last one on its device.
    Ioctl {
        /// Which.
        command: DmCommand,
        /// On this device, in words.
        device: String,
        /// Its number.
        number: Option<DevNum>,
        /// 0, or a positive errno; `None` if it was not seen to return.
        errno: Option<i32>,
        /// The kernel sent a uevent for it.
        uevent: bool,
        /// The device may be removed later.
        deferred: bool,
    },
    /// Further devices.
    MoreDevices {
        /// How many.
        count: usize,
    },
    /// Uevents with the cookie against completions by udev.
    Uevents {
        /// Sent.
        sent: u32,
        /// Completed.
        completed: u32,
    },
}

/// What became of the process behind a number from the past.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessFate {
    /// It is alive: its start is old enough.
    Alive,
    /// It is gone.
    Gone,
    /// The number belongs to a younger process now; the old one is gone.
    Reused,
    /// A process has the number, and the wall clock does not tell whether it is that one.
    MaybeAlive,
    /// Not known.
    Unknown,
}

/// Devices named in the evidence.
const MAX_NAMED_DEVICES: usize = 4;

impl From<DepartureProof> for Evidence {
    fn from(proof: DepartureProof) -> Self {
        match proof {
            DepartureProof::LaterCycle { cycle, same_thread } => Self::MovedOn {
                key: cycle.key,
                closed: cycle.closed,
                same_thread,
            },
            DepartureProof::ActiveSince { at, same_thread } => {
                Self::ActiveSince { at, same_thread }
            }
        }
    }
}

impl Evidence {
    /// What device-mapper was seen to do with a cookie: what failed first, then what sent no
    /// uevent, because both explain why nobody completes.
    pub(super) fn of_devices(cookie: &Cookie) -> Vec<Self> {
        let mut devices: Vec<_> = cookie.devices.iter().rev().collect();
        devices.sort_by_key(|device| match device.errno {
            Some(0) => (device.uevent, 1),
            Some(_) => (false, 0),
            None => (true, 0),
        });
        let mut evidence: Vec<Self> = devices
            .iter()
            .take(MAX_NAMED_DEVICES)
            .map(|device| Self::Ioctl {
                command: device.command,
                device: device.full_label(),
                number: device.number,
                errno: device.errno,
                uevent: device.uevent,
                deferred: device.deferred,
            })
            .collect();
        let more = devices.len().saturating_sub(MAX_NAMED_DEVICES) + cookie.devices_more as usize;
        if more > 0 {
            evidence.push(Self::MoreDevices { count: more });
        }
        let (sent, completed) = (cookie.counts.uevents, cookie.counts.completions);
        if sent > 0 {
            evidence.push(Self::Uevents { sent, completed });
        }
        evidence
    }
}
