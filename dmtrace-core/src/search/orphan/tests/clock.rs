//! Orphans on a host whose wall clock was set.

use super::*;
use crate::wall_clock::{ClockAnchor, Coverage};

/// The clock was set two hours back 500 s after boot, and somebody watched it: it showed this since.
fn set_back(scene: &mut Scene) -> i64 {
    const STEP: i64 = 7200;
    let anchor = |second: u64, offset: i64, before| ClockAnchor {
        at: BootTime(second * SECOND),
        offset: ClockOffset(offset * SECOND.cast_signed()),
        error: 0,
        before,
    };
    let clock = &mut scene.facts.clock;
    *clock = ClockHistory::default();
    clock.add(anchor(0, BOOT, Coverage::Unwatched));
    clock.add(anchor(500, BOOT, Coverage::Steady));
    clock.add(anchor(501, BOOT - STEP, Coverage::Set));
    clock.add(anchor(4050, BOOT - STEP, Coverage::Steady));
    scene.facts.wall = UnixTime(BOOT - STEP + 4050);
    BOOT - STEP
}

#[test]
fn the_last_touch_is_the_later_one_though_the_clock_was_set_back() {
    // Made at 100 s, and used last at 3700 s: by the clock that was set back, before it was made.
    let made_and_used = |it: &mut Scene| {
        let since = set_back(it);
        it.always(|set| {
            set.ctime = UnixTime(BOOT + 100);
            set.otime = UnixTime(since + 3700);
        });
        for number in 0..2 {
            it.mark(number).search.coverage.files_since = Some(UnixTime(0));
        }
    };
    let kept = after(made_and_used);
    let [OrphanObstacle::TooYoung { ready_at }] = kept[..] else {
        panic!("{kept:?}");
    };
    assert_eq!(ready_at, BootTime(4300 * SECOND));
    let kept = after(|it| {
        made_and_used(it);
        it.add_process(77, 2000);
    });
    let alive = |it: &OrphanObstacle| matches!(it, OrphanObstacle::OperatorAlive { pid: 77, .. });
    assert!(kept.iter().any(alive), "{kept:?}");
}

#[test]
fn files_stamped_before_a_cookie_may_be_younger_than_it() {
    let mut scene = Scene::orphan();
    let since = set_back(&mut scene);
    let made = UnixTime(BOOT + 100);
    scene.always(|set| (set.ctime, set.otime) = (made, made));
    // Right after it was set back the clock showed this.
    let least = UnixTime(since + 500 - 1);
    assert_eq!(files_since(made, &scene.facts), least);
    for (from, proven) in [(made.0 - 1, false), (least.0, true)] {
        for number in 0..2 {
            scene.mark(number).search.coverage.files_since = Some(UnixTime(from));
        }
        let kept = scene.judge().err().unwrap_or_default();
        let expected = OrphanObstacle::FilesNotSearched {
            since: least,
            why: None,
        };
        assert_eq!(kept.is_empty(), proven, "{kept:?}");
        assert!(proven || kept == [expected], "{kept:?}");
    }
    // Set back and then further forward: now it shows more than ever, and the files do not.
    let clock = &mut scene.facts.clock;
    clock.add(ClockAnchor {
        at: BootTime(4060 * SECOND),
        offset: ClockOffset((BOOT + 9000) * SECOND.cast_signed()),
        error: 0,
        before: Coverage::Set,
    });
    scene.facts.now = BootTime(4070 * SECOND);
    scene.facts.wall = UnixTime(BOOT + 9000 + 4070);
    assert_eq!(files_since(made, &scene.facts), least);
    // Nothing is known of the clock: any file.
    scene.facts.clock = ClockHistory::default();
    assert_eq!(files_since(made, &scene.facts), UnixTime(0));
}

#[test]
fn what_is_not_known_of_the_clock_is_waited_out_from_the_first_search() {
    let mut scene = Scene::orphan();
    scene.facts.clock = ClockHistory::default();
    scene.mark(0).search.coverage.files_since = Some(UnixTime(0));
    let kept = scene.judge().unwrap_err();
    let ready_at = BootTime(4600 * SECOND);
    assert_eq!(kept, [OrphanObstacle::TooYoung { ready_at }]);
    scene.mark(1).search.began = BootTime(4590 * SECOND);
    scene.mark(1).search.ended = BootTime(4595 * SECOND);
    scene.facts.now = BootTime(4601 * SECOND);
    scene.facts.wall = UnixTime(BOOT + 9999);
    scene.judge().unwrap();
}
