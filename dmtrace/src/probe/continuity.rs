//! Whether tracing has gone on since an earlier process.

use dmtrace_core::ids::BootTime;
use serde::Serialize;

/// What a tracer that outlives its process has begun with, and whether it will outlive this one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Continuity {
    #[serde(flatten)]
    pub past: PinnedPast,
    /// Why the programs end with this process; `None` if they stay.
    pub unpinned: Option<String>,
}

/// What an earlier process has left.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "past")]
pub(crate) enum PinnedPast {
    /// Nothing.
    New,
    /// Its programs, which went on tracing.
    Unbroken,
    /// Its maps, or less: for a time nothing was seen.
    Gap(TracingGap),
}

/// A time in which nothing was seen. What there was before and after is known by comparing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TracingGap {
    /// When it began; `None` if that is not known, or where nothing from before could be kept.
    pub from: Option<BootTime>,
    /// When it ended.
    pub to: BootTime,
    /// Why there was one.
    pub why: GapReason,
    /// Sets that were made in it: their creators are unknown.
    pub created_unseen: u64,
    /// Sets that were removed in it.
    pub ended_unseen: u64,
    /// Sets that were used in it, as far as their values tell.
    pub used: u64,
}

impl TracingGap {
    pub(super) const fn new(from: Option<BootTime>, to: BootTime, why: GapReason) -> Self {
        Self {
            from,
            to,
            why,
            created_unseen: 0,
            ended_unseen: 0,
            used: 0,
        }
    }
}

/// Why there was a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GapReason {
    /// The programs ended with their process.
    Unpinned,
    /// Those of another build took their places.
    Upgrade,
    /// The maps of another version, or of other sizes, could not be used.
    Layout,
}

impl GapReason {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Unpinned => "the probes ended with the service",
            Self::Upgrade => "other probes took the places of the old ones",
            Self::Layout => "the state of another version, or with other sizes, cannot be used",
        }
    }
}
