//! What verdicts rest on.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{
    event::{Command, ExitStatus, errno_word},
    ids::{BootTime, DevNum, IpcNs, Key},
    ledger::{Cookie, Stage, Who},
};

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "evidence")]
pub enum Evidence {
    /// Its creation was seen.
    CreatedBy {
        /// By whom.
        who: Who,
        /// When.
        at: BootTime,
    },
    /// How far a user of the cookie has come.
    Stage {
        /// Who.
        who: Who,
        /// How far.
        stage: Stage,
    },
    /// A user of the cookie has ended, seen.
    Ended {
        /// Who.
        who: Who,
        /// When.
        at: BootTime,
        /// How.
        status: ExitStatus,
    },
    /// A user of the cookie is not in the process list any more.
    Absent {
        /// Who.
        who: Who,
    },
    /// A user of the cookie is alive.
    Alive {
        /// Who.
        who: Who,
    },
    /// A thread waits for zero.
    Waiter {
        /// Its process.
        tgid: u32,
        /// The thread.
        tid: u32,
    },
    /// The kernel counts waiting threads.
    Waiters {
        /// How many.
        count: u32,
    },
    /// Nobody waits.
    NoWaiter,
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
    Starved {
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
    /// udev processes events.
    QueueBusy,
    /// Its key was looked up in vain elsewhere.
    LookupFailed {
        /// By whom.
        who: Option<Who>,
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
        who: Who,
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
        fate: Fate,
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
    /// The set is not what libdm makes.
    NotACookie,
    /// A device-mapper ioctl with the cookie, the last one on its device.
    Ioctl {
        /// Which.
        command: Command,
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
pub enum Fate {
    /// It is alive: its start is old enough.
    Alive,
    /// It is gone.
    Gone,
    /// The number belongs to a younger process now; the old one is gone.
    Reused,
    /// Not known.
    Unknown,
}

/// Devices named in the evidence.
const DEVICES: usize = 4;

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
            .take(DEVICES)
            .map(|device| Self::Ioctl {
                command: device.command,
                device: device.full(),
                number: device.number,
                errno: device.errno,
                uevent: device.uevent,
                deferred: device.deferred,
            })
            .collect();
        let more = devices.len().saturating_sub(DEVICES) + cookie.devices_more as usize;
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

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreatedBy { who, .. } => write!(f, "made by {who}"),
            Self::Stage { who, stage } => write!(f, "{who} was last seen {stage}"),
            Self::Ended { who, status, .. } => write!(f, "{who} {status}"),
            Self::Absent { who } => write!(f, "{who} is not in the process list"),
            Self::Alive { who } => write!(f, "{who} is alive"),
            Self::Waiter { tgid, tid } => write!(f, "thread {tid} of process {tgid} waits for it"),
            Self::Waiters { count } => write!(f, "the kernel counts {count} waiting threads"),
            Self::NoWaiter => f.write_str("nobody waits for it"),
            Self::WaitedFor { time } => write!(f, "waited for since {}", Span(*time)),
            Self::Value { value } => write!(f, "value {value}"),
            Self::Outstanding { count } => write!(f, "{count} operations not completed"),
            Self::Completed { count } => write!(f, "{count} completions by udev"),
            Self::SelfCompleted { count } => write!(
                f,
                "{count} decrements by its user without a wait: the ioctl failed or made no uevent"
            ),
            Self::Starved { count } => write!(f, "{count} decrements found the value at 0"),
            Self::MovedOn {
                key, same_thread, ..
            } => {
                let thread = if *same_thread {
                    "on the same thread"
                } else {
                    "in the same process"
                };
                write!(f, "a later cookie, {key}, was completed {thread}")
            }
            Self::ActiveSince { same_thread, .. } => f.write_str(if *same_thread {
                "the same thread did other things since"
            } else {
                "the process did other things since"
            }),
            Self::Quiet { time } => write!(f, "not touched for {}", Span(*time)),
            Self::Interrupted { .. } => f.write_str("the wait was interrupted (EINTR)"),
            Self::Carrier { pid } => write!(f, "process {pid} carries the cookie"),
            Self::Transaction => f.write_str("made by dmsetup udevcreatecookie for later use"),
            Self::ParentAlive { pid, name } => {
                write!(f, "{name}[{pid}], parent of its creator, is alive")
            }
            Self::NoUdevd {
                activated: true, ..
            } => f.write_str("no udevd runs; its socket is open, so the next event starts it"),
            Self::NoUdevd { socket: true, .. } => {
                f.write_str("no udevd runs, but /run/udev/control makes libdm believe it")
            }
            Self::NoUdevd { socket: false, .. } => f.write_str("no udevd runs"),
            Self::NoNotifyRule => f.write_str("95-dm-notify.rules is missing or masked"),
            Self::QueueBusy => f.write_str("udev is processing events"),
            Self::LookupFailed { who: Some(who), ns } => {
                write!(f, "{who} looked for it in vain in IPC namespace {ns}")
            }
            Self::LookupFailed { who: None, ns } => {
                write!(f, "it was looked for in vain in IPC namespace {ns}")
            }
            Self::OutsideHost { ns } => {
                write!(
                    f,
                    "it lives in IPC namespace {ns}; udev completes in the host's"
                )
            }
            Self::EventsLost { count } => write!(f, "{count} events were lost"),
            Self::OperationsUnseen => f.write_str("not every operation on it was seen"),
            Self::ValueMismatch { events, kernel } => {
                write!(f, "value {kernel} where the events make {events}")
            }
            Self::RemovedBy { who, waiters: 0 } => write!(f, "removed by {who}"),
            Self::RemovedBy { who, waiters } => {
                write!(f, "removed by {who} while {waiters} threads waited")
            }
            Self::NamespaceEnded => f.write_str("its IPC namespace ended"),
            Self::LastOperator { pid, fate } => write!(
                f,
                "last operation by process {pid}, which {}",
                match fate {
                    Fate::Alive => "is alive",
                    Fate::Gone => "is gone",
                    Fate::Reused => "is gone (its number belongs to a younger process)",
                    Fate::Unknown => "may be gone",
                }
            ),
            Self::Candidate { pid, name } => write!(f, "{name}[{pid}] may own it"),
            Self::Age { time } => write!(f, "made {} ago", Span(*time)),
            Self::NotACookie => f.write_str("libdm does not make such sets"),
            Self::Ioctl {
                command,
                device,
                errno,
                uevent,
                deferred,
                ..
            } => {
                let which = match command {
                    Command::Resume | Command::Suspend => format!(" ({command})"),
                    Command::Remove | Command::Rename => String::new(),
                };
                write!(f, "ioctl {}{which} of {device} ", command.ioctl())?;
                match (errno, uevent, deferred) {
                    (None, ..) => f.write_str("was not seen to return"),
                    (Some(0), true, _) => f.write_str("sent a uevent"),
                    (Some(0), false, true) => f.write_str("was deferred: it sent no uevent"),
                    (Some(0), false, false) => f.write_str("sent no uevent"),
                    (Some(errno), ..) => write!(f, "failed with {}", errno_word(*errno)),
                }
            }
            Self::MoreDevices { count } => write!(f, "{count} more devices"),
            Self::Uevents { sent, completed } => {
                write!(f, "{sent} uevents sent, {completed} completed by udev")
            }
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.name.as_str() {
            "" => "process",
            name => name,
        };
        write!(f, "{name}[{}]", self.image.id.tgid)
    }
}

/// A duration with its two largest units.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{} ms", self.0.as_millis()),
            1..60 => write!(f, "{seconds} s"),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3600..86_400 => write!(f, "{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
        }
    }
}
