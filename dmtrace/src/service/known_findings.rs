//! What an earlier run of the service has told already: nobody wants to hear it at each restart.

use std::collections::{BTreeMap, BTreeSet};

use dmtrace_core::{
    ids::{BootTime, Key, SemId},
    ledger::{Ledger, Semaphore},
};

use crate::history;

/// Findings that an earlier run has told and left standing.
#[derive(Debug, Default)]
pub(super) struct KnownFindings {
    /// What they were found to be, and when.
    findings: BTreeMap<(SemId, Key), (String, BootTime)>,
    taken: usize,
}

impl KnownFindings {
    /// By the history.
    pub(super) fn from_history(findings: Vec<history::PastFinding>) -> Self {
        let findings = findings.into_iter();
        Self {
            findings: findings
                .map(|it| ((it.sem, it.key), (it.state, it.found)))
                .collect(),
            taken: 0,
        }
    }

    /// Whether this finding is one of them; each is once. A set that was made after the finding
    /// has its numbers and is another one.
    pub(super) fn already_reported(&mut self, set: &Semaphore, state: &str) -> bool {
        let place = (set.id, set.key);
        let Some((told, found)) = self.findings.remove(&place) else {
            return false;
        };
        let same = told == state && set.created.is_none_or(|created| created <= found);
        self.taken += usize::from(same);
        same
    }

    /// Those that were not found again although their sets are there: this run did not see them being
    /// made, and cannot tell. They stand as they were found.
    pub(super) fn left_standing(&self, ledger: &Ledger) -> BTreeSet<(SemId, Key)> {
        let left = self.findings.iter().filter(|((sem, key), (_, found))| {
            ledger.semaphore(*sem).is_some_and(|set| {
                set.key == *key && set.created.is_none_or(|created| created <= *found)
            })
        });
        left.map(|(place, _)| *place).collect()
    }

    /// How many were found again.
    pub(super) const fn reported_count(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_common::{ProcKey, SEM_COOKIE, SemKey, SemRecord};

    use super::*;

    const SEM: SemKey = SemKey { ns: 1, semid: 7 };
    const KEY: Key = Key(0x0d4d_0007);

    fn set_of(created: u64) -> Semaphore {
        let mut ledger = Ledger::new();
        let record = SemRecord {
            created,
            creator: ProcKey {
                start: 2,
                tgid: 2,
                exec: 0,
            },
            key: KEY.0,
            nsems: 1,
            state: SEM_COOKIE,
            ..SemRecord::default()
        };
        ledger.adopt_record(SEM.into(), &record);
        ledger.semaphore(SEM.into()).unwrap().clone()
    }

    fn sample_findings() -> KnownFindings {
        KnownFindings::from_history(vec![history::PastFinding {
            sem: SEM.into(),
            key: KEY,
            state: "leaked".to_owned(),
            found: BootTime(100),
            verdict: None,
        }])
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let mut stood = sample_findings();
        let set = set_of(50);
        assert!(stood.already_reported(&set, "leaked"));
        assert_eq!(stood.reported_count(), 1);
        // Within one run the same finding comes once; if it comes again, it was gone meanwhile.
        assert!(!stood.already_reported(&set, "leaked"));
    }

    #[test]
    fn what_cannot_be_told_again_stands_while_its_set_is_there() {
        let ledger_of = |created: u64, key: Key| {
            let mut ledger = Ledger::new();
            let record = SemRecord {
                created,
                key: key.0,
                nsems: 1,
                state: SEM_COOKIE,
                ..SemRecord::default()
            };
            ledger.adopt_record(SEM.into(), &record);
            ledger
        };
        let stood = sample_findings();
        let left = |ledger: &Ledger| stood.left_standing(ledger).len();
        assert_eq!(left(&ledger_of(50, KEY)), 1);
        assert_eq!(left(&ledger_of(150, KEY)), 0, "another set");
        assert_eq!(left(&ledger_of(50, Key(KEY.0 + 1))), 0, "another key");
        assert_eq!(left(&Ledger::new()), 0, "gone");
        let mut told = sample_findings();
        told.already_reported(&set_of(50), "leaked");
        assert!(told.left_standing(&ledger_of(50, KEY)).is_empty(), "told");
    }

    #[test]
    fn something_else_is_told() {
        assert!(
            !sample_findings().already_reported(&set_of(50), "stuck"),
            "another finding"
        );
        assert!(
            !sample_findings().already_reported(&set_of(150), "leaked"),
            "another set"
        );
        assert!(!KnownFindings::default().already_reported(&set_of(50), "leaked"));
    }
}
