//! Which cookies were reported while a trace ran: each counts once, whatever it was found to be, and
//! however often.

use std::collections::{BTreeMap, BTreeSet};

use dmtrace_core::{
    ids::{BootTime, Key, SemId},
    ledger::{Ledger, Semaphore},
};

/// A cookie, told apart from another one that has its numbers later.
type CookieId = (SemId, Key, Option<BootTime>);

fn cookie_id(semaphore: &Semaphore) -> CookieId {
    (semaphore.id, semaphore.key, semaphore.created)
}

/// Cookies with a finding that was reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct CountedFindings {
    /// With what each was found to be last.
    cookies: BTreeMap<CookieId, &'static str>,
}

impl CountedFindings {
    /// A finding on it was reported.
    pub(crate) fn add(&mut self, semaphore: &Semaphore, label: &'static str) {
        self.cookies.insert(cookie_id(semaphore), label);
    }

    /// It is no longer what it was found to be. One that is there, and is no other finding, was none.
    pub(crate) fn clear(&mut self, sem: SemId, label: &'static str, ledger: &Ledger) {
        if let Some(live) = ledger.semaphore(sem) {
            let cookie = cookie_id(live);
            if self.cookies.get(&cookie) == Some(&label) {
                self.cookies.remove(&cookie);
            }
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.cookies.len()
    }

    /// How many are gone: of those that were reported and those that are `ended`, as far as they are
    /// not `standing`.
    pub(crate) fn count_gone<'a>(
        &self,
        standing: impl Iterator<Item = &'a Semaphore>,
        ended: impl Iterator<Item = &'a Semaphore>,
    ) -> usize {
        let standing: BTreeSet<CookieId> = standing.map(cookie_id).collect();
        let mut gone: BTreeSet<CookieId> = ended.map(cookie_id).collect();
        gone.extend(self.cookies.keys());
        gone.difference(&standing).count()
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::verdict::{survey_closed, survey_cookies};

    use super::*;
    use crate::render::tests::scene::Scene;

    #[test]
    fn a_cookie_counts_once_whatever_becomes_of_it() {
        let scene = Scene::new();
        let context = scene.context();
        let live = survey_cookies(&scene.ledger, Some(&scene.snapshot), &context);
        let live: Vec<_> = live.iter().map(|it| it.semaphore).take(3).collect();
        let mut reported = CountedFindings::default();
        for set in &live {
            reported.add(set, "stuck");
            reported.add(set, "leaked");
            reported.clear(set.id, "stuck", &scene.ledger);
        }
        assert_eq!(reported.count(), 3);
        let all = || live.iter().copied();
        assert_eq!(reported.count_gone(all(), [].into_iter()), 0);
        assert_eq!(reported.count_gone(all().take(1), [].into_iter()), 2);
        // Those that were gone before anybody looked, too.
        let closed = survey_closed(&scene.ledger, &context);
        let closed = || closed.iter().map(|it| it.semaphore);
        assert_eq!(reported.count_gone(all(), closed()), closed().count());
        reported.clear(live[0].id, "leaked", &scene.ledger);
        assert_eq!(reported.count(), 2, "it was none");
    }
}
