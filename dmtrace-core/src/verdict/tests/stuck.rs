//! What keeps a waiter waiting, and what others do to its cookie.

use super::scene::{KEY, Scene};
use crate::{
    event::ExitStatus,
    facts::{HostFacts, SuspendedDevice, UdevDetails, UdevWorker},
    ids::IpcNs,
    verdict::{
        Class, Confidence, CulpritRole, Evidence, Healthy, MissingStep, Remedy, StuckCause,
        Undecided, Verdict,
    },
};

/// udevd is there and does nothing.
fn idle_udevd(facts: &mut HostFacts) -> &mut UdevDetails {
    facts.udev.queue_busy = false;
    facts.udev.details.insert(UdevDetails {
        started_ticks: 1,
        dmsetup: Some("/sbin/dmsetup".to_owned()),
        ..UdevDetails::default()
    })
}

fn stuck_cause(verdict: &Verdict) -> StuckCause {
    match verdict.class {
        Class::Stuck(cause) => cause,
        _ => panic!("not stuck: {verdict:#?}"),
    }
}

/// One waiter, its uevent sent.
fn sent_uevent() -> Scene {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.return_ioctl(proc, sem, 0, true);
    scene.semop_add(proc, sem, -1);
    scene.begin_wait(proc, sem);
    scene
}

#[test]
fn each_cause_is_told_from_the_others() {
    type Change = fn(&mut HostFacts);
    let table: [(u64, Change, StuckCause, Confidence); 9] = [
        (
            2,
            |facts| facts.udev.daemon = None,
            StuckCause::UdevdDown,
            Confidence::Observed,
        ),
        (
            2,
            |facts| facts.udev.notify_rule = None,
            StuckCause::RuleMissing,
            Confidence::Inferred,
        ),
        (
            2,
            |facts| idle_udevd(facts).dmsetup = None,
            StuckCause::DmsetupMissing,
            Confidence::Inferred,
        ),
        (
            12,
            |facts| idle_udevd(facts).frozen = true,
            StuckCause::QueueStopped,
            Confidence::Inferred,
        ),
        (
            12,
            |facts| {
                idle_udevd(facts);
                facts.udev.queue_busy = true;
            },
            StuckCause::QueueStopped,
            Confidence::Inferred,
        ),
        (
            12,
            |facts| idle_udevd(facts).started_ticks = facts.now.0 / 10_000_000 - 500,
            StuckCause::NotReceived,
            Confidence::Inferred,
        ),
        (
            12,
            |facts| {
                idle_udevd(facts).run_cleared = vec!["/etc/udev/rules.d/96-x.rules:1".to_owned()];
            },
            StuckCause::RunCleared,
            Confidence::Inferred,
        ),
        (
            12,
            |facts| {
                idle_udevd(facts);
            },
            StuckCause::EventDropped,
            Confidence::Inferred,
        ),
        (
            200,
            |facts| {
                idle_udevd(facts);
            },
            StuckCause::EventLost,
            Confidence::Inferred,
        ),
    ];
    for (seconds, change, expected, confidence) in table {
        let verdict = sent_uevent().judge_after(seconds, change);
        assert_eq!(stuck_cause(&verdict), expected);
        assert_eq!(verdict.confidence, confidence, "{expected:?}");
        assert_eq!(verdict.missing, Some(MissingStep::Completion { count: 1 }));
        assert_eq!(verdict.culprit, None, "a waiter is the victim");
        assert!(!verdict.advice.remedy.is_empty() && !verdict.advice.avoid.is_empty());
    }
}

#[test]
fn a_worker_at_work_is_no_lost_event() {
    let verdict = sent_uevent().judge_after(60, |facts| {
        idle_udevd(facts).workers = vec![UdevWorker {
            pid: 40,
            runs: Some((41, "blkid".to_owned())),
        }];
        facts.udev.queue_busy = true;
    });
    assert_eq!(verdict.class, Class::Healthy(Healthy::SlowUdev));
    let worker = Evidence::Worker {
        pid: 40,
        runs: Some((41, "blkid".to_owned())),
    };
    assert!(verdict.evidence.contains(&worker), "{verdict:#?}");
}

#[test]
fn an_idle_udev_is_given_time() {
    let verdict = sent_uevent().judge_after(5, |facts| {
        idle_udevd(facts);
    });
    assert_eq!(verdict.class, Class::Healthy(Healthy::Waiting));
}

