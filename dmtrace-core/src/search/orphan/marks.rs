//! The searches that a verdict may rest on.

use serde::{Deserialize, Serialize};

use super::{Mark, OrphanObstacle, OrphanProof, OrphanRules, judge};
use crate::{
    facts::{HostFacts, SetSnapshot},
    ids::{BootTime, Key, SemId},
};

/// The searches that a verdict may rest on: the first, and the last that was far enough from it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Marks {
    /// The first one.
    pub first: Option<Mark>,
    /// A later one.
    pub second: Option<Mark>,
}

impl Marks {
    /// Whether nothing was searched.
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The last search.
    pub const fn last(&self) -> Option<&Mark> {
        match &self.second {
            Some(second) => Some(second),
            None => self.first.as_ref(),
        }
    }

    /// Takes in a new search: as the second one, if an older one is far enough from it, has looked for
    /// the same, and found nobody who has gone since. Otherwise it is the first.
    pub fn add(&mut self, mark: Mark, rules: &OrphanRules) {
        let olds = [self.first.take(), self.second.take()];
        let mut good = olds.into_iter().flatten().filter(|old| {
            mark.has_looked_for_no_more_than(old) && !old.is_more_in_the_way_than(&mark)
        });
        let Some(first) = good.next() else {
            self.first = Some(mark);
            return;
        };
        // Too soon to count as another one: the older keeps its time.
        if mark.is_far_from(&first, rules) {
            self.second = Some(mark);
        }
        self.first = Some(first);
    }

    /// Takes in a search that was made because a second one was due.
    pub fn add_second(&mut self, mark: Mark, rules: &OrphanRules) {
        let fits = |first: &Mark| {
            mark.has_looked_for_no_more_than(first) && mark.is_far_from(first, rules)
        };
        if self.first.as_ref().is_some_and(fits) {
            self.second = Some(mark);
        } else {
            self.add(mark, rules);
        }
    }

    /// When another search can be the second one; `None` if there is no first.
    pub fn second_due(&self, rules: &OrphanRules) -> Option<BootTime> {
        let ended = self.first.as_ref()?.search.ended;
        let between = u64::try_from(rules.between.as_nanos()).unwrap_or(u64::MAX);
        Some(BootTime(ended.0.saturating_add(between)))
    }

    /// Whether a search has looked for it.
    pub fn have_looked_for(&self, key: Key) -> bool {
        self.last()
            .is_some_and(|mark| mark.search.needles.contains(&key))
    }

    /// Judges one cookie.
    ///
    /// # Errors
    /// The rules that do not hold.
    pub fn judge(
        &self,
        sem: SemId,
        set: Option<&SetSnapshot>,
        facts: &HostFacts,
        rules: &OrphanRules,
    ) -> Result<OrphanProof, Vec<OrphanObstacle>> {
        let marks = [self.first.as_ref(), self.second.as_ref()];
        judge(sem, marks, set, facts, rules)
    }

    /// Takes a person's word that what these processes hold means nothing.
    pub fn vouch_for(&mut self, pids: &[u32]) {
        for mark in [&mut self.first, &mut self.second].into_iter().flatten() {
            mark.search.forget_holders(pids);
        }
    }
}

impl Mark {
    fn has_looked_for_no_more_than(&self, other: &Self) -> bool {
        self.search.needles.is_subset(&other.search.needles)
    }

    fn is_far_from(&self, older: &Self, rules: &OrphanRules) -> bool {
        let (ended, began) = (older.search.ended, self.search.began);
        began > ended && began.duration_since(ended) >= rules.between
    }

    /// Whether it keeps something that the newer one does not keep.
    fn is_more_in_the_way_than(&self, newer: &Self) -> bool {
        let held = |mark: &Self, key: Key| mark.search.holders(key).next().is_some();
        let mut keys = newer.search.needles.iter();
        let freed = keys.any(|&key| held(self, key) && !held(newer, key));
        freed || (newer.proves_something() && !self.proves_something())
    }

