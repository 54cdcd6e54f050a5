//! What a report on a time is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{
        Failure,
        args::ReportArgs,
        filter::{Filters, shell_word},
    },
    history::{
        AnswerHead, DowntimeRecord, EnospcRecord, HistoryEntry, HistoryQuery, HistoryRecord,
        HowGone, LossRecord, ProgramCounts, RunRecord, Stamp, StoredFinding, query,
    },
    output::{json, time},
    render::{
        candidate::Candidate,
        culprits::{CulpritGroup, GroupBy},
        stored,
    },
    wording::count_noun,
};

/// Without a trace for so long in all is as good as never.
const MOMENT: Duration = Duration::from_secs(60);

/// What a service notes of a cookie within this time, it has seen at once.
const SAME_SURVEY: Duration = Duration::from_millis(500);

/// Everything that is reported.
pub(super) struct HistoryReport {
    pub(super) head: AnswerHead,
    /// The time that was asked for, milliseconds since 1970.
    pub(super) since: i64,
    pub(super) until: i64,
    pub(super) leaked: Vec<StoredFinding>,
    /// Cookies that looked leaked for a while, and were not.
    pub(super) withdrawn: Vec<StoredFinding>,
    pub(super) stuck: Vec<StoredFinding>,
    pub(super) accidents: Vec<StoredFinding>,
    pub(super) over_completed: Vec<StoredFinding>,
    pub(super) enospc_records: Vec<EnospcRecord>,
    pub(super) gaps: Vec<DowntimeRecord>,
    pub(super) losses: Vec<LossRecord>,
    pub(super) runs: Vec<RunRecord>,
    pub(super) programs: BTreeMap<String, ProgramCounts>,
    /// Tracing went on for so long in that time.
    pub(super) traced: Duration,
    /// What a sentence on what is not there is limited to.
    pub(super) scope: &'static str,
    /// The history and the filters, for the next command.
    pub(super) options: String,
    /// What the history does not keep by process or set, so that the filters cannot choose.
    pub(super) left_out: Vec<&'static str>,
}

/// A program, for JSON.
#[derive(Serialize)]
struct ProgramObject<'a> {
    program: &'a str,
    #[serde(flatten)]
    lives: ProgramCounts,
    leaks_per_day: Option<f64>,
}

pub(super) fn gather_report(args: &ReportArgs, since: i64, until: i64) -> Result<HistoryReport> {
    let query = HistoryQuery {
        since_ms: Some(since),
        until_ms: Some(until),
        ..HistoryQuery::default()
    };
    let named: Option<&Path> = args.history.as_deref();
    let Some((head, entries)) = query::find_entries(named, &query)? else {
        let text = format!(
            "{}: there is no history; dmtrace serve keeps one",
            crate::history::PATH
        );
        return Err(Failure::Environment(text).into());
    };
    let mut past = HistoryReport {
        head,
        since,
        until,
        leaked: Vec::new(),
        withdrawn: Vec::new(),
        stuck: Vec::new(),
        accidents: Vec::new(),
        over_completed: Vec::new(),
        enospc_records: Vec::new(),
        gaps: Vec::new(),
        losses: Vec::new(),
        runs: Vec::new(),
        programs: BTreeMap::new(),
        traced: Duration::ZERO,
        scope: args.filters.scope_text(),
        options: explain_options(args),
        left_out: Vec::new(),
    };
    let filters = &args.filters;
    let of_one = Filters {
        ipc_ns: None,
        ..filters.clone()
    };
    let (whole, spaces) = (filters.is_empty(), of_one.is_empty());
    if !spaces {
        past.left_out.push("failed creations");
    }
    if !whole {
        past.left_out.push("cookies by program");
    }
    let (mut newer, mut unreadable) = (0, 0);
    for HistoryEntry { record, .. } in entries {
        match record {
            HistoryRecord::Finding(finding) => past.add_finding(*finding, args),
            HistoryRecord::Unread(it) if it.is_newer() => newer += 1,
            HistoryRecord::Unread(_) => unreadable += 1,
            HistoryRecord::CreationsFailed(it) if spaces && filters.wants_ns(it.ipc_ns) => {
                past.enospc_records.push(it);
            }
            HistoryRecord::CreationsFailed(_) => {}
            HistoryRecord::Gap(it) => past.gaps.push(it),
            HistoryRecord::Loss(it) => past.losses.push(it),
            HistoryRecord::Run(it) => past.runs.push(it),
            HistoryRecord::Rates(it) if whole => {
                for (program, lives) in &it.programs {
                    past.programs
                        .entry(program.clone())
                        .or_default()
                        .add_counts(lives);
                }
            }
            HistoryRecord::Rates(_) => {}
        }
    }
    for list in [
        &mut past.leaked,
        &mut past.stuck,
        &mut past.accidents,
        &mut past.over_completed,
    ] {
        leave_out_repeated(list);
    }
    // One cookie is one leak, or none.
    past.withdrawn = past.leaked.extract_if(.., |it| is_withdrawn(it)).collect();
    past.head
        .notes
        .extend(stored::unread_notes(newer, unreadable));
    past.traced = past.traced_time();
    Ok(past)
}

/// Whether it looked leaked for a while, and was not.
///
/// Release 0.1.0: a leak that had been something else before was marked so in the moment in
/// which it was found, and that says nothing of it.
fn is_withdrawn(leak: &StoredFinding) -> bool {
    let gone = leak.gone.as_ref();
    gone.filter(|gone| gone.how == HowGone::OtherVerdict)
        .is_some_and(|gone| gone.at.boot.duration_since(leak.found.boot) >= SAME_SURVEY)
}

