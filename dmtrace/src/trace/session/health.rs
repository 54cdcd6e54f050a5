//! How a running trace is, apart from what it has found.

use dmtrace_core::backend::Backend;
use serde::Serialize;

use super::{DmReport, Session};
use crate::probe::{Continuity, KernelCounts};

/// How a running trace is. Messages on their way make `submitted` larger than `received` for a
/// moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SessionHealth {
    /// How semaphores are seen.
    pub backend: Backend,
    /// What the probes had to report.
    pub seen: u64,
    /// What went into the ring.
    pub submitted: u64,
    /// What came out of it.
    pub received: u64,
    /// What found the ring full; the maps make it good.
    pub dropped: u64,
    /// Messages that could not be decoded.
    pub undecodable: u64,
    /// What was lost for good, and other counts of the kernel side.
    pub counts: KernelCounts,
    /// Runs of probes that the kernel skipped, and no other probe made good.
    pub skipped_runs: u64,
    /// Runs that it skipped, and another probe made good.
    pub skipped_made_good: u64,
    /// Differences between books and kernel since the start, all corrected.
    pub drift: u64,
    /// IPC namespaces that could not be read at the last comparison.
    pub unreadable: usize,
    /// What is seen of device-mapper.
    pub device_mapper: DmReport,
    /// Whether this trace goes on with that of an earlier process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuity: Option<Continuity>,
}

impl Session {
    /// How it is now.
    pub(crate) fn health(&self) -> SessionHealth {
        let counts = self.tracer.counts();
        let total = counts.total_counts();
        let skipped = self.tracer.skipped_runs();
        SessionHealth {
            backend: self.tracer.backend(),
            seen: total.seen,
            submitted: total.submitted,
            received: self.received.total_count(),
            dropped: total.dropped,
            undecodable: self.received.undecodable,
            counts,
            skipped_runs: skipped.lost,
            skipped_made_good: skipped.made_good,
            drift: self.drift,
            unreadable: self.last.as_ref().map_or(0, |last| last.unreadable.len()),
            device_mapper: self.dm_report(),
            continuity: self.continuity.clone(),
        }
    }
}

#[cfg(test)]
impl SessionHealth {
    /// That of a trace that has seen nothing yet.
    pub(crate) fn testing_example() -> Self {
        Self {
            backend: Backend::Tracepoint,
            seen: 0,
            submitted: 0,
            received: 0,
            dropped: 0,
            undecodable: 0,
            counts: KernelCounts::default(),
            skipped_runs: 0,
            skipped_made_good: 0,
            drift: 0,
            unreadable: 0,
            device_mapper: DmReport {
                how: crate::probe::DmState::NotLoaded,
                since: None,
                cookies_before: 0,
                entered: 0,
                returned: 0,
            },
            continuity: None,
        }
    }
}
