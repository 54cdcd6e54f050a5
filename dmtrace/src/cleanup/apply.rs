//! Carrying out a plan: the only destructive code of the program, with [`act`](super::act).
//!
//! For each cookie: read it by semid in its namespace (which allocates nothing, so it works with
//! all sets in use), compare everything with the plan, write and sync the audit record, look once
//! more, remove it. Whatever moved meanwhile is left alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dmtrace_core::{
    cleanup::{
        plan::{Plan, PlanEntry, PlannedAction},
        recheck::{IdentityMismatch, MismatchedField, recheck_clock, recheck_entry},
    },
    facts::{HostFacts, SetSnapshot},
    ids::{BootTime, IpcNs},
    verdict::Completion,
};
use serde_json::json;

use super::{
    act::{self, ActResult, ForbiddenReason},
    audit::{Audit, AuditError},
    result::OutcomeKind,
    witness::{Sighting, Witness},
};
use crate::{
    host::{self, HostError, NsSession, Scope, semaphores},
    wording::causes_text,
};

/// What came of one cookie of a plan.
#[derive(Debug)]
pub enum CleanupOutcome {
    /// It is removed.
    Removed,
    /// It is removed, and somebody used it between the last look and the removal.
    RemovedLate(Sighting),
    /// Lost completions are made good.
    Completed(Completion),
    /// It had gone by itself.
    Gone,
    /// It is not what it was when the plan was made; left alone.
    Moved(IdentityMismatch),
    /// Somebody uses it now, as a running trace has seen; left alone.
    InUse,
    /// It is out of bounds, whatever the plan says; left alone.
    Forbidden(ForbiddenReason),
    /// It could not be reached, read or removed.
    Failed(String),
    /// Not tried: interrupted, or the audit record could not be kept.
    NotTried,
}

impl CleanupOutcome {
    /// Which it is, without its details.
    pub const fn kind(&self) -> OutcomeKind {
        match self {
            Self::Removed => OutcomeKind::Removed,
            Self::RemovedLate(_) => OutcomeKind::RemovedInUse,
            Self::Completed(_) => OutcomeKind::Completed,
            Self::Gone => OutcomeKind::Gone,
            Self::Moved(_) => OutcomeKind::Moved,
            Self::InUse => OutcomeKind::InUse,
            Self::Forbidden(_) => OutcomeKind::Forbidden,
            Self::Failed(_) => OutcomeKind::Failed,
            Self::NotTried => OutcomeKind::NotTried,
        }
    }

    /// One word, as in the audit record and in JSON.
    pub const fn label(&self) -> &'static str {
        self.kind().label()
    }

    /// In words, where there is more to say.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Removed | Self::Gone | Self::NotTried => None,
            Self::RemovedLate(_) => {
                Some("somebody used it between the last check and its removal".to_owned())
            }
            Self::Completed(Completion { value, count, .. }) => {
                Some(format!("value {value}, now {}", value - count))
            }
            Self::Moved(moved) => Some(moved.to_string()),
            Self::InUse => Some("somebody uses it now, as the running trace has seen".to_owned()),
            Self::Forbidden(forbidden) => Some(forbidden.to_string()),
            Self::Failed(why) => Some(why.clone()),
        }
    }

    /// Whether what was planned is achieved.
    pub const fn is_done(&self) -> bool {
        matches!(
            self,
            Self::Removed | Self::RemovedLate(_) | Self::Completed(_) | Self::Gone
        )
    }
}

/// One cookie of a plan, and what came of it.
#[derive(Debug)]
pub struct AppliedEntry<'a> {
    /// The cookie.
    pub entry: &'a PlanEntry,
    /// What came of it.
    pub outcome: CleanupOutcome,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct CleanupReport<'a> {
    /// One for each removal in the plan.
    pub applied: Vec<AppliedEntry<'a>>,
    /// Why the rest was not tried.
    pub stopped: Option<AuditError>,
    /// Whether a signal ended it early.
    pub interrupted: bool,
}

impl CleanupReport<'_> {
    /// How many came out like this.
    pub fn count_where(&self, wanted: impl Fn(&CleanupOutcome) -> bool) -> usize {
        self.applied
            .iter()
            .filter(|applied| wanted(&applied.outcome))
            .count()
    }

    /// Whether all that was planned is gone.
    pub fn is_complete(&self) -> bool {
        self.stopped.is_none() && self.applied.iter().all(|applied| applied.outcome.is_done())
    }
}

/// Facts about processes are gathered anew after this time, and the namespace is left: a session
/// keeps it alive.
const BATCH_TIME: Duration = Duration::from_secs(1);

/// What is used for each removal.
struct CleanupWork<'a> {
    plan: &'a Plan,
    audit: &'a mut Audit,
    witness: Arc<dyn Witness>,
    stop: &'a AtomicBool,
}

