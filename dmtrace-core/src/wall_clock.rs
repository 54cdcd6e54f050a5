//! When a stamp of the wall clock was made, on the clock that nobody can set.
//!
//! The kernel stamps semaphores in seconds of `CLOCK_REALTIME`. That clock jumps: NTP steps it after
//! a virtual machine was paused, a person sets it. Its offset to `CLOCK_BOOTTIME` is constant in
//! between, to the nanosecond: what corrects the speed of one corrects both. So moments at which the
//! offset is known ([`ClockAnchor`]) tell when a stamp can have been made, and no more than that: a
//! stamp is a span of boot times ([`StampSpan`]), which is wide where nothing was known of the clock.
//!
//! What is old enough to be held against somebody is so at the *latest* moment of its span.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{BootTime, UnixTime};

const SECOND: u64 = 1_000_000_000;

/// A stamp is the second that had begun at the last tick, which is 10 ms ago at most (`HZ` 100).
const STAMP_GRAIN: u64 = SECOND + 10_000_000;

/// Before this nobody uses cookies: the kernel has only begun to start user space.
const USER_SPACE_BEGINS: u64 = 10 * SECOND;

/// Two steps that cancel each other may hide between two anchors. Between so close ones that takes
/// somebody who sets the clock wrong and right again without a line in any log.
const MAX_GAP: u64 = 3600 * SECOND;

/// The same for anchors that agree exactly: no correction by hand or by NTP comes back to the same
/// millisecond.
const MAX_EXACT_GAP: u64 = 7 * 24 * 3600 * SECOND;

/// Somebody who watches the clock reads it soon after it was set: it was set once, or came from one of
/// these offsets to the other.
const MAX_SET_GAP: u64 = 60 * SECOND;

/// An anchor with no more error than this is exact.
const EXACT: u64 = 10_000_000;

/// `CLOCK_REALTIME` minus `CLOCK_BOOTTIME`, nanoseconds.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ClockOffset(pub i64);

impl ClockOffset {
    /// That of two clocks which were read at one moment.
    pub fn between(boot: BootTime, wall: UnixTime, wall_nanos: u32) -> Self {
        let wall = i128::from(wall.0) * i128::from(SECOND) + i128::from(wall_nanos);
        let offset = wall - i128::from(boot.0);
        Self(i64::try_from(offset).unwrap_or(if offset < 0 { i64::MIN } else { i64::MAX }))
    }
}

/// What is known of the clock between an anchor and the one before it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// Nothing but its ends.
    #[default]
    Unwatched,
    /// Nobody has set it.
    Steady,
    /// Somebody has set it, once or more.
    Set,
}

/// A moment at which the offset is known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClockAnchor {
    /// When.
    pub at: BootTime,
    /// The offset then,
    pub offset: ClockOffset,
    /// which is wrong by so many nanoseconds at most.
    #[serde(default)]
    pub error: u64,
    /// The time since the anchor before.
    #[serde(default)]
    pub before: Coverage,
}

/// A time in which the clock had one of some offsets; any, if `None`. Boot time, nanoseconds.
type Segment = (u64, u64, Option<OffsetRange>);

/// Offsets that the clock may have had, both ends included, nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct OffsetRange {
    least: i128,
    most: i128,
}

impl ClockAnchor {
    fn range(&self) -> OffsetRange {
        let (offset, error) = (i128::from(self.offset.0), i128::from(self.error));
        OffsetRange {
            least: offset - error,
            most: offset + error,
        }
    }

    /// Offsets between the anchor before and this one; `None` if it may have had any.
    fn offsets_since(&self, earlier: &Self) -> Option<OffsetRange> {
        let (a, b) = (earlier.range(), self.range());
        let both = a.intersect(b);
        let exact = both.is_some() && earlier.error <= EXACT && self.error <= EXACT;
        let limit = match self.before {
            Coverage::Steady => u64::MAX,
            Coverage::Unwatched if exact => MAX_EXACT_GAP,
            Coverage::Unwatched => MAX_GAP,
            Coverage::Set if both.is_none() => MAX_SET_GAP,
            // Set, and back again: by how much is not known.
            Coverage::Set => return None,
        };
        let known = self.at.0.saturating_sub(earlier.at.0) <= limit;
        known.then(|| both.unwrap_or_else(|| a.unite(b)))
    }

