//! What may be removed.

use std::time::Duration;

use super::scene::Scene;
use crate::{
    cleanup::{
        plan::{Excess, FuseScope, Plan, PlanEntry, PlanOptions, PlannedAction, UNPROVEN_MAX},
        recheck::{MismatchedField, recheck_entry},
    },
    facts::{HostFacts, SetSnapshot, Snapshot},
    ids::Key,
    ledger::Ledger,
    verdict::{
        Completeness, Completion, Context, Losses, Obstacle, RemovalRules, Thresholds,
        survey_cookies,
    },
};

pub(super) fn make_plan(
    scene: &Scene,
    snapshot: &Snapshot,
    facts: &HostFacts,
    options: PlanOptions,
) -> Plan {
    let context = Context {
        facts,
        completeness: &scene.completeness,
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(snapshot), &context);
    Plan::build(&judged, &scene.ledger, &context, options)
}

pub(super) fn leaked_scene(seconds: u64) -> (Scene, Snapshot, HostFacts) {
    let mut scene = Scene::new();
    let (proc, _) = scene.armed_cookie();
    scene.kill_owner(proc);
    let (snapshot, facts) = scene.facts_after(seconds);
    (scene, snapshot, facts)
}

pub(super) fn obstacles(plan: &Plan) -> &[Obstacle] {
    match &plan.entries[0].action {
        PlannedAction::Destroy | PlannedAction::Complete(_) => &[],
        PlannedAction::Keep { obstacles: because } => because,
    }
}

