//! The wall clock was set: no verdict rests on what it says alone.

use super::{
    old::found_cookie,
    plans::{leaked_scene, make_plan, obstacles},
    scene::leaked,
    world::WALL0,
};
use crate::{
    cleanup::plan::{PlanOptions, PlannedAction},
    facts::HostFacts,
    ids::{BootTime, IpcNs, UnixTime},
    verdict::{Class, Confidence, Evidence, Obstacle, ProcessFate, Undecided},
    wall_clock::{ClockAnchor, ClockHistory, ClockOffset, Coverage},
};

const SECOND: u64 = 1_000_000_000;

/// A clock that was set by so many seconds; nobody watched it, but shortly before it was read.
fn set_clock(facts: &mut HostFacts, by: i64) {
    let offset = |by: i64| ClockOffset((WALL0 + by) * SECOND.cast_signed());
    facts.clock = ClockHistory::steady(BootTime(facts.now.0 - 60 * SECOND), offset(0));
    facts.clock.add(ClockAnchor {
        at: facts.now,
        offset: offset(by),
        error: 0,
        before: Coverage::Unwatched,
    });
    facts.wall.0 += by;
}

/// Nothing is known of the clock.
fn forget_clock(facts: &mut HostFacts) {
    facts.clock = ClockHistory::default();
}

#[test]
fn a_step_forward_makes_no_leak() {
    // Completed and not removed, a second ago, by somebody who lives.
    let mut scene = found_cookie(0, 77, true);
    let verdict = scene.judge_after(1, |facts| set_clock(facts, 10_680));
    assert!(matches!(verdict.class, Class::Unknown(_)), "{verdict:#?}");
    assert_eq!(verdict.culprit, None);
    let old = found_cookie(0, 77, true).judge_after(1, |facts| {
        set_clock(facts, 10_680);
        // As it looks to somebody who does not know the clock's history.
        forget_clock(facts);
    });
    assert!(matches!(old.class, Class::Unknown(_)), "{old:#?}");
    // Old it is only when it is so by the clock that nobody sets.
    let verdict = scene.judge_after(7200, |facts| set_clock(facts, 10_680));
    leaked(&verdict);
}

#[test]
fn what_is_not_known_of_the_clock_is_said() {
    let mut scene = found_cookie(0, 77, true);
    let stepped = |facts: &mut HostFacts| {
        facts.clock = ClockHistory::default();
        facts
            .clock
            .observe(BootTime(SECOND), UnixTime(WALL0 - 10_679), 0);
    };
    let verdict = scene.judge_after(7200, stepped);
    assert_eq!(verdict.class, Class::Unknown(Undecided::ClockSet));
    assert_eq!(verdict.confidence, Confidence::Unknown(Undecided::ClockSet));
    let text = verdict.evidence.iter().map(ToString::to_string);
    let text = text.collect::<Vec<_>>().join("\n");
    assert!(text.contains("was set since boot (by +2h58m)"), "{text}");
    let verdict = scene.judge_after(0, forget_clock);
    assert_eq!(verdict.class, Class::Unknown(Undecided::ClockSet));
}

#[test]
fn a_step_back_is_no_youth_without_end() {
    // In the minute of the step it may have shown everything; what comes after is known.
    let mut scene = found_cookie(0, 77, true);
    let verdict = scene.judge_after(7200, |facts| set_clock(facts, -100_000));
    assert_eq!(verdict.class, Class::Unknown(Undecided::ClockSet));
    leaked(&scene.judge_after(0, |facts| {
        let mut since = facts.clone();
        since.now.0 -= 1000 * SECOND;
        set_clock(&mut since, -100_000);
        let last = ClockAnchor {
            at: facts.now,
            before: Coverage::Steady,
            ..since.clock.anchors().last().copied().unwrap()
        };
        facts.clock = since.clock;
        facts.clock.add(last);
    }));
    // A clock that cannot have shown the stamp: nothing is known of the age.
    let verdict = scene.judge_after(0, |facts| {
        facts.clock =
            ClockHistory::steady(facts.now, ClockOffset((WALL0 - 100_000) * 1_000_000_000));
    });
    assert_eq!(verdict.class, Class::Unknown(Undecided::ClockSet));
}

#[test]
fn nobody_is_called_gone_who_may_be_the_one() {
    let mut scene = found_cookie(0, 77, true);
    let process = scene.world.spawn("tool", &["tool"], None, IpcNs::HOST);
    // It has started, and then touched the cookie: just now. The clock was set back before that.
    let tgid = scene.tid(process);
    let touched = scene.world.wall() - 10_680;
    for set in scene.world.sems.values_mut() {
        (set.pid, set.otime, set.ctime) = (tgid, touched, touched);
    }
    let fate = |facts: &dyn Fn(&mut HostFacts)| {
        let verdict = found_fate(&mut scene, facts);
        assert!(!matches!(verdict.0, Class::Leaked(_)), "{verdict:?}");
        verdict.1
    };
    let mut fate = fate;
    let unknown = fate(&forget_clock);
    assert_eq!(unknown, ProcessFate::MaybeAlive);
    let text = Evidence::LastOperator {
        pid: tgid,
        fate: unknown,
    }
    .to_string();
    assert!(!text.contains("gone"), "{text}");
    let known = fate(&|facts| {
        let offset = ClockOffset((WALL0 - 10_680) * 1_000_000_000);
        facts.clock = ClockHistory::steady(facts.now, offset);
    });
    assert_eq!(known, ProcessFate::Alive);
}

fn found_fate(
    scene: &mut super::scene::Scene,
    change: &dyn Fn(&mut HostFacts),
) -> (Class, ProcessFate) {
    let verdict = scene.judge_after(5, change);
    let fate = verdict.evidence.iter().find_map(|fact| match fact {
        Evidence::LastOperator { fate, .. } => Some(*fate),
        _ => None,
    });
    (verdict.class, fate.unwrap())
}

#[test]
fn what_a_trace_saw_needs_no_wall_clock() {
    let (scene, snapshot, facts) = leaked_scene(700);
    let changes: [fn(&mut HostFacts); 3] = [
        forget_clock,
        |facts| set_clock(facts, -100_000),
        |facts| set_clock(facts, 10_680),
    ];
    for change in changes {
        let mut facts = facts.clone();
        change(&mut facts);
        let plan = make_plan(&scene, &snapshot, &facts, PlanOptions::default());
        assert_eq!(plan.entries[0].action, PlannedAction::Destroy);
    }
}

#[test]
fn a_doubt_of_the_clock_blocks_every_option() {
    let mut scene = found_cookie(0, 77, true);
    let (snapshot, mut facts) = scene.facts_after(7200);
    scene.ledger.reconcile(&snapshot);
    let options = PlanOptions {
        abandoned: true,
        force_unknown: true,
        complete: true,
        ..PlanOptions::default()
    };
    let plan = make_plan(&scene, &snapshot, &facts, options);
    assert_eq!(plan.entries[0].action, PlannedAction::Destroy);
    forget_clock(&mut facts);
    let plan = make_plan(&scene, &snapshot, &facts, options);
    let needed = 600;
    assert!(
        obstacles(&plan).contains(&Obstacle::ClockSet { needed }),
        "{plan:#?}"
    );
    let text = Obstacle::ClockSet { needed }.to_string();
    assert!(text.contains("10m00s"), "{text}");
}
