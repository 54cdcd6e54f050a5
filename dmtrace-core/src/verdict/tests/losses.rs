//! Messages that are lost for good make what they may belong to uncertain, and nothing else.

use super::scene::{Scene, leaked};
use crate::{
    ids::BootTime,
    verdict::{Class, Completeness, Confidence, LeakKind, Losses, Undecided},
};

fn losses_until(until: Option<u64>) -> Losses {
    Losses {
        count: 3,
        until: until.map(BootTime),
        ..Losses::default()
    }
}

/// A cookie whose owner was killed, and when it was made.
fn killed_owner() -> (Scene, u64) {
    let mut scene = Scene::new();
    let (proc, sem) = scene.armed_cookie();
    scene.kill_owner(proc);
    scene.facts_after(0);
    let created = scene.ledger.semaphore(sem).unwrap().created.unwrap();
    (scene, created.0)
}

#[test]
fn what_was_lost_before_a_cookie_was_made_hides_no_leak() {
    let (mut scene, created) = killed_owner();
    scene.completeness.lost = losses_until(Some(created - 1));
    let verdict = scene.verdict(2);
    assert!(matches!(leaked(&verdict), LeakKind::OwnerKilled { .. }));
    assert_eq!(verdict.confidence, Confidence::Observed);
}

#[test]
fn what_was_lost_since_a_cookie_was_made_may_have_been_of_it() {
    for until in [Some(u64::MAX), None] {
        let (mut scene, _) = killed_owner();
        scene.completeness.lost = losses_until(until);
        let verdict = scene.verdict(2);
        assert_eq!(verdict.class, Class::Unknown(Undecided::EventsLost));
    }
}

#[test]
fn what_was_lost_of_those_that_are_gone_is_not_of_those_that_are_there() {
    let (mut scene, _) = killed_owner();
    scene.completeness.ended = losses_until(None);
    let verdict = scene.verdict(2);
    assert!(matches!(leaked(&verdict), LeakKind::OwnerKilled { .. }));
    assert_eq!(verdict.confidence, Confidence::Observed);
}

#[test]
fn what_was_lost_of_those_that_are_gone_makes_their_ends_uncertain() {
    let expected = [
        (None, Confidence::Inferred),
        (Some(u64::MAX), Confidence::Inferred),
        (Some(0), Confidence::Observed),
    ];
    for (until, confidence) in expected {
        let mut scene = Scene::new();
        let (proc, sem) = scene.armed_cookie();
        scene.remove_set(proc, sem);
        scene.completeness.ended = losses_until(until);
        assert_eq!(scene.closed(sem).confidence, confidence, "{until:?}");
    }
}

#[test]
fn one_more_loss_at_an_unknown_time_concerns_everything() {
    let mut completeness = Completeness {
        lost: losses_until(Some(1)),
        ..Completeness::default()
    };
    completeness.lost.add(0);
    assert_eq!(completeness.lost, losses_until(Some(1)));
    completeness.lost.add(1);
    let (mut scene, _) = killed_owner();
    scene.completeness = completeness;
    assert_eq!(
        scene.verdict(2).class,
        Class::Unknown(Undecided::EventsLost)
    );
}
