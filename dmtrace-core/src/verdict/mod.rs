//! What each set is, how sure that is, and what to do: a pure function of the books and of what
//! the host says.
//!
//! Two rules stand above all others: a cookie that somebody may still need is never called
//! leaked, and nobody is named who was not seen to do it.

mod advice;
mod class;
mod closed;
mod completer;
mod due;
mod evidence;
mod evidence_text;
mod life;
mod lost;
mod owner;
mod provable;
mod signature;
mod state;
mod stuck;
mod survey;
#[cfg(test)]
mod tests;
mod text;
mod touched;
mod transaction;
mod waiting;

pub use advice::{Advice, Avoid, Remedy};
pub use class::{
    Cause, Class, Confidence, Culprit, Healthy, How, MissingStep, NotACookie, Reason, Role,
    Signature, Thresholds, Verdict,
};
pub use due::next_due;
pub use evidence::{Evidence, Fate};
pub use lost::{Completion, Vouched, provably_lost};
pub use provable::{Obstacle, Rules, provably_leaked};
pub use state::State;
pub use survey::{Judged, survey, survey_closed, survey_closed_after, survey_together};
pub use touched::{NodeGoal, Touched, TouchedDevice};

use serde::{Deserialize, Serialize};

use crate::{
    backend::BlindSpot,
    facts::{HostFacts, SetSnapshot},
    ids::BootTime,
    ledger::{Ledger, Semaphore},
};
use life::Knowledge;

/// One set to judge.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The books, for processes.
    pub ledger: &'a Ledger,
    /// The set in the books, live or closed.
    pub semaphore: &'a Semaphore,
    /// The set in a snapshot, if there is one.
    pub set: Option<&'a SetSnapshot>,
    /// When that snapshot began. Events after it make it stale.
    pub taken: BootTime,
}

/// What is the same for all sets.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the host says.
    pub facts: &'a HostFacts,
    /// What may be missing in the books.
    pub completeness: &'a Completeness,
    /// Limits of time.
    pub thresholds: &'a Thresholds,
}

/// What may be missing in the books as a whole. What is missing for one cookie is in its
/// [`Gaps`](crate::ledger::Gaps).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Completeness {
    /// Messages on live sets that were lost, and not yet made good by adopting the kernel maps.
    pub lost: Losses,
    /// The same on what has ended since: the story of a cookie that is gone may lack something.
    pub ended: Losses,
    /// What the backend cannot see.
    pub blind: Vec<BlindSpot>,
}

/// Messages that were lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// How many.
    pub count: u64,
    /// The last one was lost before this moment; `None` if that is not known.
    pub until: Option<BootTime>,
}

impl Losses {
    /// One was lost, at whatever time.
    pub const fn add(&mut self, count: u64) {
        if count > 0 {
            self.count += count;
            self.until = None;
        }
    }

    /// How many a set made at that moment may lack: none if all were lost before.
    fn since(self, created: Option<BootTime>) -> u64 {
        match (created, self.until) {
            (Some(created), Some(until)) if created > until => 0,
            _ => self.count,
        }
    }
}

impl Completeness {
    /// How many messages this set may lack. A trace runs for months: what was lost before the set
    /// was made does not matter to it.
    fn lost_of(&self, set: &Semaphore) -> u64 {
        let ended = match set.ending {
            Some(_) => self.ended.since(set.created),
            None => 0,
        };
        self.lost.since(set.created) + ended
    }
}

/// Judges one set.
pub fn judge(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let verdict = by_state(subject, context);
    // Additional: no verdict rests on what device-mapper did, because it may be unseen.
    match subject.semaphore.cookie.as_deref() {
        Some(cookie) => verdict.with(Evidence::of_devices(cookie)),
        None => verdict,
    }
}

fn by_state(subject: &Subject<'_>, context: &Context<'_>) -> Verdict {
    let semaphore = subject.semaphore;
    if !semaphore.is_cookie() {
        return Verdict::of(Class::Ordinary, Confidence::Observed);
    }
    if let Some(why) = foreign(subject) {
        return Verdict::of(Class::Foreign(why), Confidence::Observed).with([Evidence::NotACookie]);
    }
    if semaphore.ending.is_some() {
        return closed::judge(subject, context);
    }
    let known = Knowledge::gather(subject, context);
    if known.waiting {
        return waiting::judge(subject, context, known);
    }
    owner::judge(subject, context, known)
}

/// Why a set with a cookie's key is no cookie.
fn foreign(subject: &Subject<'_>) -> Option<NotACookie> {
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

impl Verdict {
    fn of(class: Class, confidence: Confidence) -> Self {
        Self {
            class,
            confidence,
            evidence: Vec::new(),
            missing: None,
            advice: advice::advice(class),
            culprit: None,
            died_at: None,
        }
    }

    fn unknown(reason: Reason) -> Self {
        Self::of(Class::Unknown(reason), Confidence::Unknown(reason))
    }

    fn with(mut self, evidence: impl IntoIterator<Item = Evidence>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    fn missing(mut self, step: Option<MissingStep>) -> Self {
        self.missing = step;
        self
    }
}
