//! What advice may promise of a clean-up is what its plan does.

use super::{old::found_cookie, scene::Scene};
use crate::{
    cleanup::{
        plan::{OLDER_THAN, Plan, PlanOptions},
        prospect::{CleanFlags, Prospect},
    },
    facts::{HostFacts, Snapshot},
    ledger::Ledger,
    verdict::{Completeness, Context, Obstacle, RemovalRules, Thresholds, survey_cookies},
};

/// The prospect of the only cookie. A plan with its flags acts, and one without does not.
fn checked_prospect(ledger: &Ledger, snapshot: &Snapshot, facts: &HostFacts) -> Prospect {
    let context = Context {
        facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(ledger, Some(snapshot), &context);
    let prospect = Prospect::ask_plan(&judged[0], ledger, &context, None);
    let acts = |flags: CleanFlags| {
        let rules = RemovalRules {
            inferred: false,
            older_than: OLDER_THAN,
        };
        let options = PlanOptions {
            rules,
            abandoned: flags.abandoned,
            complete: flags.complete,
            force_unknown: flags.force_unknown,
            ..PlanOptions::default()
        };
        let plan = Plan::build(&judged, ledger, &context, options);
        plan.pending().count() == 1
    };
    if prospect.waits.is_empty() {
        if let Some(flags) = prospect.flags {
            assert!(acts(flags), "{prospect:?}");
        }
        let plain = prospect.flags == Some(CleanFlags::default());
        assert_eq!(acts(CleanFlags::default()), plain, "{prospect:?}");
        assert_eq!(prospect.obstacles.is_empty(), plain, "{prospect:?}");
    }
    prospect
}

#[test]
fn a_leak_that_was_seen_needs_no_option_but_time() {
    for (seconds, waits) in [(700, 0), (10, 1)] {
        let mut scene = Scene::new();
        let proc = scene.spawn_lvm();
        let sem = scene.create_cookie(proc);
        scene.setval(proc, sem);
        scene.kill_owner(proc);
        let (snapshot, facts) = scene.facts_after(seconds);
        let prospect = checked_prospect(&scene.ledger, &snapshot, &facts);
        assert_eq!(prospect.flags, Some(CleanFlags::default()), "{prospect:?}");
        assert_eq!(prospect.waits.len(), waits, "{prospect:?}");
    }
}

#[test]
fn a_leak_that_nobody_saw_needs_a_person() {
    let mut scene = found_cookie(2, 77, true);
    let (snapshot, facts) = scene.facts_after(7200);
    let mut ledger = Ledger::new();
    ledger.reconcile(&snapshot);
    let prospect = checked_prospect(&ledger, &snapshot, &facts);
    let force = CleanFlags::FORCE_UNKNOWN;
    assert_eq!(prospect.flags, Some(force), "{prospect:?}");
    assert!(
        prospect.obstacles.contains(&Obstacle::Inferred),
        "{prospect:?}"
    );
}

#[test]
fn what_is_in_use_is_kept_with_every_option() {
    let mut scene = Scene::new();
    scene.armed_cookie();
    let (snapshot, facts) = scene.facts_after(700);
    let prospect = checked_prospect(&scene.ledger, &snapshot, &facts);
    assert_eq!(prospect.flags, None, "{prospect:?}");
}

#[test]
fn a_stuck_waiter_without_udevd_is_not_completed() {
    let mut scene = Scene::new();
    scene.blocked_cookie();
    let (snapshot, mut facts) = scene.facts_after(700);
    facts.udev.daemon = None;
    let prospect = checked_prospect(&scene.ledger, &snapshot, &facts);
    assert_eq!(prospect.flags, None, "{prospect:?}");
    let down = prospect.completion_obstacles.contains(&Obstacle::UdevdDown);
    assert!(down, "{prospect:?}");
}
