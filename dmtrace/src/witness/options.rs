//! How much is read, and how long that may take.

use std::time::Duration;

use dmtrace_core::{ids::UnixTime, witness::LocalMoment};

use super::Zone;

/// Bounds of the reading.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of process accounting, from its end.
    pub accounting_bytes: u64,
    /// Bytes of each text file, from its end.
    pub text_bytes: u64,
    /// Spans of time for which the journal is asked; the newest count.
    pub journal_windows: usize,
    /// Lines of the journal for each of them,
    pub journal_lines: usize,
    /// bytes of all of them,
    pub journal_bytes: u64,
    /// and the time that all of it may take.
    pub journal_time: Duration,
    /// Statements that are kept.
    pub testimonies: usize,
    /// Everything together may take so long.
    pub total_time: Duration,
    /// The time zone of the host: of its text logs, and of cron.
    pub zone: Zone,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            accounting_bytes: 64 << 20,
            text_bytes: 8 << 20,
            journal_windows: 24,
            journal_lines: 2000,
            journal_bytes: 16 << 20,
            journal_time: Duration::from_secs(5),
            testimonies: 20_000,
            total_time: Duration::from_secs(20),
            zone: Zone::of_machine(),
        }
    }
}

impl Limits {
    /// A moment with what a clock on the wall shows then.
    pub(super) fn local(&self, at: UnixTime) -> LocalMoment {
        let offset = self.zone.offset_at(at);
        LocalMoment { at, offset }
    }
}
