//! A cause that has come to pass stays, whatever ends its owner later; and the books tell the same
//! to whoever reads them.

use proptest::{prelude::*, test_runner::TestCaseResult};

use super::{
    classes::begin_transaction,
    histories::{View, any_choices, config_of_cases, feed_events, view_of},
    play::Play,
    scene::Scene,
};
use crate::{
    cleanup::plan::{Plan, PlanOptions},
    event::ExitStatus,
    ids::{IpcNs, Key, SemId},
    ledger::{Ledger, UserStage},
    verdict::{
        Class, Completeness, Confidence, Context, EarlierFinding, LeakKind, Pending, Thresholds,
        Undecided, Verdict, survey_closed, survey_cookies,
    },
};

/// A daemon whose removals all fail: it takes back its own part of each cookie and goes on.
fn leave_behind(scene: &mut Scene, count: usize) -> (usize, Vec<SemId>) {
    let proc = scene
        .world
        .spawn("dockerd", &["dockerd"], None, IpcNs::HOST);
    let tid = scene.tid(proc);
    let sems = (0..count).map(|number| {
        let sem = scene
            .world
            .create_set(proc, tid, Key(0x0d4d_0100 + number as u32));
        scene.world.setval(proc, tid, sem).unwrap();
        for delta in [1, -1] {
            scene.world.semop_add(proc, tid, sem, delta).unwrap();
        }
        scene.world.advance_clock(30_000_000);
        sem
    });
    let sems = sems.collect();
    (proc, sems)
}

/// Verdicts on what is there, by semid, and what is pending.
fn judge_all(scene: &mut Scene, seconds: u64) -> Vec<(SemId, Verdict, Option<Pending>)> {
    let (snapshot, facts) = scene.facts_after(seconds);
    scene.ledger.reconcile(&snapshot);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let survey = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let mut judged: Vec<_> = survey
        .into_iter()
        .map(|it| {
            let pending = Pending::of_judged(&it, &context);
            (it.semaphore.id, it.verdict, pending)
        })
        .collect();
    judged.sort_by_key(|(sem, ..)| *sem);
    judged
}

#[test]
fn what_a_daemon_left_behind_stays_so_when_it_is_killed() {
    for end in [
        ExitStatus::Signal(9),
        ExitStatus::Signal(15),
        ExitStatus::Code(0),
    ] {
        for seconds in [0, 13, 7200] {
            let mut scene = Scene::new();
            let (proc, _) = leave_behind(&mut scene, 12);
            judge_all(&mut scene, seconds);
            scene.world.exit(proc, end);
            let judged = judge_all(&mut scene, 2);
            let (last, earlier) = judged.split_last().unwrap();
            for (_, verdict, _) in earlier {
                assert_eq!(verdict.class, Class::Leaked(LeakKind::NeverWaited), "{end}");
                assert_eq!(verdict.confidence, Confidence::Observed);
            }
            let step = UserStage::SelfCompleted;
            let killed = match end {
                ExitStatus::Signal(signal) => LeakKind::OwnerKilled { signal, step },
                ExitStatus::Code(status) => LeakKind::OwnerExited { status, step },
            };
            assert_eq!(last.1.class, Class::Leaked(killed));
        }
    }
}

#[test]
fn while_a_daemon_lives_its_leaks_mature_and_the_last_one_is_pending() {
    let mut scene = Scene::new();
    leave_behind(&mut scene, 12);
    let states = |judged: &[(SemId, Verdict, Option<Pending>)]| {
        let leaked = |it: &&(SemId, Verdict, Option<Pending>)| it.1.class.is_finding();
        let pending = judged.iter().filter_map(|it| it.2).collect::<Vec<_>>();
        (judged.iter().filter(leaked).count(), pending)
    };
    let observed = |judged: &[(SemId, Verdict, Option<Pending>)]| {
        let leaked = judged.iter().filter(|it| it.1.class.is_finding());
        leaked
            .filter(|it| it.1.confidence == Confidence::Observed)
            .count()
    };
    let soon = judge_all(&mut scene, 2);
    assert_eq!(states(&soon), (0, vec![Pending::Maturing; 12]));
    // Ten were followed by two others each: to come back would take three at once.
    let later = judge_all(&mut scene, 6);
    assert_eq!(states(&later), (11, vec![Pending::OwnerSilent]));
    assert_eq!(observed(&later), 10);
    let much_later = judge_all(&mut scene, 60);
    assert_eq!(states(&much_later), (11, vec![Pending::OwnerSilent]));
    assert_eq!(observed(&much_later), 11);
}