#[test]
fn waiting_for_what_sent_no_uevent() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.return_ioctl(proc, sem, 0, false);
    scene.semop_add(proc, sem, -1);
    scene.begin_wait(proc, sem);
    let verdict = scene.judge_after(12, |facts| {
        idle_udevd(facts);
    });
    assert_eq!(stuck_cause(&verdict), StuckCause::NoUevent);
    let missing = MissingStep::SelfCompletion { count: 1 };
    assert_eq!(verdict.missing, Some(missing));
    assert!(verdict.advice.remedy.contains(&Remedy::ReportProgram));
}

#[test]
fn a_completion_by_hand_is_blamed_on_the_hand() {
    let mut scene = Scene::new();
    let udevd = scene
        .world
        .spawn("systemd-udevd", &["udevd"], None, IpcNs::HOST);
    let (_, sem) = scene.armed_cookie();
    let shell = scene.world.spawn("sh", &["sh"], None, IpcNs::HOST);
    let complete = |scene: &mut Scene, parent| {
        let args = ["dmsetup", "udevcomplete", "1"];
        let proc = scene
            .world
            .spawn("dmsetup", &args, Some(parent), IpcNs::HOST);
        scene.semop_add(proc, sem, -1);
        scene.world.exit(proc, ExitStatus::Code(0));
        proc
    };
    complete(&mut scene, udevd);
    let hand = complete(&mut scene, shell);
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::OverCompleted);
    let culprit = verdict.culprit.expect("one of two was not udev's");
    assert_eq!(culprit.role, CulpritRole::Completer);
    assert_eq!(culprit.who.image.id, scene.world.procs[hand].id);
}

#[test]
fn two_udevds_are_seen_and_neither_is_accused() {
    let mut scene = Scene::new();
    let (_, sem) = scene.armed_cookie();
    let mut daemons = Vec::new();
    for _ in 0..2 {
        let udevd = scene.world.spawn("udevd", &["udevd"], None, IpcNs::HOST);
        daemons.push(scene.world.procs[udevd].id.tgid);
        let proc = scene
            .world
            .spawn("dmsetup", &["dmsetup"], Some(udevd), IpcNs::HOST);
        scene.semop_add(proc, sem, -1);
    }
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::OverCompleted);
    assert_eq!(verdict.culprit, None);
    let fact = Evidence::SeveralUdevds { pids: daemons };
    assert!(verdict.evidence.contains(&fact), "{verdict:#?}");
}

#[test]
fn an_accident_lists_what_it_harmed() {
    let mut scene = sent_uevent();
    let sem = *scene.world.sems.keys().next().unwrap();
    let admin = scene
        .world
        .spawn("dmsetup", &["dmsetup"], None, IpcNs::HOST);
    scene.remove_set(admin, sem);
    let udev = scene
        .world
        .spawn("dmsetup", &["dmsetup"], None, IpcNs::HOST);
    let tid = scene.tid(udev);
    scene.world.lookup_failed(udev, tid, KEY);
    let verdict = scene.closed_with(sem, |facts| {
        facts.dm.suspended = vec![
            SuspendedDevice {
                node: "dm-3".to_owned(),
                name: "vg-lv".to_owned(),
            },
            SuspendedDevice {
                node: "dm-9".to_owned(),
                name: "other".to_owned(),
            },
        ];
    });
    assert_eq!(verdict.class, Class::Accident);
    let text: Vec<String> = verdict.evidence.iter().map(ToString::to_string).collect();
    let has = |wanted: &str| text.iter().any(|line| line.contains(wanted));
    assert!(has("1 operation not completed"), "{text:?}");
    assert!(has("looked for it after its removal"), "{text:?}");
    assert!(has("device vg-lv is suspended"), "{text:?}");
    assert!(!has("other"), "not a device of this cookie: {text:?}");
    assert!(has("while 1 thread waited"), "{text:?}");
}

#[test]
fn how_far_it_was_when_its_namespace_ended() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.kill_owner(proc);
    scene.facts_after(0);
    let mut event = scene.world.ring.last().unwrap().clone();
    event.at.0 += 1;
    event.quality.ns_teardown = true;
    event.what = crate::event::EventKind::Destroyed { sem, key: KEY };
    scene.ledger.apply(&event);
    let verdict = scene.closed(sem);
    assert_eq!(verdict.class, Class::Unknown(Undecided::NamespaceEnded));
    let stage = verdict
        .evidence
        .iter()
        .any(|fact| matches!(fact, Evidence::Stage { .. }));
    assert!(stage, "{verdict:#?}");
}