    /// Whether the clock was the same all the time since the anchor before.
    fn is_steady_since(&self, earlier: &Self) -> bool {
        earlier.range().intersect(self.range()).is_some() && self.offsets_since(earlier).is_some()
    }
}

impl OffsetRange {
    fn intersect(self, other: Self) -> Option<Self> {
        let both = Self {
            least: self.least.max(other.least),
            most: self.most.min(other.most),
        };
        (both.least <= both.most).then_some(both)
    }

    fn unite(self, other: Self) -> Self {
        Self {
            least: self.least.min(other.least),
            most: self.most.max(other.most),
        }
    }
}

/// When a stamp can have been made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StampSpan {
    /// Its second began no earlier than this,
    pub earliest: BootTime,
    /// and no later.
    pub latest: BootTime,
    /// Whether the clock is known to have shown it at all. If not, the span is everything since boot.
    pub explained: bool,
}

impl StampSpan {
    /// So long ago at least: all that may be held against anybody.
    pub const fn least_age(&self, now: BootTime) -> Duration {
        now.duration_since(self.latest)
    }

    /// So long ago at most.
    pub const fn most_age(&self, now: BootTime) -> Duration {
        now.duration_since(self.earliest)
    }

    /// So long ago, if that is known to the second, as stamps are.
    pub fn age(&self, now: BootTime) -> Option<Duration> {
        let (least, most) = (self.least_age(now), self.most_age(now));
        let known = most.saturating_sub(least) < Duration::from_secs(2);
        (known && self.explained).then_some(least)
    }

    /// Whether what was stamped may have happened at this moment.
    pub const fn contains(&self, at: BootTime) -> bool {
        self.earliest.0 <= at.0 && at.0 <= self.latest.0.saturating_add(STAMP_GRAIN)
    }

    /// Of two stamps, when the later of the two events can have been. The greater stamp is not always
    /// that of the later one.
    #[must_use]
    pub fn later_of(self, other: Self) -> Self {
        Self {
            earliest: self.earliest.max(other.earliest),
            latest: self.latest.max(other.latest),
            explained: self.explained && other.explained,
        }
    }
}

/// What is known of the wall clock since boot: anchors, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockHistory {
    anchors: Vec<ClockAnchor>,
}

impl ClockHistory {
    /// A clock that nobody has set from boot until `at`.
    pub fn steady(at: BootTime, offset: ClockOffset) -> Self {
        let anchor = |at, before| ClockAnchor {
            at,
            offset,
            error: 0,
            before,
        };
        Self {
            anchors: vec![
                anchor(BootTime(0), Coverage::Unwatched),
                anchor(at, Coverage::Steady),
            ],
        }
    }

    /// Whether nothing is known.
    pub const fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// What is known, oldest first.
    pub fn anchors(&self) -> &[ClockAnchor] {
        &self.anchors
    }

    /// Adds that both clocks were read at one moment, by somebody who did not watch them before.
    pub fn observe(&mut self, at: BootTime, wall: UnixTime, wall_nanos: u32) {
        self.add(ClockAnchor {
            at,
            offset: ClockOffset::between(at, wall, wall_nanos),
            error: 0,
            before: Coverage::Unwatched,
        });
    }

    /// Adds an anchor. What it says of the time before counts only behind all others; between others
    /// it says nothing but the offset at its moment.
    pub fn add(&mut self, mut anchor: ClockAnchor) {
        let place = self.anchors.partition_point(|it| it.at < anchor.at);
        match self.anchors.get(place) {
            None => {}
            // Nothing happened there: nothing new.
            Some(next) if place > 0 && next.before == Coverage::Steady => return,
            Some(next) if next.at == anchor.at => return,
            Some(next) => anchor.before = next.before,
        }
        self.anchors.insert(place, anchor);
        self.compact_around(place);
    }