    /// Whether its search went to its end and saw everything that counts.
    fn proves_something(&self) -> bool {
        let search = &self.search;
        !search.cancelled
            && search.stable
            && search.hidden.is_none()
            && search.not_searched.iter().all(|it| !it.matters())
            && self.udev_idle
            && self.suspended.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        ids::ProcId,
        search::{Form, HolderClass, HolderProcess, Place, Search, Spot},
    };

    const SECOND: u64 = 1_000_000_000;
    const ONE: Key = Key(0x0d4d_0001);
    const OTHER: Key = Key(0x0d4d_0002);

    fn mark_at(second: u64, keys: &[Key], held: &[Key]) -> Mark {
        let mut search = Search {
            began: BootTime(second * SECOND),
            ended: BootTime((second + 1) * SECOND),
            needles: keys.iter().copied().collect(),
            stable: true,
            ..Search::default()
        };
        let spot = Spot {
            form: Form::Aligned4,
            place: Place::Heap,
            count: 1,
        };
        let holder = HolderProcess {
            id: ProcId {
                tgid: 9,
                start: BootTime(1),
            },
            comm: "d".to_owned(),
            exe: String::new(),
            class: HolderClass::Actor,
            traits: BTreeSet::new(),
        };
        search.add(holder, held.iter().map(|&key| (key, spot)));
        Mark {
            search,
            udev_idle: true,
            ..Mark::default()
        }
    }

    /// When the two searches were.
    fn times(marks: &Marks) -> [Option<u64>; 2] {
        let time = |mark: &Option<Mark>| mark.as_ref().map(|it| it.search.began.0 / SECOND);
        [time(&marks.first), time(&marks.second)]
    }

    fn after(all: &[Mark]) -> Marks {
        let mut marks = Marks::default();
        for mark in all {
            marks.add(mark.clone(), &OrphanRules::default());
        }
        marks
    }

    #[test]
    fn the_first_stays_as_long_as_it_serves() {
        let of = |second| mark_at(second, &[ONE], &[]);
        assert_eq!(times(&after(&[of(10)])), [Some(10), None]);
        assert_eq!(
            times(&after(&[of(10), of(20)])),
            [Some(10), None],
            "too soon"
        );
        let three = after(&[of(10), of(50), of(100)]);
        assert_eq!(times(&three), [Some(10), Some(100)]);
        let more = mark_at(200, &[ONE, OTHER], &[]);
        let more = after(&[of(10), of(50), more]);
        assert_eq!(
            times(&more),
            [Some(200), None],
            "did not look for the other"
        );
    }

    /// A daemon that had the numbers is searched, ends, and everything is searched again.
    #[test]
    fn who_has_gone_is_not_in_the_way_for_ever() {
        let held = |second| mark_at(second, &[ONE], &[ONE]);
        let free = |second| mark_at(second, &[ONE], &[]);
        let mut marks = after(&[held(10), held(50), free(100)]);
        assert_eq!(times(&marks), [Some(100), None]);
        marks.add_second(free(140), &OrphanRules::default());
        assert_eq!(times(&marks), [Some(100), Some(140)]);
        assert_eq!(times(&after(&[held(10), held(50)])), [Some(10), Some(50)]);
        assert_eq!(times(&after(&[free(10), held(50)])), [Some(10), Some(50)]);
        let mut unstable = free(10);
        unstable.search.stable = false;
        assert_eq!(times(&after(&[unstable, free(50)])), [Some(50), None]);
    }

    /// The second one of a command that has waited for it is one, whatever has gone meanwhile.
    #[test]
    fn a_second_search_that_was_due_counts() {
        let mut marks = after(&[mark_at(10, &[ONE, OTHER], &[OTHER])]);
        marks.add_second(mark_at(50, &[ONE, OTHER], &[]), &OrphanRules::default());
        assert_eq!(times(&marks), [Some(10), Some(50)]);
    }
}
