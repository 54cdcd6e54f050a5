//! Evidence in words.

use std::fmt;

use super::evidence::{Evidence, ProcessFate};
use crate::{
    duration::Span,
    event::{DmCommand, errno_word},
    ledger::ActorRef,
    wording,
};

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FoundEarlier { .. } => f.write_str(
                "an earlier run of dmtrace serve has found it, and nobody has touched it since",
            ),
            Self::HeldByNobody {
                searched,
                bytes,
                before,
                ..
            } => {
                let processes = wording::count_noun(*searched, "process", "processes");
                let twice = match before {
                    Some(_) => ", twice",
                    None => "",
                };
                write!(
                    f,
                    "no process holds its number: {processes} searched{twice}, {} MiB",
                    bytes >> 20
                )
            }
            Self::NotProvenBySearch { why } => write!(f, "search: {why}"),
            Self::CreatedBy { who, .. } => write!(f, "made by {who}"),
            Self::Stage { who, stage } => write!(f, "{who} was last seen {stage}"),
            Self::Ended { who, status, .. } => write!(f, "{who} {status}"),
            Self::Absent { who } => write!(f, "{who} is not in the process list"),
            Self::Alive { who } => write!(f, "{who} is alive"),
            Self::Waiter { tgid, tid, name } => match name.as_str() {
                "" => write!(f, "thread {tid} of process {tgid} waits for it"),
                name => write!(f, "thread {tid} of {name}[{tgid}] waits for it"),
            },
            Self::Waiters { count } => {
                write!(
                    f,
                    "the kernel counts {}",
                    CountedNoun(*count, "waiting thread")
                )
            }
            Self::NoWaiter => f.write_str("nobody waits for it"),
            Self::StateHidden => {
                f.write_str("its value, and whether somebody waits for it, may not be read")
            }
            Self::WaitedAtLeast { time } => {
                write!(f, "somebody has waited for at least {}", Span(*time))
            }
            Self::WaitedFor { time } => write!(f, "somebody has waited for {}", Span(*time)),
            Self::Value { value } => write!(f, "value {value}"),
            Self::Outstanding { count } => {
                write!(f, "{} not completed", CountedNoun(*count, "operation"))
            }
            Self::Completed { count } => write!(f, "{} so far", CountedNoun(*count, "completion")),
            Self::SelfCompleted { count } => write!(
                f,
                "{} by its user without a wait: the ioctl failed or made no uevent",
                CountedNoun(*count, "decrement")
            ),
            Self::DecrementsFailed { count } => {
                write!(
                    f,
                    "{} found the value at 0",
                    CountedNoun(*count, "decrement")
                )
            }
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
            Self::Transaction => {
                f.write_str("made and set for later use, as by dmsetup udevcreatecookie")
            }
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
            Self::NoDmsetup => {
                f.write_str("the program of the notify rule, dmsetup, is missing or not executable")
            }
            Self::RunCleared { at } => {
                write!(f, "{at} empties the list of programs that udev is to run")
            }
            Self::QueueBusy => f.write_str("udev is processing events"),
            Self::UdevIdle => f.write_str("udev is idle: it has nothing in its queue"),
            Self::UdevFrozen { pid } => write!(f, "udevd (process {pid}) is stopped by a signal"),
            Self::NoWorker => f.write_str("udev has events in its queue and no worker"),
            Self::Worker {
                pid,
                runs: Some((child, name)),
            } => write!(f, "udev worker {pid} runs {name}[{child}]"),
            Self::Worker { pid, runs: None } => write!(f, "udev worker {pid} exists"),
            Self::UdevYounger { pid } => {
                write!(
                    f,
                    "udevd (process {pid}) was started after the uevent was sent"
                )
            }
            Self::NoUevent {
                announced,
                ioctls,
                uevents,
            } => write!(
                f,
                "{} announced, {} returned, {} sent",
                CountedNoun(*announced, "operation"),
                CountedNoun(*ioctls, "ioctl"),
                CountedNoun(*uevents, "uevent")
            ),
            Self::Stranger { who } => write!(f, "{who} completed it; udev did not start it"),
            Self::SeveralUdevds { pids } => {
                let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
                write!(f, "several udevds completed it: {}", pids.join(", "))
            }
            Self::LookupAfter { who: Some(who) } => {
                write!(f, "{who} looked for it after its removal, in vain")
            }
            Self::LookupAfter { who: None } => {
                f.write_str("it was looked for after its removal, in vain")
            }
            Self::Suspended { device } => write!(f, "device {device} is suspended"),
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
            Self::EventsLost { count } => {
                let lost = wording::count_noun(*count, "event was", "events were");
                write!(f, "{lost} lost")
            }
            Self::RecordingUnclosed => {
                f.write_str("what happened after the recording's last entry is unknown")
            }
            Self::OperationsUnseen => f.write_str("not every operation on it was seen"),
            Self::ValueMismatch { events, kernel } => {
                write!(f, "value {kernel} where the events make {events}")
            }
            Self::RemovedBy { who, waiters: 0 } => write!(f, "removed by {who}"),
            Self::RemovedBy { who, waiters } => {
                write!(
                    f,
                    "removed by {who} while {} waited",
                    CountedNoun(*waiters, "thread")
                )
            }
            Self::NamespaceEnded => f.write_str("its IPC namespace ended"),
            Self::LastOperator { pid, fate } => write!(
                f,
                "last operation by process {pid}, which {}",
                match fate {
                    ProcessFate::Alive => "is alive",
                    ProcessFate::Gone => "is gone",
                    ProcessFate::Reused => "is gone (its number belongs to a younger process)",
                    ProcessFate::MaybeAlive =>
                        "may be the living one with this number (the wall clock does not tell)",
                    ProcessFate::Unknown => "may be gone",
                }
            ),
            Self::Candidate { pid, name } => write!(f, "{name}[{pid}] may own it"),
            Self::Age { time } => write!(f, "made {} ago", Span(*time)),
            Self::AgeInDoubt { least, most, step } => {
                let (least, most) = (Span(*least), Span(*most));
                write!(f, "made between {least} and {most} ago: the wall clock ")?;
                match step {
                    Some(step) => {
                        let sign = if *step < 0 { '-' } else { '+' };
                        let by = Span::from_secs(step.unsigned_abs());
                        write!(f, "was set since boot (by {sign}{by})")
                    }
                    None => f.write_str("may have been set since"),
                }
            }
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
                    DmCommand::Resume | DmCommand::Suspend => format!(" ({command})"),
                    DmCommand::Remove | DmCommand::Rename => String::new(),
                };
                write!(f, "ioctl {}{which} of {device} ", command.ioctl_name())?;
                match (errno, uevent, deferred) {
                    (None, ..) => f.write_str("was not seen to return"),
                    (Some(0), true, _) => f.write_str("sent a uevent"),
                    (Some(0), false, true) => f.write_str("was deferred: it sent no uevent"),
                    (Some(0), false, false) => f.write_str("sent no uevent"),
                    (Some(errno), ..) => write!(f, "failed with {}", errno_word(*errno)),
                }
            }
            Self::MoreDevices { count } => {
                f.write_str(&wording::count_noun(*count, "more device", "more devices"))
            }
            Self::Uevents { sent, completed } => {
                let sent = CountedNoun(*sent, "uevent");
                write!(f, "{sent} sent, {completed} completed by udev")
            }
        }
    }
}

impl fmt::Display for ActorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.name.as_str() {
            "" => "process",
            name => name,
        };
        write!(f, "{name}[{}]", self.image.id.tgid)
    }
}

/// A number with its noun.
struct CountedNoun(u32, &'static str);

impl fmt::Display for CountedNoun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, noun) = *self;
        f.write_str(&wording::count_noun(count, noun, &format!("{noun}s")))
    }
}
