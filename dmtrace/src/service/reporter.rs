//! Says what happens to cookies, and keeps what was found for those who ask.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use dmtrace_core::{
    event::CallSite,
    facts::Snapshot,
    ids::{BootTime, Key, SemId},
    ledger::{Change, ChangeKind, Semaphore},
    verdict::{EarlierFinding, Judged},
};

use super::{
    chronicle::Chronicle,
    export::Exports,
    known_findings::KnownFindings,
    log::{Log, LogLevel},
    status::ActiveFindings,
};
use crate::{
    finding::SetReport,
    history::PastFinding,
    host::clock::boot_now,
    render::{
        culprits,
        row::{Row, confidence_word},
    },
    stack::Symbolizer,
    trace::{
        ended::{ended_at, is_removed_leak},
        run::{BooksView, Observer},
        session::DmReport,
    },
    wording::{count_noun, times_text},
};

/// Findings that are kept word by word; more are counted.
const MAX_LISTED_FINDINGS: usize = 200;

/// Findings that are remembered as counted.
const MAX_COUNTED_FINDINGS: usize = 65_536;

/// Longest wait for the history to say what it has: then everything is told again.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(2);

/// The observer of a service.
pub(super) struct Reporter {
    log: Log,
    /// Metrics and the hook.
    pub exports: Exports,
    chronicle: Option<Chronicle>,
    /// Records that the kernel side could not keep, as told last.
    lost: u64,
    /// Everything that stood was told once.
    settled: bool,
    /// What an earlier run has told, and was not found again yet.
    known_findings: KnownFindings,
    /// Of these, those whose sets are there although this run cannot tell what they are.
    left_standing: BTreeSet<(SemId, Key)>,
    /// When this run began: what ended before it, an earlier one has told.
    began: BootTime,
    names: RefCell<Symbolizer>,
    /// Whether there may be something in them.
    named: bool,
    /// Findings that stand, as far as they are kept.
    active_findings: BTreeMap<SemId, SetReport>,
    /// Findings by their label that were told since the start.
    reported_counts: BTreeMap<&'static str, u64>,
    /// Those that are in these counts; only the newest are remembered.
    counted: BTreeSet<(SemId, Option<BootTime>, &'static str)>,
    /// Creations that failed because the limits were reached.
    enospc_failures: u64,
    /// What could not be read, as it was said last.
    unread: Option<String>,
}

impl Reporter {
    pub(super) fn new(log: Log, exports: Exports, chronicle: Option<Chronicle>) -> Self {
        Self {
            log,
            exports,
            chronicle,
            lost: 0,
            settled: false,
            known_findings: KnownFindings::default(),
            left_standing: BTreeSet::new(),
            began: boot_now(),
            names: RefCell::default(),
            named: false,
            active_findings: BTreeMap::new(),
            reported_counts: BTreeMap::new(),
            counted: BTreeSet::new(),
            enospc_failures: 0,
            unread: None,
        }
    }

    /// As if it had begun then.
    #[cfg(test)]
    pub(super) const fn began_at(&mut self, at: BootTime) {
        self.began = at;
    }

    /// Asks what an earlier run has told, before this one tells anything.
    pub(super) fn recall_findings(&mut self) -> Vec<EarlierFinding> {
        let stood = self
            .chronicle
            .as_ref()
            .map(|it| it.past_findings(HISTORY_TIMEOUT))
            .unwrap_or_default();
        let leaks = stood.iter().filter_map(PastFinding::as_leak).collect();
        self.known_findings = KnownFindings::from_history(stood);
        leaks
    }

    /// For other lines.
    pub(super) const fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// What is needed to the end.
    pub(super) fn into_parts(self) -> (Log, Exports, Option<Chronicle>) {
        (self.log, self.exports, self.chronicle)
    }

    /// So many records were lost before this service began.
    pub(super) const fn lost_before(&mut self, records: u64) {
        self.lost = records;
    }

    /// So many records have been lost, since the kernel side began.
    pub(super) fn report_lost(&mut self, records: u64) {
        let news = records.saturating_sub(self.lost);
        self.lost = records;
        if news > 0 {
            let what = "the kernel side had no room for a record";
            self.log.write_line(
                LogLevel::Warning,
                format_args!(
                    "{what}, {}; see --max-semaphores and --max-processes",
                    times_text(news)
                ),
            );
            if let Some(chronicle) = &self.chronicle {
                chronicle.count_lost(what, news);
            }
        }
    }

    /// What the last look could not read. It is said when it changes.
    pub(super) fn report_unread(&mut self, unread: Option<&str>) {
        if self.unread.as_deref() == unread {
            return;
        }
        self.unread = unread.map(str::to_owned);
        match unread {
            Some(unread) => self.log.say_often(LogLevel::Warning, unread),
            None => self
                .log
                .say_often(LogLevel::Info, "everything can be read now"),
        }
    }

