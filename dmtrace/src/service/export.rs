//! What goes out to others: metrics, and findings to the hook.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use dmtrace_core::{
    facts::Snapshot,
    ids::BootTime,
    ledger::{Change, Ledger},
    verdict::{Judged, State, is_worth_a_search},
};

use super::{
    hook::{CommandLine, Hook, HookFinding},
    janitor::CleanUp,
    log::{Log, LogLevel},
    searcher::{SearchRecord, SearchStatus},
};
use crate::{
    cleanup::result::OutcomeKind,
    finding::SetReport,
    metrics::{
        self, CleanupResult, Endpoint, ExpositionFormat, Exposure, ListenAddress, LiveCookies,
        MetricsCounter, Readings, ScrapeRequest, SearchReading, TableSizes, TraceHealth,
    },
    render::doubt::DoubtCounts,
    wording::chain_text,
};

/// Scrapes in quick succession see the same look.
const FRESH: Duration = Duration::from_secs(1);
/// Time for one run of the hook.
const HOOK_LIMIT: Duration = Duration::from_secs(30);
/// Time for what it has not told yet, at the end of the service.
const HOOK_REST: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(crate) struct ExportOptions {
    pub listen: Option<ListenAddress>,
    /// Who may ask over the network.
    pub exposure: Exposure,
    pub textfile: Option<PathBuf>,
    /// Told of each new finding.
    pub hook: Option<CommandLine>,
}

/// Counts, and passes on.
pub(super) struct Exports {
    endpoint: Option<Endpoint>,
    textfile: Option<PathBuf>,
    hook: Option<Hook>,
    counting: MetricsCounter,
    live_cookies: LiveCookies,
    /// Sets with a cookie's key that are no cookies, as of the last look.
    foreign: usize,
    /// Of which nobody can tell whether they are leaked, as of the last look.
    doubts: DoubtCounts,
    /// Of which a search could say more.
    searchable: usize,
    /// Found orphaned, and there.
    orphaned: usize,
    /// What searches for who holds them have found.
    pub search: SearchRecord,
    sets: TableSizes,
    last_survey: Option<Instant>,
    /// Whether the last writing of the file failed: that is said once.
    silent: bool,
}

impl Exports {
    /// Listens, and waits for findings. Must be called in a runtime.
    ///
    /// # Errors
    /// The address is taken, or not permitted.
    pub(super) fn open(options: &ExportOptions, group: Option<u32>) -> Result<Self> {
        let listen = options.listen.as_ref();
        let endpoint = listen.map(|listen| Endpoint::open(listen, options.exposure, group));
        let hook = options.hook.clone().map(|command| {
            Hook::start(command, HOOK_LIMIT, |why| {
                Log::to_stderr(false).write_line(LogLevel::Warning, why);
            })
        });
        Ok(Self {
            endpoint: endpoint.transpose()?,
            textfile: options.textfile.clone(),
            hook,
            counting: MetricsCounter::default(),
            live_cookies: LiveCookies::default(),
            foreign: 0,
            doubts: DoubtCounts::default(),
            searchable: 0,
            orphaned: 0,
            search: SearchRecord::default(),
            sets: TableSizes::default(),
            last_survey: None,
            silent: false,
        })
    }

    /// Waits for somebody who wants metrics. May be dropped and called again.
    pub(super) async fn next_scrape(&mut self) -> ScrapeRequest {
        if let Some(endpoint) = &mut self.endpoint
            && let Some(scrape) = endpoint.scrapes.recv().await
        {
            return scrape;
        }
        std::future::pending().await
    }

    /// Whether the last look is too old for whoever asks now.
    pub(super) fn is_stale(&self) -> bool {
        self.last_survey
            .is_none_or(|looked| looked.elapsed() >= FRESH)
    }

    /// Changes of the books.
    pub(super) fn count_changes(&mut self, changes: &[Change], ledger: &Ledger) {
        self.counting.count_changes(changes, ledger);
    }

    /// A finding. One that is not `new` was told by an earlier run: counters begin with each run,
    /// and the hook has been told.
    pub(super) fn count_finding(
        &mut self,
        set: &SetReport,
        judged: &Judged<'_>,
        ledger: &Ledger,
        new: bool,
    ) {
        self.counting.count_finding(judged, ledger);
        if let Some(hook) = self.hook.as_ref().filter(|_| new) {
            hook.queue_finding(HookFinding::from_row(set));
        }
    }

    /// A leak that was removed; it counts once, whether or not it was told before.
    pub(super) fn count_removed_leak(&mut self, judged: &Judged<'_>, ledger: &Ledger) {
        self.counting.count_removed_leak(judged, ledger);
    }

