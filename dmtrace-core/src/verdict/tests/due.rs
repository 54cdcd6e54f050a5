//! Between two looks nothing may become known: time alone changes a verdict only when it was said
//! to.

use std::time::Duration;

use super::{
    old::found_cookie,
    scene::{KEY, Scene},
};
use crate::{event::ExitStatus, facts::HostFacts, ids::IpcNs};

type Change = fn(&mut HostFacts);

const NOTHING: Change = |_| {};
const NO_UDEVD: Change = |facts| facts.udev.daemon = None;

/// Looks each second for 15 minutes; returns how often the class has changed.
fn count_changes(mut scene: Scene, host: Change) -> usize {
    let (mut before, mut due) = scene.judged_until(0, host);
    let mut count = 0;
    for second in 1..900 {
        let (now, next) = scene.judged_until(1, host);
        if now.class != before.class {
            count += 1;
            let second_ahead = Some(Duration::from_secs(1));
            assert!(
                due.is_some() && due <= second_ahead,
                "at {second} s {} became {}, due {due:?}",
                before.class,
                now.class
            );
        }
        (before, due) = (now, next);
    }
    assert_eq!(due, None, "after all limits nothing is due");
    count
}

#[test]
fn time_changes_a_verdict_only_when_it_is_due() {
    let killed = || {
        let mut scene = Scene::new();
        let (proc, _) = scene.armed_cookie();
        scene.kill_owner(proc);
        scene
    };
    let exited = || {
        let mut scene = Scene::new();
        let proc = scene.spawn_lvm();
        let sem = scene.create_cookie(proc);
        scene.setval(proc, sem);
        scene.world.exit(proc, ExitStatus::Code(0));
        scene
    };
    let abandoned = || {
        let mut scene = Scene::new();
        let (proc, _) = scene.armed_cookie();
        scene.run_cycle(proc, scene.tid(proc));
        scene
    };
    let waiting = || {
        let mut scene = Scene::new();
        let (proc, sem) = scene.armed_cookie();
        scene.return_ioctl(proc, sem, 0, true);
        scene.semop_add(proc, sem, -1);
        scene.begin_wait(proc, sem);
        scene
    };
    let split = || {
        let mut scene = Scene::new();
        let proc = scene.world.spawn("lvm", &["lvm"], None, IpcNs(7));
        let sem = scene.world.create_set(proc, scene.tid(proc), KEY);
        scene.setval(proc, sem);
        for delta in [1, -1] {
            scene.semop_add(proc, sem, delta);
        }
        scene.begin_wait(proc, sem);
        scene
    };
    let changed = [
        count_changes(killed(), NOTHING),
        count_changes(exited(), NOTHING),
        count_changes(abandoned(), NOTHING),
        count_changes(waiting(), NOTHING),
        count_changes(waiting(), NO_UDEVD),
        count_changes(split(), NOTHING),
        count_changes(found_cookie(2, 0, true), NOTHING),
    ];
    assert!(changed.iter().sum::<usize>() >= 8, "{changed:?}");
    for (at, count) in changed.into_iter().enumerate() {
        assert!(count > 0, "scene {at} never changes: it tests nothing");
    }
}
