//! Verdicts that several judges reach.

use super::{Class, Evidence, Healthy, Verdict, completer, life::Knowledge};
use crate::ledger::{Cookie, Ledger, UserStage};

pub(super) fn open_verdict(known: Knowledge, evidence: Vec<Evidence>) -> Verdict {
    Verdict::new(Class::Healthy(Healthy::Open), known.confidence())
        .with_evidence(evidence)
        .with_evidence(known.evidence)
}

/// More completions than announced operations: the next of the owner's decrements fails.
pub(super) fn over_completed(cookie: &Cookie, known: &Knowledge) -> bool {
    let complete = !known.unseen && !known.contradiction;
    // Whoever decremented last may have been about to wait, and was killed or stopped before: the
    // entry into a wait completes nothing.
    let entering = cookie
        .users
        .iter()
        .filter(|user| user.stage == UserStage::SelfCompleted)
        .count() as i64;
    complete && cookie.counts.setvals > 0 && cookie.counts.outstanding_increments() + entering < 0
}

pub(super) fn over_completed_verdict(
    ledger: &Ledger,
    cookie: &Cookie,
    known: Knowledge,
    mut evidence: Vec<Evidence>,
) -> Verdict {
    evidence.push(Evidence::Completed {
        count: cookie.counts.completions,
    });
    if cookie.counts.failed_decrements > 0 {
        evidence.push(Evidence::DecrementsFailed {
            count: cookie.counts.failed_decrements,
        });
    }
    let (culprit, strangers) = completer::blame_completer(cookie, ledger);
    evidence.extend(strangers);
    let mut verdict = Verdict::new(Class::OverCompleted, known.confidence())
        .with_evidence(evidence)
        .with_evidence(known.evidence);
    verdict.culprit = culprit;
    verdict
}
