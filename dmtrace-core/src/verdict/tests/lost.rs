//! What may be completed in udev's place.

use super::scene::{KEY, Scene};
use crate::{
    cleanup::plan::{Action, Options, Plan},
    event::{Command, Ioctl, Quality, What},
    facts::{HostFacts, SuspendedDevice},
    ids::{BootTime, DevNum, IpcNs, SemId},
    verdict::{Completeness, Completion, Context, Obstacle, Rules, Thresholds, survey},
};

const OTHER: IpcNs = IpcNs(4_026_532_999);

/// Seconds after which udev has given up.
const LONG: u64 = 200;

/// The ioctl of an operation, with its uevent.
fn ioctl(scene: &mut Scene, proc: usize, sem: SemId, name: &str, command: Command) {
    let tid = scene.tid(proc);
    let ioctl = Ioctl {
        sem,
        key: KEY,
        command,
        errno: 0,
        began: BootTime(1),
        name: name.to_owned(),
        new_name: None,
        uuid: None,
        device: DevNum::known(253, 3),
        uevent: true,
        deferred: false,
        udev_flags: 0,
    };
    let what = What::Ioctl(Box::new(ioctl));
    assert!(scene.world.say(proc, tid, what, Quality::default()));
}

/// A waiter for `operations` devices, d0, d1, …
fn stuck(ns: IpcNs, operations: usize) -> (Scene, SemId) {
    let mut scene = Scene::new();
    let proc = scene.world.spawn("kpartx", &["kpartx"], None, ns);
    let sem = scene.create(proc);
    scene.set(proc, sem);
    for index in 0..operations {
        scene.add(proc, sem, 1);
        ioctl(&mut scene, proc, sem, &format!("d{index}"), Command::Resume);
    }
    scene.add(proc, sem, -1);
    scene.wait(proc, sem);
    (scene, sem)
}

fn lost_elsewhere(scene: &mut Scene) {
    let udev = scene
        .world
        .spawn("dmsetup", &["dmsetup"], None, IpcNs::HOST);
    let tid = scene.tid(udev);
    scene.world.lookup_failed(udev, tid, KEY);
}

fn has_nodes(facts: &mut HostFacts) {
    facts.dm.nodes = Some(["d0", "d1", "control"].map(str::to_owned).into());
}

fn planned(
    scene: &mut Scene,
    seconds: u64,
    force_unknown: bool,
    change: impl Fn(&mut HostFacts),
) -> Action {
    let (snapshot, mut facts) = scene.after(seconds);
    has_nodes(&mut facts);
    facts.udev.queue_busy = false;
    change(&mut facts);
    scene.ledger.reconcile(&snapshot);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey(&scene.ledger, Some(&snapshot), &context);
    let options = Options {
        complete: true,
        force_unknown,
        rules: Rules {
            older_than: std::time::Duration::ZERO,
            ..Rules::default()
        },
        ..Options::default()
    };
    let plan = Plan::build(&judged, &scene.ledger, &context, options);
    plan.entries[0].action.clone()
}

fn complete(value: i32, count: i32) -> Action {
    Action::Complete(Completion { value, count })
}

fn obstacles(action: &Action) -> &[Obstacle] {
    match action {
        Action::Keep { because } => because,
        act => panic!("{act:?}"),
    }
}

#[test]
fn what_was_completed_elsewhere_is_lost() {
    let (mut scene, _) = stuck(OTHER, 1);
    lost_elsewhere(&mut scene);
    assert_eq!(planned(&mut scene, 2, false, |_| {}), complete(1, 1));
}

#[test]
fn not_more_than_is_lost() {
    let (mut scene, sem) = stuck(OTHER, 2);
    lost_elsewhere(&mut scene);
    assert_eq!(planned(&mut scene, 2, false, |_| {}), complete(2, 1));
    // Made good, or another event completed: nobody can tell which.
    scene.udev(sem);
    assert!(!planned(&mut scene, 2, false, |_| {}).acts());
    lost_elsewhere(&mut scene);
    assert_eq!(planned(&mut scene, 2, false, |_| {}), complete(1, 1));
}

#[test]
fn nothing_before_udev_has_given_up() {
    let (mut scene, _) = stuck(IpcNs::HOST, 1);
    let young = planned(&mut scene, 20, false, |_| {});
    assert!(!young.acts(), "{young:?}");
    let queue = |facts: &mut HostFacts| {
        facts.udev.queue_busy = true;
    };
    let busy = planned(&mut scene, LONG, false, queue);
    assert!(obstacles(&busy).contains(&Obstacle::EventPending { count: 1 }));
    assert_eq!(planned(&mut scene, 1, false, |_| {}), complete(1, 1));
}

#[test]
fn a_stopped_udevd_may_find_the_event() {
    let (mut scene, _) = stuck(IpcNs::HOST, 1);
    let down = planned(&mut scene, LONG, true, |facts| facts.udev.daemon = None);
    assert_eq!(obstacles(&down), [Obstacle::UdevdDown]);
}

#[test]
fn a_waiter_is_not_let_go_before_its_node_is_there() {
    let (mut scene, _) = stuck(IpcNs::HOST, 2);
    let missing = planned(&mut scene, LONG, true, |facts| {
        facts.dm.nodes = Some(["d0".to_owned()].into());
    });
    let name = "d1".to_owned();
    assert_eq!(obstacles(&missing), [Obstacle::NodeMissing { name }]);
    let unread = |facts: &mut HostFacts| facts.dm.nodes = None;
    let unknown = planned(&mut scene, 1, false, unread);
    assert_eq!(obstacles(&unknown), [Obstacle::NodesUnknown]);
    assert_eq!(planned(&mut scene, 1, true, unread), complete(2, 2));
}

#[test]
fn a_removed_device_must_be_gone() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed();
    ioctl(&mut scene, proc, sem, "d0", Command::Remove);
    scene.add(proc, sem, -1);
    scene.wait(proc, sem);
    let left = planned(&mut scene, LONG, false, |_| {});
    let name = "d0".to_owned();
    assert_eq!(obstacles(&left), [Obstacle::NodeLeft { name }]);
    let gone = |facts: &mut HostFacts| facts.dm.nodes = Some([].into());
    assert_eq!(planned(&mut scene, 1, false, gone), complete(1, 1));
}

#[test]
fn a_suspended_device_of_the_operation_blocks_its_removal() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed();
    ioctl(&mut scene, proc, sem, "d0", Command::Resume);
    scene.kill(proc);
    let suspend = |name: &str, node: &str| {
        let device = SuspendedDevice {
            node: node.to_owned(),
            name: name.to_owned(),
        };
        move |facts: &mut HostFacts| facts.dm.suspended = vec![device.clone()]
    };
    let ours = planned(&mut scene, LONG, false, suspend("d0", "dm-9"));
    let name = "d0".to_owned();
    assert_eq!(obstacles(&ours), [Obstacle::Suspended { name }]);
    // Renamed meanwhile: the number is the same.
    let renamed = planned(&mut scene, 1, false, suspend("new", "dm-3"));
    assert!(matches!(obstacles(&renamed), [Obstacle::Suspended { .. }]));
    let other = planned(&mut scene, 1, false, suspend("other", "dm-4"));
    assert_eq!(other, Action::Destroy);
    // Which device it was about is not known: any may be.
    let (proc, _) = {
        scene = Scene::new();
        scene.armed()
    };
    scene.kill(proc);
    let any = planned(&mut scene, LONG, false, suspend("other", "dm-4"));
    assert!(matches!(obstacles(&any), [Obstacle::Suspended { .. }]));
}
