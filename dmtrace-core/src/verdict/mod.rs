//! What each set is, how sure that is, and what to do: a pure function of the books and of what
//! the host says.
//!
//! Two rules stand above all others: a cookie that somebody may still need is never called
//! leaked, and nobody is named who was not seen to do it.

mod advice;
mod class;
mod closed;
mod completeness;
mod completer;
mod doubt;
mod due;
mod earlier;
mod evidence;
mod evidence_text;
mod forked;
mod judgement;
mod life;
mod lost;
mod outcomes;
mod owner;
mod pending;
mod provable;
mod searched;
mod signature;
mod state;
mod stuck;
mod subject;
mod survey;
#[cfg(test)]
mod tests;
mod text;
mod touched;
mod transaction;
mod waiting;

pub use advice::{Advice, Avoid, Remedy};
pub use class::{
    Class, Confidence, Culprit, CulpritRole, Healthy, LeakKind, MissingStep, NotACookie, Signature,
    StuckCause, Thresholds, Undecided,
};
pub use completeness::{BookLosses, Completeness, EarlierFinding, Losses};
pub use doubt::Doubt;
pub use due::next_due;
pub use evidence::{Evidence, ProcessFate};
pub use forked::PossibleParent;
pub(crate) use forked::possible_forks;
pub use judgement::Verdict;
pub use lost::{Completion, LossProof, Vouched, provably_lost};
pub use pending::Pending;
pub use provable::{Obstacle, RemovalRules, provably_leaked};
pub use searched::is_worth_a_search;
pub(crate) use searched::prove_orphan;
pub use state::State;
pub use subject::{Context, Subject};
pub use survey::{Judged, survey_closed, survey_closed_after, survey_cookies, survey_parallel};
pub(crate) use touched::Unfinished;
pub use touched::{NodeGoal, Touched, TouchedDevice};

use life::Knowledge;

/// Judges one set.
pub fn judge_set(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let verdict = by_state(subject, context);
    let verdict = earlier::recall_finding(subject, context, verdict);
    let verdict = searched::weigh_search(subject, context, verdict);
    // Additional: no verdict rests on what device-mapper did, because it may be unseen.
    match subject.semaphore.cookie.as_deref() {
        Some(cookie) => verdict.with_evidence(Evidence::of_devices(cookie)),
        None => verdict,
    }
}

fn by_state(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let semaphore = subject.semaphore;
    if !semaphore.is_cookie() {
        return Verdict::new(Class::Ordinary, Confidence::Observed);
    }
    if let Some(why) = foreign_reason(subject) {
        return Verdict::new(Class::Foreign(why), Confidence::Observed)
            .with_evidence([Evidence::NotACookie]);
    }
    if semaphore.ending.is_some() {
        return closed::judge_closed(subject, context);
    }
    let known = Knowledge::gather(subject, context);
    if known.waiting {
        return waiting::judge_waiting(subject, context, known);
    }
    owner::judge_by_owner(subject, context, known)
}

/// Why a set with a cookie's key is no cookie.
fn foreign_reason(subject: &Subject<'_>) -> Option<NotACookie> {
    let semaphore = subject.semaphore;
    let nsems = subject.set.map_or(semaphore.nsems, |set| set.nsems);
    if nsems > 1 || (nsems == 0 && subject.set.is_some()) {
        return Some(NotACookie::Size { nsems });
    }
    let mode = subject
        .set
        .map(|set| set.mode)
        .or(semaphore.semflg)
        .map(|mode| mode & 0o777);
    if let Some(mode) = mode
        && mode != 0o600
    {
        return Some(NotACookie::Mode { mode });
    }
    let set = subject.set?;
    (set.uid != 0 || set.cuid != 0).then_some(NotACookie::Owner {
        uid: set.uid,
        cuid: set.cuid,
    })
}
