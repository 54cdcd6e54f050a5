//! `dmtrace report`: who leaks, ranked; who only suffers; how long until nothing works.

mod bug;
pub(super) mod culprit;
mod flame;
mod flamegraph;
pub(super) mod group_text;
mod history;
mod history_model;
pub(super) mod history_text;
mod limit;
mod older;
mod suspects;
#[cfg(test)]
mod tests;
pub(super) mod text;

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::Result;
use dmtrace_core::{
    ids::IpcNs,
    ledger::ImageId,
    verdict::{Class, Undecided},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    args::{ReportArgs, SearchHow},
    explain,
    failure::{Failure, exit},
    filter::{Filters, shell_word},
};
use crate::{
    case::{Case, SearchDepth, TraceUse},
    output::{Out, json, print_remark},
    probe::Environment,
    recording::RecordingStart,
    render::{
        candidate::Candidate,
        culprits::{CulpritGroup, GroupBy, Leak, group_all},
        doubt::DoubtCounts,
        older_holders::{HeldCookies, OlderHolders},
        pending::PendingCounts,
        removal,
        row::Row,
    },
};
use culprit::group_culprits;
pub(crate) use limit::ReportLimit;
use older::OlderCookies;
use suspects::Suspects;

/// Somebody who got ENOSPC.
#[derive(Serialize)]
pub(super) struct EnospcVictim {
    pid: u32,
    pub(super) comm: String,
    command: Option<String>,
    failed: u64,
    /// It leaks as well.
    also_culprit: bool,
    /// So many cookies older than any trace it holds: it may be the one that leaks them.
    holds_older: HeldCookies,
}

/// Everything that is reported.
pub(super) struct ReportFindings<'a> {
    /// Leaks that are there.
    pub(super) leaked: Vec<&'a Row<'a>>,
    /// Leaks that somebody has removed: who made them leaks all the same.
    pub(super) removed: Vec<&'a Row<'a>>,
    pub(super) stuck: Vec<&'a Row<'a>>,
    /// Removed while in use; they are gone.
    pub(super) accidents: Vec<&'a Row<'a>>,
    /// Completed too often; there, or gone.
    pub(super) over_completed: Vec<&'a Row<'a>>,
    /// Gone with their IPC namespace.
    pub(super) ended: Vec<&'a Row<'a>>,
    pub(super) undecided: usize,
    /// Of which nobody can tell whether they are leaked.
    pub(super) doubts: DoubtCounts,
    /// What no trace saw being made.
    pub(super) older: OlderCookies<'a>,
    /// Who may have made that.
    pub(super) suspects: Suspects,
    pub(super) pending: PendingCounts,
    pub(super) victims: Vec<EnospcVictim>,
    pub(super) exhaustion: Vec<LimitUse>,
    /// What a sentence on what is not there is limited to.
    pub(super) scope: &'static str,
    /// The filters, for the next command.
    pub(super) filters: String,
    /// The recording, likewise; empty for this machine.
    pub(super) recording: String,
}

impl ReportFindings<'_> {
    /// Every leak, there or removed since.
    pub(super) fn all_leaks(&self) -> impl Iterator<Item = &'_ Row<'_>> {
        self.leaked.iter().chain(&self.removed).copied()
    }

    fn has_any(&self) -> bool {
        !self.leaked.is_empty()
            || !self.removed.is_empty()
            || self.older.has_any()
            || !self.stuck.is_empty()
            || !self.accidents.is_empty()
            || !self.over_completed.is_empty()
            || !self.victims.is_empty()
    }
}

/// Use of a namespace's limit.
#[derive(Serialize)]
pub(super) struct LimitUse {
    pub(super) ipc_ns: IpcNs,
    sets: usize,
    limit: u32,
    pub(super) leaked: usize,
    /// Made before any trace, and no process holds their numbers.
    orphaned: usize,
    /// Leaks an hour since tracing began.
    leaks_per_hour: Option<f64>,
    /// Over so many seconds.
    observed_seconds: Option<u64>,
    /// Seconds until the limit is reached at that rate.
    exhausted_in_seconds: Option<u64>,
}