#[test]
fn all_that_a_living_daemon_left_may_be_removed_at_once() {
    let mut scene = Scene::new();
    leave_behind(&mut scene, 130);
    let (snapshot, facts) = scene.facts_after(700);
    scene.ledger.reconcile(&snapshot);
    let completeness = Completeness::default();
    let context = Context {
        facts: &facts,
        completeness: &completeness,
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let plan = |abandoned| {
        let options = PlanOptions {
            abandoned,
            ..PlanOptions::default()
        };
        Plan::build(&judged, &scene.ledger, &context, options)
    };
    assert_eq!(plan(false).pending().count(), 0);
    // All but the last one, for which the daemon may still wait.
    assert!(!plan(true).over_limit);
    assert_eq!(plan(true).pending().count(), 129);
}

#[test]
fn removing_what_a_living_daemon_left_is_no_accident() {
    let mut scene = Scene::new();
    let (proc, sems) = leave_behind(&mut scene, 4);
    judge_all(&mut scene, 20);
    let args = ["dmtrace", "clean"];
    let admin = scene.world.spawn("dmtrace", &args, None, IpcNs::HOST);
    for &sem in &sems[..3] {
        scene.remove_set(admin, sem);
    }
    for exits in [false, true] {
        if exits {
            scene.kill_owner(proc);
        }
        for &sem in &sems[..3] {
            let verdict = scene.closed(sem);
            assert_eq!(verdict.class, Class::CleanedUp(LeakKind::NeverWaited));
            let culprit = verdict.culprit.unwrap().who.image.id;
            assert_eq!(culprit, scene.world.procs[proc].id);
        }
    }
    // Of the last one nobody knows.
    scene.remove_set(admin, sems[3]);
    assert_ne!(
        scene.closed(sems[3]).class,
        Class::CleanedUp(LeakKind::NeverWaited)
    );
}

#[test]
fn what_strangers_do_to_it_does_not_undo_that_it_was_left() {
    let mut scene = Scene::new();
    let (_, sems) = leave_behind(&mut scene, 4);
    judge_all(&mut scene, 70);
    let leaked = |scene: &mut Scene| judge_all(scene, 0)[0].1.class;
    assert_eq!(leaked(&mut scene), Class::Leaked(LeakKind::NeverWaited));
    scene.spawn_udev(sems[0]);
    assert_eq!(leaked(&mut scene), Class::Leaked(LeakKind::NeverWaited));
    // Released by somebody else, whose own decrement finds nothing.
    let args = ["dmsetup", "udevreleasecookie"];
    let release = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    let tid = scene.tid(release);
    let refused = scene.world.semop_add(release, tid, sems[0], -1);
    assert!(refused.is_err(), "the value is 0");
    scene.remove_set(release, sems[0]);
    let verdict = scene.closed(sems[0]);
    assert_eq!(verdict.class, Class::CleanedUp(LeakKind::NeverWaited));
}

#[test]
fn a_wait_that_was_given_up_stays_so_when_its_owner_is_killed() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    let tid = scene.tid(proc);
    scene.end_wait(proc, sem, libc::EINTR);
    scene.run_cycle(proc, tid);
    scene.world.advance_clock(5_000_000_000);
    scene.kill_owner(proc);
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::Leaked(LeakKind::AbandonedOnEintr));
    assert_eq!(verdict.confidence, Confidence::Observed);
}

