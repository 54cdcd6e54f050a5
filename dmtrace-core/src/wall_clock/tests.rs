use proptest::prelude::*;

use super::*;

/// The wall clock at boot.
pub(crate) const WALL0: i64 = 1_800_000_000;

const HOUR: u64 = 3600 * SECOND;

/// What the clock really did.
#[derive(Clone, Debug)]
pub(crate) struct TrueClock {
    /// When it was set, and its offset from then on. The first entry is that of the boot.
    steps: Vec<(u64, i64)>,
    /// The time of the judgement.
    pub now: u64,
    /// Moments at which somebody read it, and with what error.
    reads: Vec<(u64, u64)>,
    /// From when on somebody has watched it, and how often he looked.
    watched: Option<(u64, u64)>,
}

impl TrueClock {
    /// The offset at a moment, nanoseconds.
    pub(crate) fn offset(&self, at: u64) -> i64 {
        let place = self.steps.partition_point(|step| step.0 <= at);
        self.steps[place - 1].1
    }

    /// What the kernel stamps then.
    pub(crate) fn stamp(&self, at: u64, tick: u64) -> UnixTime {
        let wall = self.offset(at) + at.saturating_sub(tick).cast_signed();
        UnixTime(wall.div_euclid(SECOND.cast_signed()))
    }

    fn anchor(&self, at: u64, error: u64, before: Coverage) -> ClockAnchor {
        // As wrong as it may be.
        let wrong = if at.is_multiple_of(2) {
            error.cast_signed()
        } else {
            -error.cast_signed()
        };
        ClockAnchor {
            at: BootTime(at),
            offset: ClockOffset(self.offset(at) + wrong),
            error,
            before,
        }
    }

    pub(crate) fn current(&self) -> ClockAnchor {
        self.anchor(self.now, 0, Coverage::Unwatched)
    }

    /// What somebody knows who read and watched it so. Two steps that cancel each other between two
    /// readings are in some log.
    pub(crate) fn known(&self) -> ClockHistory {
        let mut history = ClockHistory::default();
        let mut anchors: Vec<ClockAnchor> = Vec::new();
        for &(at, error) in &self.reads {
            anchors.push(self.anchor(at.min(self.now), error, Coverage::Unwatched));
        }
        anchors.push(self.current());
        anchors.sort_by_key(|anchor| anchor.at);
        anchors.dedup_by_key(|anchor| anchor.at);
        while let Some(hidden) = self.hidden_step(&anchors) {
            let place = anchors.partition_point(|it| it.at.0 < hidden);
            anchors.insert(place, self.anchor(hidden, 0, Coverage::Unwatched));
        }
        for anchor in anchors {
            history.add(anchor);
        }
        let Some((since, pause)) = self.watched else {
            return history;
        };
        let mut watch = ClockHistory::default();
        let mut last = since.min(self.now);
        watch.add(self.anchor(last, 0, Coverage::Unwatched));
        while last < self.now {
            let from = self.anchor(last, 0, Coverage::Unwatched);
            let read = |at: u64| {
                let set = self.steps.iter().any(|step| last < step.0 && step.0 <= at);
                let before = if set { Coverage::Set } else { Coverage::Steady };
                self.anchor(at, 0, before)
            };
            let mut anchor = read((last + pause).min(self.now));
            while let Some(hidden) = self.hidden_step(&[from, anchor]) {
                anchor = read(hidden);
            }
            watch.add(anchor);
            last = anchor.at.0;
        }
        watch.merge(&history);
        watch
    }

    /// A moment at which the clock was where nobody who believes these anchors looks for it.
    fn hidden_step(&self, anchors: &[ClockAnchor]) -> Option<u64> {
        anchors.windows(2).find_map(|pair| {
            let [a, b] = pair else { return None };
            let range = b.offsets_since(a)?;
            // A step that is smaller than the error of a reading may hide in it, too.
            let after = (a.at.0 + 1, self.offset(a.at.0 + 1));
            let inside = std::iter::once(&after)
                .chain(&self.steps)
                .filter(|step| a.at.0 < step.0 && step.0 < b.at.0);
            inside
                .filter(|step| i128::from(step.1) < range.least || i128::from(step.1) > range.most)
                .map(|step| step.0)
                .next()
        })
    }
}

