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
        plan::{Action, Plan, PlanEntry},
        recheck::{Moved, What, recheck},
    },
    facts::{HostFacts, SetSnapshot},
    ids::{BootTime, IpcNs},
    verdict::Completion,
};
use serde_json::json;

use super::{
    act::{self, Act, Forbidden},
    audit::{Audit, AuditError},
    result::OutcomeKind,
    witness::{Sighting, Witness},
};
use crate::{
    host::{self, HostError, NsSession, Scope, semaphores},
    wording::causes,
};

/// What came of one cookie of a plan.
#[derive(Debug)]
pub enum Outcome {
    /// It is removed.
    Removed,
    /// It is removed, and somebody used it between the last look and the removal.
    RemovedLate(Sighting),
    /// Lost completions are made good.
    Completed(Completion),
    /// It had gone by itself.
    Gone,
    /// It is not what it was when the plan was made; left alone.
    Moved(Moved),
    /// Somebody uses it now, as a running trace has seen; left alone.
    InUse,
    /// It is out of bounds, whatever the plan says; left alone.
    Forbidden(Forbidden),
    /// It could not be reached, read or removed.
    Failed(String),
    /// Not tried: interrupted, or the audit record could not be kept.
    NotTried,
}

impl Outcome {
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
            Self::Completed(Completion { value, count }) => {
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
pub struct Applied<'a> {
    /// The cookie.
    pub entry: &'a PlanEntry,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Report<'a> {
    /// One for each removal in the plan.
    pub applied: Vec<Applied<'a>>,
    /// Why the rest was not tried.
    pub stopped: Option<AuditError>,
    /// Whether a signal ended it early.
    pub interrupted: bool,
}

impl Report<'_> {
    /// How many came out like this.
    pub fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
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
struct Work<'a> {
    plan: &'a Plan,
    audit: &'a mut Audit,
    witness: Arc<dyn Witness>,
    stop: &'a AtomicBool,
}

/// A visit to one namespace.
struct Visit {
    session: NsSession,
    facts: HostFacts,
    began: Instant,
}

/// Carries out a plan. `stop` ends it between two cookies; `sink` gets each outcome as it comes.
pub fn apply<'a>(
    plan: &'a Plan,
    audit: &mut Audit,
    witness: Arc<dyn Witness>,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(&Applied<'a>),
) -> Report<'a> {
    let mut report = Report::default();
    if let Err(error) = audit.begin(plan) {
        report.stopped = Some(error);
    }
    let mut spaces: BTreeMap<IpcNs, Vec<&PlanEntry>> = BTreeMap::new();
    for entry in plan.acts() {
        spaces.entry(entry.sem.ns).or_default().push(entry);
    }
    let mut work = Work {
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
                Some(visit(ns))
            };
            match visit {
                None => {
                    for entry in std::mem::take(&mut rest) {
                        report.add(entry, Outcome::NotTried, sink);
                    }
                }
                Some(Err(error)) => {
                    // The same for all: without a way in, none of them can be touched.
                    for entry in std::mem::take(&mut rest) {
                        let outcome = match &error {
                            HostError::Gone { .. } => Outcome::Gone,
                            error => Outcome::Failed(error.to_string()),
                        };
                        work.tell(entry, outcome, &mut report, sink);
                    }
                }
                Some(Ok(visit)) => {
                    let outcome = work.one(&visit, first, &mut report);
                    work.tell(first, outcome, &mut report, sink);
                    rest = &rest[1..];
                    while let Some((next, _)) = rest.split_first()
                        && visit.began.elapsed() < BATCH_TIME
                        && report.stopped.is_none()
                        && !stop.load(Ordering::Relaxed)
                    {
                        let outcome = work.one(&visit, next, &mut report);
                        work.tell(next, outcome, &mut report, sink);
                        rest = &rest[1..];
                    }
                }
            }
        }
    }
    report.interrupted = stop.load(Ordering::Relaxed);
    if report.stopped.is_none() {
        let counts = json!({
            "removed": report.count(|outcome| matches!(outcome, Outcome::Removed | Outcome::RemovedLate(_))),
            "completed": report.count(|outcome| matches!(outcome, Outcome::Completed(_))),
            "gone": report.count(|outcome| matches!(outcome, Outcome::Gone)),
            "left": report.count(|outcome| !outcome.is_done()),
            "interrupted": report.interrupted,
        });
        report.stopped = work.audit.end(counts).err();
    }
    report
}