#[test]
fn an_old_leak_is_removed() {
    let (scene, snapshot, facts) = leaked_scene(700);
    let plan = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
    assert_eq!(plan.pending().count(), 1, "{plan:#?}");
    let entry = &plan.entries[0];
    let owner = entry.owner.as_ref().unwrap();
    assert_eq!(owner.name, "lvm");
    assert_eq!(owner.command.as_deref(), Some("lvm lvcreate"));
    assert!(entry.verdict.observed);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn a_young_leak_is_kept() {
    let (scene, snapshot, facts) = leaked_scene(100);
    let kept = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
    let expected = [
        Obstacle::EventPending { count: 1 },
        Obstacle::TooYoung {
            seconds: 100,
            needed: 600,
        },
    ];
    assert_eq!(obstacles(&kept), expected);
    let options = PlanOptions {
        rules: RemovalRules {
            older_than: Duration::from_secs(60),
            ..RemovalRules::default()
        },
        ..PlanOptions::default()
    };
    let mut idle = facts;
    idle.udev.daemon = None;
    let removed = make_plan(&scene, &snapshot, &idle, options);
    assert_eq!(removed.pending().count(), 1, "{removed:#?}");
}

/// So many leaks of owners that were killed.
fn many_leaks(count: u32) -> (Scene, Snapshot, HostFacts) {
    let mut scene = Scene::new();
    for number in 0..count {
        let proc = scene.spawn_lvm();
        let tid = scene.tid(proc);
        let sem = scene.world.create_set(proc, tid, Key(0x0d4d_0001 + number));
        scene.setval(proc, sem);
        scene.kill_owner(proc);
    }
    let (snapshot, facts) = scene.facts_after(700);
    (scene, snapshot, facts)
}

#[test]
fn the_number_of_proven_leaks_blows_no_fuse() {
    for count in [1, 100, 128, 5000] {
        let (scene, snapshot, facts) = many_leaks(count);
        let plan = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
        assert!(!plan.over_limit && plan.excess.is_none(), "{count}");
        assert_eq!(plan.pending().count(), count as usize);
        let proven = |entry: &PlanEntry| entry.is_proven_leak(plan.options);
        assert!(plan.pending().all(proven));
    }
}

#[test]
fn a_number_that_was_given_always_rules() {
    let (scene, snapshot, facts) = many_leaks(128);
    let with = |max| {
        let options = PlanOptions {
            max: Some(max),
            ..PlanOptions::default()
        };
        make_plan(&scene, &snapshot, &facts, options)
    };
    for max in [0, 1, 100, 127] {
        let plan = with(max);
        let (count, of) = (128, FuseScope::All);
        assert_eq!(plan.excess, Some(Excess { count, max, of }));
        assert!(plan.over_limit);
        assert_eq!(plan.pending().count(), 0, "part of it would be done");
    }
    assert!(!with(128).over_limit);
    // And so it does for a plan that was made before, in both directions.
    let mut made = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
    made.apply_limit(Some(127));
    assert!(made.over_limit);
    made.apply_limit(Some(1000));
    assert!(made.over_limit, "a fuse that has blown mends itself");
}

#[test]
fn what_is_not_proven_counts_beside_any_number_of_proven_leaks() {
    type Change = fn(&mut PlanEntry);
    let unproven: [(&str, Change); 4] = [
        ("inferred", |entry| entry.verdict.observed = false),
        ("its owner lives", |entry| entry.gone.clear()),
        ("nobody is known", |entry| entry.owner = None),
        ("to be completed", |entry| {
            entry.action = PlannedAction::Complete(Completion::default());
        }),
    ];
    let (scene, snapshot, facts) = many_leaks(300);
    let proven = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
    for (what, change) in unproven {
        let mixed = |count: usize| {
            let mut plan = proven.clone();
            plan.entries.iter_mut().take(count).for_each(change);
            plan.apply_limit(None);
            plan
        };
        let max = UNPROVEN_MAX;
        assert!(!mixed(max).over_limit, "{what}");
        let over = mixed(max + 1);
        let (count, of) = (max + 1, FuseScope::Unproven);
        assert_eq!(over.excess, Some(Excess { count, max, of }), "{what}");
        assert!(over.over_limit, "{what}");
    }
}

#[test]
fn leaks_that_a_person_vouches_for_are_not_proven() {
    let (mut scene, ..) = many_leaks(101);
    let (snapshot, facts) = scene.facts_after(7200);
    // All are older than the trace, so that nobody has seen them leak.
    scene.ledger = Ledger::new();
    scene.ledger.reconcile(&snapshot);
    let options = PlanOptions {
        rules: RemovalRules {
            inferred: true,
            ..RemovalRules::default()
        },
        force_unknown: true,
        ..PlanOptions::default()
    };
    let completeness = Completeness::default();
    let context = Context {
        facts: &facts,
        completeness: &completeness,
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let plan = Plan::build(&judged, &scene.ledger, &context, options);
    let (count, max, of) = (101, UNPROVEN_MAX, FuseScope::Unproven);
    assert_eq!(plan.excess, Some(Excess { count, max, of }));
    assert!(plan.over_limit);
    assert_eq!(plan.pending().count(), 0);
}

/// A person may vouch for what nobody could see, and for nothing else.
#[test]
fn a_person_may_vouch_for_a_cookie_of_a_recording_that_lacks_events() {
    let lacking = [
        Losses {
            count: 3,
            ..Losses::default()
        },
        Losses {
            end_missing: true,
            ..Losses::default()
        },
    ];
    for lost in lacking {
        let (mut scene, snapshot, facts) = leaked_scene(700);
        scene.completeness.lost = lost;
        let vouched = PlanOptions {
            force_unknown: true,
            ..PlanOptions::default()
        };
        let kept = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
        assert!(obstacles(&kept).contains(&Obstacle::EventsLost));
        let plan = make_plan(&scene, &snapshot, &facts, vouched);
        assert_eq!(obstacles(&plan), []);
        assert!(!plan.entries[0].is_proven_leak(plan.options));
        let still_kept = |change: &dyn Fn(&mut HostFacts)| {
            let mut facts = facts.clone();
            change(&mut facts);
            let plan = make_plan(&scene, &snapshot, &facts, vouched);
            assert_eq!(plan.pending().count(), 0, "{plan:#?}");
        };
        still_kept(&|facts| facts.carriers_complete = false);
        still_kept(&|facts| facts.processes_complete = false);
        still_kept(&|facts| facts.udev.queue_busy = true);
        // A program that may have made it.
        still_kept(&|facts| {
            facts.processes.entry(77).or_default().comm = "lvm".to_owned();
        });
    }
}

#[test]
fn each_rule_that_fails_is_named() {
    let (scene, snapshot, facts) = leaked_scene(700);
    let with = |change: &dyn Fn(&mut HostFacts)| {
        let mut facts = facts.clone();
        change(&mut facts);
        make_plan(&scene, &snapshot, &facts, PlanOptions::default())
    };
    let key = snapshot.namespaces[0].sets[0].key;
    let carried = with(&|facts| {
        facts.carriers.insert(key, vec![99]);
    });
    assert!(obstacles(&carried).contains(&Obstacle::Carrier { pid: 99 }));
    let reasons = || {
        vec![
            "list".to_owned(),
            "waiters".to_owned(),
            "carriers".to_owned(),
        ]
    };
    let unread = with(&|facts| {
        facts.carriers_complete = false;
        facts.incomplete = reasons();
    });
    let why = "carriers".to_owned();
    assert_eq!(obstacles(&unread), [Obstacle::CarriersUnreadable { why }]);
    let unlisted = with(&|facts| {
        facts.processes_complete = false;
        facts.incomplete = reasons();
    });
    let why = "list".to_owned();
    let hidden = [Obstacle::Inferred, Obstacle::ProcessesUnreadable { why }];
    assert_eq!(obstacles(&unlisted), hidden);
    let older: Obstacle = serde_json::from_str(r#"{"obstacle":"carriers_unreadable"}"#).unwrap();
    let why = String::new();
    assert_eq!(older, Obstacle::CarriersUnreadable { why });
    let busy = with(&|facts| facts.udev.queue_busy = true);
    assert_eq!(obstacles(&busy), [Obstacle::EventPending { count: 1 }]);
    let unread = make_plan(&scene, &Snapshot::default(), &facts, PlanOptions::default());
    assert_eq!(obstacles(&unread), [Obstacle::NotRead]);
    let mut hidden = snapshot.clone();
    hidden.namespaces[0].sets[0].first = None;
    let hidden = make_plan(&scene, &hidden, &facts, PlanOptions::default());
    assert_eq!(obstacles(&hidden), [Obstacle::Hidden]);
    let text = Obstacle::Hidden.to_string();
    assert_eq!(text, "its state may not be read: run as root");
}

#[test]
fn whatever_moves_stops_the_removal() {
    let (scene, snapshot, facts) = leaked_scene(700);
    let plan = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
    let entry = &plan.entries[0];
    let set = &snapshot.namespaces[0].sets[0];
    assert_eq!(recheck_entry(entry, set, &facts), Ok(()));
    type Edit = fn(&mut SetSnapshot);
    let moves: [(Edit, MismatchedField); 12] = [
        (|set| set.semid += 1, MismatchedField::Semid),
        (|set| set.key.0 += 1, MismatchedField::Key),
        (|set| set.ctime.0 += 1, MismatchedField::Ctime),
        (|set| set.otime.0 += 1, MismatchedField::Otime),
        (|set| set.nsems = 2, MismatchedField::Nsems),
        (|set| set.mode = 0o660, MismatchedField::Mode),
        (|set| set.uid = 1, MismatchedField::Owner),
        (|set| set.cgid = 1, MismatchedField::Owner),
        (|set| set.first = None, MismatchedField::Readable),
        (
            |set| set.first.as_mut().unwrap().value += 1,
            MismatchedField::Value,
        ),
        (
            |set| set.first.as_mut().unwrap().pid += 1,
            MismatchedField::Operator,
        ),
        (
            |set| set.first.as_mut().unwrap().zcnt = 1,
            MismatchedField::Waiters,
        ),
    ];
    for (change, what) in moves {
        let mut now = set.clone();
        change(&mut now);
        let moved = recheck_entry(entry, &now, &facts).unwrap_err();
        assert_eq!(moved.what, what);
        assert!(!moved.to_string().is_empty());
    }
    let mut now = facts.clone();
    now.carriers.insert(set.key, vec![99]);
    assert_eq!(
        recheck_entry(entry, set, &now).unwrap_err().what,
        MismatchedField::Carriers
    );
    let mut now = facts.clone();
    now.waiters.insert(entry.sem, vec![Default::default()]);
    assert_eq!(
        recheck_entry(entry, set, &now).unwrap_err().what,
        MismatchedField::Waiters
    );
    let mut now = facts;
    let owner = entry.gone[0];
    now.processes.entry(owner.tgid).or_default().start_ticks = owner.start_ticks();
    assert_eq!(
        recheck_entry(entry, set, &now).unwrap_err().what,
        MismatchedField::Users
    );
}