/// Clocks that are set up to so often, by three hours at most, backwards and forwards.
pub(crate) fn any_clock(max_steps: usize) -> impl Strategy<Value = TrueClock> {
    let moment = || 11 * SECOND..60 * HOUR;
    let step = (
        moment(),
        prop_oneof![-10_800_i64..10_800, Just(-10_800), Just(10_680), -3_i64..4],
    );
    let read = (
        moment(),
        prop::sample::select(vec![0, 1_000_000, SECOND, 10 * SECOND]),
    );
    let watched = prop::option::of((moment(), 100_000_000..600 * SECOND));
    let early = prop::option::of(SECOND..20 * SECOND);
    (
        prop::collection::vec(step, 0..=max_steps),
        prop::collection::vec(read, 0..40),
        watched,
        early,
        12 * SECOND..61 * HOUR,
    )
        .prop_map(|(mut steps, mut reads, watched, early, now)| {
            steps.sort_unstable();
            steps.dedup_by_key(|step| step.0);
            let mut offset = WALL0 * SECOND.cast_signed();
            let mut all = vec![(0, offset)];
            for (at, by) in steps {
                offset += by * SECOND.cast_signed() + (at % 1000).cast_signed();
                all.push((at, offset));
            }
            reads.extend(early.map(|at| (at, 0)));
            // A watch that looks so rarely is none.
            let watched = watched.map(|(since, pause)| (since, pause.max(now / 5000)));
            TrueClock {
                steps: all,
                now,
                reads,
                watched,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_span_contains_the_truth(
        clock in any_clock(6),
        touches in prop::collection::vec((10 * SECOND..61 * HOUR, 0..10_000_000_u64), 1..40),
    ) {
        let history = clock.known();
        for (at, tick) in touches {
            let at = 10 * SECOND + at % (clock.now - 10 * SECOND);
            let stamp = clock.stamp(at, tick);
            let span = history.locate(stamp, clock.current());
            prop_assert!(span.explained, "{stamp:?} {history:?}");
            prop_assert!(span.contains(BootTime(at)), "{at} {stamp:?} {span:?} {history:?}");
        }
    }

    #[test]
    fn a_clock_that_nobody_set_leaves_no_doubt(
        clock in any_clock(0),
        at in 10 * SECOND..60 * HOUR,
    ) {
        let mut history = clock.known();
        for at in (SECOND..clock.now).step_by(HOUR as usize) {
            history.add(clock.anchor(at, 0, Coverage::Unwatched));
        }
        let at = at.min(clock.now);
        let span = history.locate(clock.stamp(at, 0), clock.current());
        prop_assert_eq!(span.earliest, span.latest);
        let json = serde_json::to_string(&history).unwrap();
        prop_assert_eq!(serde_json::from_str::<ClockHistory>(&json).unwrap(), history);
    }
}

fn history_of(anchors: &[(u64, i64, Coverage)]) -> ClockHistory {
    let mut history = ClockHistory::default();
    for &(at, offset, before) in anchors {
        history.add(ClockAnchor {
            at: BootTime(at * SECOND),
            offset: ClockOffset((WALL0 + offset) * SECOND.cast_signed()),
            error: 0,
            before,
        });
    }
    history
}

fn current(at: u64, offset: i64) -> ClockAnchor {
    ClockAnchor {
        at: BootTime(at * SECOND),
        offset: ClockOffset((WALL0 + offset) * SECOND.cast_signed()),
        ..ClockAnchor::default()
    }
}

fn seconds(span: StampSpan) -> (u64, u64) {
    (span.earliest.0 / SECOND, span.latest.0 / SECOND)
}

#[test]
fn without_a_history_a_stamp_says_nothing() {
    let span = ClockHistory::default().locate(UnixTime(WALL0), current(5000, 0));
    assert_eq!((seconds(span), span.explained), ((0, 5000), true));
}

#[test]
fn a_step_forward_is_found_by_what_was_before() {
    let history = history_of(&[(1, 0, Coverage::Unwatched), (4000, 0, Coverage::Unwatched)]);
    let now = current(4100, 10_680);
    assert_eq!(history.last_step(now), Some(10_680));
    // Made at 4050, before the step: three hours ago by the clock of today.
    let span = history.locate(UnixTime(WALL0 + 4050), now);
    assert!(span.contains(BootTime(4050 * SECOND)), "{span:?}");
    assert!(span.least_age(now.at) < Duration::from_secs(60), "{span:?}");
}

#[test]
fn of_a_watched_clock_every_step_is_known() {
    let history = history_of(&[
        (1, 0, Coverage::Unwatched),
        (5000, 0, Coverage::Steady),
        (5001, 10_800, Coverage::Set),
        (9000, 10_800, Coverage::Steady),
    ]);
    let now = current(9000, 10_800);
    let at = |stamp| seconds(history.locate(UnixTime(WALL0 + stamp), now));
    assert_eq!(at(4000), (4000, 4000));
    assert_eq!(at(16_000), (5200, 5200));
    // What it has skipped may have been shown in the second of the step only.
    let (earliest, latest) = at(9000);
    assert!(4998 <= earliest && latest <= 5001, "{earliest} {latest}");
    let future = history.locate(UnixTime(WALL0 + 40_000), now);
    assert!(!future.explained, "{future:?}");
}

#[test]
fn long_gaps_hide_steps_unless_their_ends_agree_exactly() {
    let day = 24 * 3600;
    let at = |error| {
        let mut history = ClockHistory::default();
        for at in [1, day] {
            let anchor = current(at, 0);
            history.add(ClockAnchor { error, ..anchor });
        }
        seconds(history.locate(UnixTime(WALL0 + 100), current(day + 1, 0)))
    };
    assert_eq!(at(0), (100, 100));
    let (earliest, latest) = at(SECOND);
    assert!(earliest < 100 && latest >= day, "{earliest} {latest}");
}

#[test]
fn a_watch_keeps_few_anchors() {
    let mut history = ClockHistory::default();
    for at in 0..1000 {
        history.add(ClockAnchor {
            before: Coverage::Steady,
            ..current(at, 0)
        });
        history.observe(
            BootTime(at * SECOND + 5),
            UnixTime(WALL0 + at.cast_signed()),
            5,
        );
    }
    assert!(history.anchors().len() <= 4, "{:?}", history.anchors());
}
