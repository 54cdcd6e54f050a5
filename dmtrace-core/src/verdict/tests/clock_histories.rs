//! Random histories of the wall clock: no step makes a leak, and none lifts a guard.

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestCaseResult};

use super::{histories::config_of_cases, old::found_cookie, scene::Scene};
use crate::{
    cleanup::plan::{PlanOptions, PlannedAction, decide_action},
    facts::{HostFacts, Snapshot},
    ids::{BootTime, IpcNs, UnixTime},
    verdict::{Class, Context, Judged, RemovalRules, Thresholds, survey_cookies},
    wall_clock::{
        ClockHistory, ClockOffset,
        tests::{TrueClock, any_clock},
    },
};

const SECOND: u64 = 1_000_000_000;

/// A cookie from before the tracer, and who has it.
#[derive(Clone, Copy, Debug)]
struct OldCookie {
    /// When its owner started, was set, was used: thousandths of the time until now.
    started: u64,
    set: u64,
    used: Option<u64>,
    value: i32,
    /// Its owner is known by the number that the kernel keeps, else by its name.
    by_number: bool,
    alive: bool,
    /// Needed age, seconds.
    needed: u64,
}

fn any_cookie() -> impl Strategy<Value = OldCookie> {
    // Also close to now, where ages matter.
    let part = || prop_oneof![0..1000_u64, 990..1000_u64];
    (
        part(),
        part(),
        prop::option::of(part()),
        0..3,
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![60, 600]),
    )
        .prop_map(|(a, b, c, value, by_number, alive, needed)| {
            let mut times = [a, b, c.unwrap_or(b)];
            times.sort_unstable();
            OldCookie {
                started: times[0],
                set: times[1],
                used: c.map(|_| times[2]),
                value,
                by_number,
                alive,
                needed,
            }
        })
}

/// How long ago the cookie was touched in truth, and what is seen of it.
fn play(clock: &TrueClock, cookie: OldCookie) -> (Duration, Scene, Snapshot, HostFacts) {
    let at = |part: u64| 11 * SECOND + (clock.now - 11 * SECOND) / 1000 * part;
    let mut scene = found_cookie(cookie.value, 77, cookie.used.is_some());
    let name = if cookie.by_number { "tool" } else { "lvm" };
    let owner = scene.world.spawn(name, &[name], None, IpcNs::HOST);
    scene.world.procs[owner].id.start = BootTime(at(cookie.started));
    scene.world.procs[owner].alive = cookie.alive;
    let tgid = scene.tid(owner);
    for set in scene.world.sems.values_mut() {
        set.pid = if cookie.by_number { tgid } else { 77 };
        set.ctime = clock.stamp(at(cookie.set), 3_000_000).0;
        set.otime = cookie.used.map_or(0, |used| clock.stamp(at(used), 0).0);
    }
    scene.world.now = clock.now - 2000;
    let (snapshot, mut facts) = scene.facts_after(0);
    facts.now = BootTime(clock.now);
    let wall = i128::from(clock.offset(clock.now)) + i128::from(clock.now);
    facts.wall = UnixTime(i64::try_from(wall / i128::from(SECOND)).unwrap());
    facts.wall_nanos = u32::try_from(wall % i128::from(SECOND)).unwrap();
    facts.clock = clock.known();
    let touched = at(cookie.used.unwrap_or(cookie.set));
    scene.ledger.reconcile(&snapshot);
    (
        Duration::from_nanos(clock.now - touched),
        scene,
        snapshot,
        facts,
    )
}

/// Calls `check` with the verdict, and with what each combination of options does.
fn check_all(
    scene: &Scene,
    snapshot: &Snapshot,
    facts: &HostFacts,
    needed: u64,
    check: &mut dyn FnMut(&Judged<'_>, &[PlannedAction]) -> TestCaseResult,
) -> TestCaseResult {
    let thresholds = Thresholds {
        old: Duration::from_secs(needed),
        ..Thresholds::default()
    };
    let context = Context {
        facts,
        completeness: &scene.completeness,
        thresholds: &thresholds,
    };
    let judged = survey_cookies(&scene.ledger, Some(snapshot), &context);
    let flags = |bits: u8, bit: u8| bits >> bit & 1 == 1;
    let actions: Vec<PlannedAction> = (0..16_u8)
        .map(|bits| {
            let options = PlanOptions {
                rules: RemovalRules {
                    inferred: flags(bits, 3),
                    older_than: Duration::from_secs(needed),
                },
                max: None,
                abandoned: flags(bits, 0),
                force_unknown: flags(bits, 1),
                complete: flags(bits, 2),
            };
            decide_action(&judged[0], &scene.ledger, &context, options)
        })
        .collect();
    check(&judged[0], &actions)
}

proptest! {
    #![proptest_config(config_of_cases(1500))]

    #[test]
    fn no_step_of_the_clock_makes_a_leak(clock in any_clock(5), cookie in any_cookie()) {
        let (age, scene, snapshot, facts) = play(&clock, cookie);
        // The kernel's stamps have seconds.
        let guarded = cookie.alive || age < Duration::from_secs(cookie.needed - 1);
        check_all(&scene, &snapshot, &facts, cookie.needed, &mut |judged, actions| {
            if guarded {
                let class = judged.verdict.class;
                prop_assert!(!matches!(class, Class::Leaked(_)), "{:#?}", judged.verdict);
                let kept = |action: &PlannedAction| !action.changes_cookie();
                prop_assert!(actions.iter().all(kept), "{:#?}", judged.verdict);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_clock_that_nobody_set_changes_nothing(clock in any_clock(0), cookie in any_cookie()) {
        let (_, scene, snapshot, mut facts) = play(&clock, cookie);
        let mut seen = Vec::new();
        let mut note = |judged: &Judged<'_>, actions: &[PlannedAction]| {
            seen.push((judged.verdict.class, actions.to_vec()));
            Ok(())
        };
        facts.clock = ClockHistory::steady(facts.now, ClockOffset(clock.offset(clock.now)));
        check_all(&scene, &snapshot, &facts, cookie.needed, &mut note)?;
        facts.clock = clock.known();
        for at in (SECOND..clock.now).step_by(3600 * SECOND as usize) {
            let wall = i128::from(clock.offset(at)) + i128::from(at);
            let (wall, nanos) = (wall / i128::from(SECOND), wall % i128::from(SECOND));
            let wall = UnixTime(i64::try_from(wall).unwrap());
            facts.clock.observe(BootTime(at), wall, u32::try_from(nanos).unwrap());
        }
        check_all(&scene, &snapshot, &facts, cookie.needed, &mut note)?;
        prop_assert_eq!(&seen[0], &seen[1]);
    }
}
