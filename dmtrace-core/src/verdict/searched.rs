//! What a search of the memory of all processes says of a cookie that no trace saw being made.

use std::time::Duration;

use super::{Class, Confidence, Context, Evidence, MissingStep, Subject, Undecided, Verdict};
use crate::{
    facts::SetSnapshot,
    search::orphan::{OrphanObstacle, OrphanProof, OrphanRules, OrphanStage},
};

/// So many reasons why nothing is proven are told; the worst come first.
const MAX_REASONS: usize = 4;

/// Whether a search can say more of a set with this verdict: nobody was seen to make it, or not all
/// was seen of it.
pub const fn is_worth_a_search(class: Class) -> bool {
    matches!(
        class,
        Class::Orphaned(_)
            | Class::Leaked(super::LeakKind::Signature { .. })
            | Class::Unknown(
                Undecided::CreatorUnknown(_)
                    | Undecided::PossibleOwners
                    | Undecided::ClockSet
                    | Undecided::EventsLost
                    | Undecided::Contradiction
                    | Undecided::Crowded
            )
    )
}

/// Judges by the searches where nothing better is known.
pub(super) fn weigh_search(
    subject: &Subject<'_>,
    context: &Context<'_>,
    verdict: Verdict,
) -> Verdict {
    let marks = &context.completeness.marks;
    if marks.is_empty() || !is_worth_a_search(verdict.class) {
        return verdict;
    }
    let Some(set) = subject.set else {
        return verdict;
    };
    let obstacles = prove_orphan(subject, context, Duration::ZERO)
        .err()
        .unwrap_or_default();
    let mut held: Vec<&OrphanObstacle> = obstacles.iter().filter(|it| !it.is_formality()).collect();
    // Who was found says more than who could not be looked at, of whom there may be many.
    held.sort_by_key(|it| !it.names_a_user());
    if !held.is_empty() {
        let may_be_held = held.iter().any(|it| {
            matches!(
                it,
                OrphanObstacle::HeldBy { .. }
                    | OrphanObstacle::OperatorAlive { .. }
                    | OrphanObstacle::NotSearched { .. }
            )
        });
        // What its fields say is of no weight beside a living process that has its number, or may.
        let verdict = match verdict.class {
            Class::Leaked(super::LeakKind::Signature { .. }) if may_be_held => {
                Verdict::unknown(Undecided::PossibleOwners).with_evidence(verdict.evidence)
            }
            _ => verdict,
        };
        let reasons = held.into_iter().take(MAX_REASONS).cloned();
        return verdict.with_evidence(reasons.map(|why| Evidence::NotProvenBySearch { why }));
    }
    let Some((stage, missing)) = stage_of(set) else {
        return verdict;
    };
    let found = marks.last().map(|mark| Evidence::HeldByNobody {
        searched: mark.search.searched,
        bytes: mark.search.bytes,
        at: mark.search.ended,
        before: marks
            .second
            .as_ref()
            .and(marks.first.as_ref())
            .map(|first| first.search.ended),
    });
    let formalities = obstacles
        .into_iter()
        .map(|why| Evidence::NotProvenBySearch { why });
    Verdict::new(Class::Orphaned(stage), Confidence::Searched)
        .with_missing_step(missing)
        .with_evidence(found)
        .with_evidence(formalities)
        .with_evidence(verdict.evidence)
}

/// The proof that nobody can need it, by two searches. `older_than`: a longer time than the rules
/// ask for, since it was touched.
///
/// # Errors
/// The rules that do not hold.
pub(crate) fn prove_orphan(
    subject: &Subject<'_>,
    context: &Context<'_>,
    older_than: Duration,
) -> Result<OrphanProof, Vec<OrphanObstacle>> {
    let marks = &context.completeness.marks;
    let rules = OrphanRules::default();
    let rules = OrphanRules {
        waited_for: rules.waited_for.max(older_than),
        pending: rules.pending.max(older_than),
        ..rules
    };
    marks.judge(subject.semaphore.id, subject.set, context.facts, &rules)
}

/// How far its owner had come, and what it did not do.
fn stage_of(set: &SetSnapshot) -> Option<(OrphanStage, Option<MissingStep>)> {
    let state = set.first?;
    let stage = OrphanStage::of(set, state);
    let missing = match stage {
        OrphanStage::WaitedFor => MissingStep::Removal,
        OrphanStage::Unused => MissingStep::SetVal,
        OrphanStage::Pending if set.otime.0 == 0 => MissingStep::Release,
        OrphanStage::Pending => MissingStep::Wait,
    };
    Some((stage, Some(missing)))
}
