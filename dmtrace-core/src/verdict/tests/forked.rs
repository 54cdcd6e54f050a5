//! A child that was forked with the cookie, and has not used it: nothing shows that it has it.

use super::{play::OTHER, scene::Scene};
use crate::{
    cleanup::{
        plan::{Plan, PlanOptions, PlannedAction},
        recheck::{MismatchedField, recheck_entry},
    },
    event::ExitStatus,
    facts::{HostFacts, SetSnapshot},
    ids::{IpcNs, SemId},
    verdict::{
        Class, Confidence, Context, LeakKind, Obstacle, Thresholds, Undecided, survey_cookies,
    },
};

/// An owner that announced an operation, forked, and ended; the child sleeps.
fn forked_child() -> (Scene, usize, SemId) {
    let mut scene = Scene::new();
    let (owner, sem) = scene.armed_cookie();
    let child = scene
        .world
        .spawn("lvm", &["lvm", "lvcreate"], Some(owner), IpcNs::HOST);
    scene.world.exit(owner, ExitStatus::Code(0));
    (scene, child, sem)
}

/// One that shares the memory of the owner (`CLONE_VM`), or has a pipe to it, may be older than the
/// cookie.
#[test]
fn a_child_that_is_older_than_the_cookie_may_have_it() {
    let mut scene = Scene::new();
    let owner = scene.spawn_lvm();
    let child = scene
        .world
        .spawn("lvm", &["lvm", "lvcreate"], Some(owner), IpcNs::HOST);
    let sem = scene.create_cookie(owner);
    scene.setval(owner, sem);
    scene.semop_add(owner, sem, 1);
    scene.world.exit(owner, ExitStatus::Code(0));
    assert!(!has_leaked(&mut scene));
    scene.kill_owner(child);
    assert!(has_leaked(&mut scene));
}

/// Who has no memory any more cannot act, and its command line, which would tell it from a fork, is
/// gone as well.
#[test]
fn a_process_that_is_ending_has_no_cookie() {
    let (mut scene, child, sem) = forked_child();
    let pid = scene.world.procs[child].id.tgid;
    let judge = |scene: &mut Scene, ending: bool| {
        let (snapshot, mut facts) = scene.facts_after(700);
        let live = facts.processes.get_mut(&pid).expect("the child lives");
        live.ending = ending;
        live.command = None;
        let context = Context {
            facts: &facts,
            completeness: &scene.completeness,
            thresholds: &Thresholds::default(),
        };
        let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
        let of_cookie = judged.iter().find(|it| it.semaphore.id == sem);
        of_cookie.expect("the cookie is there").verdict.class
    };
    let undecided = Class::Unknown(Undecided::PossibleOwners);
    assert_eq!(judge(&mut scene, false), undecided);
    let leaked = judge(&mut scene, true);
    assert!(
        matches!(leaked, Class::Leaked(LeakKind::OwnerExited { .. })),
        "{leaked:?}"
    );
}

fn make_plan(scene: &mut Scene, options: PlanOptions) -> (Plan, SetSnapshot, HostFacts) {
    let (snapshot, facts) = scene.facts_after(700);
    let context = Context {
        facts: &facts,
        completeness: &scene.completeness,
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let plan = Plan::build(&judged, &scene.ledger, &context, options);
    let (_, set) = snapshot.sets().next().unwrap();
    (plan, set.clone(), facts)
}

fn has_leaked(scene: &mut Scene) -> bool {
    let verdict = scene.verdict(700);
    let undecided = verdict.class == Class::Unknown(Undecided::PossibleOwners);
    let leaked = matches!(verdict.class, Class::Leaked(LeakKind::OwnerExited { .. }));
    assert!(leaked || undecided, "{verdict:#?}");
    assert_eq!(leaked, verdict.confidence == Confidence::Observed);
    leaked
}

#[test]
fn a_cookie_is_not_leaked_while_a_fork_of_its_owner_may_have_it() {
    let (mut scene, child, sem) = forked_child();
    assert!(!has_leaked(&mut scene));
    // And it was right: the child completes its operation.
    scene.semop_add(child, sem, -1);
    scene.kill_owner(child);
    assert!(matches!(scene.verdict(700).class, Class::Leaked(_)));
}

#[test]
fn only_who_may_be_a_fork_with_the_cookie_keeps_it() {
    type Change = fn(&mut Scene, usize);
    let others: [(&str, Change); 5] = [
        ("it has ended", |scene, child| scene.kill_owner(child)),
        ("another program", |scene, child| {
            scene.world.procs[child].name = "cat";
        }),
        (
            "the same program, started for something else",
            |scene, child| {
                scene.world.procs[child].args = vec!["lvm".to_owned(), "pvmove".to_owned()];
            },
        ),
        ("another namespace", |scene, child| {
            scene.world.procs[child].ns = OTHER;
        }),
        ("it is older than the user", |scene, child| {
            scene.world.procs[child].id.start.0 -= 1_000_000_000;
        }),
    ];
    for (name, change) in others {
        let (mut scene, child, _) = forked_child();
        change(&mut scene, child);
        assert!(has_leaked(&mut scene), "{name}");
    }
    // The next one of the same name, as of a service that was started again.
    let (mut scene, child, _) = forked_child();
    scene.kill_owner(child);
    scene.spawn_lvm();
    assert!(has_leaked(&mut scene));
}

#[test]
fn no_option_removes_it_while_the_fork_lives() {
    for force_unknown in [false, true] {
        let options = PlanOptions {
            force_unknown,
            abandoned: true,
            ..PlanOptions::default()
        };
        let (mut scene, child, _) = forked_child();
        let (plan, ..) = make_plan(&mut scene, options);
        let PlannedAction::Keep { obstacles } = &plan.entries[0].action else {
            panic!("{plan:#?}");
        };
        let pid = scene.tid(child);
        let name = "lvm".to_owned();
        assert!(obstacles.contains(&Obstacle::MayBeFork { pid, name }));
        scene.kill_owner(child);
        assert_eq!(make_plan(&mut scene, options).0.pending().count(), 1);
    }
}

/// A plan may have been made from a process list that did not show it.
#[test]
fn it_is_looked_for_again_before_the_removal() {
    let (mut scene, child, _) = forked_child();
    let (_, _, with_child) = make_plan(&mut scene, PlanOptions::default());
    let mut unreadable = with_child.clone();
    for process in unreadable.processes.values_mut() {
        process.ipc_ns = None;
    }
    scene.kill_owner(child);
    let (plan, set, facts) = make_plan(&mut scene, PlanOptions::default());
    let entry = plan.pending().next().unwrap();
    assert_eq!(recheck_entry(entry, &set, &facts), Ok(()));
    for facts in [with_child, unreadable] {
        let moved = recheck_entry(entry, &set, &facts).unwrap_err();
        assert_eq!(moved.what, MismatchedField::Forks, "{moved}");
    }
}
