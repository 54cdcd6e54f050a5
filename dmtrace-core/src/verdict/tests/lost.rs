//! What may be completed in udev's place.

use super::scene::{KEY, Scene};
use crate::{
    cleanup::{
        plan::{Plan, PlanEntry, PlanOptions, PlannedAction},
        recheck::{MismatchedField, recheck_entry},
    },
    event::{DmCommand, DmIoctl, EventKind, Quality},
    facts::{HostFacts, SetSnapshot, SuspendedDevice},
    ids::{BootTime, DevNum, IpcNs, ProcId, SemId},
    verdict::{
        Completeness, Completion, Context, Obstacle, RemovalRules, Thresholds, survey_cookies,
    },
};

const OTHER: IpcNs = IpcNs(4_026_532_999);

/// Seconds after which udev has given up.
const LONG: u64 = 200;

/// The ioctl of an operation, with its uevent.
fn send_ioctl(scene: &mut Scene, proc: usize, sem: SemId, name: &str, command: DmCommand) {
    let tid = scene.tid(proc);
    let ioctl = DmIoctl {
        sem,
        key: KEY,
        command,
        errno: 0,
        began: BootTime(1),
        name: name.to_owned(),
        new_name: None,
        uuid: None,
        device: DevNum::from_kernel(253, 3),
        uevent: true,
        deferred: false,
        udev_flags: 0,
    };
    let what = EventKind::Ioctl(Box::new(ioctl));
    assert!(
        scene
            .world
            .send_message(proc, tid, what, Quality::default())
    );
}

