//! More completions than announced operations.

use super::scene::{Scene, leaked};
use crate::{
    event::ExitStatus,
    ids::{IpcNs, SemId},
    ledger::UserStage,
    verdict::{Class, Healthy, LeakKind},
};

#[test]
fn over_completed() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.spawn_udev(sem);
    scene.spawn_udev(sem);
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::OverCompleted);
    // Which of the two was one too many is not known.
    assert_eq!(verdict.culprit, None);
    let tid = scene.tid(proc);
    assert_eq!(scene.world.semop_add(proc, tid, sem, -1), Err(libc::EAGAIN));
    scene.remove_set(proc, sem);
    assert_eq!(scene.closed(sem).class, Class::OverCompleted);
}

/// `dmsetup udevcreatecookie` and a dmsetup that uses the cookie, both of which have ended.
fn shared_and_used(scene: &mut Scene) -> SemId {
    let script = scene.world.spawn("sh", &["sh", "x"], None, IpcNs::HOST);
    let args = ["dmsetup", "udevcreatecookie"];
    let creator = scene
        .world
        .spawn("dmsetup", &args, Some(script), IpcNs::HOST);
    let sem = scene.create_cookie(creator);
    scene.setval(creator, sem);
    scene.world.exit(creator, ExitStatus::Code(0));
    let args = ["dmsetup", "create", "--udevcookie", "1"];
    let user = scene
        .world
        .spawn("dmsetup", &args, Some(script), IpcNs::HOST);
    scene.semop_add(user, sem, 1);
    scene.world.exit(user, ExitStatus::Code(0));
    sem
}

#[test]
fn a_transaction_is_over_completed_when_its_users_have_ended() {
    let mut scene = Scene::new();
    let sem = shared_and_used(&mut scene);
    scene.spawn_udev(sem);
    assert_eq!(scene.verdict(2).class, Class::Healthy(Healthy::Open));
    scene.spawn_udev(sem);
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::OverCompleted);
    assert_eq!(verdict.culprit, None);
    // Its release finds nothing to decrement and removes the set at once.
    let args = ["dmsetup", "udevreleasecookie"];
    let release = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    let tid = scene.tid(release);
    assert_eq!(
        scene.world.semop_add(release, tid, sem, -1),
        Err(libc::EAGAIN)
    );
    scene.remove_set(release, sem);
    assert_eq!(scene.closed(sem).class, Class::OverCompleted);
}

#[test]
fn a_release_before_its_wait_has_not_over_completed() {
    let mut scene = Scene::new();
    let sem = shared_and_used(&mut scene);
    scene.spawn_udev(sem);
    let args = ["dmsetup", "udevreleasecookie"];
    let release = scene.world.spawn("dmsetup", &args, None, IpcNs::HOST);
    scene.semop_add(release, sem, -1);
    assert_eq!(scene.verdict(5).class, Class::Healthy(Healthy::Open));
}

#[test]
fn over_completed_and_left_is_a_leak() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.spawn_udev(sem);
    scene.spawn_udev(sem);
    scene.kill_owner(proc);
    leaked(&scene.verdict(2));
}

#[test]
fn between_its_decrement_and_its_wait_an_owner_has_not_over_completed() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.semop_add(proc, sem, -1);
    scene.spawn_udev(sem);
    // Stopped there, and alive.
    assert_eq!(scene.verdict(5).class, Class::Healthy(Healthy::Open));
    scene.kill_owner(proc);
    let how = leaked(&scene.verdict(2));
    let step = UserStage::SelfCompleted;
    assert_eq!(how, LeakKind::OwnerKilled { signal: 9, step });

    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.semop_add(proc, sem, -1);
    scene.kill_owner(proc);
    scene.spawn_udev(sem);
    assert_eq!(
        leaked(&scene.verdict(2)),
        LeakKind::FinishedAfterDeath { step }
    );
}

#[test]
fn who_completed_twice_is_named_once() {
    let mut scene = Scene::new();
    let (_, sem) = scene.armed_cookie();
    let script = scene.world.spawn("sh", &["sh"], None, IpcNs::HOST);
    let args = ["dmsetup", "udevcomplete"];
    let stranger = scene
        .world
        .spawn("dmsetup", &args, Some(script), IpcNs::HOST);
    scene.semop_add(stranger, sem, -1);
    scene.semop_add(stranger, sem, -1);
    let verdict = scene.verdict(2);
    assert_eq!(verdict.class, Class::OverCompleted);
    let facts = verdict.evidence.iter().map(ToString::to_string);
    let named = facts.filter(|fact| fact.contains("udev did not start it"));
    assert_eq!(named.count(), 1, "{verdict:#?}");
}
