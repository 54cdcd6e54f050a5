//! What Prometheus gets: plain numbers ([`Readings`]), built from books, verdicts and counters, and
//! written as text. Nothing here has a timer: whoever asks makes the reading.
//!
//! Labels have few values, all known beforehand: never a process, a cookie, a device or a
//! container. Who it was, `dmtrace report` and `dmtrace explain` tell.

mod endpoint;
mod expose;
mod health;
mod listen;
mod request;
mod standing;
mod tally;
#[cfg(test)]
mod tests;
mod textfile;
mod waits;

pub(crate) use endpoint::{Endpoint, ScrapeRequest};
pub(crate) use expose::{ExpositionFormat, expose_readings};
pub(crate) use health::{MessageCounts, MissedRuns, TraceHealth, UnmappedCounts};
pub(crate) use listen::{Exposure, ListenAddress};
pub(crate) use standing::{LiveCookies, STATES, SearchReading, SetPlace, TableSizes, TableUse};
pub(crate) use tally::{
    CleanupResult, CookieTally, HookRun, MetricsCounter, MetricsTally, WorkloadOrigin,
};
pub(crate) use textfile::{check_textfile_dir, write_textfile};
pub(crate) use waits::Waits;

/// Everything that is exposed, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Readings {
    /// Cookies that are there, by what they are.
    pub live_cookies: LiveCookies,
    /// What searches for holders have found.
    pub search: SearchReading,
    /// How full the kernel's tables are.
    pub sets: TableSizes,
    /// What has happened since the start.
    pub tally: MetricsTally,
    /// How the trace is, apart from what it finds.
    pub health: TraceHealth,
}
