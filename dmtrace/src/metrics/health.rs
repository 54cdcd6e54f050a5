//! How the trace is, apart from what it has found.

use std::{collections::BTreeMap, time::Duration};

use dmtrace_core::backend::Backend;

/// Messages of one kind, from the probes to the books.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MessageCounts {
    /// What the probes had to report.
    pub seen: u64,
    /// What went into the ring.
    pub submitted: u64,
    /// What came out of it.
    pub received: u64,
    /// What found the ring full. The maps make it good, but for call sites.
    pub dropped: u64,
}

/// Records that a full map of the kernel side did not take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct UnmappedCounts {
    pub sets: u64,
    pub processes: u64,
    /// Calls between entry and return.
    pub calls: u64,
    /// Records of ended sets and processes that were dropped before they could be read.
    pub ended: u64,
}

/// Runs of a probe's programs that the kernel skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MissedRuns {
    /// Nobody else saw what happened.
    pub lost: u64,
    /// Another program saw it, or there was nothing to see.
    pub made_good: u64,
}

/// How the trace is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TraceHealth {
    /// How semaphores are seen; `None` if they are not traced.
    pub backend: Option<Backend>,
    /// By kind of message.
    pub messages: BTreeMap<&'static str, MessageCounts>,
    /// Messages that could not be decoded.
    pub undecodable: u64,
    /// What full maps did not take.
    pub unmapped: UnmappedCounts,
    /// Whether it is attached, by probe.
    pub attached: BTreeMap<&'static str, bool>,
    /// Skipped runs, by probe.
    pub missed: BTreeMap<&'static str, MissedRuns>,
    /// Sets that the last comparison with the kernel found and the books did not have.
    pub missing_create: u64,
    /// Sets that the last comparison did not find and the books had.
    pub missing_remove: u64,
    /// Differences that all comparisons have found, and corrected.
    pub corrected: u64,
    /// IPC namespaces that could not be read at the last comparison.
    pub unreadable: u64,
    /// Times when nothing was traced, between the first start and now.
    pub gaps: u64,
    /// Their length in sum.
    pub gap_time: Duration,
    /// Entries that the history could not keep.
    pub history_dropped: u64,
    /// Whether it goes to disk, and not into memory only; `None` without a history.
    pub history_on_disk: Option<bool>,
}
