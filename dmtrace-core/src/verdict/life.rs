//! What is known of one live cookie, both sources together.

use std::time::Duration;

use super::{Confidence, Context, Evidence, Subject, Thresholds};
use crate::{
    facts::HostFacts,
    ids::{BootTime, Key, ProcId, SemId},
    ledger::{Cookie, ProcessExit, User},
};

/// State of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ProcessState {
    Alive,
    /// Ended; how, if that was seen.
    Dead(Option<ProcessExit>),
    /// The process list does not tell.
    Unknown,
}

/// What is known of one live cookie.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent answers")]
pub(super) struct Knowledge {
    /// Value: the kernel's if the snapshot is fresh, else that of the events.
    pub(super) value: Option<i32>,
    /// Whether a thread waits for zero.
    pub(super) waiting: bool,
    /// Since when, if that was seen.
    pub(super) since: Option<BootTime>,
    /// Time since anybody touched it, at least.
    pub(super) quiet: Duration,
    /// The same at most: more where the wall clock counts, and was set or may have been.
    pub(super) quiet_at_most: Duration,
    /// Whether the snapshot is newer than every event.
    pub(super) fresh: bool,
    /// Whether the books of this cookie may miss something.
    pub(super) unseen: bool,
    /// Whether the kernel contradicts the books.
    pub(super) contradiction: bool,
    /// Facts found on the way.
    pub(super) evidence: Vec<Evidence>,
}

impl Knowledge {
    pub(super) fn gather(subject: &Subject<'_>, context: &Context<'_>) -> Self {
        let semaphore = subject.semaphore;
        let facts = context.facts;
        let empty = Cookie::default();
        let cookie = semaphore.cookie.as_deref().unwrap_or(&empty);
        let state = subject.set.and_then(|set| set.first);
        let fresh = state.is_some() && cookie.last_call.is_none_or(|last| last < subject.taken);
        let events = cookie.value();
        let lost = context.completeness.loss_evidence(semaphore);
        let (quiet, quiet_at_most) = quiet_time(subject, context, cookie);
        let mut known = Self {
            value: events,
            waiting: false,
            since: None,
            quiet,
            quiet_at_most,
            fresh,
            unseen: cookie.gaps.affects_verdicts() || lost.is_some(),
            contradiction: false,
            evidence: Vec::new(),
        };
        if let Some(state) = state.filter(|_| fresh) {
            known.value = Some(state.value);
            if let Some(events) = events
                && events != state.value
            {
                known.contradiction = true;
                known.evidence.push(Evidence::ValueMismatch {
                    events,
                    kernel: state.value,
                });
            }
            // Operations that overlap are in no order: any of them may be the kernel's last one.
            if !cookie.operators.is_empty()
                && state.pid != 0
                && !cookie.operators.may_end_with(state.pid)
            {
                known.contradiction = true;
                known.evidence.push(Evidence::LastOperator {
                    pid: state.pid,
                    fate: super::ProcessFate::Unknown,
                });
            }
        }
        known.add_waiters(subject, facts, cookie, state.map_or(0, |state| state.zcnt));
        if known.unseen {
            known
                .evidence
                .push(lost.unwrap_or(Evidence::OperationsUnseen));
        }
        known
    }

    /// Waiting threads: by the process list, by the kernel's count, by the events.
    fn add_waiters(
        &mut self,
        subject: &Subject<'_>,
        facts: &HostFacts,
        cookie: &Cookie,
        counted: u32,
    ) {
        let seen = facts.waiters.get(&subject.semaphore.id);
        for waiter in seen.into_iter().flatten() {
            let live = facts.processes.get(&waiter.tgid);
            self.evidence.push(Evidence::Waiter {
                tgid: waiter.tgid,
                tid: waiter.tid,
                name: live.map_or_else(String::new, |live| live.comm.clone()),
            });
        }
        let blocked = seen.is_some_and(|waiters| !waiters.is_empty());
        let listed = listed_until(subject.taken, facts);
        let by_events = cookie.waiters.iter().filter(|waiting| {
            process_state(waiting.who.image.id, waiting.since, None, facts, listed)
                != ProcessState::Dead(None)
        });
        self.since = by_events.clone().map(|waiting| waiting.since).min();
        let expected = self.since.is_some();
        if !blocked {
            self.evidence
                .extend(by_events.map(|waiting| Evidence::Waiter {
                    tgid: waiting.who.image.id.tgid,
                    tid: waiting.who.tid,
                    name: waiting.who.name.to_string(),
                }));
        }
        if counted > 0 {
            self.evidence.push(Evidence::Waiters { count: counted });
        }
        // A snapshot that is newer than the wait and shows no waiter: its end was not seen.
        let ended_unseen = self.fresh && counted == 0 && !blocked && expected;
        if ended_unseen {
            self.contradiction = true;
        }
        if !expected && (blocked || (counted > 0 && self.fresh)) {
            self.unseen = true;
        }
        // A count from before the last call says nothing if the events show the end of the wait.
        let counts = counted > 0 && (self.fresh || cookie.waiters.is_empty() && self.unseen);
        self.waiting = blocked || counts || (expected && !ended_unseen);
        if !self.waiting {
            self.evidence
                .retain(|fact| !matches!(fact, Evidence::Waiter { .. } | Evidence::Waiters { .. }));
            let hidden = subject.set.is_some_and(|set| set.first.is_none());
            self.evidence.push(if hidden && cookie.waiters.is_empty() {
                Evidence::StateHidden
            } else {
                Evidence::NoWaiter
            });
        }
    }

