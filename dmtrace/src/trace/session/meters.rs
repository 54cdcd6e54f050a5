//! How a running trace is, as numbers for Prometheus.

use std::{collections::BTreeMap, time::Duration};

use dmtrace_common::Kind;

use super::Session;
use crate::{
    metrics::{MessageCounts, MissedRuns, TraceHealth, UnmappedCounts},
    probe::{AttachOutcome, Attempt, DmState, PinnedPast},
};

impl Session {
    /// How it is now. Messages on their way make `submitted` larger than `received` for a moment.
    pub(crate) fn read_meters(&self) -> TraceHealth {
        let counts = self.tracer.counts();
        let messages = Kind::ALL.into_iter().map(|kind| {
            let count = counts.counts_of(kind);
            let messages = MessageCounts {
                seen: count.seen,
                submitted: count.submitted,
                received: match (kind, &self.sites) {
                    (Kind::Stack, Some(sites)) => sites.received_count() + self.stacks_before,
                    _ => self.received.kinds[kind as usize],
                },
                dropped: count.dropped,
            };
            (probe_name(kind), messages)
        });
        let mut attached = subject_states(self.tracer.attempts());
        match self.tracer.dm_state() {
            // Not there yet is not blind.
            DmState::NotLoaded => {}
            DmState::Attached { uevents, .. } => {
                attached.extend([("dm", true), ("uevent", *uevents)]);
            }
            DmState::Impossible { .. } => {
                attached.insert("dm", false);
            }
        }
        let missed = self.tracer.skipped_by_subject().into_iter();
        let missed = missed.map(|(subject, runs)| {
            let missed = MissedRuns {
                lost: runs.lost,
                made_good: runs.made_good,
            };
            (subject, missed)
        });
        let last = self.last.as_ref();
        let gap = self.continuity.as_ref().and_then(|it| match &it.past {
            PinnedPast::Gap(gap) => Some(gap),
            PinnedPast::New | PinnedPast::Unbroken => None,
        });
        TraceHealth {
            backend: Some(self.tracer.backend()),
            messages: messages.collect(),
            undecodable: self.received.undecodable,
            unmapped: UnmappedCounts {
                sets: counts.sem_map_full,
                processes: counts.proc_map_full,
                calls: counts.call_map_full,
                ended: counts.history_lost,
            },
            attached,
            missed: missed.collect(),
            missing_create: last.map_or(0, |last| last.unknown),
            missing_remove: last.map_or(0, |last| last.vanished),
            corrected: self.drift,
            unreadable: last.map_or(0, |last| last.unreadable.len() as u64),
            gaps: u64::from(gap.is_some()),
            gap_time: gap.map_or(Duration::ZERO, |gap| {
                gap.from
                    .map_or(Duration::ZERO, |from| gap.to.duration_since(from))
            }),
            ..TraceHealth::default()
        }
    }
}

/// What a message is called there.
const fn probe_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Proc => "process",
        Kind::Created => "create",
        Kind::CreateFailed => "create-failed",
        Kind::SetVal => "setval",
        Kind::Op => "operate",
        Kind::WaitBegin => "wait",
        Kind::Destroyed => "destroy",
        Kind::Exit => "exit",
        Kind::LookupFailed => "lookup",
        Kind::Ioctl => "dm",
        Kind::Uevent => "uevent",
        Kind::Stack => "call-site",
    }
}

/// Whether each subject of the backend that was taken is seen: the last word on it counts.
fn subject_states(attempts: &[Attempt]) -> BTreeMap<&'static str, bool> {
    let last = attempts.last().map(|attempt| attempt.backend);
    let mut attached = BTreeMap::new();
    for attempt in attempts {
        // How it was chosen is no subject; what it costs is counted as skipped runs.
        if Some(attempt.backend) != last || attempt.subject == "preemption" {
            continue;
        }
        match attempt.outcome {
            AttachOutcome::Attached => attached.insert(attempt.subject, true),
            AttachOutcome::Failed(_) => attached.insert(attempt.subject, false),
            AttachOutcome::NotNeeded => None,
        };
    }
    attached
}
