//! Moments of different clocks on one line. Stamps of the kernel, of accounting and of logs are all
//! seconds of the same wall clock; where nobody has set it since boot they need no translation, else
//! each is a span of the time since boot.

use super::{Testimony, When};
use crate::{
    facts::HostFacts,
    ids::{BootTime, UnixTime},
};

const SECOND: i64 = 1_000_000_000;

/// The end of a second of the kernel, and the tick by which its clock may lag.
const GRAIN: i64 = SECOND + 10_000_000;

/// A stamp that may be from any time of a longer span than this tells no two processes apart.
const MAX_WIDTH: i64 = 10 * SECOND;

/// From when to when something may have been, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Span {
    pub from: i64,
    pub to: i64,
}

impl Span {
    /// Whether it is exact enough to tell two processes apart.
    pub(super) const fn is_narrow(self) -> bool {
        self.to - self.from <= MAX_WIDTH + GRAIN
    }
}

/// The clock of a host.
pub(super) struct Timeline<'a> {
    facts: &'a HostFacts,
    /// Wall clock minus time since boot, if nobody has set it as far as that shows.
    offset: Option<i64>,
}

impl<'a> Timeline<'a> {
    pub(super) fn new(facts: &'a HostFacts) -> Self {
        let now = i64::try_from(facts.now.0).unwrap_or(i64::MAX);
        let wall = nanos(facts.wall).saturating_add(i64::from(facts.wall_nanos));
        let steady = facts.last_clock_step().is_none();
        Self {
            facts,
            offset: steady.then(|| wall.saturating_sub(now)),
        }
    }

    /// When what has this stamp was; `None` if the clock is not known to have shown it, or was set so
    /// that it may have been at any time.
    pub(super) fn locate_exactly(&self, stamp: UnixTime) -> Option<Span> {
        let known = self.facts.locate_stamp(stamp);
        if !known.explained {
            return None;
        }
        let span = self.locate(stamp);
        let since_boot = span.to >= 0 && span.from <= boot(self.facts.now).saturating_add(GRAIN);
        (since_boot && span.is_narrow()).then_some(span)
    }

    /// When it may have been.
    pub(super) fn locate(&self, stamp: UnixTime) -> Span {
        if let Some(offset) = self.offset {
            let from = nanos(stamp).saturating_sub(offset);
            return Span {
                from,
                to: from.saturating_add(GRAIN),
            };
        }
        let span = self.facts.locate_stamp(stamp);
        Span {
            from: boot(span.earliest),
            to: boot(span.latest).saturating_add(GRAIN),
        }
    }

    /// The same, to be held against the start of a process, which no wall clock tells. Where nobody is
    /// known to have read both clocks before that moment, one step of the clock would move it: then it
    /// was at any time.
    pub(super) fn locate_on_boot_clock(&self, stamp: UnixTime) -> Span {
        let span = self.locate(stamp);
        if self.is_anchored_before(span) {
            return span;
        }
        let span = self.facts.locate_stamp(stamp);
        Span {
            from: boot(span.earliest),
            to: boot(span.latest).saturating_add(GRAIN),
        }
    }

    /// Whether both clocks were read by somebody before this.
    pub(super) fn is_anchored_before(&self, span: Span) -> bool {
        let mut anchors = self.facts.clock.anchors().iter();
        self.offset.is_none() || anchors.any(|it| boot(it.at) <= span.from)
    }

    /// When what is testified was: its begin and its end, which are one for a line.
    pub(super) fn place(&self, testimony: &Testimony) -> (Span, Span) {
        match testimony.when {
            When::Second { at } => {
                let span = self.locate(at);
                (span, span)
            }
            When::SinceBoot { from, to } => {
                let span = Span {
                    from: boot(from),
                    to: boot(to),
                };
                (span, span)
            }
            When::Life { ended, lasted_ms } => {
                let ended = self.locate(ended);
                let lasted = i64::try_from(lasted_ms).unwrap_or(i64::MAX);
                let lasted = lasted.saturating_mul(1_000_000);
                // The end is computed from the begin in whole seconds: one second either way.
                let begun = Span {
                    from: ended.from.saturating_sub(lasted),
                    to: ended.to.saturating_sub(lasted),
                };
                (begun, ended)
            }
        }
    }

    /// Whether nobody is known to have watched the clock since this moment: it may have been set and
    /// set back.
    pub(super) fn is_unwatched(&self, stamp: UnixTime) -> bool {
        let span = self.facts.locate_stamp(stamp);
        boot(span.latest).saturating_sub(boot(span.earliest)) > MAX_WIDTH
    }
}

/// Start of a process, from field 22 of its `stat`.
pub(super) fn ticks_to_nanos(ticks: u64) -> i64 {
    i64::try_from(ticks)
        .unwrap_or(i64::MAX)
        .saturating_mul(10_000_000)
}

fn boot(at: BootTime) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

const fn nanos(at: UnixTime) -> i64 {
    at.0.saturating_mul(SECOND)
}

/// So much is allowed for whole seconds and for logs that come late.
pub(super) const SLACK: i64 = 2 * SECOND;
