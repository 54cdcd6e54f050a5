//! One cookie's story as data: text and JSON are made from the same.

use dmtrace_core::{
    event::ExitStatus,
    ids::UnixTime,
    ledger::{Process, WhyUnknown},
    verdict::{
        Class, Confidence, Culprit, CulpritRole, Healthy, LeakKind, Pending, StuckCause, Undecided,
    },
};

use super::timeline::{self, StoryContext};
use crate::{
    finding::{AffectedProcess, MissingStepText, Story},
    output::time::{self},
    render::{
        row::{Row, describe_process},
        searched::SearchLeft,
    },
    wording::times_text,
};

/// How long a thread waits is said after this.
pub(super) const HAS_WAITED: &str = "has been waiting for";

impl StoryContext<'_> {
    pub(crate) fn build_story(&self, row: &Row<'_>) -> Story {
        let verdict = row.verdict.as_ref();
        let class = verdict.map(|verdict| verdict.class);
        let advice = verdict.map(|verdict| verdict.advice).unwrap_or_default();
        Story {
            cookie: row.to_report(),
            title: story_title(row),
            headline: class.map_or_else(String::new, |class| class.to_string()),
            confidence: confidence_text(row),
            life: timeline::story_moments(self, row),
            missing: verdict
                .and_then(|verdict| verdict.missing)
                .map(|step| MissingStepText {
                    step: Some(step),
                    text: step.to_string(),
                }),
            fault: self.fault_lines(row),
            victims: self.victims(row),
            evidence: verdict.map_or_else(Vec::new, |verdict| {
                verdict.evidence.iter().map(ToString::to_string).collect()
            }),
            remedies: self.remedy_lines(row, advice.remedy),
            avoid: advice.avoid.iter().map(ToString::to_string).collect(),
            remedy_codes: advice.remedy.to_vec(),
            avoid_codes: advice.avoid.to_vec(),
        }
    }

    /// Whose fault it is: the culprit with everything that finds it again, or why there is none.
    fn fault_lines(&self, row: &Row<'_>) -> Vec<String> {
        let Some(verdict) = &row.verdict else {
            return vec!["not judged".to_owned()];
        };
        let Some(culprit) = &verdict.culprit else {
            let mut lines = vec![match row.pending {
                Some(Pending::OwnerSilent) => {
                    "pending: its owner has done its part, and may still wait \
                                               for it, or never; decided when it goes on or ends"
                        .to_owned()
                }
                _ => no_culprit_text(verdict.class),
            }];
            if matches!(
                verdict.class,
                Class::Leaked(_) | Class::Orphaned(_) | Class::CleanedUp(_) | Class::Unknown(_)
            ) {
                lines.extend(self.maker_lines(row));
            }
            return lines;
        };
        let inferred = if verdict.confidence == Confidence::Inferred {
            " (inferred)"
        } else {
            ""
        };
        let mut lines = vec![format!("{}{inferred}", culprit_text(culprit))];
        let process = self.ledger.process(culprit.who.image);
        lines.extend(process_details(process));
        if culprit.role == CulpritRole::Owner {
            let other = row
                .process
                .filter(|process| process.image_id != culprit.who.image);
            if let Some(maker) = other {
                lines.push(format!(
                    "made by {}[{}], which is not the one that left it",
                    maker.name, maker.image_id.id.tgid
                ));
            }
            if matches!(culprit.exit, Some(ExitStatus::Signal(_))) {
                lines.push("who sent the signal: unknown (not captured)".to_owned());
            }
            let calls = row.call_site().map_or_else(
                || "unknown (not captured)".to_owned(),
                dmtrace_core::event::CallSite::chain_line,
            );
            lines.push(format!("call site: {calls}"));
        }
        lines
    }

    /// Who made it, where nobody is to blame.
    fn maker_lines(&self, row: &Row<'_>) -> Vec<String> {
        let Some(process) = row.process else {
            return Vec::new();
        };
        let mut lines = vec![format!(
            "made by {}[{}]",
            process.name, process.image_id.id.tgid
        )];
        lines.extend(process_details(Some(process)));
        lines
    }

    fn victims(&self, row: &Row<'_>) -> Vec<AffectedProcess> {
        let Some(verdict) = &row.verdict else {
            return Vec::new();
        };
        match verdict.class {
            Class::Accident => self.harmed_processes(row),
            Class::OverCompleted if row.semaphore.is_live() => self.owner_processes(
                row,
                "its own decrement will fail, or its wait ends before udev is done",
            ),
            Class::OverCompleted => self.owner_processes(row, "its decrement found the value at 0"),
            Class::Leaked(_) | Class::Orphaned(_) | Class::CleanedUp(_) => {
                self.enospc_processes(row)
            }
            _ => self.waiters(row),
        }
    }

    /// Threads that wait now.
    fn waiters(&self, row: &Row<'_>) -> Vec<AffectedProcess> {
        let facts = self.facts;
        let seen = row
            .semaphore
            .cookie
            .as_deref()
            .map_or(&[][..], |cookie| &cookie.waiters);
        let listed = facts.waiters.get(&row.semaphore.id);
        let threads: Vec<(u32, u32)> = match listed {
            Some(listed) => listed.iter().map(|it| (it.tgid, it.tid)).collect(),
            None => seen
                .iter()
                .map(|it| (it.who.image.id.tgid, it.who.tid))
                .collect(),
        };
        let first = row.set.and_then(|set| Some((set.otime, set.first?.pid)));
        let stamp_age = |otime: UnixTime| {
            let stamped = (otime.0 != 0).then(|| facts.locate_stamp(otime));
            stamped.and_then(|span| span.age(facts.now))
        };
        let mut victims = Vec::new();
        for (pid, tid) in threads {
            // From the map of a running trace the thread is not known.
            let waiting = seen
                .iter()
                .find(|it| it.who.image.id.tgid == pid && (it.who.tid == tid || it.who.tid == 0));
            let live = facts.processes.get(&pid);
            let comm = match (waiting, live) {
                (Some(waiting), _) => waiting.who.name.to_string(),
                (None, Some(live)) => live.comm.clone(),
                (None, None) => "?".to_owned(),
            };
            let since = waiting.map(|it| facts.now.duration_since(it.since));
            let long = match (since, first) {
                (Some(since), _) => format!("{HAS_WAITED} {}", time::age_text(since)),
                // Its decrement, right before its sleep, is the set's last operation.
                (None, Some((otime, last)))
                    if last == pid
                        && let Some(about) = stamp_age(otime) =>
                {
                    format!("{HAS_WAITED} {} (inferred)", time::age_text(about))
                }
                (None, _) => "waits, since when is unknown (older than the trace)".to_owned(),
            };
            let mut text = format!("{comm}[{pid}] thread {tid} {long}");
            let device = row.device_names();
            if !device.is_empty() {
                text.push_str(&format!(", device {device}"));
            }
            if let Some(command) = facts.commands.get(&pid) {
                text.push_str(&format!(": {command}"));
            }
            victims.push(AffectedProcess {
                pid,
                tid: Some(tid),
                comm,
                seconds: since.map(|since| since.as_secs()),
                text,
            });
        }
        victims
    }

    /// Who waited when it was removed; else who still used it.
    fn harmed_processes(&self, row: &Row<'_>) -> Vec<AffectedProcess> {
        let Some(ending) = &row.semaphore.ending else {
            return Vec::new();
        };
        let devices = row.device_names();
        let on = if devices.is_empty() {
            String::new()
        } else {
            format!(" ({devices})")
        };
        if ending.waiters.is_empty() {
            return self.owner_processes(row, "used it when it was removed");
        }
        let waiters = ending.waiters.iter().map(|waiting| {
            let (pid, tid) = (waiting.who.image.id.tgid, waiting.who.tid);
            let after = time::age_text(ending.at.duration_since(waiting.since));
            AffectedProcess {
                pid,
                tid: Some(tid),
                comm: waiting.who.name.to_string(),
                seconds: Some(ending.at.duration_since(waiting.since).as_secs()),
                text: format!(
                    "{} thread {tid} had waited for {after}{on}; libdm takes that for success",
                    waiting.who
                ),
            }
        });
        waiters.collect()
    }

    fn owner_processes(&self, row: &Row<'_>, why: &str) -> Vec<AffectedProcess> {
        let cookie = row.semaphore.cookie.as_deref();
        let at = row.semaphore.ending.as_ref().map(|ending| ending.at);
        let users = cookie.into_iter().flat_map(|cookie| &cookie.users);
        users
            .filter(|user| {
                user.exit
                    .is_none_or(|exit| at.is_some_and(|at| exit.at > at))
            })
            .map(|user| AffectedProcess {
                pid: user.who.image.id.tgid,
                tid: None,
                comm: user.who.name.to_string(),
                seconds: None,
                text: format!("{}: {why}", user.who),
            })
            .collect()
    }

    /// Who got no semaphore in that namespace.
    fn enospc_processes(&self, row: &Row<'_>) -> Vec<AffectedProcess> {
        let culprit = row.semaphore.creator.image();
        let here = |process: &&Process| {
            let ns = process.image.as_ref().map(|image| image.ipc_ns);
            process.tally.enospc_failures > 0
                && Some(process.image_id) != culprit
                && ns.is_none_or(|ns| ns == row.semaphore.id.ns)
        };
        let starved = self.ledger.processes().filter(here);
        starved
            .map(|process| AffectedProcess {
                pid: process.image_id.id.tgid,
                tid: None,
                comm: process.name.to_string(),
                seconds: None,
                text: format!(
                    "{}[{}] was refused a semaphore {} (ENOSPC)",
                    process.name,
                    process.image_id.id.tgid,
                    times_text(process.tally.enospc_failures)
                ),
            })
            .take(8)
            .collect()
    }
}