    /// Adds everything that another history of the same boot knows.
    pub fn merge(&mut self, other: &Self) {
        for pair in other.anchors.windows(2) {
            if let [from, to] = pair
                && to.before == Coverage::Steady
            {
                self.add_steady(*from, *to);
            }
        }
        for anchor in &other.anchors {
            self.add(ClockAnchor {
                before: Coverage::Unwatched,
                ..*anchor
            });
        }
    }

    /// Adds that nobody has set the clock between two moments.
    fn add_steady(&mut self, from: ClockAnchor, to: ClockAnchor) {
        let unwatched = |anchor| ClockAnchor {
            before: Coverage::Unwatched,
            ..anchor
        };
        self.add(unwatched(from));
        self.add(unwatched(to));
        for anchor in &mut self.anchors {
            let inside = from.at < anchor.at && anchor.at <= to.at;
            if inside && anchor.before == Coverage::Unwatched {
                anchor.before = Coverage::Steady;
            }
        }
    }

    /// Drops an anchor between two others that says nothing new.
    fn compact_around(&mut self, place: usize) {
        // The last one first: what is removed moves only what is behind it.
        for middle in (place.saturating_sub(1).max(1)..=place + 1).rev() {
            let three = self.anchors.get(middle - 1..=middle + 1);
            let Some(&[a, b, c]) = three else {
                continue;
            };
            let precise = b.error >= a.error.min(c.error);
            let agree = a.range().intersect(c.range()).is_some();
            if !precise || !agree || !b.is_steady_since(&a) || !c.is_steady_since(&b) {
                continue;
            }
            // What is only believed must not become what somebody has watched.
            let watched = b.before == Coverage::Steady && c.before == Coverage::Steady;
            let merged = ClockAnchor {
                before: if watched {
                    Coverage::Steady
                } else {
                    Coverage::Unwatched
                },
                ..c
            };
            if merged.is_steady_since(&a) {
                self.anchors[middle + 1] = merged;
                self.anchors.remove(middle);
            }
        }
    }

    /// When a stamp can have been made. `current`: both clocks now.
    pub fn locate(&self, stamp: UnixTime, current: ClockAnchor) -> StampSpan {
        let mut span = SpanBuilder::new(stamp, current.at);
        for (from, to, offsets) in self.segments(current) {
            span.add_segment(from, to, offsets);
        }
        span.finish()
    }

    /// The least that the clock can have shown between a moment and now; `None` if it may have shown
    /// anything. A clock that was set back shows less than at that moment.
    pub fn least_shown_since(&self, from: BootTime, current: ClockAnchor) -> Option<UnixTime> {
        let during = self.segments(current).into_iter();
        let during = during.filter(|it| it.1 >= from.0 && it.0 <= current.at.0);
        let shown = during.map(|(begin, _, offsets)| {
            let nanos = i128::from(begin.max(from.0)) + offsets?.least;
            i64::try_from(nanos.div_euclid(i128::from(SECOND))).ok()
        });
        let all: Option<Vec<i64>> = shown.collect();
        all?.into_iter().min().map(UnixTime)
    }

    /// What is known of each time from boot on. `current`: both clocks now.
    fn segments(&self, current: ClockAnchor) -> Vec<Segment> {
        let now = current.at;
        let newer = self.anchors.last().is_none_or(|last| last.at < now);
        let known = self.anchors.iter().filter(|anchor| anchor.at <= now);
        // What was read of the clock after `now` (a history is shared) tells of the time before it.
        let after = self.anchors.iter().find(|anchor| anchor.at > now);
        let chain: Vec<&ClockAnchor> = known
            .chain(after)
            .chain(newer.then_some(&current))
            .collect();
        let mut segments = Vec::new();
        if let Some(first) = chain.first() {
            let known = first.at.0 <= USER_SPACE_BEGINS;
            segments.push((0, first.at.0, known.then(|| first.range())));
        }
        for (pair, offsets) in chain.windows(2).zip(offsets_between(&chain)) {
            if let [a, b] = pair {
                segments.push((a.at.0, b.at.0, offsets));
            }
        }
        segments
    }