    pub(super) const fn chronicle(&self) -> Option<&Chronicle> {
        self.chronicle.as_ref()
    }

    /// Says a finding, and tells it to whoever wants to know. Returns it.
    fn report_finding(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> SetReport {
        self.named = true;
        let class = judged.verdict.class;
        let new = !self
            .known_findings
            .already_reported(judged.semaphore, class.label());
        let row = finding_row(judged, view, &self.names);
        let report = row.to_report();
        self.exports
            .count_finding(&report, judged, view.ledger, new);
        if new {
            let line = finding_sentence(&row, judged);
            self.log.say_often(LogLevel::Warning, line);
            self.count_reported(judged.semaphore, class.label());
        }
        report
    }

    /// Counts a finding. A cookie that is judged differently for a moment is one of its kind.
    fn count_reported(&mut self, set: &Semaphore, label: &'static str) {
        if self.counted.len() >= MAX_COUNTED_FINDINGS {
            self.counted.clear();
        }
        if self.counted.insert((set.id, set.created, label)) {
            *self.reported_counts.entry(label).or_default() += 1;
        }
    }

    /// What was found, without a list of it. `standing`: how many findings stand, kept or not.
    pub(super) fn count_findings(&self, standing: usize) -> ActiveFindings {
        ActiveFindings {
            standing: standing + self.left_standing.len(),
            told: self.reported_counts.clone(),
            creations_failed: self.enospc_failures,
            list: Vec::new(),
        }
    }

    /// The findings that stand, as far as they are kept.
    pub(super) fn list_findings(&self) -> Vec<SetReport> {
        self.active_findings.values().cloned().collect()
    }
}

/// A finding as it is shown.
fn finding_row<'a>(
    judged: &Judged<'a>,
    view: &BooksView<'a>,
    names: &'a RefCell<Symbolizer>,
) -> Row<'a> {
    let mut row =
        Row::from_books(view.ledger, judged.semaphore, judged.set, boot_now()).with_names(names);
    row.verdict = Some(judged.verdict.clone());
    row
}

impl Observer for Reporter {
    fn on_changes(&mut self, changes: &[Change], view: &BooksView<'_>) -> Result<()> {
        for change in changes {
            if matches!(change.kind, ChangeKind::Destroyed { .. })
                && self.left_standing.remove(&(change.sem, change.key))
                && let Some(chronicle) = &self.chronicle
            {
                chronicle.clear_finding(change.sem, None, view.ledger);
            }
        }
        self.exports.count_changes(changes, view.ledger);
        if let Some(chronicle) = &self.chronicle {
            chronicle.count_changes(changes, view.ledger);
        }
        for change in changes {
            if let ChangeKind::CreateFailed { errno } = change.kind {
                self.enospc_failures += u64::from(errno == libc::ENOSPC);
                if errno == libc::ENOSPC {
                    let who = change.who.as_ref().map_or_else(String::new, |who| {
                        format!(" for {}[{}]", who.name, who.image.id.tgid)
                    });
                    let text = format!(
                        "no semaphore could be made{who} in IPC namespace {}: the limits of \
                         kernel.sem are reached; who fills them: dmtrace report",
                        change.sem.ns
                    );
                    self.log.say_often(LogLevel::Error, text);
                }
            } else if change.is_cookie() {
                self.log
                    .say_often(LogLevel::Debug, StepObject { change, view });
            }
        }
        Ok(())
    }