pub(crate) fn run(args: &ReportArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if args.folded && as_json {
        let text = "--folded prints stacks for another program, --json everything: use one of them";
        return Err(Failure::Usage(text.to_owned()).into());
    }
    if let Some(since) = args.since {
        // In words of our own: the usage line of the parser would show both.
        if let Some(path) = &args.file {
            let text = format!(
                "--since asks the history of dmtrace serve, not the recording {}: leave out one",
                path.display()
            );
            return Err(Failure::Usage(text).into());
        }
        return history::run(args, since, as_json, out);
    }
    let (case, start) = match &args.file {
        Some(path) => {
            let (case, start) = Case::of_recording(path)?;
            (case, Some(start))
        }
        None => {
            let wish = args.search.to_wish(SearchDepth::Fast);
            let case = Case::of_searched_host(None, TraceUse::History, &wish)?;
            (case, None)
        }
    };
    let rows = explain::matching_rows(&case, &args.filters);
    let mut findings = find_findings(&case, &rows, &args.filters);
    if let Some(path) = &args.file {
        findings.recording = format!(" {}", shell_word(&path.display().to_string()));
    }
    if args.file.is_none() && args.search.search != Some(SearchHow::No) {
        findings.suspects = Suspects::hear_witnesses(&case, findings.older.rows());
    }
    let leaks: Vec<Leak> = findings.all_leaks().map(Leak::from_row).collect();
    let groups = group_all(&leaks, args.by);
    let culprits = group_culprits(&leaks);
    let limit = ReportLimit::from_args(args);
    let bugs = if as_json {
        bug::find_bugs(&case, start.as_ref(), &findings, ReportLimit::NONE)
    } else if args.bug {
        bug::find_bugs(&case, start.as_ref(), &findings, limit)
    } else {
        Vec::new()
    };
    if args.folded || args.flamegraph.is_some() {
        flamegraph::write_stacks(&leaks, args, out)?;
    }
    if args.folded {
        // Nothing else: it is for another program.
    } else if as_json {
        let mut object = report_json(&case, start.as_ref(), &findings, &groups, &bugs);
        object["culprits"] = json!(culprits);
        out.print_json(&object)?;
    } else if args.bug {
        bug::print_bugs(
            &bugs,
            &kernel_text(start.as_ref()),
            &bug::BugLimits {
                incomplete: case
                    .incomplete
                    .then(|| "the data is incomplete, for the reason below".to_owned()),
                doubts: findings.doubts,
            },
            out,
        )?;
        let programs: BTreeSet<String> = findings.all_leaks().map(executable_of).collect();
        limit.print_rest(programs.len(), out)?;
    } else {
        text::print_report(
            &case,
            start.as_ref(),
            &findings,
            &culprits,
            &groups,
            limit,
            out,
        )?;
    }
    if !as_json {
        let makers = args.filters.unknown_makers_text(&case);
        case.notes
            .iter()
            .chain(&makers)
            .for_each(|note| print_remark(note));
    }
    let found = if args.bug {
        // Bugs alone were asked for.
        !bugs.is_empty()
    } else {
        findings.has_any()
    };
    Ok(if found {
        exit::findings_code()
    } else if case.incomplete || findings.doubts.any() {
        exit::incomplete_code()
    } else {
        exit::CLEAN
    })
}

pub(super) fn find_findings<'a>(
    case: &'a Case,
    rows: &'a [Row<'a>],
    filters: &Filters,
) -> ReportFindings<'a> {
    let of = |state: &str| {
        rows.iter()
            .filter(|row| row.state() == state)
            .collect::<Vec<_>>()
    };
    let class = |row: &Row<'_>| row.verdict.as_ref().map(|verdict| verdict.class);
    let ended =
        |row: &&Row<'_>| matches!(class(row), Some(Class::Unknown(Undecided::NamespaceEnded)));
    let leaked = of("leaked");
    let removed = of("cleaned-up");
    let culprits: BTreeSet<ImageId> = leaked
        .iter()
        .chain(&removed)
        .flat_map(|row| {
            let culprit = row.verdict.as_ref().and_then(|it| it.culprit.as_ref());
            let culprit = culprit.map(|culprit| culprit.who.image);
            culprit.into_iter().chain(row.semaphore.creator.image())
        })
        .collect();
    let judged = rows.iter().filter_map(|row| {
        let verdict = row.verdict.as_ref()?;
        Some((row.semaphore, verdict))
    });
    let holders = OlderHolders::find(judged, &case.completeness.marks);
    let mut victims: Vec<EnospcVictim> = case
        .ledger
        .processes()
        .filter(|process| process.tally.enospc_failures > 0)
        .filter(|process| filters.passes(&Candidate::from_process(process)))
        .map(|process| EnospcVictim {
            pid: process.image_id.id.tgid,
            comm: process.name.to_string(),
            command: process.image.as_ref().map(|image| image.command_line()),
            failed: process.tally.enospc_failures,
            also_culprit: culprits.contains(&process.image_id),
            holds_older: holders.count(process.image_id.id),
        })
        .collect();
    // Who may be the cause itself comes last.
    victims.sort_by_key(|victim| {
        let cause = victim.also_culprit || victim.holds_older.all() > 0;
        (cause, std::cmp::Reverse(victim.failed))
    });
    let older = OlderCookies::find(rows);
    ReportFindings {
        exhaustion: limit_uses(case, &leaked, &older.orphaned, &removed, filters),
        scope: filters.scope_text(),
        filters: filters.args_text(),
        recording: String::new(),
        stuck: of("stuck"),
        accidents: of("accident"),
        over_completed: of("over-completed"),
        ended: rows.iter().filter(ended).collect(),
        older,
        suspects: Suspects::default(),
        pending: rows.iter().filter_map(|row| row.pending).collect(),
        doubts: rows.iter().filter_map(Row::doubt).collect(),
        undecided: of("unknown")
            .iter()
            .filter(|row| row.semaphore.is_live())
            .count(),
        leaked,
        removed,
        victims,
    }
}