/// A visit to one namespace.
struct NamespaceVisit {
    session: NsSession,
    facts: HostFacts,
    began: Instant,
}

/// Carries out a plan. `stop` ends it between two cookies; `sink` gets each outcome as it comes.
pub fn apply_plan<'a>(
    plan: &'a Plan,
    audit: &mut Audit,
    witness: Arc<dyn Witness>,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(&AppliedEntry<'a>),
) -> CleanupReport<'a> {
    let mut report = CleanupReport::default();
    if let Err(error) = audit.write_begin(plan) {
        report.stopped = Some(error);
    }
    let mut spaces: BTreeMap<IpcNs, Vec<&PlanEntry>> = BTreeMap::new();
    for entry in plan.pending() {
        spaces.entry(entry.sem.ns).or_default().push(entry);
    }
    let mut work = CleanupWork {
        plan,
        audit,
        witness,
        stop,
    };
    for (ns, entries) in spaces {
        let mut rest = entries.as_slice();
        while let Some((first, _)) = rest.split_first() {
            let visit = if report.stopped.is_some() || stop.load(Ordering::Relaxed) {
                None
            } else {
                Some(visit_namespace(ns))
            };
            match visit {
                None => {
                    for entry in std::mem::take(&mut rest) {
                        report.add_outcome(entry, CleanupOutcome::NotTried, sink);
                    }
                }
                Some(Err(error)) => {
                    // The same for all: without a way in, none of them can be touched.
                    for entry in std::mem::take(&mut rest) {
                        let outcome = match &error {
                            HostError::Gone { .. } => CleanupOutcome::Gone,
                            error => CleanupOutcome::Failed(error.to_string()),
                        };
                        work.record_outcome(entry, outcome, &mut report, sink);
                    }
                }
                Some(Ok(visit)) => {
                    let outcome = work.apply_entry(&visit, first, &mut report);
                    work.record_outcome(first, outcome, &mut report, sink);
                    rest = &rest[1..];
                    while let Some((next, _)) = rest.split_first()
                        && visit.began.elapsed() < BATCH_TIME
                        && report.stopped.is_none()
                        && !stop.load(Ordering::Relaxed)
                    {
                        let outcome = work.apply_entry(&visit, next, &mut report);
                        work.record_outcome(next, outcome, &mut report, sink);
                        rest = &rest[1..];
                    }
                }
            }
        }
    }
    report.interrupted = stop.load(Ordering::Relaxed);
    if report.stopped.is_none() {
        let counts = json!({
            "removed": report.count_where(|outcome| matches!(outcome, CleanupOutcome::Removed | CleanupOutcome::RemovedLate(_))),
            "completed": report.count_where(|outcome| matches!(outcome, CleanupOutcome::Completed(_))),
            "gone": report.count_where(|outcome| matches!(outcome, CleanupOutcome::Gone)),
            "left": report.count_where(|outcome| !outcome.is_done()),
            "interrupted": report.interrupted,
        });
        report.stopped = work.audit.write_end(counts).err();
    }
    report
}

impl<'a> CleanupReport<'a> {
    fn add_outcome(
        &mut self,
        entry: &'a PlanEntry,
        outcome: CleanupOutcome,
        sink: &mut dyn FnMut(&AppliedEntry<'a>),
    ) {
        let applied = AppliedEntry { entry, outcome };
        sink(&applied);
        self.applied.push(applied);
    }
}

/// Gathers the facts, then enters.
fn visit_namespace(ns: IpcNs) -> Result<NamespaceVisit, HostError> {
    let scope = Scope {
        namespaces: [ns].into(),
        ..Scope::default()
    };
    let (_, facts) = host::gather_facts(&scope);
    let began = Instant::now();
    let session = NsSession::find(&scope.roots, ns)?;
    Ok(NamespaceVisit {
        session,
        facts,
        began,
    })
}

impl CleanupWork<'_> {
    /// Writes the outcome down and tells it.
    fn record_outcome<'a>(
        &mut self,
        entry: &'a PlanEntry,
        outcome: CleanupOutcome,
        report: &mut CleanupReport<'a>,
        sink: &mut dyn FnMut(&AppliedEntry<'a>),
    ) {
        if report.stopped.is_none() && !matches!(outcome, CleanupOutcome::NotTried) {
            let detail = outcome.detail();
            let done = self
                .audit
                .write_outcome(entry, outcome.label(), detail.as_deref());
            report.stopped = done.err();
        }
        report.add_outcome(entry, outcome, sink);
    }

