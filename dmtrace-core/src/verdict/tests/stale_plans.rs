//! Random histories that go on after a plan was made: nothing is removed that anybody has used
//! since, and everything else is.
//!
//! `DMTRACE_CASES` sets the number of histories.

use std::{collections::BTreeMap, time::Duration};

use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    histories::{View, any_choices, config_of_cases, feed_events, view_of},
    play::Play,
};
use crate::{
    cleanup::{
        plan::{Plan, PlanOptions},
        recheck::{MismatchedField, recheck_entry},
    },
    ids::SemId,
    ledger::Ledger,
    verdict::{Class, Completeness, Confidence, Context, RemovalRules, Thresholds, survey_cookies},
};

/// A plan by everything that was seen, with the cookies that must be in it.
fn make_plan(play: &Play, ledger: &Ledger, view: &View) -> Result<Plan, TestCaseError> {
    let completeness = Completeness::default();
    let thresholds = Thresholds::default();
    let context = Context {
        facts: &view.facts,
        completeness: &completeness,
        thresholds: &thresholds,
    };
    let judged = survey_cookies(ledger, Some(&view.snapshot), &context);
    let options = PlanOptions {
        rules: RemovalRules {
            inferred: false,
            older_than: Duration::from_secs(2),
        },
        ..PlanOptions::default()
    };
    let plan = Plan::build(&judged, ledger, &context, options);
    for cookie in &judged {
        let sem = cookie.semaphore.id;
        let planned = plan.pending().any(|entry| entry.sem == sem);
        prop_assert!(!(planned && play.is_needed(sem)), "needed: {sem:?}");
        let verdict = &cookie.verdict;
        let seen = verdict.confidence == Confidence::Observed;
        let leaked = seen && matches!(verdict.class, Class::Leaked(_));
        // A quarter of an hour: udev has given up.
        let quiet = view.facts.now.0 - play.world.sems[&sem].touched > 1_100_000_000_000;
        if leaked && quiet && play.is_deserted(sem) && !planned {
            let entry = plan.entries.iter().find(|entry| entry.sem == sem);
            // Made and left with status 0, as `dmsetup udevcreatecookie` does.
            let text = format!("{entry:?}");
            prop_assert!(text.contains("Keep { because: [Inferred] }"), "{text}");
        }
    }
    Ok(plan)
}

proptest! {
    #![proptest_config(config_of_cases(400))]

    /// The plan is carried out after more has happened.
    #[test]
    fn nothing_that_was_used_since(
        before in any_choices(),
        delay in prop::sample::select(vec![2_u64, 70, 1200]),
        after in prop::collection::vec(any::<u32>(), 0..60),
    ) {
        let mut play = Play::new(Vec::new());
        let mut ledger = Ledger::new();
        ledger.reconcile(&play.world.snapshot());
        for &choice in &before {
            play.play_step(choice);
        }
        play.pass_time(delay * 1_000_000_000);
        feed_events(&mut ledger, &play.world.ring);
        let then = view_of(&play);
        let plan = make_plan(&play, &ledger, &then)?;
        // A call that fails leaves no mark, and needs none.
        let mark = |play: &Play, sem: SemId| {
            let set = &play.world.sems[&sem];
            (set.value, set.otime, set.ctime, set.waiters.len())
        };
        let marks: BTreeMap<SemId, _> =
            plan.pending().map(|entry| (entry.sem, mark(&play, entry.sem))).collect();
        for &choice in &after {
            play.play_step(choice);
        }
        let now = view_of(&play);
        for entry in plan.pending() {
            let sets = now.snapshot.namespaces.iter().filter(|ns| ns.ns == entry.sem.ns);
            let mut sets = sets.flat_map(|ns| &ns.sets);
            let Some(set) = sets.find(|set| set.semid == entry.sem.semid) else {
                // Somebody else was faster.
                continue;
            };
            let used = mark(&play, entry.sem) != marks[&entry.sem];
            match recheck_entry(entry, set, &now.facts) {
                Ok(()) => {
                    prop_assert!(!play.is_needed(entry.sem), "needed: {entry:?}");
                    prop_assert!(!used, "used: {entry:?}");
                }
                Err(moved) => prop_assert!(
                    used || matches!(moved.what, MismatchedField::Carriers | MismatchedField::Suspended),
                    "{moved}: {entry:?}"
                ),
            }
        }
    }
}