/// A waiter for `operations` devices, d0, d1, …
fn stuck_waiter(ns: IpcNs, operations: usize) -> (Scene, SemId) {
    let mut scene = Scene::new();
    let proc = scene.world.spawn("kpartx", &["kpartx"], None, ns);
    let sem = scene.create_cookie(proc);
    scene.setval(proc, sem);
    for index in 0..operations {
        scene.semop_add(proc, sem, 1);
        send_ioctl(
            &mut scene,
            proc,
            sem,
            &format!("d{index}"),
            DmCommand::Resume,
        );
    }
    scene.semop_add(proc, sem, -1);
    scene.begin_wait(proc, sem);
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

fn planned_action(
    scene: &mut Scene,
    seconds: u64,
    force_unknown: bool,
    change: impl Fn(&mut HostFacts),
) -> PlannedAction {
    planned_entry(scene, seconds, force_unknown, change)
        .0
        .action
}

/// An entry of a plan, and what it was made from.
fn planned_entry(
    scene: &mut Scene,
    seconds: u64,
    force_unknown: bool,
    change: impl Fn(&mut HostFacts),
) -> (PlanEntry, SetSnapshot, HostFacts) {
    let (snapshot, mut facts) = scene.facts_after(seconds);
    has_nodes(&mut facts);
    facts.udev.queue_busy = false;
    change(&mut facts);
    scene.ledger.reconcile(&snapshot);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let options = PlanOptions {
        complete: true,
        force_unknown,
        rules: RemovalRules {
            older_than: std::time::Duration::ZERO,
            ..RemovalRules::default()
        },
        ..PlanOptions::default()
    };
    let mut plan = Plan::build(&judged, &scene.ledger, &context, options);
    let entry = plan.entries.remove(0);
    let (_, set) = snapshot.sets().next().unwrap();
    (entry, set.clone(), facts)
}

/// Value and number of the completions in a plan.
fn completion_of(action: &PlannedAction) -> Option<(i32, i32)> {
    let completion = action.completion()?;
    Some((completion.value, completion.count))
}

fn obstacles(action: &PlannedAction) -> &[Obstacle] {
    match action {
        PlannedAction::Keep { obstacles: because } => because,
        act => panic!("{act:?}"),
    }
}

#[test]
fn what_was_completed_elsewhere_is_lost() {
    let (mut scene, _) = stuck_waiter(OTHER, 1);
    lost_elsewhere(&mut scene);
    assert_eq!(
        completion_of(&planned_action(&mut scene, 2, false, |_| {})),
        Some((1, 1))
    );
}

#[test]
fn not_more_than_is_lost() {
    let (mut scene, sem) = stuck_waiter(OTHER, 2);
    lost_elsewhere(&mut scene);
    assert_eq!(
        completion_of(&planned_action(&mut scene, 2, false, |_| {})),
        Some((2, 1))
    );
    // Made good, or another event completed: nobody can tell which.
    scene.spawn_udev(sem);
    assert!(!planned_action(&mut scene, 2, false, |_| {}).changes_cookie());
    lost_elsewhere(&mut scene);
    assert_eq!(
        completion_of(&planned_action(&mut scene, 2, false, |_| {})),
        Some((1, 1))
    );
}

#[test]
fn nothing_before_udev_has_given_up() {
    let (mut scene, _) = stuck_waiter(IpcNs::HOST, 1);
    let young = planned_action(&mut scene, 20, false, |_| {});
    assert!(!young.changes_cookie(), "{young:?}");
    let queue = |facts: &mut HostFacts| {
        facts.udev.queue_busy = true;
    };
    let busy = planned_action(&mut scene, LONG, false, queue);
    assert!(obstacles(&busy).contains(&Obstacle::EventPending { count: 1 }));
    assert_eq!(
        completion_of(&planned_action(&mut scene, 1, false, |_| {})),
        Some((1, 1))
    );
}

#[test]
fn a_stopped_udevd_may_find_the_event() {
    let (mut scene, _) = stuck_waiter(IpcNs::HOST, 1);
    let down = planned_action(&mut scene, LONG, true, |facts| facts.udev.daemon = None);
    assert_eq!(obstacles(&down), [Obstacle::UdevdDown]);
}

#[test]
fn a_waiter_is_not_let_go_before_its_node_is_there() {
    let (mut scene, _) = stuck_waiter(IpcNs::HOST, 2);
    let missing = planned_action(&mut scene, LONG, true, |facts| {
        facts.dm.nodes = Some(["d0".to_owned()].into());
    });
    let name = "d1".to_owned();
    assert_eq!(obstacles(&missing), [Obstacle::NodeMissing { name }]);
    let unread = |facts: &mut HostFacts| facts.dm.nodes = None;
    let unknown = planned_action(&mut scene, 1, false, unread);
    assert_eq!(obstacles(&unknown), [Obstacle::NodesUnknown]);
    assert_eq!(
        completion_of(&planned_action(&mut scene, 1, true, unread)),
        Some((2, 2))
    );
}

#[test]
fn a_removed_device_must_be_gone() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    send_ioctl(&mut scene, proc, sem, "d0", DmCommand::Remove);
    scene.semop_add(proc, sem, -1);
    scene.begin_wait(proc, sem);
    let left = planned_action(&mut scene, LONG, false, |_| {});
    let name = "d0".to_owned();
    assert_eq!(obstacles(&left), [Obstacle::NodeLeft { name }]);
    let gone = |facts: &mut HostFacts| facts.dm.nodes = Some([].into());
    assert_eq!(
        completion_of(&planned_action(&mut scene, 1, false, gone)),
        Some((1, 1))
    );
}

#[test]
fn a_suspended_device_of_the_operation_blocks_its_removal() {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    send_ioctl(&mut scene, proc, sem, "d0", DmCommand::Resume);
    scene.kill_owner(proc);
    let suspend = |name: &str, node: &str| {
        let device = SuspendedDevice {
            node: node.to_owned(),
            name: name.to_owned(),
        };
        move |facts: &mut HostFacts| facts.dm.suspended = vec![device.clone()]
    };
    let ours = planned_action(&mut scene, LONG, false, suspend("d0", "dm-9"));
    let name = "d0".to_owned();
    assert_eq!(obstacles(&ours), [Obstacle::Suspended { name }]);
    // Renamed meanwhile: the number is the same.
    let renamed = planned_action(&mut scene, 1, false, suspend("new", "dm-3"));
    assert!(matches!(obstacles(&renamed), [Obstacle::Suspended { .. }]));
    let other = planned_action(&mut scene, 1, false, suspend("other", "dm-4"));
    assert_eq!(other, PlannedAction::Destroy);
    // Which device it was about is not known: any may be.
    let (proc, _) = {
        scene = Scene::new();
        scene.armed_cookie()
    };
    scene.kill_owner(proc);
    let any = planned_action(&mut scene, LONG, false, suspend("other", "dm-4"));
    assert!(matches!(obstacles(&any), [Obstacle::Suspended { .. }]));
}

