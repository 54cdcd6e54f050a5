//! Each class, provoked as the documentation says.

use super::{
    old::found_cookie,
    play::OTHER,
    scene::{KEY, Scene, leaked},
};
use crate::{
    event::{EventKind, ExitStatus},
    facts::{HostFacts, SetSnapshot},
    ids::{IpcNs, SemId},
    ledger::{CookieCall, DecrementMeaning, UserStage},
    verdict::{
        Class, Completeness, Confidence, Context, CulpritRole, Evidence, Healthy, LeakKind,
        MissingStep, NotACookie, Obstacle, RemovalRules, StuckCause, Thresholds, Undecided,
        provably_leaked, survey_cookies,
    },
};

#[test]
fn owner_killed_at_each_step() {
    let expected = [
        (UserStage::Created, MissingStep::SetVal),
        (UserStage::Ready, MissingStep::Increment),
        (UserStage::Armed, MissingStep::Wait),
        (UserStage::SelfCompleted, MissingStep::Wait),
        (UserStage::Waiting, MissingStep::Completion { count: 1 }),
    ];
    for (steps, (step, missing)) in expected.into_iter().enumerate() {
        let mut scene = Scene::new();
        let proc = scene.spawn_lvm();
        let sem = scene.create_cookie(proc);
        if steps > 0 {
            scene.setval(proc, sem);
        }
        if steps > 1 {
            scene.semop_add(proc, sem, 1);
        }
        if steps > 2 {
            scene.semop_add(proc, sem, -1);
        }
        if steps > 3 {
            scene.begin_wait(proc, sem);
            scene.end_wait(proc, sem, libc::EINTR);
        }
        scene.kill_owner(proc);
        assert_eq!(scene.verdict(0).class, Class::Unknown(Undecided::Young));
        let verdict = scene.verdict(2);
        assert_eq!(leaked(&verdict), LeakKind::OwnerKilled { signal: 9, step });
        assert_eq!(verdict.confidence, Confidence::Observed);
        assert_eq!(verdict.missing, Some(missing));
        assert_eq!(verdict.died_at, Some(step));
        let culprit = verdict.culprit.unwrap();
        assert_eq!(culprit.role, CulpritRole::Owner);
        assert_eq!(culprit.who.image.id, scene.world.procs[proc].id);
        assert_eq!(culprit.exit, Some(ExitStatus::Signal(9)));
    }
}

#[test]
fn leaked_also_without_udev() {
    let mut scene = Scene::new();
    let (proc, _) = scene.armed_cookie();
    scene.kill_owner(proc);
    let verdict = scene.judge_after(2, |facts| facts.udev = Default::default());
    assert_eq!(verdict.confidence, Confidence::Observed);
    leaked(&verdict);
}

#[test]
fn owner_exited_without_wait() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.spawn_udev(sem);
    scene.world.exit(proc, ExitStatus::Code(5));
    let how = leaked(&scene.verdict(2));
    let step = UserStage::Done;
    assert_eq!(how, LeakKind::OwnerExited { status: 5, step });
}

#[test]
fn finished_after_the_death_of_its_owner() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    scene.end_wait(proc, sem, libc::EINTR);
    scene.kill_owner(proc);
    scene.spawn_udev(sem);
    let verdict = scene.verdict(2);
    let step = UserStage::Waiting;
    assert_eq!(leaked(&verdict), LeakKind::FinishedAfterDeath { step });
    assert_eq!(verdict.missing, Some(MissingStep::Removal));
}

#[test]
fn never_waited_and_went_on() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    let tid = scene.tid(proc);
    scene.semop_add(proc, sem, -1);
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    scene.run_cycle(proc, tid);
    let verdict = scene.verdict(2);
    assert_eq!(leaked(&verdict), LeakKind::NeverWaited);
    assert_eq!(verdict.confidence, Confidence::Observed);
    assert_eq!(verdict.missing, Some(MissingStep::Wait));
    // Also when the daemon ends later.
    scene.world.exit(proc, ExitStatus::Code(0));
    assert_eq!(leaked(&scene.verdict(2)), LeakKind::NeverWaited);
}