    fn apply_entry(
        &mut self,
        visit: &NamespaceVisit,
        entry: &PlanEntry,
        report: &mut CleanupReport<'_>,
    ) -> CleanupOutcome {
        let (set, seen) = match self.check_entry(visit, entry) {
            Ok(checked) => checked,
            Err(outcome) => return outcome,
        };
        if self.stop.load(Ordering::Relaxed) {
            return CleanupOutcome::NotTried;
        }
        if let Err(error) = self.audit.write_intent(entry, &set, seen) {
            report.stopped = Some(error);
            return CleanupOutcome::NotTried;
        }
        let renewed;
        let visit = if visit.began.elapsed() < BATCH_TIME {
            visit
        } else {
            // The sync can take minutes: who carries the cookie by now is asked again.
            renewed = match visit_namespace(entry.sem.ns) {
                Ok(renewed) => renewed,
                Err(HostError::Gone { .. }) => return CleanupOutcome::Gone,
                Err(error) => return CleanupOutcome::Failed(error.to_string()),
            };
            let same = recheck_clock(self.plan, &renewed.facts)
                .and_then(|()| recheck_entry(entry, &set, &renewed.facts));
            if let Err(moved) = same {
                return CleanupOutcome::Moved(moved);
            }
            &renewed
        };
        let (witness, sem) = (Arc::clone(&self.witness), entry.sem);
        let completion = entry.action.completion();
        let done = visit.session.run(move |inside| {
            // The sync took its time.
            if witness
                .sighting_of(sem)
                .is_some_and(|now| now.is_news_after(seen))
            {
                return None;
            }
            if let Some(completion) = completion {
                return Some((act::complete_cookie(inside, &set, completion), None));
            }
            let act = act::remove_set(inside, &set);
            // The record of a removed set goes at once, unless the tracer is behind.
            let late = witness
                .sighting_of(sem)
                .filter(|now| now.is_news_after(seen));
            Some((act, late))
        });
        match done {
            Ok(None) => CleanupOutcome::InUse,
            Ok(Some((ActResult::Removed, Some(late)))) => CleanupOutcome::RemovedLate(late),
            Ok(Some((ActResult::Removed, None))) => CleanupOutcome::Removed,
            Ok(Some((ActResult::Completed, _))) => {
                completion.map_or(CleanupOutcome::NotTried, CleanupOutcome::Completed)
            }
            Ok(Some((ActResult::Gone, _))) => CleanupOutcome::Gone,
            Ok(Some((ActResult::Changed(set), _))) => change_between(entry, &set, &visit.facts),
            Ok(Some((ActResult::Forbidden(forbidden), _))) => CleanupOutcome::Forbidden(forbidden),
            Ok(Some((ActResult::Unread(error), _))) | Err(error) => {
                CleanupOutcome::Failed(causes_text(&error))
            }
            Ok(Some((ActResult::Refused(error), _))) => {
                CleanupOutcome::Failed(format!("the kernel refuses: {}", causes_text(&error)))
            }
        }
    }

    /// Reads a cookie and compares it with the plan.
    fn check_entry(
        &self,
        visit: &NamespaceVisit,
        entry: &PlanEntry,
    ) -> Result<(SetSnapshot, Option<Sighting>), CleanupOutcome> {
        let semid = entry.sem.semid;
        // Before the reading: what happens in between is in the reading or seen later.
        let seen = self.witness.sighting_of(entry.sem);
        let failed = |error: HostError| CleanupOutcome::Failed(error.to_string());
        let set = visit
            .session
            .run(move |inside| semaphores::read_one(inside, semid))
            .and_then(|read| read)
            .map_err(failed)?
            .ok_or(CleanupOutcome::Gone)?;
        // The clock first: without it equal stamps prove nothing.
        recheck_clock(self.plan, &visit.facts)
            .and_then(|()| recheck_entry(entry, &set, &visit.facts))
            .map_err(CleanupOutcome::Moved)?;
        let permitted = match entry.action {
            PlannedAction::Complete(completion) => act::check_completable(&set, completion),
            _ => act::check_permitted(&set),
        };
        permitted.map_err(CleanupOutcome::Forbidden)?;
        if let Some(seen) = seen
            && used_since(seen, self.plan.made_boot)
        {
            return Err(CleanupOutcome::InUse);
        }
        Ok((set, seen))
    }
}

/// Whether a trace has seen a call on a cookie after the plan was made, or one that goes on. The
/// kernel's times have seconds and miss calls in the second of the plan.
fn used_since(seen: Sighting, made: BootTime) -> bool {
    seen.last_op > made
}

/// What has changed between two readings.
fn change_between(entry: &PlanEntry, set: &SetSnapshot, facts: &HostFacts) -> CleanupOutcome {
    match recheck_entry(entry, set, facts) {
        Err(moved) => CleanupOutcome::Moved(moved),
        // A field that is in no plan.
        Ok(()) => CleanupOutcome::Moved(IdentityMismatch {
            what: MismatchedField::Readable,
            was: "the same".to_owned(),
            is: "changed".to_owned(),
        }),
    }
}