/// What a completion rests on when it is planned must hold when it is carried out, hours later.
#[test]
fn whatever_a_completion_rests_on_is_looked_at_again() {
    type Change = fn(&mut HostFacts);
    let suspend: Change = |facts| {
        facts.dm.suspended = vec![SuspendedDevice {
            node: "dm-3".to_owned(),
            name: "d0".to_owned(),
        }];
    };
    let changes: [(&str, Change, MismatchedField); 6] = [
        (
            "the node is gone",
            |facts| facts.dm.nodes = Some([].into()),
            MismatchedField::Nodes,
        ),
        (
            "the nodes cannot be read",
            |facts| facts.dm.nodes = None,
            MismatchedField::Nodes,
        ),
        ("suspended", suspend, MismatchedField::Suspended),
        (
            "udevd has ended",
            |facts| facts.udev.daemon = None,
            MismatchedField::Udev,
        ),
        (
            "udev is at work",
            |facts| facts.udev.queue_busy = true,
            MismatchedField::Udev,
        ),
        (
            "a user is back",
            |facts| {
                let back = facts.processes.entry(77).or_default();
                back.start_ticks = 500;
            },
            MismatchedField::Users,
        ),
    ];
    let (mut scene, _) = stuck_waiter(IpcNs::HOST, 1);
    let (mut entry, set, facts) = planned_entry(&mut scene, LONG, false, |_| {});
    entry.gone.push(ProcId {
        tgid: 77,
        start: BootTime(5_000_000_000),
    });
    assert_eq!(recheck_entry(&entry, &set, &facts), Ok(()));
    for (name, change, what) in changes {
        let mut now = facts.clone();
        change(&mut now);
        let moved = recheck_entry(&entry, &set, &now).unwrap_err();
        assert_eq!(moved.what, what, "{name}: {moved}");
        assert!(!moved.to_string().is_empty());
    }
    // Such a device is not in the plan to begin with.
    let planned = planned_action(&mut scene, 1, false, suspend);
    assert!(matches!(obstacles(&planned), [Obstacle::Suspended { .. }]));
}

#[test]
fn a_plan_that_completes_anything_else_than_what_is_lost_is_refused() {
    let (mut scene, _) = stuck_waiter(IpcNs::HOST, 2);
    let (entry, set, facts) = planned_entry(&mut scene, LONG, false, |_| {});
    for (value, count) in [(2, -5), (2, 0), (2, 3), (3, 1), (1, 1)] {
        let mut entry = entry.clone();
        entry.action = PlannedAction::Complete(Completion {
            value,
            count,
            ..Completion::default()
        });
        let moved = recheck_entry(&entry, &set, &facts).unwrap_err();
        assert_eq!(
            moved.what,
            MismatchedField::Completion,
            "{count} of {value}"
        );
    }
}

/// What was looked for elsewhere is lost whatever udev does now.
#[test]
fn what_was_completed_elsewhere_needs_no_idle_udev() {
    let (mut scene, _) = stuck_waiter(OTHER, 1);
    lost_elsewhere(&mut scene);
    let (entry, set, mut facts) = planned_entry(&mut scene, 2, false, |_| {});
    for (busy, daemon) in [(true, Some(1)), (false, None)] {
        facts.udev.queue_busy = busy;
        facts.udev.daemon = daemon;
        assert_eq!(recheck_entry(&entry, &set, &facts), Ok(()));
    }
}