#[test]
fn another_thread_that_goes_on_proves_little() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    let other = scene.tid(proc) + 1;
    // Still in its ioctl, for whatever time.
    scene.world.advance_clock(100_000_000_000);
    scene.run_cycle(proc, other);
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    // The ioctl is over, and another thread goes on: Go moves work between threads.
    scene.semop_add(proc, sem, -1);
    scene.run_cycle(proc, other);
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    scene.run_cycle(proc, other);
    let verdict = scene.verdict(2);
    assert_eq!(leaked(&verdict), LeakKind::NeverWaited);
    assert_eq!(verdict.confidence, Confidence::Inferred);
}

#[test]
fn interrupted_and_not_resumed() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    let tid = scene.tid(proc);
    scene.end_wait(proc, sem, libc::EINTR);
    // A stopped process looks the same.
    let stopped = scene.verdict(7200);
    assert_eq!(stopped.class, Class::Unknown(Undecided::MaybeStopped));
    scene.run_cycle(proc, tid);
    let verdict = scene.verdict(2);
    assert_eq!(leaked(&verdict), LeakKind::AbandonedOnEintr);
    assert_eq!(verdict.confidence, Confidence::Observed);
    let interrupted = |it: &Evidence| matches!(it, Evidence::Interrupted { .. });
    assert!(verdict.evidence.iter().any(interrupted));
}

#[test]
fn interrupted_and_resumed() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    scene.end_wait(proc, sem, libc::EINTR);
    scene.begin_wait(proc, sem);
    assert_eq!(scene.verdict(2).class, Class::Healthy(Healthy::Waiting));
    scene.spawn_udev(sem);
    scene.end_wait(proc, sem, 0);
    scene.remove_set(proc, sem);
    assert_eq!(scene.closed(sem).class, Class::Healthy(Healthy::Finished));
}

#[test]
fn waiting_slow_and_stuck() {
    let mut scene = Scene::new();
    let (_, _) = scene.blocked_cookie();
    let verdict = scene.verdict(3);
    assert_eq!(verdict.class, Class::Healthy(Healthy::Waiting));
    assert_eq!(verdict.confidence, Confidence::Observed);
    let verdict = scene.verdict(60);
    assert_eq!(verdict.class, Class::Healthy(Healthy::SlowUdev));
    let verdict = scene.verdict(200);
    assert_eq!(verdict.class, Class::Stuck(StuckCause::EventLost));
    assert_eq!(verdict.confidence, Confidence::Inferred);
    assert_eq!(verdict.missing, Some(MissingStep::Completion { count: 1 }));
    let verdict = scene.judge_after(0, |facts| facts.udev.daemon = None);
    assert_eq!(verdict.class, Class::Stuck(StuckCause::UdevdDown));
    assert_eq!(verdict.confidence, Confidence::Observed);
    let verdict = scene.judge_after(0, |facts| facts.udev.notify_rule = None);
    assert_eq!(verdict.class, Class::Stuck(StuckCause::RuleMissing));
}

#[test]
fn a_udevd_that_is_started_on_demand_is_not_down() {
    let mut scene = Scene::new();
    scene.blocked_cookie();
    let stopped = |facts: &mut HostFacts| {
        facts.udev.daemon = None;
        facts.udev.activated = true;
    };
    let verdict = scene.judge_after(5, stopped);
    assert_eq!(verdict.class, Class::Healthy(Healthy::Waiting));
    let verdict = scene.judge_after(200, stopped);
    assert_eq!(verdict.class, Class::Stuck(StuckCause::UdevdDown));
    assert_eq!(verdict.confidence, Confidence::Inferred);
}

