//! Verdicts on everything at once.

use std::collections::BTreeMap;

use super::{Context, Subject, Verdict, judge};
use crate::{
    facts::{SetSnapshot, Snapshot},
    ids::{BootTime, SemId},
    ledger::{EndKind, Ledger, Semaphore},
};

/// A judged cookie.
#[derive(Clone, Debug)]
pub struct Judged<'a> {
    /// The cookie in the books.
    pub semaphore: &'a Semaphore,
    /// The cookie in the snapshot.
    pub set: Option<&'a SetSnapshot>,
    /// When that snapshot began.
    pub taken: BootTime,
    /// The judgement.
    pub verdict: Verdict,
}

impl<'a> Judged<'a> {
    /// As a subject, for [`provably_leaked`](super::provably_leaked).
    pub const fn subject(&self, ledger: &'a Ledger) -> Subject<'a> {
        Subject {
            ledger,
            semaphore: self.semaphore,
            set: self.set,
            taken: self.taken,
        }
    }
}

/// Judges the remembered cookies that are gone, in the order of their ends.
pub fn survey_closed<'a>(ledger: &'a Ledger, context: &Context<'_>) -> Vec<Judged<'a>> {
    let closed = ledger.closed();
    closed.map(|it| judge_closed(ledger, it, context)).collect()
}

/// As [`survey_closed`], of those that ended after a moment; without those whose namespace ended.
pub fn survey_closed_after<'a>(
    ledger: &'a Ledger,
    context: &Context<'_>,
    after: BootTime,
) -> Vec<Judged<'a>> {
    let closed = ledger.closed().filter(|semaphore| {
        semaphore.ending.as_ref().is_some_and(|ending| {
            let with_namespace =
                matches!(ending.kind, EndKind::WithNamespace | EndKind::NamespaceGone);
            ending.at > after && !with_namespace
        })
    });
    closed.map(|it| judge_closed(ledger, it, context)).collect()
}

fn judge_closed<'a>(
    ledger: &'a Ledger,
    semaphore: &'a Semaphore,
    context: &Context<'_>,
) -> Judged<'a> {
    let subject = Subject {
        ledger,
        semaphore,
        set: None,
        taken: BootTime(0),
    };
    Judged {
        semaphore,
        set: None,
        taken: BootTime(0),
        verdict: judge(&subject, context),
    }
}

/// Judges every live cookie, in the order of keys. Reconcile the books with the snapshot before.
pub fn survey<'a>(
    ledger: &'a Ledger,
    snapshot: Option<&'a Snapshot>,
    context: &Context<'_>,
) -> Vec<Judged<'a>> {
    let namespaces = snapshot.map_or(&[][..], |snapshot| &snapshot.namespaces);
    let sets: BTreeMap<SemId, &SetSnapshot> = namespaces
        .iter()
        .flat_map(|ns| {
            ns.sets.iter().map(|set| {
                let sem = SemId {
                    ns: ns.ns,
                    semid: set.semid,
                };
                (sem, set)
            })
        })
        .collect();
    let taken = snapshot.map_or(BootTime(0), |snapshot| snapshot.began);
    ledger
        .cookies()
        .map(|semaphore| {
            let set = sets
                .get(&semaphore.id)
                .copied()
                .filter(|set| set.key == semaphore.key);
            let subject = Subject {
                ledger,
                semaphore,
                set,
                taken,
            };
            Judged {
                semaphore,
                set,
                taken,
                verdict: judge(&subject, context),
            }
        })
        .collect()
}