/// A cookie that was judged differently for a moment, and then the same again, is one finding: the
/// newer one.
fn leave_out_repeated(oldest_first: &mut Vec<StoredFinding>) {
    let mut newer = BTreeSet::new();
    let mut kept: Vec<StoredFinding> = Vec::new();
    for finding in oldest_first.drain(..).rev() {
        let again = !newer.insert((finding.sem, finding.key));
        let gone = finding.gone.as_ref();
        if !(again && gone.is_some_and(|gone| gone.how == HowGone::OtherVerdict)) {
            kept.push(finding);
        }
    }
    kept.reverse();
    *oldest_first = kept;
}

/// Where `explain` finds the same, each option after a space.
fn explain_options(args: &ReportArgs) -> String {
    let history = args.history.as_deref().map_or_else(String::new, |path| {
        format!(" --history {}", shell_word(&path.display().to_string()))
    });
    history + &args.filters.args_text()
}

impl HistoryReport {
    fn add_finding(&mut self, finding: StoredFinding, args: &ReportArgs) {
        if !args.filters.passes(&Candidate::from_stored(&finding)) {
            return;
        }
        match finding.state.as_str() {
            "leaked" => self.leaked.push(finding),
            "stuck" => self.stuck.push(finding),
            "accident" => self.accidents.push(finding),
            "over-completed" => self.over_completed.push(finding),
            _ => {}
        }
    }

    /// Release of the kernel that was traced last.
    pub(super) fn kernel_text(&self) -> &str {
        let kernels = self.runs.iter().rev().map(|run| run.kernel.as_str());
        kernels
            .into_iter()
            .find(|kernel| !kernel.is_empty())
            .unwrap_or("unknown")
    }

    /// For how long of it tracing went on.
    fn traced_time(&self) -> Duration {
        let traced = self.runs.iter().map(|run| {
            let ended = run.ended.map_or(self.head.alive_ms, |at| at.wall_ms);
            let overlap = ended.min(self.until) - run.began.wall_ms.max(self.since);
            u64::try_from(overlap).unwrap_or_default()
        });
        Duration::from_millis(traced.sum())
    }

    pub(super) fn window(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.until - self.since).unwrap_or_default())
    }

    pub(super) fn has_any(&self) -> bool {
        let findings = [
            &self.leaked,
            &self.stuck,
            &self.accidents,
            &self.over_completed,
        ];
        findings.iter().any(|list| !list.is_empty()) || !self.enospc_records.is_empty()
    }

    /// Whether everything that happened in that time is known.
    pub(super) fn is_complete(&self) -> bool {
        self.window().saturating_sub(self.traced) < MOMENT
            && self.losses.is_empty()
            && self.head.notes.is_empty()
            && self.head.complete_since_ms.is_none_or(|at| at < self.since)
    }

    /// Why not everything is known, in one line; `None` if it is.
    pub(super) fn incomplete_text(&self) -> Option<String> {
        let mut why = Vec::new();
        if self.window().saturating_sub(self.traced) >= MOMENT {
            why.push(format!(
                "traced for {} of {}",
                time::age_text(self.traced),
                time::age_text(self.window())
            ));
        }
        if !self.losses.is_empty() {
            let count = self.losses.iter().map(|it| it.count).sum::<u64>();
            why.push(format!(
                "{} lost",
                count_noun(count, "message was", "messages were")
            ));
        }
        if let Some(at) = self.head.complete_since_ms.filter(|&at| at >= self.since) {
            why.push(format!(
                "records from before {} made room for newer ones",
                time::moment_text(at)
            ));
        }
        why.extend(self.head.notes.iter().cloned());
        (!why.is_empty()).then(|| why.join("; "))
    }

    /// Leaks of a program in a day, where the time is long enough to tell.
    pub(super) fn per_day(&self, leaked: u64) -> Option<f64> {
        let days = self.traced.as_secs_f64() / 86_400.0;
        (days > 1.0 / 24.0).then(|| leaked as f64 / days)
    }

    pub(super) fn to_json(&self, groups: &[(GroupBy, Vec<CulpritGroup>)]) -> Value {
        let by = |wanted: GroupBy| {
            let found = groups.iter().find(|(by, _)| *by == wanted);
            found.map(|(_, groups)| groups)
        };
        let rows =
            |list: &[StoredFinding]| list.iter().map(stored::cookie_json).collect::<Vec<_>>();
        let moment = |wall_ms| {
            let stamp = Stamp {
                wall_ms,
                ..Stamp::default()
            };
            stamp.to_rfc3339()
        };
        let programs = self.programs.iter().map(|(program, lives)| ProgramObject {
            program,
            lives: *lives,
            leaks_per_day: self.per_day(lives.leaked),
        });
        json::json_envelope(
            "history_report",
            &json!({
                "since": moment(self.since),
                "until": moment(self.until),
                "traced_seconds": self.traced.as_secs(),
                "complete": self.is_complete(),
                "notes": self.head.notes,
                "leaked": rows(&self.leaked),
                "judged_otherwise": rows(&self.withdrawn),
                "stuck": rows(&self.stuck),
                "accidents": rows(&self.accidents),
                "over_completed": rows(&self.over_completed),
                "by_process": by(GroupBy::Process),
                "by_executable": by(GroupBy::Executable),
                "by_container": by(GroupBy::Container),
                "by_stack": by(GroupBy::Stack),
                "programs": programs.collect::<Vec<_>>(),
                "failed_creations": self.enospc_records,
                "left_out_by_filters": self.left_out,
                "gaps": self.gaps,
                "losses": self.losses,
                "runs": self.runs,
                "dropped_for_space": self.head.dropped_for_space,
                "dropped_for_age": self.head.dropped_for_age,
                "complete_since": self.head.complete_since_ms.map(moment),
            }),
        )
    }
}