    /// How sure a conclusion from complete books is.
    pub(super) fn confidence(&self) -> Confidence {
        if self.unseen || self.contradiction {
            Confidence::Inferred
        } else {
            Confidence::Observed
        }
    }
}

/// Time since anybody touched the cookie, at least and at most: by events, or by the kernel's stamps.
fn quiet_time(
    subject: &Subject<'_>,
    context: &Context<'_>,
    cookie: &Cookie,
) -> (Duration, Duration) {
    let facts = context.facts;
    let by_events = cookie
        .last_call
        .or(subject.semaphore.created)
        .map(|last| facts.now.duration_since(last));
    let by_stamps = subject.set.map(|set| {
        let span = facts.locate_last_touch(set);
        (span.least_age(facts.now), span.most_age(facts.now))
    });
    match (by_events, by_stamps) {
        // Calls that were not seen make it less quiet; a clock that was set makes its stamps useless,
        // but never in the direction of guilt: the shorter time counts.
        (Some(events), Some((least, most))) if cookie.gaps.affects_verdicts() => {
            (events.min(least), events.min(most))
        }
        (Some(events), _) => (events, events),
        (None, Some(both)) => both,
        (None, None) => (Duration::ZERO, Duration::ZERO),
    }
}

/// Reading the process list takes no longer than this.
const MAX_LISTING_TIME: Duration = Duration::from_secs(5);

/// Up to when the process list knows every process for certain: it is read after the snapshot,
/// and its time is that of the end of the reading.
pub(super) fn listed_until(taken: BootTime, facts: &HostFacts) -> BootTime {
    let at_worst = BootTime(
        facts
            .now
            .0
            .saturating_sub(MAX_LISTING_TIME.as_nanos() as u64),
    );
    if taken <= facts.now {
        at_worst.max(taken)
    } else {
        at_worst
    }
}

/// State of a process that did something at `active`, given a process list that is complete for
/// everything that started before `listed`.
pub(super) fn process_state(
    id: ProcId,
    active: BootTime,
    exit: Option<ProcessExit>,
    facts: &HostFacts,
    listed: BootTime,
) -> ProcessState {
    if let Some(exit) = exit {
        return ProcessState::Dead(Some(exit));
    }
    // It was active when the process list was being made, or after: the list says nothing.
    if active >= listed && active.0 != 0 {
        return ProcessState::Alive;
    }
    if !id.is_known() {
        return ProcessState::Unknown;
    }
    match facts.processes.get(&id.tgid) {
        // Its start is not known: the number alone proves nothing.
        Some(_) if id.start.0 == 0 => ProcessState::Unknown,
        Some(live) if live.start_ticks == id.start_ticks() => ProcessState::Alive,
        _ if facts.processes_complete => ProcessState::Dead(None),
        Some(_) => ProcessState::Dead(None),
        None => ProcessState::Unknown,
    }
}

/// State of a user of a cookie.
pub(super) fn user_life(user: &User, facts: &HostFacts, listed: BootTime) -> ProcessState {
    process_state(user.who.image.id, user.last, user.exit, facts, listed)
}

/// Processes that carry the cookie, as far as they can reach its namespace.
pub(super) fn reachable_carriers(key: Key, sem: SemId, facts: &HostFacts) -> Vec<u32> {
    let carriers = facts.carriers.get(&key);
    carriers
        .into_iter()
        .flatten()
        .copied()
        .filter(|pid| {
            facts
                .processes
                .get(pid)
                .and_then(|process| process.ipc_ns)
                .is_none_or(|ns| ns == sem.ns)
        })
        .collect()
}

impl Thresholds {
    /// Time after which udev has given up an event: its timeout and 10 s until the SIGKILL
    /// (systemd: udev-worker.c). 180 s is udev's default.
    pub fn udev_gives_up(&self, facts: &HostFacts) -> Duration {
        self.udev_timeout.unwrap_or_else(|| {
            let timeout = match facts.udev.event_timeout {
                0 => 180,
                timeout => timeout,
            };
            Duration::from_secs(timeout.saturating_add(10))
        })
    }
}