fn story_title(row: &Row<'_>) -> String {
    let value = match (row.semaphore.is_live(), row.value()) {
        (true, Some(value)) => format!(", value {value}"),
        _ => String::new(),
    };
    let age = match row.age {
        Some(age) if row.semaphore.is_live() => format!(", {} old", time::age_text(age)),
        _ => String::new(),
    };
    let gone = if row.semaphore.is_live() {
        ""
    } else {
        ", gone"
    };
    format!(
        "COOKIE {}, semid {}, IPC namespace {}{value}{age}{gone}",
        row.semaphore.key, row.semaphore.id.semid, row.semaphore.id.ns
    )
}

fn culprit_text(culprit: &Culprit) -> String {
    let who = &culprit.who;
    match (culprit.role, culprit.exit) {
        (CulpritRole::Owner, Some(status)) => format!("{who} left it: {status}"),
        (CulpritRole::Owner, None) => format!("{who} left it"),
        (CulpritRole::Remover, _) => format!("{who} removed it while it was in use"),
        (CulpritRole::Completer, _) => format!("{who} completed it without need"),
    }
}

fn process_details(process: Option<&Process>) -> Vec<String> {
    process
        .and_then(|process| process.image.as_deref())
        .map_or_else(Vec::new, |image| {
            let lines = describe_process(image).into_iter();
            lines
                .map(|(label, text)| format!("{label}: {text}"))
                .collect()
        })
}