    fn on_finding(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> Result<()> {
        let report = self.report_finding(judged, view);
        if let (Some(chronicle), Some(context)) = (&self.chronicle, view.context) {
            chronicle.add_finding(judged, view.ledger, context.facts, &self.names);
        }
        let id = judged.semaphore.id;
        self.left_standing.remove(&(id, judged.semaphore.key));
        if self.active_findings.len() < MAX_LISTED_FINDINGS
            || self.active_findings.contains_key(&id)
        {
            self.active_findings.insert(id, report);
        }
        Ok(())
    }

    fn on_revised(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> Result<()> {
        if let (Some(chronicle), Some(context)) = (&self.chronicle, view.context) {
            chronicle.add_finding(judged, view.ledger, context.facts, &self.names);
        }
        if let Some(kept) = self.active_findings.get_mut(&judged.semaphore.id) {
            *kept = finding_row(judged, view, &self.names).to_report();
        }
        Ok(())
    }

    fn on_ended_finding(&mut self, judged: &Judged<'_>, view: &BooksView<'_>) -> Result<()> {
        if ended_at(judged) > Some(self.began) {
            if is_removed_leak(judged) {
                // Most were told while they were there.
                self.exports.count_removed_leak(judged, view.ledger);
            } else {
                self.report_finding(judged, view);
            }
        }
        if let (Some(chronicle), Some(context)) = (&self.chronicle, view.context) {
            chronicle.add_ended_finding(judged, view.ledger, context.facts, &self.names);
        }
        Ok(())
    }

    fn on_cleared(&mut self, sem: SemId, label: &'static str, view: &BooksView<'_>) -> Result<()> {
        // It may be another finding by now, which stands.
        let is_it = |report: &SetReport| report.state == label;
        if self.active_findings.get(&sem).is_some_and(is_it) {
            self.active_findings.remove(&sem);
        }
        let ledger = view.ledger;
        if let Some(chronicle) = &self.chronicle {
            chronicle.clear_finding(sem, Some(label), ledger);
        }
        let live = ledger.semaphore(sem);
        let Some(set) = live.or_else(|| ledger.closed_cookie(sem)) else {
            return Ok(());
        };
        let how = if live.is_some() {
            "is no longer"
        } else {
            "is gone"
        };
        let text = format!("{} semid {}: was {label}, {how}", set.key, sem.semid);
        self.log.say_often(LogLevel::Info, text);
        Ok(())
    }

    fn on_survey(&mut self, judged: &[Judged<'_>], snapshot: &Snapshot) {
        self.exports.count_survey(judged, snapshot, boot_now());
    }

    fn on_judged(&mut self, view: &BooksView<'_>) -> Result<()> {
        if !self.settled {
            self.settled = true;
            self.left_standing = self.known_findings.left_standing(view.ledger);
            let again = self.known_findings.reported_count() + self.left_standing.len();
            if again > 0 {
                let text = format!(
                    "{} still active; see: dmtrace report",
                    count_noun(
                        again,
                        "finding reported before this start is",
                        "findings reported before this start are"
                    )
                );
                self.log.write_line(LogLevel::Notice, text);
            }
            if let Some(chronicle) = &self.chronicle {
                chronicle.settle_past(self.left_standing.clone());
            }
        }
        Ok(())
    }

    fn on_device_mapper(&mut self, report: &DmReport) -> Result<()> {
        self.log
            .write_line(LogLevel::Notice, crate::render::change::dm_loaded(report));
        Ok(())
    }

    fn on_idle(&mut self) -> Result<()> {
        // Names of calls come from whole binaries, which nobody needs until the next finding.
        if self.named {
            self.named = false;
            self.names = RefCell::default();
        }
        Ok(())
    }

    fn should_stop(&self) -> bool {
        false
    }
}

/// A finding in one line: what, whose fault, where, what to do next.
fn finding_sentence(row: &Row<'_>, judged: &Judged<'_>) -> String {
    let semaphore = judged.semaphore;
    let verdict = &judged.verdict;
    let mut text = format!(
        "{} semid {}, IPC namespace {}: {} ({})",
        semaphore.key,
        semaphore.id.semid,
        semaphore.id.ns,
        verdict.class,
        confidence_word(verdict),
    );
    let mut add = |label: &str, value: &str| {
        if !value.is_empty() && value != "-" {
            text.push_str("; ");
            text.push_str(label);
            text.push_str(value);
        }
    };
    if let Some(culprit) = &verdict.culprit {
        add(
            "by ",
            &format!("{}[{}]", culprit.who.name, culprit.who.image.id.tgid),
        );
    }
    if row.pid() != verdict.culprit.as_ref().map(|it| it.who.image.id.tgid) {
        add("made by ", &row.owner_text());
    }
    if let Some(image) = row.image {
        add("command ", &image.command_line());
        add("uid ", &image.uid.to_string());
    }
    add("in ", &row.workload().to_string());
    add("device ", &row.device_names());
    if let Some(site) = row.call_site() {
        add(
            "call site ",
            &culprits::innermost_calls(&CallSite::chain_line(site)),
        );
    }
    add("", &format!("see: dmtrace explain {}", semaphore.key));
    text
}

/// One change, for those who want every step.
struct StepObject<'a, 'b> {
    change: &'a Change,
    view: &'a BooksView<'b>,
}

impl std::fmt::Display for StepObject<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Change { sem, key, .. } = self.change;
        let who = self.change.who.as_ref().map_or_else(
            || "kernel".to_owned(),
            |who| format!("{}[{}]", who.name, who.image.id.tgid),
        );
        let word = crate::render::change::change_word(self.change);
        let detail = crate::render::change::change_detail(self.change, self.view.ledger);
        write!(f, "{key} semid {}: {word} by {who} {detail}", sem.semid)
    }
}

#[cfg(test)]
mod tests;
