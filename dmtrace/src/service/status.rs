//! How a running service is: what it writes, and what `dmtrace serve --status` reads of it.

use std::collections::BTreeMap;

use dmtrace_core::ledger::Totals;
use serde::{Deserialize, Serialize};

use super::searcher::SearchStatus;
use crate::{
    finding::{SetReport, lenient, lenient_list},
    history::HistoryStatus,
    render::doubt::DoubtCounts,
    trace::session::health::SessionHealth,
};

/// How a service is. Names of fields are a contract: other programs read them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ServiceStatus {
    pub version: &'static str,
    pub pid: u32,
    pub kernel: String,
    /// Time that it has traced.
    pub seconds: u64,
    pub health: SessionHealth,
    pub totals: Totals,
    /// Sets with a cookie's key that are none; `totals` counts them as cookies.
    pub foreign_sets: usize,
    pub findings: ActiveFindings,
    /// Of which nobody can tell whether they are leaked; without those that are orphaned.
    pub doubts: DoubtCounts,
    /// The search for who holds what no trace saw being made.
    pub search: SearchStatus,
    pub history: Option<HistoryStatus>,
    /// Whether everything could be read.
    pub complete: bool,
    /// What could not be read.
    pub unread: Option<String>,
    pub requests: RequestTotals,
    /// Age of this status, if the service was too busy for a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of_seconds_ago: Option<u64>,
}

/// What was found, and is there still.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ActiveFindings {
    /// All of them, in the list or not.
    pub standing: usize,
    /// Reported since the start, by class.
    pub told: BTreeMap<&'static str, u64>,
    /// Creations that failed with ENOSPC.
    pub creations_failed: u64,
    /// Those whose details are kept, if the service had the time to list them.
    pub list: Vec<SetReport>,
}

/// Requests at the control socket.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct RequestTotals {
    pub answered: u64,
    /// Not permitted, or no request.
    pub refused: u64,
}

/// What is read of a status. The service may be older or newer than the reader: what is not there,
/// or is not what it should be, is as zero or unknown.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceReport {
    /// Version of the service; empty if it does not say.
    #[serde(deserialize_with = "lenient")]
    pub version: String,
    /// Its process.
    #[serde(deserialize_with = "lenient")]
    pub pid: u32,
    /// Time that it has traced.
    #[serde(deserialize_with = "lenient")]
    pub seconds: u64,
    /// How messages come through.
    #[serde(deserialize_with = "lenient")]
    pub health: ReportedMessages,
    /// Counts of sets.
    #[serde(deserialize_with = "lenient")]
    pub totals: ReportedTotals,
    /// Sets with a cookie's key that are none.
    #[serde(deserialize_with = "lenient")]
    pub foreign_sets: u64,
    /// What was found.
    #[serde(deserialize_with = "lenient")]
    pub findings: ReportedFindings,
    /// Cookies in doubt.
    #[serde(deserialize_with = "lenient")]
    pub doubts: DoubtCounts,
    /// The search for holders; `None` if the service knows no search.
    #[serde(deserialize_with = "lenient")]
    pub search: Option<SearchStatus>,
    /// What the service cannot read.
    #[serde(deserialize_with = "lenient")]
    pub unread: Option<String>,
    /// Age of this status, if the service was too busy for a new one.
    #[serde(deserialize_with = "lenient")]
    pub as_of_seconds_ago: Option<u64>,
}

/// Messages of the probes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReportedMessages {
    /// How semaphores are seen; empty if it does not say.
    pub backend: String,
    /// What the probes had to report.
    pub seen: u64,
    /// What went into the ring.
    pub submitted: u64,
    /// What found it full.
    pub dropped: u64,
    /// Differences between books and kernel, all corrected.
    pub drift: u64,
}

/// Counts of sets with a cookie's key.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReportedTotals {
    /// Of all of them.
    pub cookies: ReportedCookies,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReportedCookies {
    /// Seen being made.
    pub created: u64,
    /// Seen being removed.
    pub destroyed: u64,
    /// There now.
    pub live: u64,
}

/// Findings as a reader sees them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReportedFindings {
    /// All of them; `None` if the service does not say: then nobody knows that there is none.
    #[serde(deserialize_with = "lenient")]
    pub standing: Option<u64>,
    /// Those that are listed.
    #[serde(deserialize_with = "lenient_list")]
    pub list: Vec<SetReport>,
}

#[cfg(test)]
impl ServiceStatus {
    /// That of a service that has seen and found nothing.
    pub(super) fn of_process(pid: u32) -> Self {
        Self {
            version: "1.2.3",
            pid,
            kernel: "6.12.0".to_owned(),
            seconds: 7,
            health: SessionHealth::testing_example(),
            totals: Totals::default(),
            foreign_sets: 0,
            findings: ActiveFindings::default(),
            doubts: DoubtCounts::default(),
            search: SearchStatus::default(),
            history: None,
            complete: true,
            unread: None,
            requests: RequestTotals::default(),
            as_of_seconds_ago: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_writes_is_what_is_read() {
        let mut written = ServiceStatus::of_process(42);
        written.totals.cookies.created = 9;
        written.totals.cookies.destroyed = 4;
        written.totals.cookies.live = 5;
        written.foreign_sets = 2;
        written.health.seen = 30;
        written.health.submitted = 28;
        written.health.dropped = 1;
        written.health.drift = 3;
        written.findings.standing = 1;
        written.findings.list = vec![SetReport {
            semid: 17,
            ..SetReport::default()
        }];
        written.doubts.older = 3;
        written.search.orphaned = Some(128);
        written.search.seconds_ago = Some(40);
        written.unread = Some("no /proc".to_owned());
        written.as_of_seconds_ago = Some(6);
        let text = serde_json::to_string(&written).unwrap();
        let read: ServiceReport = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (read.version.as_str(), read.pid, read.seconds),
            ("1.2.3", 42, 7)
        );
        let cookies = read.totals.cookies;
        assert_eq!(
            (cookies.created, cookies.destroyed, cookies.live),
            (9, 4, 5)
        );
        let health = read.health;
        assert_eq!(health.backend, written.health.backend.name());
        assert_eq!((health.seen, health.submitted), (30, 28));
        assert_eq!((health.dropped, health.drift), (1, 3));
        assert_eq!((read.foreign_sets, read.findings.standing), (2, Some(1)));
        assert_eq!(read.findings.list[0].semid, 17);
        assert_eq!(read.doubts, written.doubts);
        let search = read.search.unwrap();
        assert_eq!((search.orphaned, search.seconds_ago), (Some(128), Some(40)));
        assert_eq!((search.running, search.held), (false, None));
        assert_eq!(read.unread.as_deref(), Some("no /proc"));
        assert_eq!(read.as_of_seconds_ago, Some(6));
    }
}