#[test]
fn what_an_earlier_trace_found_stands_while_nobody_touches_it() {
    let mut scene = Scene::new();
    let (proc, _) = scene.armed_cookie();
    scene.kill_owner(proc);
    let (snapshot, facts) = scene.facts_after(100);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let found = survey_cookies(&scene.ledger, Some(&snapshot), &context).remove(0);
    let Class::Leaked(how) = found.verdict.class else {
        panic!("{found:?}");
    };
    let earlier = EarlierFinding {
        sem: found.semaphore.id,
        key: found.semaphore.key,
        found: facts.now,
        how,
        culprit: found.verdict.culprit.clone(),
        missing: found.verdict.missing,
    };
    // A trace that began later has not seen it being made.
    let judge = |scene: &mut Scene, earlier: EarlierFinding| {
        let (snapshot, facts) = scene.facts_after(5);
        let mut late = Ledger::new();
        late.reconcile(&snapshot);
        let completeness = Completeness {
            earlier: vec![earlier],
            ..Completeness::default()
        };
        let context = Context {
            facts: &facts,
            completeness: &completeness,
            thresholds: &Thresholds::default(),
        };
        survey_cookies(&late, Some(&snapshot), &context)
            .remove(0)
            .verdict
    };
    let verdict = judge(&mut scene, earlier.clone());
    assert_eq!(verdict.class, Class::Leaked(how));
    assert_eq!(verdict.confidence, Confidence::Inferred);
    assert_eq!(verdict.culprit, earlier.culprit);
    let changes: [fn(&mut EarlierFinding); 3] = [
        |it| it.key = Key(0x0d4d_4321),
        |it| it.sem.semid += 1,
        |it| it.found = crate::ids::BootTime(1),
    ];
    for change in changes {
        let mut other = earlier.clone();
        change(&mut other);
        let verdict = judge(&mut scene, other);
        assert!(matches!(verdict.class, Class::Unknown(_)), "{verdict:?}");
    }
    // Somebody uses it.
    let other = scene.spawn_lvm();
    scene.semop_add(other, earlier.sem, 1);
    scene.kill_owner(other);
    let verdict = judge(&mut scene, earlier);
    assert!(matches!(verdict.class, Class::Unknown(_)), "{verdict:?}");
}

#[test]
fn a_waiter_that_tells_of_the_removal_before_the_remover_was_waiting() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    let args = ["dmsetup", "udevcomplete_all"];
    let admin = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    scene.end_wait(proc, sem, libc::EIDRM);
    let last = scene.world.ring.len() - 1;
    scene.world.ring.swap(last - 1, last);
    let verdict = scene.closed(sem);
    assert_eq!(verdict.class, Class::Accident);
    assert_eq!(verdict.confidence, Confidence::Observed);
}

#[test]
fn whose_transaction_was_removed_is_not_known() {
    let mut scene = Scene::new();
    let (_, sem) = begin_transaction(&mut scene);
    let args = ["dmsetup", "udevcomplete_all"];
    let admin = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    let verdict = scene.closed(sem);
    assert_eq!(verdict.class, Class::Unknown(Undecided::MaybeHandedOn));
    assert_eq!(verdict.culprit, None);
}

fn verdicts(ledger: &Ledger, view: &View) -> Vec<String> {
    let context = Context {
        facts: &view.facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let live = survey_cookies(ledger, Some(&view.snapshot), &context);
    let closed = survey_closed(ledger, &context);
    let judged = live.into_iter().chain(closed);
    judged.map(|it| format!("{it:?}")).collect()
}

fn check_books(ledger: &Ledger, view: &View) -> TestCaseResult {
    let mut bytes = Vec::new();
    ledger.write_books(&mut bytes).unwrap();
    let read = Ledger::read_books(&mut bytes.as_slice()).unwrap();
    prop_assert_eq!(verdicts(&read, view), verdicts(ledger, view));
    prop_assert_eq!(read.totals(), ledger.totals());
    prop_assert_eq!(read.program_tallies(), ledger.program_tallies());
    prop_assert_eq!(read.check_invariants(), Ok(()));
    // What was cut off anywhere is no books.
    let cut = bytes.len() * 2 / 3;
    prop_assert!(Ledger::read_books(&mut &bytes[..cut]).is_err());
    Ok(())
}

proptest! {
    #![proptest_config(config_of_cases(60))]

    /// Whoever is given the books comes to the same verdicts, in all that is shown of them.
    #[test]
    fn the_books_tell_everybody_the_same(choices in any_choices()) {
        let mut play = Play::new(Vec::new());
        let mut ledger = Ledger::new();
        ledger.reconcile(&play.world.snapshot());
        for &choice in &choices {
            play.play_step(choice);
        }
        play.pass_time(70_000_000_000);
        feed_events(&mut ledger, &play.world.ring);
        let view = view_of(&play);
        ledger.reconcile(&view.snapshot);
        check_books(&ledger, &view)?;
    }
}