#[test]
fn completion_in_the_wrong_namespace() {
    let mut scene = Scene::new();
    let proc = scene.world.spawn("kpartx", &["kpartx"], None, OTHER);
    let sem = scene.create_cookie(proc);
    scene.setval(proc, sem);
    scene.semop_add(proc, sem, 1);
    scene.semop_add(proc, sem, -1);
    scene.begin_wait(proc, sem);
    let udev = scene
        .world
        .spawn("dmsetup", &["dmsetup"], None, IpcNs::HOST);
    let tid = scene.tid(udev);
    scene.world.lookup_failed(udev, tid, KEY);
    let verdict = scene.verdict(2);
    let looked_in = Some(IpcNs::HOST);
    assert_eq!(
        verdict.class,
        Class::Stuck(StuckCause::NamespaceSplit { looked_in })
    );
    assert_eq!(verdict.confidence, Confidence::Observed);
}

/// `dmsetup udevcreatecookie` by a script.
pub(super) fn begin_transaction(scene: &mut Scene) -> (usize, SemId) {
    let shell = scene
        .world
        .spawn("sh", &["sh", "script"], None, IpcNs::HOST);
    let args = ["dmsetup", "udevcreatecookie"];
    let proc = scene
        .world
        .spawn("dmsetup", &args, Some(shell), IpcNs::HOST);
    let sem = scene.create_cookie(proc);
    scene.setval(proc, sem);
    scene.world.exit(proc, ExitStatus::Code(0));
    (shell, sem)
}

#[test]
fn a_transaction_outlives_its_creator() {
    let mut scene = Scene::new();
    let (shell, sem) = begin_transaction(&mut scene);
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    let args = ["dmsetup", "--udevcookie", "0x0d4d1234", "resume", "x"];
    let adder = scene
        .world
        .spawn("dmsetup", &args, Some(shell), IpcNs::HOST);
    scene.semop_add(adder, sem, 1);
    scene.spawn_udev(sem);
    scene.world.exit(adder, ExitStatus::Code(0));
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    scene.kill_owner(shell);
    let verdict = scene.judge_after(1, |facts| facts.carriers_complete = false);
    assert_eq!(verdict.class, Class::Unknown(Undecided::CarriersUnreadable));
    let verdict = scene.judge_after(0, |facts| {
        facts.carriers.insert(KEY, vec![4711]);
    });
    assert_eq!(verdict.class, Class::Healthy(Healthy::Open));
    let verdict = scene.verdict(0);
    assert_eq!(leaked(&verdict), LeakKind::TransactionAbandoned);
    assert_eq!(verdict.confidence, Confidence::Inferred);
    assert_eq!(verdict.culprit, None);
}

#[test]
fn a_released_transaction_is_finished() {
    let mut scene = Scene::new();
    let (shell, sem) = begin_transaction(&mut scene);
    let args = ["dmsetup", "udevreleasecookie", "0x0d4d1234"];
    let release = scene
        .world
        .spawn("dmsetup", &args, Some(shell), IpcNs::HOST);
    scene.semop_add(release, sem, -1);
    scene.begin_wait(release, sem);
    scene.remove_set(release, sem);
    assert_eq!(scene.closed(sem).class, Class::Healthy(Healthy::Finished));
    let cookie = scene.ledger.closed_cookie(sem).unwrap();
    let cookie = cookie.cookie.as_ref().unwrap();
    let counts = cookie.counts;
    assert_eq!((counts.completions, counts.wait_entries), (0, 1));
    let entry = CookieCall::Down {
        by: 1,
        meaning: DecrementMeaning::WaitEntry,
    };
    assert!(cookie.timeline.iter().any(|step| step.what == entry));
}