    /// All cookies were judged.
    pub(super) fn count_survey(
        &mut self,
        judged: &[Judged<'_>],
        snapshot: &Snapshot,
        now: BootTime,
    ) {
        self.live_cookies = LiveCookies::from_judged(judged, now, snapshot.wall);
        let is_foreign = |judged: &&Judged<'_>| {
            judged.semaphore.is_live() && judged.verdict.class.state() == State::Foreign
        };
        self.foreign = judged.iter().filter(is_foreign).count();
        let searchable =
            |it: &&Judged<'_>| it.semaphore.is_live() && is_worth_a_search(it.verdict.class);
        let orphan = |it: &Judged<'_>| self.search.is_orphan(it.semaphore.id, it.set);
        self.searchable = judged.iter().filter(searchable).count();
        self.orphaned = judged
            .iter()
            .filter(searchable)
            .filter(|it| orphan(it))
            .count();
        self.doubts = judged
            .iter()
            .filter(|it| !orphan(it))
            .filter_map(Judged::doubt)
            .collect();
        self.sets = TableSizes::from_snapshot(snapshot);
    }

    /// Sets with a cookie's key that are no cookies.
    pub(super) const fn foreign_count(&self) -> usize {
        self.foreign
    }

    /// Cookies in doubt.
    pub(super) const fn doubts(&self) -> DoubtCounts {
        self.doubts
    }

    /// How the search for holders is.
    pub(super) fn search_status(&self) -> SearchStatus {
        self.search.status(self.orphaned, self.searchable)
    }

    /// Whether the first search is to be made now: there is something to search for.
    pub(super) const fn begin_first_search(&mut self) -> bool {
        self.search.begin_first(self.searchable)
    }

    /// A look is over: what was found then is what whoever asks now gets.
    pub(super) fn mark_survey_done(&mut self) {
        self.last_survey = Some(Instant::now());
    }

    /// The metrics as text.
    pub(super) fn metrics_text(&self, health: TraceHealth, format: ExpositionFormat) -> String {
        let mut tally = self.counting.tally().clone();
        if let Some(hook) = &self.hook {
            tally.hook = hook.run_counts();
        }
        let readings = Readings {
            live_cookies: self.live_cookies.clone(),
            search: self.search_reading(),
            sets: self.sets.clone(),
            tally,
            health,
        };
        metrics::expose_readings(&readings, format)
    }

    fn search_reading(&self) -> SearchReading {
        let status = self.search_status();
        SearchReading {
            orphaned: status.orphaned,
            age: status.seconds_ago.map(Duration::from_secs),
        }
    }

    /// A clean-up by `dmtrace clean` is over.
    pub(super) fn count_cleaned(&mut self, clean_up: &CleanUp) {
        let removed = clean_up.count_where(OutcomeKind::is_removal);
        let kept = clean_up.count_where(OutcomeKind::is_kept);
        let failed = u64::from(clean_up.failure.is_some());
        self.counting.count_cleaned(CleanupResult::Removed, removed);
        self.counting.count_cleaned(CleanupResult::Kept, kept);
        self.counting.count_cleaned(CleanupResult::Failed, failed);
    }

    /// Whether there is a file to write.
    pub(super) const fn has_textfile(&self) -> bool {
        self.textfile.is_some()
    }

    /// Writes the file, if there is to be one. A failure is told once, and does not stop anything.
    pub(super) fn write_textfile(&mut self, health: TraceHealth) -> Option<String> {
        let dir = self.textfile.as_ref()?;
        let text = self.metrics_text(health, ExpositionFormat::Prometheus);
        let failed = metrics::write_textfile(dir, &text).err();
        let again = std::mem::replace(&mut self.silent, failed.is_some());
        failed.filter(|_| !again).map(|error| chain_text(&error))
    }

    /// Lets the hook tell what waits, for a moment.
    pub(super) async fn finish_hook(self) {
        if let Some(hook) = self.hook {
            hook.finish(HOOK_REST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use dmtrace_core::{cleanup::plan::VerdictSummary, ids::IpcNs};

    use super::*;
    use crate::cleanup::result::{CleanResult, CleanedCookie};

    #[test]
    fn clean_ups_are_counted_by_what_came_of_each_cookie() {
        let mut exports = Exports::open(&ExportOptions::default(), None).unwrap();
        let cookie = |outcome| CleanedCookie {
            ipc_ns: IpcNs::HOST,
            semid: 4,
            key: "0x0d4d50b2".to_owned(),
            outcome,
            detail: None,
            owner: None,
            verdict: VerdictSummary {
                class: "leaked".to_owned(),
                text: String::new(),
                brief: String::new(),
                observed: true,
                evidence: Vec::new(),
            },
        };
        let outcomes = [
            OutcomeKind::Removed,
            OutcomeKind::RemovedInUse,
            OutcomeKind::InUse,
            OutcomeKind::Gone,
            OutcomeKind::NotTried,
        ];
        let result = CleanResult {
            cookies: outcomes.map(cookie).to_vec(),
            ..CleanResult::default()
        };
        exports.count_cleaned(&CleanUp {
            result: Some(result),
            failure: None,
        });
        exports.count_cleaned(&CleanUp {
            result: None,
            failure: Some("the audit record cannot be written".to_owned()),
        });
        let text = exports.metrics_text(TraceHealth::default(), ExpositionFormat::Prometheus);
        for (result, count) in [("removed", 2), ("kept", 1), ("failed", 1)] {
            let line = format!("dmtrace_cleanup_total{{result=\"{result}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
