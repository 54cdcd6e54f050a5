//! Cookies that are older than the tracer.

use super::{
    play::OTHER,
    scene::{Scene, leaked},
    world::Sem,
};
use crate::{
    event::ExitStatus,
    ids::IpcNs,
    ledger::Ledger,
    verdict::{
        Class, Confidence, Context, Doubt, Evidence, Healthy, LeakKind, Remedy, Signature,
        Thresholds, Undecided, survey_cookies,
    },
};

/// A cookie from before the tracer, with these fields; `pid` is its last operator.
pub(super) fn found_cookie(value: i32, pid: u32, otime: bool) -> Scene {
    let mut scene = Scene::new();
    scene.ledger = Ledger::new();
    scene.world.traced = false;
    let (proc, sem) = scene.armed_cookie();
    scene.world.exit(proc, ExitStatus::Code(0));
    let set: &mut Sem = scene.world.sems.get_mut(&sem).unwrap();
    set.value = value;
    set.pid = pid;
    if !otime {
        set.otime = 0;
    }
    scene
}

#[test]
fn signatures_of_old_cookies() {
    let table = [
        (0, 0, false, Signature::NeverSet),
        (1, 77, false, Signature::NeverUsed),
        (2, 77, true, Signature::NotCompleted),
        (1, 77, true, Signature::OneLeft),
        (0, 77, true, Signature::NotRemoved),
    ];
    for (value, pid, otime, fields) in table {
        let mut scene = found_cookie(value, pid, otime);
        let young = scene.verdict(60);
        assert!(matches!(young.class, Class::Unknown(_)), "{young:#?}");
        let verdict = scene.verdict(7200);
        assert_eq!(leaked(&verdict), LeakKind::Signature { fields });
        assert_eq!(verdict.confidence, Confidence::Inferred);
        assert_eq!(verdict.culprit, None, "nobody is named");
    }
}

#[test]
fn the_last_operator_is_compared_by_its_start() {
    // Alive since before the cookie: it is the owner, or may be.
    let mut scene = found_cookie(1, 1, false);
    let old = scene.world.spawn("tool", &["tool"], None, IpcNs::HOST);
    scene.world.procs[old].id.start.0 = 1_000_000;
    let tgid = scene.tid(old);
    for set in scene.world.sems.values_mut() {
        set.pid = tgid;
    }
    let young = scene.verdict(60);
    assert_eq!(young.class, Class::Healthy(Healthy::Open));
    // That it lives is no clean bill: a daemon that has left it lives, too.
    let cookie = scene.ledger.live_cookies().next().expect("one is there");
    let doubt = Doubt::of_verdict(cookie, &young);
    assert_eq!(doubt, Some(Doubt::OlderThanTrace));
    // Hours later it may have forgotten the cookie, or not: nobody is accused.
    let verdict = scene.verdict(7200);
    assert_eq!(verdict.class, Class::Unknown(Undecided::PossibleOwners));
    assert_eq!(verdict.culprit, None);
    // The same number with a later start is somebody else.
    scene.world.procs[old].id.start.0 = scene.world.now - 1_000_000_000;
    leaked(&scene.verdict(7200));
}

#[test]
fn possible_owners_are_not_accused() {
    let mut scene = found_cookie(2, 77, true);
    let old = scene
        .world
        .spawn("dockerd", &["dockerd"], None, IpcNs::HOST);
    scene.world.procs[old].id.start.0 = 1_000_000;
    let verdict = scene.verdict(7200);
    assert_eq!(verdict.class, Class::Unknown(Undecided::PossibleOwners));
    // In another namespace it cannot reach the cookie.
    scene.world.procs[old].ns = OTHER;
    leaked(&scene.verdict(0));
    let verdict = scene.judge_after(0, |facts| facts.processes_complete = false);
    assert_eq!(
        verdict.class,
        Class::Unknown(Undecided::ProcessesUnreadable)
    );
}

#[test]
fn when_in_a_second_it_is_judged_changes_no_verdict() {
    for started_after_ms in [0, 400, 900, 1600, 2400, 3100] {
        let mut verdicts = Vec::new();
        for phase_ms in (0..1000).step_by(50) {
            let mut scene = found_cookie(2, 77, true);
            let process = scene
                .world
                .spawn("dockerd", &["dockerd"], None, IpcNs::HOST);
            let touched = scene.world.now / 1_000_000_000 * 1_000_000_000;
            scene.world.procs[process].id.start.0 = touched + started_after_ms * 1_000_000;
            scene.world.now = touched;
            let phase = phase_ms * 1_000_000;
            let verdict = scene.judge_after(7200, |facts| {
                facts.now.0 = facts.now.0 / 1_000_000_000 * 1_000_000_000 + phase;
                facts.wall_nanos = u32::try_from(phase).unwrap();
            });
            verdicts.push(verdict.class);
        }
        verdicts.dedup();
        assert_eq!(verdicts.len(), 1, "{started_after_ms} ms: {verdicts:?}");
    }
}

#[test]
fn who_may_not_read_a_state_is_told_so_and_what_would_help() {
    let mut scene = found_cookie(2, 77, true);
    let (mut snapshot, facts) = scene.facts_after(7200);
    for set in snapshot.namespaces.iter_mut().flat_map(|ns| &mut ns.sets) {
        set.first = None;
    }
    scene.ledger.reconcile(&snapshot);
    let context = Context {
        facts: &facts,
        completeness: &scene.completeness,
        thresholds: &Thresholds::default(),
    };
    let judged = survey_cookies(&scene.ledger, Some(&snapshot), &context);
    let verdict = &judged[0].verdict;
    assert_eq!(verdict.class, Class::Unknown(Undecided::Unreadable));
    assert!(
        verdict.evidence.contains(&Evidence::StateHidden),
        "{verdict:?}"
    );
    assert!(
        !verdict.evidence.contains(&Evidence::NoWaiter),
        "{verdict:?}"
    );
    assert_eq!(verdict.advice.remedy, [Remedy::ReadAll]);
    assert!(Remedy::ReadAll.to_string().starts_with("run as root"));
}