#[test]
fn dmsetup_create_killed_before_its_increment_is_a_leak() {
    let mut scene = Scene::new();
    let args = ["dmsetup", "create", "x"];
    let proc = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    let sem = scene.create_cookie(proc);
    scene.setval(proc, sem);
    scene.kill_owner(proc);
    let step = UserStage::Ready;
    let how = leaked(&scene.verdict(2));
    assert_eq!(how, LeakKind::OwnerKilled { signal: 9, step });
}

#[test]
fn a_child_that_goes_on_keeps_it_open() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    let child = scene.world.spawn("lvm", &["lvm"], Some(proc), IpcNs::HOST);
    scene.semop_add(child, sem, 1);
    scene.kill_owner(proc);
    assert_eq!(scene.verdict(7200).class, Class::Healthy(Healthy::Open));
    scene.kill_owner(child);
    let verdict = scene.verdict(2);
    leaked(&verdict);
    let last = verdict.culprit.unwrap().who.image.id;
    assert_eq!(last, scene.world.procs[child].id);
}

#[test]
fn removed_under_a_waiter() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    let args = ["dmsetup", "udevcomplete_all"];
    let admin = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    scene.end_wait(proc, sem, libc::EIDRM);
    let verdict = scene.closed(sem);
    assert_eq!(verdict.class, Class::Accident);
    assert_eq!(verdict.confidence, Confidence::Observed);
    let culprit = verdict.culprit.unwrap();
    assert_eq!(culprit.role, CulpritRole::Remover);
    assert_eq!(culprit.who.image.id, scene.world.procs[admin].id);
    // The waiter's EIDRM, which names no key, has found its cookie.
    let closed = scene.ledger.closed_cookie(sem).unwrap();
    let cookie = closed.cookie.as_ref().unwrap();
    assert_eq!(cookie.last_wait.as_ref().unwrap().errno, libc::EIDRM);
    assert_eq!(scene.ledger.totals().late, 0);
}

#[test]
fn cleaned_up_after_a_leak() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.kill_owner(proc);
    let admin = scene.world.spawn("ipcrm", &["ipcrm"], None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    let step = UserStage::Armed;
    let verdict = scene.closed(sem);
    assert_eq!(
        verdict.class,
        Class::CleanedUp(LeakKind::OwnerKilled { signal: 9, step })
    );
    let culprit = verdict.culprit.unwrap();
    assert_eq!(
        culprit.who.to_string(),
        "lvm[1]".replace('1', &scene.tid(proc).to_string())
    );
    assert_eq!(culprit.exit, Some(ExitStatus::Signal(9)));
}

#[test]
fn cleaned_up_behind_a_living_owner() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    let tid = scene.tid(proc);
    scene.semop_add(proc, sem, -1);
    scene.run_cycle(proc, tid);
    let admin = scene.world.spawn("ipcrm", &["ipcrm"], None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    assert_eq!(
        scene.closed(sem).class,
        Class::CleanedUp(LeakKind::NeverWaited)
    );
}

#[test]
fn ended_with_its_namespace() {
    let mut scene = Scene::new();
    let (_, sem) = scene.armed_cookie();
    scene.facts_after(0);
    let mut event = scene.world.ring.last().unwrap().clone();
    event.at.0 += 1;
    event.quality.ns_teardown = true;
    event.what = EventKind::Destroyed { sem, key: KEY };
    scene.ledger.apply(&event);
    let verdict = scene.closed(sem);
    assert_eq!(verdict.class, Class::Unknown(Undecided::NamespaceEnded));
    assert_eq!(verdict.culprit, None);
}

