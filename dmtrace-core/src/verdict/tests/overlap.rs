//! Operations that overlap on several processors are in no order; all others are.

use proptest::prelude::*;

use super::{histories::config_of_cases, scene::Scene};
use crate::{
    cleanup::plan::{Plan, PlanOptions, PlannedAction},
    event::{EventKind, ExitStatus},
    facts::{HostFacts, Snapshot},
    ids::{BootTime, IpcNs},
    verdict::{Completeness, Context, Obstacle, Thresholds, survey_cookies},
};

/// How long before its effect an operation was entered, and how long after it its return was told,
/// in microseconds. One operation takes effect each millisecond.
type Span = (u64, u64);

const APART: u64 = 1000;

/// A cookie that as many processes have completed as there are spans. Its owner is killed, so that
/// it is leaked. The messages come in the order `told`.
fn completed_cookie(spans: &[Span], told: &[usize]) -> (Scene, Vec<u32>, Snapshot, HostFacts) {
    let mut scene = Scene::new();
    let (owner, sem) = scene.armed_cookie();
    for _ in 1..spans.len() {
        scene.semop_add(owner, sem, 1);
    }
    let udev = |scene: &mut Scene| {
        let line = ["dmsetup", "udevcomplete", "1"];
        scene.world.spawn("dmsetup", &line, None, IpcNs::HOST)
    };
    let procs: Vec<usize> = spans.iter().map(|_| udev(&mut scene)).collect();
    scene.world.advance_clock(100 * APART * 1000);
    let first = scene.world.now;
    for (index, &proc) in procs.iter().enumerate() {
        scene.world.now = first + index as u64 * APART * 1000;
        scene.semop_add(proc, sem, -1);
    }
    let tgids: Vec<u32> = procs.iter().map(|&proc| scene.tid(proc)).collect();
    // What they say is told later, by programs that were held up.
    let ring = &mut scene.world.ring;
    let is_theirs = |what: &EventKind| matches!(what, EventKind::Op { ops, .. } if ops[0].op < 0);
    let (mut late, rest): (Vec<_>, Vec<_>) =
        ring.drain(..).partition(|event| is_theirs(&event.what));
    *ring = rest;
    for (event, &(before, after)) in late.iter_mut().zip(spans) {
        event.began = Some(BootTime(event.at.0 - before * 1000));
        event.at = BootTime(event.at.0 + after * 1000);
    }
    ring.extend(told.iter().map(|&index| late[index].clone()));
    scene.world.advance_clock(100 * APART * 1000);
    for proc in procs {
        scene.world.exit(proc, ExitStatus::Code(0));
    }
    scene.kill_owner(owner);
    let (snapshot, facts) = scene.facts_after(700);
    (scene, tgids, snapshot, facts)
}

/// Whether the kernel contradicts the books with this last operator; if it does not, the cookie
/// must be removed.
fn contradicts(scene: &Scene, snapshot: &Snapshot, facts: &HostFacts, last: u32) -> bool {
    let mut snapshot = snapshot.clone();
    if let Some(first) = snapshot.namespaces[0].sets[0].first.as_mut() {
        first.pid = last;
    }
    let context = Context {
        facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let plan = Plan::build(&judged, &scene.ledger, &context, PlanOptions::default());
    let because: &[Obstacle] = match &plan.entries[0].action {
        PlannedAction::Keep { obstacles: because } => because,
        PlannedAction::Destroy | PlannedAction::Complete(_) => &[],
    };
    let contradicts = because.contains(&Obstacle::Contradiction);
    assert!(contradicts || because.is_empty(), "{because:?}");
    contradicts
}

/// Every order of so many things.
fn all_orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = all_orders(count - 1);
    let longer = shorter.iter().flat_map(|order| {
        (0..count).map(|place| {
            let mut order = order.clone();
            order.insert(place, count - 1);
            order
        })
    });
    longer.collect()
}

#[test]
fn two_and_three_that_overlap_may_end_with_any_of_them() {
    for count in [2, 3] {
        // The first is held up until after the last; or all of them are.
        let all = vec![(10, 5 * APART); count];
        let mut first = vec![(10, 10); count];
        first[0] = (10, 5 * APART);
        for told in all_orders(count) {
            let (scene, tgids, snapshot, facts) = completed_cookie(&all, &told);
            for &tgid in &tgids {
                assert!(!contradicts(&scene, &snapshot, &facts, tgid), "{told:?}");
            }
            assert!(contradicts(&scene, &snapshot, &facts, 1), "a stranger");
            let (scene, tgids, snapshot, facts) = completed_cookie(&first, &told);
            let last = tgids[count - 1];
            assert!(!contradicts(&scene, &snapshot, &facts, tgids[0]));
            assert!(!contradicts(&scene, &snapshot, &facts, last));
            if count == 3 {
                // The third followed it entirely.
                assert!(contradicts(&scene, &snapshot, &facts, tgids[1]), "{told:?}");
            }
        }
    }
}

#[test]
fn one_that_others_followed_is_a_contradiction() {
    for count in [2, 3] {
        for told in all_orders(count) {
            let (scene, tgids, snapshot, facts) = completed_cookie(&vec![(10, 10); count], &told);
            let (last, others) = tgids.split_last().unwrap();
            assert!(!contradicts(&scene, &snapshot, &facts, *last), "{told:?}");
            for other in others {
                assert!(contradicts(&scene, &snapshot, &facts, *other), "{told:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(config_of_cases(100))]

    /// Whatever overlaps, in whatever order it is told: the kernel's last operator is never called
    /// a contradiction, and whoever was followed entirely always is.
    #[test]
    fn exactly_those_that_may_have_been_the_last(
        spans in prop::collection::vec((0..3 * APART, 0..3 * APART), 2..=3),
        seed in any::<u64>(),
    ) {
        let orders = all_orders(spans.len());
        let told = &orders[seed as usize % orders.len()];
        let (scene, tgids, snapshot, facts) = completed_cookie(&spans, told);
        let effect = |index: usize| 10 * APART + index as u64 * APART;
        for (index, &tgid) in tgids.iter().enumerate() {
            let ended = effect(index) + spans[index].1;
            let followed = (0..spans.len()).any(|other| effect(other) - spans[other].0 > ended);
            prop_assert_eq!(contradicts(&scene, &snapshot, &facts, tgid), followed);
        }
        prop_assert!(!contradicts(&scene, &snapshot, &facts, tgids[spans.len() - 1]));
    }

    /// There is room for three that overlap. Of more, one that may have been the last can be taken
    /// for a contradiction, which keeps the cookie; one that was followed is always one.
    #[test]
    fn of_four_none_that_was_followed_may_have_been_the_last(
        spans in prop::collection::vec((0..3 * APART, 0..3 * APART), 4),
        seed in any::<u64>(),
    ) {
        let orders = all_orders(spans.len());
        let told = &orders[seed as usize % orders.len()];
        let (scene, tgids, snapshot, facts) = completed_cookie(&spans, told);
        let effect = |index: usize| 10 * APART + index as u64 * APART;
        for (index, &tgid) in tgids.iter().enumerate() {
            let ended = effect(index) + spans[index].1;
            if (0..spans.len()).any(|other| effect(other) - spans[other].0 > ended) {
                prop_assert!(contradicts(&scene, &snapshot, &facts, tgid));
            }
        }
    }
}