impl<'a> Report<'a> {
    fn add(&mut self, entry: &'a PlanEntry, outcome: Outcome, sink: &mut dyn FnMut(&Applied<'a>)) {
        let applied = Applied { entry, outcome };
        sink(&applied);
        self.applied.push(applied);
    }
}

/// Gathers the facts, then enters.
fn visit(ns: IpcNs) -> Result<Visit, HostError> {
    let scope = Scope {
        namespaces: [ns].into(),
        ..Scope::default()
    };
    let (_, facts) = host::gather(&scope);
    let began = Instant::now();
    let session = NsSession::find(&scope.roots, ns)?;
    Ok(Visit {
        session,
        facts,
        began,
    })
}

impl Work<'_> {
    /// Writes the outcome down and tells it.
    fn tell<'a>(
        &mut self,
        entry: &'a PlanEntry,
        outcome: Outcome,
        report: &mut Report<'a>,
        sink: &mut dyn FnMut(&Applied<'a>),
    ) {
        if report.stopped.is_none() && !matches!(outcome, Outcome::NotTried) {
            let detail = outcome.detail();
            let done = self
                .audit
                .outcome(entry, outcome.label(), detail.as_deref());
            report.stopped = done.err();
        }
        report.add(entry, outcome, sink);
    }

    fn one(&mut self, visit: &Visit, entry: &PlanEntry, report: &mut Report<'_>) -> Outcome {
        let (set, seen) = match self.check(visit, entry) {
            Ok(checked) => checked,
            Err(outcome) => return outcome,
        };
        if self.stop.load(Ordering::Relaxed) {
            return Outcome::NotTried;
        }
        if let Err(error) = self.audit.intent(entry, &set, seen) {
            report.stopped = Some(error);
            return Outcome::NotTried;
        }
        let (witness, sem) = (Arc::clone(&self.witness), entry.sem);
        let completion = entry.action.completion();
        let done = visit.session.run(move |inside| {
            // The sync took its time.
            if witness.look(sem).is_some_and(|now| now.is_news_after(seen)) {
                return None;
            }
            if let Some(completion) = completion {
                return Some((act::complete(inside, &set, completion), None));
            }
            let act = act::remove(inside, &set);
            // The record of a removed set goes at once, unless the tracer is behind.
            let late = witness.look(sem).filter(|now| now.is_news_after(seen));
            Some((act, late))
        });
        match done {
            Ok(None) => Outcome::InUse,
            Ok(Some((Act::Removed, Some(late)))) => Outcome::RemovedLate(late),
            Ok(Some((Act::Removed, None))) => Outcome::Removed,
            Ok(Some((Act::Completed, _))) => {
                completion.map_or(Outcome::NotTried, Outcome::Completed)
            }
            Ok(Some((Act::Gone, _))) => Outcome::Gone,
            Ok(Some((Act::Changed(set), _))) => moved(entry, &set, &visit.facts),
            Ok(Some((Act::Forbidden(forbidden), _))) => Outcome::Forbidden(forbidden),
            Ok(Some((Act::Unread(error), _))) | Err(error) => Outcome::Failed(causes(&error)),
            Ok(Some((Act::Refused(error), _))) => {
                Outcome::Failed(format!("the kernel refuses: {}", causes(&error)))
            }
        }
    }

    /// Reads a cookie and compares it with the plan.
    fn check(
        &self,
        visit: &Visit,
        entry: &PlanEntry,
    ) -> Result<(SetSnapshot, Option<Sighting>), Outcome> {
        let semid = entry.sem.semid;
        // Before the reading: what happens in between is in the reading or seen later.
        let seen = self.witness.look(entry.sem);
        let failed = |error: HostError| Outcome::Failed(error.to_string());
        let set = visit
            .session
            .run(move |inside| semaphores::read_one(inside, semid))
            .and_then(|read| read)
            .map_err(failed)?
            .ok_or(Outcome::Gone)?;
        recheck(entry, &set, &visit.facts).map_err(Outcome::Moved)?;
        let permitted = match entry.action {
            Action::Complete(_) => act::completable(&set),
            _ => act::permitted(&set),
        };
        permitted.map_err(Outcome::Forbidden)?;
        if let Some(seen) = seen
            && used_since(seen, self.plan.made_boot)
        {
            return Err(Outcome::InUse);
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
fn moved(entry: &PlanEntry, set: &SetSnapshot, facts: &HostFacts) -> Outcome {
    match recheck(entry, set, facts) {
        Err(moved) => Outcome::Moved(moved),
        // A field that is in no plan.
        Ok(()) => Outcome::Moved(Moved {
            what: What::Readable,
            was: "the same".to_owned(),
            is: "changed".to_owned(),
        }),
    }
}