fn limit_uses(
    case: &Case,
    leaked: &[&Row<'_>],
    orphaned: &[&Row<'_>],
    removed: &[&Row<'_>],
    filters: &Filters,
) -> Vec<LimitUse> {
    let traced = case.since.map(|since| case.facts.now.duration_since(since));
    case.snapshot
        .namespaces
        .iter()
        .filter(|ns| ns.limits.semmni > 0 && filters.wants_ns(ns.ns))
        .map(|ns| {
            let here = leaked.iter().filter(|row| row.semaphore.id.ns == ns.ns);
            // Whoever leaks goes on, whether or not somebody cleans up.
            let gone = removed.iter().filter(|row| row.semaphore.id.ns == ns.ns);
            let fresh = here
                .clone()
                .chain(gone)
                .filter(|row| row.semaphore.created >= case.since)
                .count();
            // A rate over less than a minute says more about the minute than about the host.
            let rate = traced
                .filter(|traced| fresh > 0 && *traced >= Duration::from_secs(60))
                .map(|traced| fresh as f64 * 3600.0 / traced.as_secs_f64());
            let free = (ns.limits.semmni as usize).saturating_sub(ns.sets.len());
            LimitUse {
                ipc_ns: ns.ns,
                sets: ns.sets.len(),
                limit: ns.limits.semmni,
                leaked: here.count(),
                orphaned: orphaned
                    .iter()
                    .filter(|row| row.semaphore.id.ns == ns.ns)
                    .count(),
                leaks_per_hour: rate,
                observed_seconds: rate.and(traced).map(|traced| traced.as_secs()),
                exhausted_in_seconds: rate.map(|rate| (free as f64 / rate * 3600.0) as u64),
            }
        })
        .filter(|it| {
            let full = it.sets * 5 >= it.limit as usize * 4;
            it.ipc_ns == IpcNs::HOST || filters.ipc_ns.is_some() || it.leaked > 0 || full
        })
        .collect()
}

fn executable_of(row: &Row<'_>) -> String {
    crate::render::culprits::program_path(
        row.image.and_then(|image| image.exe.as_deref()),
        row.comm(),
    )
}

fn report_json(
    case: &Case,
    start: Option<&RecordingStart>,
    findings: &ReportFindings<'_>,
    groups: &[(GroupBy, Vec<CulpritGroup>)],
    bugs: &[bug::BugReport],
) -> Value {
    let rows = |rows: &[&Row<'_>]| rows.iter().map(|row| row.to_json()).collect::<Vec<_>>();
    let clock = text::report_clock(start);
    let removed = findings.removed.iter();
    let removed = removed.map(|row| removal::removed_json(row, &clock));
    let by = |wanted: GroupBy| {
        groups
            .iter()
            .find(|(by, _)| *by == wanted)
            .map(|(_, groups)| groups)
    };
    json::json_envelope(
        "report",
        &json!({
            "kernel": kernel_text(start),
            "recording": start,
            "complete": !case.incomplete,
            "notes": case.notes,
            "traced_since_boot_ns": case.since,
            "leaked": rows(&findings.leaked),
            "removed": removed.collect::<Vec<_>>(),
            "removed_forgotten": case.ledger.forgotten_removals(),
            "orphaned": rows(&findings.older.orphaned),
            "holders": findings.older.holders,
            "suspects": findings.suspects,
            "stuck": rows(&findings.stuck),
            "accidents": rows(&findings.accidents),
            "over_completed": rows(&findings.over_completed),
            "ended_with_namespace": rows(&findings.ended),
            "undecided": findings.undecided,
            "doubts": findings.doubts,
            "pending": findings.pending,
            "bugs": bugs,
            "by_process": by(GroupBy::Process),
            "by_executable": by(GroupBy::Executable),
            "by_container": by(GroupBy::Container),
            "by_stack": by(GroupBy::Stack),
            "victims": findings.victims,
            "namespaces": findings.exhaustion,
            "totals": case.ledger.totals(),
        }),
    )
}

/// Of the machine that it is about.
fn kernel_text(start: Option<&RecordingStart>) -> String {
    start.map_or_else(|| Environment::read().kernel, |start| start.kernel.clone())
}
