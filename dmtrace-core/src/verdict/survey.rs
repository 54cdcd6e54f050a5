//! Verdicts on everything at once.

use std::collections::BTreeMap;

use super::{Context, Doubt, Subject, Verdict, judge_set};
use crate::{
    facts::{SetSnapshot, Snapshot},
    ids::{BootTime, SemId},
    ledger::{EndKind, Ledger, Semaphore},
    parallel::{chunk_size, map},
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

    /// Why it is left open whether it is leaked, if it is.
    pub const fn doubt(&self) -> Option<Doubt> {
        Doubt::of_verdict(self.semaphore, &self.verdict)
    }
}

/// Judges the remembered cookies that are gone, in the order of their ends.
pub fn survey_closed<'a>(ledger: &'a Ledger, context: &Context<'_>) -> Vec<Judged<'a>> {
    let closed = ledger.closed_cookies();
    closed.map(|it| judge_closed(ledger, it, context)).collect()
}

/// As [`survey_closed`], of those that ended after a moment; without those whose namespace ended.
pub fn survey_closed_after<'a>(
    ledger: &'a Ledger,
    context: &Context<'_>,
    after: BootTime,
) -> Vec<Judged<'a>> {
    let closed = ledger.closed_cookies().filter(|semaphore| {
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
    judge_subject(&subject, context)
}

fn judge_subject<'a>(subject: &Subject<'a>, context: &Context<'_>) -> Judged<'a> {
    Judged {
        semaphore: subject.semaphore,
        set: subject.set,
        taken: subject.taken,
        verdict: judge_set(subject, context),
    }
}

/// Judges every live cookie, in the order of keys. Reconcile the books with the snapshot before.
pub fn survey_cookies<'a>(
    ledger: &'a Ledger,
    snapshot: Option<&'a Snapshot>,
    context: &Context<'_>,
) -> Vec<Judged<'a>> {
    let view = View::new(ledger, snapshot);
    let cookies = ledger.live_cookies();
    cookies.map(|it| view.judge(it, context)).collect()
}

/// As [`survey_cookies`], on all processors, and in the order of the sets' identities: for somebody
/// who waits for a full table.
pub fn survey_parallel<'a>(
    ledger: &'a Ledger,
    snapshot: Option<&'a Snapshot>,
    context: &Context<'_>,
) -> Vec<Judged<'a>> {
    let view = View::new(ledger, snapshot);
    // Rows of a table are large to sort.
    let mut cookies: Vec<&Semaphore> = ledger.live_cookies().collect();
    cookies.sort_unstable_by_key(|it| it.id);
    let share = chunk_size(cookies.len(), MIN_CHUNK);
    let judged = map(cookies.chunks(share), |part| -> Vec<Judged<'a>> {
        part.iter().map(|it| view.judge(it, context)).collect()
    });
    judged.into_iter().flatten().collect()
}

/// Fewer cookies are judged faster than a thread is started.
const MIN_CHUNK: usize = 2048;

/// The books and a snapshot.
struct View<'a> {
    ledger: &'a Ledger,
    sets: BTreeMap<SemId, &'a SetSnapshot>,
    taken: BootTime,
}

impl<'a> View<'a> {
    fn new(ledger: &'a Ledger, snapshot: Option<&'a Snapshot>) -> Self {
        Self {
            ledger,
            sets: snapshot.into_iter().flat_map(Snapshot::sets).collect(),
            taken: snapshot.map_or(BootTime(0), |snapshot| snapshot.began),
        }
    }

    fn judge(&self, semaphore: &'a Semaphore, context: &Context<'_>) -> Judged<'a> {
        let set = self.sets.get(&semaphore.id).copied();
        let set = set.filter(|set| set.key == semaphore.key);
        let subject = Subject {
            ledger: self.ledger,
            semaphore,
            set,
            taken: self.taken,
        };
        judge_subject(&subject, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Actor, Event, EventKind, Quality},
        facts::HostFacts,
        ids::{IpcNs, Key},
        verdict::{Completeness, Thresholds},
    };

    #[test]
    fn together_is_the_same_by_identity() {
        let mut ledger = Ledger::new();
        for number in 0..3 * MIN_CHUNK as u32 + 7 {
            ledger.apply(&Event {
                at: BootTime(u64::from(number)),
                began: None,
                actor: Actor::default(),
                quality: Quality::default(),
                what: EventKind::Created {
                    sem: SemId {
                        ns: IpcNs::HOST,
                        semid: number as i32,
                    },
                    key: Key(0x0d4d_0000 | (number * 7919) & 0xffff),
                    nsems: 1,
                    semflg: 0o600,
                },
            });
        }
        let context = Context {
            facts: &HostFacts::default(),
            completeness: &Completeness::default(),
            thresholds: &Thresholds::default(),
        };
        let shown = |all: Vec<Judged<'_>>| -> Vec<String> {
            all.iter().map(|it| format!("{it:?}")).collect()
        };
        let mut one_by_one = survey_cookies(&ledger, None, &context);
        one_by_one.sort_by_key(|it| it.semaphore.id);
        let one_by_one = shown(one_by_one);
        assert_eq!(one_by_one.len(), 3 * MIN_CHUNK + 7);
        assert!(shown(survey_parallel(&ledger, None, &context)) == one_by_one);
    }
}
