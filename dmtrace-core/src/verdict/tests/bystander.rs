//! Who touches a cookie that its owner has left is not who left it.

use super::scene::{Scene, leaked};
use crate::{
    event::ExitStatus,
    ids::{IpcNs, SemId},
    verdict::{Class, LeakKind, Undecided},
};

type Touch = fn(&mut Scene, usize, SemId);

const TOUCHES: [(&str, Touch); 5] = [
    ("looks without waiting", |scene, proc, sem| {
        scene.end_wait(proc, sem, libc::EAGAIN);
    }),
    ("is refused", |scene, proc, sem| {
        scene.end_wait(proc, sem, libc::EACCES);
    }),
    ("sets it", Scene::setval),
    ("increments it", |scene, proc, sem| {
        scene.semop_add(proc, sem, 1);
    }),
    ("increments and decrements it", |scene, proc, sem| {
        scene.semop_add(proc, sem, 1);
        scene.semop_add(proc, sem, -1);
    }),
];

/// By a process that started when the owner had ended, and by one that was there before.
#[test]
fn what_is_done_to_a_cookie_that_was_left_blames_nobody_else() {
    for older in [false, true] {
        for (what, touch) in TOUCHES {
            let mut scene = Scene::new();
            let spawn = |scene: &mut Scene| {
                scene
                    .world
                    .spawn("innocent", &["innocent"], None, IpcNs::HOST)
            };
            let early = older.then(|| spawn(&mut scene));
            let (owner, sem) = scene.armed_cookie();
            scene.kill_owner(owner);
            scene.world.advance_clock(50_000_000);
            let innocent = early.unwrap_or_else(|| spawn(&mut scene));
            touch(&mut scene, innocent, sem);
            scene.world.exit(innocent, ExitStatus::Code(0));
            let verdict = scene.verdict(700);
            let text = format!("{what}, {older}: {verdict:#?}");
            let LeakKind::OwnerKilled { signal: 9, .. } = leaked(&verdict) else {
                panic!("{text}");
            };
            let culprit = verdict.culprit.as_ref().unwrap();
            let is_owner = culprit.who.image.id == scene.world.procs[owner].id;
            assert!(is_owner, "{text}");
        }
    }
}

/// It does not wait, and is gone without having done anything.
#[test]
fn who_only_looks_is_no_user() {
    let mut scene = Scene::new();
    let (owner, sem) = scene.armed_cookie();
    let innocent = scene
        .world
        .spawn("innocent", &["innocent"], None, IpcNs::HOST);
    scene.end_wait(innocent, sem, libc::EAGAIN);
    scene.world.exit(innocent, ExitStatus::Code(0));
    assert!(!matches!(scene.verdict(700).class, Class::Leaked(_)));
    let users = |scene: &Scene| {
        let set = scene.ledger.semaphore(sem).unwrap();
        let users = set.cookie.as_ref().unwrap().users.iter();
        users.map(|user| user.who.image.id).collect::<Vec<_>>()
    };
    assert_eq!(users(&scene), [scene.world.procs[owner].id]);
}

/// What it is blamed for has happened, but a recording that ends now shows no more of it.
#[test]
fn an_owner_that_has_just_ended_has_left_nothing_open() {
    let mut scene = Scene::new();
    let (owner, _) = scene.armed_cookie();
    scene.kill_owner(owner);
    let verdict = scene.verdict(0);
    assert_eq!(verdict.class, Class::Unknown(Undecided::Young));
    assert!(verdict.culprit.is_none());
    assert!(matches!(scene.verdict(2).class, Class::Leaked(_)));
}
