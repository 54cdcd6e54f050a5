//! Who has older cookies: whoever fails for want of sets may be the one that uses them up.

use std::collections::BTreeMap;

use dmtrace_core::{
    ids::ProcId,
    ledger::Semaphore,
    search::orphan::Marks,
    verdict::{Doubt, Evidence, ProcessFate, Verdict},
};
use serde::Serialize;

use crate::wording::count_noun;

/// How many cookies older than any trace a process holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) struct HeldCookies {
    /// A search found their numbers in it, or it used them last.
    pub(crate) certain: usize,
    /// It has the number of their last user, and the clock does not tell whether it is that one.
    pub(crate) possible: usize,
}

impl HeldCookies {
    pub(crate) const fn all(self) -> usize {
        self.certain + self.possible
    }

    /// What is said of a victim that holds so many; empty of one that holds none.
    pub(crate) fn to_text(self) -> String {
        let older = |count: usize| count_noun(count, "older cookie", "older cookies");
        match (self.certain, self.possible) {
            (0, 0) => String::new(),
            (0, count) => format!(
                "it may hold {}, and be the one that leaks them",
                older(count)
            ),
            (count, _) => format!(
                "it holds {}: it may be the one that leaks them",
                older(count)
            ),
        }
    }
}

/// Who holds cookies older than any trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct OlderHolders {
    /// By number; the start too where a search has found it.
    cookies: BTreeMap<(u32, Option<ProcId>), HeldCookies>,
}

impl OlderHolders {
    /// Of judged cookies. `marks`: what searches have found, if there were any.
    pub(crate) fn find<'a>(
        judged: impl Iterator<Item = (&'a Semaphore, &'a Verdict)>,
        marks: &Marks,
    ) -> Self {
        let mut found = Self::default();
        for (semaphore, verdict) in judged {
            if Doubt::of_verdict(semaphore, verdict) != Some(Doubt::OlderThanTrace) {
                continue;
            }
            let holders = marks.last().into_iter();
            let holders = holders.flat_map(|mark| mark.search.holders(semaphore.key));
            let mut users: BTreeMap<u32, (Option<ProcId>, bool)> = holders
                .map(|(process, _)| (process.id.tgid, (Some(process.id), true)))
                .collect();
            for fact in &verdict.evidence {
                if let Evidence::LastOperator {
                    pid,
                    fate: fate @ (ProcessFate::Alive | ProcessFate::MaybeAlive),
                } = fact
                {
                    let certain = *fate == ProcessFate::Alive;
                    users.entry(*pid).or_insert((None, certain));
                }
            }
            for (pid, (id, certain)) in users {
                let held = found.cookies.entry((pid, id)).or_default();
                held.certain += usize::from(certain);
                held.possible += usize::from(!certain);
            }
        }
        found
    }

    /// How many this process holds, which lives.
    pub(crate) fn count(&self, process: ProcId) -> HeldCookies {
        let of_pid = self
            .cookies
            .iter()
            .filter(|((pid, id), _)| *pid == process.tgid && id.is_none_or(|id| id == process));
        let mut sum = HeldCookies::default();
        for (_, held) in of_pid {
            sum.certain += held.certain;
            sum.possible += held.possible;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::{ids::BootTime, verdict::survey_cookies};

    use super::*;
    use crate::render::tests::scene::Scene;

    #[test]
    fn whoever_used_older_cookies_last_holds_them() {
        let scene = Scene::new();
        let context = scene.context();
        let judged = survey_cookies(&scene.ledger, Some(&scene.snapshot), &context);
        let older =
            |it: &&dmtrace_core::verdict::Judged<'_>| it.doubt() == Some(Doubt::OlderThanTrace);
        let cookie = judged.iter().find(older).expect("one is older");
        let count = |fate, tgid| {
            let mut verdict = cookie.verdict.clone();
            verdict.evidence = vec![Evidence::LastOperator { pid: 1843, fate }];
            let pairs = [(cookie.semaphore, &verdict), (cookie.semaphore, &verdict)];
            let start = BootTime(5);
            OlderHolders::find(pairs.into_iter(), &Marks::default()).count(ProcId { tgid, start })
        };
        let held = |certain, possible| HeldCookies { certain, possible };
        assert_eq!(count(ProcessFate::Alive, 1843), held(2, 0));
        assert_eq!(count(ProcessFate::MaybeAlive, 1843), held(0, 2));
        assert_eq!(count(ProcessFate::Alive, 1844), held(0, 0));
        assert_eq!(count(ProcessFate::Gone, 1843), held(0, 0));
        assert_eq!(count(ProcessFate::Reused, 1843), held(0, 0));
        assert_eq!(held(0, 0).to_text(), "");
        assert_eq!(
            held(127, 1).to_text(),
            "it holds 127 older cookies: it may be the one that leaks them"
        );
        assert_eq!(
            held(0, 1).to_text(),
            "it may hold 1 older cookie, and be the one that leaks them"
        );
    }
}