#[test]
fn foreign_sets() {
    type Edit = fn(&mut SetSnapshot);
    let change: [(Edit, NotACookie); 3] = [
        (|set| set.nsems = 3, NotACookie::Size { nsems: 3 }),
        (|set| set.mode = 0o666, NotACookie::Mode { mode: 0o666 }),
        (
            |set| set.cuid = 1000,
            NotACookie::Owner { uid: 0, cuid: 1000 },
        ),
    ];
    for (change, why) in change {
        let mut scene = Scene::new();
        let (proc, _) = scene.armed_cookie();
        scene.kill_owner(proc);
        let (mut snapshot, facts) = scene.facts_after(7200);
        change(&mut snapshot.namespaces[0].sets[0]);
        let context = Context {
            facts: &facts,
            completeness: &Completeness::default(),
            thresholds: &Thresholds::default(),
        };
        let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
        assert_eq!(judged[0].verdict.class, Class::Foreign(why));
        let subject = judged[0].subject(&scene.ledger);
        let rules = RemovalRules {
            inferred: true,
            ..RemovalRules::default()
        };
        let result = provably_leaked(&subject, &context, &judged[0].verdict, rules);
        assert_eq!(result, Err(vec![Obstacle::NotACookie]));
    }
}

#[test]
fn the_kernel_has_the_last_word() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.kill_owner(proc);
    scene.facts_after(0);
    // An increment that nobody saw.
    scene.world.sems.get_mut(&sem).unwrap().value = 3;
    let (snapshot, facts) = scene.facts_after(100);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let class = judged[0].verdict.class;
    assert_eq!(class, Class::Unknown(Undecided::Contradiction));
    let report = scene.ledger.reconcile(&snapshot);
    assert_eq!((report.revalued, report.drift_count()), (1, 1));
}

#[test]
fn every_verdict_has_words_and_json() {
    let mut scene = Scene::new();
    let (proc, _) = scene.armed_cookie();
    scene.kill_owner(proc);
    let verdict = scene.verdict(2);
    let json = serde_json::to_string(&verdict).unwrap();
    assert!(json.contains("owner_killed"), "{json}");
    let text = "leaked: owner killed by SIGKILL after announcing an operation, before waiting";
    assert_eq!(verdict.class.to_string(), text);
    for fact in &verdict.evidence {
        assert!(!fact.to_string().is_empty());
    }
    let mut scene = found_cookie(1, 77, true);
    let json = serde_json::to_string(&scene.verdict(7200)).unwrap();
    assert!(json.contains("one_left"));
    for set in scene.ledger.live_sets() {
        assert!(serde_json::to_string(set).unwrap().contains("snapshot"));
    }
}

/// Whoever decrements to zero wakes the waiter; on two processors the waiter's hook may run first.
#[test]
fn killed_after_its_wait_with_the_completion_told_late() {
    for times_swapped in [true, false] {
        let mut scene = Scene::new();
        let (proc, sem) = scene.blocked_cookie();
        let args = ["dmsetup", "udevcomplete", "1"];
        let udev = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
        scene.semop_add(udev, sem, -1);
        scene.end_wait(proc, sem, 0);
        let ring = &mut scene.world.ring;
        let last = ring.len() - 1;
        ring.swap(last - 1, last);
        if times_swapped {
            (ring[last - 1].at, ring[last].at) = (ring[last].at, ring[last - 1].at);
        }
        scene.world.exit(udev, ExitStatus::Code(0));
        scene.kill_owner(proc);
        let verdict = scene.verdict(2);
        let step = UserStage::Released;
        assert_eq!(leaked(&verdict), LeakKind::OwnerKilled { signal: 9, step });
        assert_eq!(verdict.confidence, Confidence::Observed);
        assert_eq!(
            verdict.culprit.unwrap().who.image.id,
            scene.world.procs[proc].id
        );
    }
}

/// The same without the completion: it was lost, and nothing is certain any more.
#[test]
fn killed_after_its_wait_with_the_completion_lost() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.blocked_cookie();
    let args = ["dmsetup", "udevcomplete", "1"];
    let udev = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    scene.semop_add(udev, sem, -1);
    scene.world.ring.pop();
    scene.end_wait(proc, sem, 0);
    scene.kill_owner(proc);
    assert_ne!(scene.verdict(2).confidence, Confidence::Observed);
}