    /// By how many seconds the clock was set since boot as far as that shows, the last time.
    pub fn last_step(&self, current: ClockAnchor) -> Option<i64> {
        let newer = self.anchors.last().is_none_or(|last| last.at < current.at);
        let chain: Vec<&ClockAnchor> = self
            .anchors
            .iter()
            .chain(newer.then_some(&current))
            .collect();
        chain.windows(2).rev().find_map(|pair| {
            let [a, b] = pair else { return None };
            let step = i128::from(b.offset.0) - i128::from(a.offset.0);
            let certain = a.range().intersect(b.range()).is_none();
            let seconds = i64::try_from(step / i128::from(SECOND)).ok()?;
            (certain && seconds != 0).then_some(seconds)
        })
    }
}

/// Offsets between each anchor and the next. While the clock is steady, the best reading counts for
/// all of the time.
fn offsets_between(chain: &[&ClockAnchor]) -> Vec<Option<OffsetRange>> {
    let pairs = || chain.windows(2).map(|pair| (pair[0], pair[1]));
    let mut offsets: Vec<_> = pairs().map(|(a, b)| b.offsets_since(a)).collect();
    let steady: Vec<bool> = pairs().map(|(a, b)| b.is_steady_since(a)).collect();
    let mut tighten = |from: usize, to: usize| {
        if steady[from]
            && steady[to]
            && let (Some(known), Some(wide)) = (offsets[from], offsets[to])
            && let Some(both) = known.intersect(wide)
        {
            offsets[to] = Some(both);
        }
    };
    for place in 1..steady.len() {
        tighten(place - 1, place);
    }
    for place in (1..steady.len()).rev() {
        tighten(place, place - 1);
    }
    offsets
}

/// Collects the moments at which the clock can have shown a stamp.
struct SpanBuilder {
    stamp: i128,
    now: BootTime,
    found: Option<(u64, u64)>,
}

impl SpanBuilder {
    fn new(stamp: UnixTime, now: BootTime) -> Self {
        Self {
            stamp: i128::from(stamp.0) * i128::from(SECOND),
            now,
            found: None,
        }
    }

    /// From `from` to `to` the clock had one of these offsets; any, if `None`.
    fn add_segment(&mut self, from: u64, to: u64, offsets: Option<OffsetRange>) {
        let to = to.min(self.now.0);
        if from > to {
            return;
        }
        let (from, to) = (i128::from(from), i128::from(to));
        // The second of the stamp began in here; what was stamped may be up to its end later.
        let (first, last) = match offsets {
            Some(offsets) => (self.stamp - offsets.most, self.stamp - offsets.least),
            None => (from - i128::from(STAMP_GRAIN), to),
        };
        if last + i128::from(STAMP_GRAIN) < from || first > to {
            return;
        }
        let exact = first == last;
        let first = if exact {
            first
        } else {
            first.max(from - i128::from(STAMP_GRAIN))
        };
        let boot = |at: i128| u64::try_from(at.clamp(0, i128::from(self.now.0))).unwrap_or(0);
        let (first, last) = (boot(first), boot(last.min(to)));
        let (earliest, latest) = self.found.unwrap_or((first, last));
        self.found = Some((earliest.min(first), latest.max(last)));
    }

    fn finish(self) -> StampSpan {
        let (earliest, latest) = self.found.unwrap_or((0, self.now.0));
        StampSpan {
            earliest: BootTime(earliest),
            latest: BootTime(latest),
            explained: self.found.is_some(),
        }
    }
}

/// What starts so long after the begin of a stamp's second started after what was stamped: the rest
/// of that second, and a step of the clock that is smaller than the error of what is known of it. The
/// only cost is that a process which took over the number within this time may be the one.
const CLOCK_GRAIN: Duration = Duration::from_secs(12);

/// Whether a process may have been there when something was stamped; `second`: the begin of the
/// stamp's second. In boot time on both sides.
pub const fn started_by(start: BootTime, second: BootTime) -> bool {
    start.0 < second.0.saturating_add(CLOCK_GRAIN.as_nanos() as u64)
}

#[cfg(test)]
pub(crate) mod tests;
