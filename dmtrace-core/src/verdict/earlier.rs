//! What an earlier trace has found, of sets that this one did not see being made.

use super::{Class, Confidence, Context, Evidence, Subject, Undecided, Verdict};
use crate::ids::BootTime;

/// A finding stands as long as its set is there and nobody has touched it: that whoever judges now
/// knows less does not undo it. That it is the same set, untouched, is inferred from its fields.
pub(super) fn recall_finding(
    subject: &Subject<'_>,
    context: &Context<'_>,
    verdict: Verdict,
) -> Verdict {
    if !matches!(
        verdict.class,
        Class::Unknown(
            Undecided::CreatorUnknown(_) | Undecided::PossibleOwners | Undecided::ClockSet
        )
    ) {
        return verdict;
    }
    let semaphore = subject.semaphore;
    let earlier = &context.completeness.earlier;
    let place = earlier.binary_search_by_key(&semaphore.id, |it| it.sem);
    let Some(finding) = place.ok().and_then(|place| earlier.get(place)) else {
        return verdict;
    };
    let touched = |at: BootTime| at > finding.found;
    let cookie = semaphore.cookie.as_deref();
    let another = finding.key != semaphore.key
        || semaphore.created.is_some_and(touched)
        || cookie.is_some_and(|cookie| cookie.last_call.is_some_and(touched))
        || subject.set.is_none_or(|set| {
            [set.ctime, set.otime]
                .into_iter()
                .filter(|stamp| stamp.0 != 0)
                .any(|stamp| touched(context.facts.locate_stamp(stamp).earliest))
        });
    if another {
        return verdict;
    }
    let mut recalled = Verdict::new(Class::Leaked(finding.how), Confidence::Inferred)
        .with_missing_step(finding.missing)
        .with_evidence([Evidence::FoundEarlier { at: finding.found }])
        .with_evidence(verdict.evidence);
    recalled.culprit.clone_from(&finding.culprit);
    recalled
}