/// Why nobody is named.
fn no_culprit_text(class: Class) -> String {
    let text = match class {
        Class::Healthy(Healthy::SlowUdev) => "nobody's so far: udev takes its time",
        Class::Healthy(_) | Class::Ordinary => "nobody's",
        Class::Foreign(_) => "nobody's: another program has a key like a cookie's",
        Class::Stuck(cause) => match cause {
            StuckCause::UdevdDown => "not the waiter's: udevd does not run",
            StuckCause::RuleMissing => "not the waiter's: udev has no rule that completes",
            StuckCause::RunCleared => "not the waiter's: a udev rule drops the completion",
            StuckCause::DmsetupMissing => "not the waiter's: udevd has no dmsetup that it can run",
            StuckCause::QueueStopped => "not the waiter's: somebody stopped udevd or its queue",
            StuckCause::NamespaceSplit { .. } => {
                "of how the program was started: in an IPC namespace in which udev does not complete"
            }
            StuckCause::NotReceived => {
                "not the waiter's: udevd was not there when the uevent was sent"
            }
            StuckCause::EventDropped => {
                "not the waiter's: udev lost the event, or its worker was killed"
            }
            StuckCause::EventLost => "not the waiter's: udev gave the event up",
            StuckCause::NoUevent => {
                "of the program or its library: it waits for what udev was never asked to complete"
            }
        },
        Class::Leaked(LeakKind::TransactionAbandoned) => {
            "unknown: whoever should have released it (dmsetup udevreleasecookie) has ended"
        }
        Class::Leaked(LeakKind::Signature { .. }) | Class::Orphaned(_) => {
            "unknown: no trace in use saw who made it, and the kernel does not keep that"
        }
        Class::Leaked(_) | Class::CleanedUp(_) => "unknown",
        Class::OverCompleted => {
            "unknown: which of several completions was one too many is not known"
        }
        Class::Accident => "unknown: who removed it was not seen",
        Class::Unknown(reason) => return undecided_text(reason),
    };
    text.to_owned()
}

fn undecided_text(reason: Undecided) -> String {
    match reason {
        Undecided::CreatorUnknown(WhyUnknown::BeforeTracer) => {
            "unknown: no trace in use saw who made it".to_owned()
        }
        Undecided::NamespaceEnded => {
            "nobody's now: the kernel removed it with its namespace".to_owned()
        }
        reason => format!("unknown: {reason}"),
    }
}

/// The sentence on how sure a verdict is.
pub(crate) fn confidence_text(row: &Row<'_>) -> String {
    match row.verdict.as_ref().map(|verdict| verdict.confidence) {
        Some(Confidence::Observed) => "observed: every fact it rests on was seen".to_owned(),
        Some(Confidence::Inferred) => "inferred: the best explanation of what was seen".to_owned(),
        Some(Confidence::Searched) => {
            let left = row.verdict.as_ref().and_then(SearchLeft::of_verdict);
            left.unwrap_or(SearchLeft::SecondSearch)
                .confidence_text()
                .to_owned()
        }
        Some(Confidence::Unknown(reason)) => format!("unknown: {reason}"),
        None => String::new(),
    }
}
