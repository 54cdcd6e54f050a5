//! What a trace knows at its end.

use std::time::Duration;

use dmtrace_core::{
    facts::{self, HostFacts, Snapshot},
    verdict::{self, Context, Judged, Pending, Thresholds},
};

use super::session::{Accounting, Session};

/// Everything at the end.
pub(crate) struct TraceEnd {
    pub session: Session,
    pub accounting: Accounting,
    /// How long it traced: without the time that attaching and detaching took.
    pub ran: Duration,
    /// The kernel's tables at the end.
    pub snapshot: Snapshot,
    /// What the host said at the end.
    pub facts: HostFacts,
}

impl TraceEnd {
    /// What could not be read at the end, in one line; `None` when everything was.
    pub(crate) fn unread_summary(&self) -> Option<String> {
        facts::unread_summary(&self.snapshot, &self.facts)
    }

    /// Does what needs to know how complete everything is.
    pub(super) fn with_context<R>(
        &self,
        thresholds: &Thresholds,
        judge: impl FnOnce(&Context<'_>) -> R,
    ) -> R {
        judge(&Context {
            facts: &self.facts,
            completeness: &self.session.completeness(),
            thresholds,
        })
    }

    pub(crate) fn judge_cookies(&self, thresholds: &Thresholds) -> Vec<Judged<'_>> {
        let (ledger, snapshot) = (self.session.ledger(), Some(&self.snapshot));
        self.with_context(thresholds, |context| {
            verdict::survey_cookies(ledger, snapshot, context)
        })
    }

    /// Which of these verdicts are not final.
    pub(crate) fn pending_of<C: FromIterator<Pending>>(
        &self,
        judged: &[Judged<'_>],
        thresholds: &Thresholds,
    ) -> C {
        self.with_context(thresholds, |context| {
            let pending = judged.iter();
            pending
                .filter_map(|it| Pending::of_judged(it, context))
                .collect()
        })
    }

    /// The remembered cookies that are gone, judged.
    pub(crate) fn judge_closed(&self, thresholds: &Thresholds) -> Vec<Judged<'_>> {
        self.with_context(thresholds, |context| {
            verdict::survey_closed(self.session.ledger(), context)
        })
    }
}
