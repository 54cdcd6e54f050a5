//! `dmtrace report`: who leaks, ranked; who only suffers; how long until nothing works.

mod bug;
pub(super) mod culprit;
mod flame;
mod flamegraph;
mod history;
mod history_model;
pub(super) mod history_text;
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

use super::{args::Report, explain, failure::exit, filter::Filters};
use crate::{
    case::{Case, TraceUse},
    output::{Out, json},
    probe::Environment,
    recording::RecordingStart,
    render::{
        candidate::Candidate,
        culprits::{By, Group, Leak, groups},
        row::Row,
    },
};
use culprit::culprits;

/// So many of a kind are shown to people; JSON has all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limit(pub(crate) usize);

impl Limit {
    const NONE: Self = Self(usize::MAX);

    /// What was asked for: one screen, unless it is one list.
    pub(crate) fn of(args: &Report) -> Self {
        let one_list = args.by.is_some() || args.bug || args.since.is_some();
        match args.top {
            _ if args.all => Self::NONE,
            Some(top) => Self(top),
            None if one_list => Self(20),
            None => Self(5),
        }
    }

    /// The line for what is left out of so many.
    pub(crate) fn rest(self, all: usize, out: &mut Out) -> Result<()> {
        match all.saturating_sub(self.0) {
            0 => Ok(()),
            more => Ok(out.print_line(&format!("  and {more} more: --all"))?),
        }
    }
}

/// Somebody who got ENOSPC.
#[derive(Serialize)]
pub(super) struct Victim {
    pid: u32,
    pub(super) comm: String,
    command: Option<String>,
    failed: u64,
    /// It leaks as well.
    also_culprit: bool,
}

/// Everything that is reported.
pub(super) struct Findings<'a> {
    pub(super) leaked: Vec<&'a Row<'a>>,
    pub(super) stuck: Vec<&'a Row<'a>>,
    /// Removed while in use; they are gone.
    pub(super) accidents: Vec<&'a Row<'a>>,
    /// Completed too often; there, or gone.
    pub(super) over_completed: Vec<&'a Row<'a>>,
    /// Gone with their IPC namespace.
    pub(super) ended: Vec<&'a Row<'a>>,
    pub(super) undecided: usize,
    pub(super) victims: Vec<Victim>,
    pub(super) exhaustion: Vec<Exhaustion>,
    /// What a sentence on what is not there is limited to.
    pub(super) scope: &'static str,
}

impl Findings<'_> {
    fn any(&self) -> bool {
        !self.leaked.is_empty()
            || !self.stuck.is_empty()
            || !self.accidents.is_empty()
            || !self.over_completed.is_empty()
            || !self.victims.is_empty()
    }
}

/// Use of a namespace's limit.
#[derive(Serialize)]
pub(super) struct Exhaustion {
    pub(super) ipc_ns: IpcNs,
    sets: usize,
    limit: u32,
    pub(super) leaked: usize,
    /// Leaks an hour since tracing began.
    leaks_per_hour: Option<f64>,
    /// Seconds until the limit is reached at that rate.
    exhausted_in_seconds: Option<u64>,
}

pub(crate) fn run(args: &Report, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    if let Some(since) = args.since {
        return history::run(args, since, as_json, out);
    }
    let (case, start) = match &args.file {
        Some(path) => {
            let (case, start) = Case::of_recording(path)?;
            (case, Some(start))
        }
        None => (Case::of_host(None, TraceUse::History)?, None),
    };
    let rows = explain::chosen(&case, &args.filters);
    let findings = find(&case, &rows, &args.filters);
    let leaks: Vec<Leak> = findings.leaked.iter().map(|row| Leak::of(row)).collect();
    let groups = groups(&leaks, args.by);
    let culprits = culprits(&leaks);
    let limit = Limit::of(args);
    let bugs = if as_json {
        bug::bugs(&case, start.as_ref(), &findings, Limit::NONE)
    } else if args.bug {
        bug::bugs(&case, start.as_ref(), &findings, limit)
    } else {
        Vec::new()
    };
    if args.folded || args.flamegraph.is_some() {
        let lines = flamegraph::folded(&findings.leaked);
        if let Some(path) = &args.flamegraph {
            flamegraph::flame_graph(&lines, path)?;
        }
        for line in lines.iter().filter(|_| args.folded) {
            out.whole_line(line)?;
        }
    }
    if args.folded {
        // Nothing else: it is for another program.
    } else if as_json {
        let mut object = object(&case, start.as_ref(), &findings, &groups, &bugs);
        object["culprits"] = json!(culprits);
        out.print_json(&object)?;
    } else if args.bug {
        bug::print(&case, start.as_ref(), &bugs, out)?;
        let programs: BTreeSet<String> =
            findings.leaked.iter().map(|row| executable(row)).collect();
        limit.rest(programs.len(), out)?;
    } else {
        text::print(
            &case,
            start.as_ref(),
            &findings,
            &culprits,
            &groups,
            limit,
            out,
        )?;
        for note in &case.notes {
            eprintln!("dmtrace: {note}");
        }
    }
    Ok(if findings.any() {
        exit::findings()
    } else if case.incomplete {
        exit::incomplete()
    } else {
        exit::CLEAN
    })
}

pub(super) fn find<'a>(case: &'a Case, rows: &'a [Row<'a>], filters: &Filters) -> Findings<'a> {
    let of = |state: &str| {
        rows.iter()
            .filter(|row| row.state() == state)
            .collect::<Vec<_>>()
    };
    let class = |row: &Row<'_>| row.verdict.as_ref().map(|verdict| verdict.class);
    let ended =
        |row: &&Row<'_>| matches!(class(row), Some(Class::Unknown(Undecided::NamespaceEnded)));
    let leaked = of("leaked");
    let culprits: Vec<ImageId> = leaked
        .iter()
        .filter_map(|row| row.semaphore.creator.image())
        .collect();
    let mut victims: Vec<Victim> = case
        .ledger
        .processes()
        .filter(|process| process.tally.enospc_failures > 0)
        .filter(|process| filters.pass(&Candidate::victim(process)))
        .map(|process| Victim {
            pid: process.image_id.id.tgid,
            comm: process.name.to_string(),
            command: process.image.as_ref().map(|image| image.command_line()),
            failed: process.tally.enospc_failures,
            also_culprit: culprits.contains(&process.image_id),
        })
        .collect();
    victims.sort_by_key(|victim| (victim.also_culprit, std::cmp::Reverse(victim.failed)));
    Findings {
        exhaustion: exhaustion(case, &leaked, filters),
        scope: filters.scope(),
        stuck: of("stuck"),
        accidents: of("accident"),
        over_completed: of("over-completed"),
        ended: rows.iter().filter(ended).collect(),
        undecided: of("unknown")
            .iter()
            .filter(|row| row.semaphore.is_live())
            .count(),
        leaked,
        victims,
    }
}

fn exhaustion(case: &Case, leaked: &[&Row<'_>], filters: &Filters) -> Vec<Exhaustion> {
    let traced = case.since.map(|since| case.facts.now.duration_since(since));
    case.snapshot
        .namespaces
        .iter()
        .filter(|ns| ns.limits.semmni > 0 && filters.wants_ns(ns.ns))
        .map(|ns| {
            let here = leaked.iter().filter(|row| row.semaphore.id.ns == ns.ns);
            let fresh = here
                .clone()
                .filter(|row| row.semaphore.created >= case.since)
                .count();
            // A rate over less than a minute says more about the minute than about the host.
            let rate = traced
                .filter(|traced| fresh > 0 && *traced >= Duration::from_secs(60))
                .map(|traced| fresh as f64 * 3600.0 / traced.as_secs_f64());
            let free = (ns.limits.semmni as usize).saturating_sub(ns.sets.len());
            Exhaustion {
                ipc_ns: ns.ns,
                sets: ns.sets.len(),
                limit: ns.limits.semmni,
                leaked: here.count(),
                leaks_per_hour: rate,
                exhausted_in_seconds: rate.map(|rate| (free as f64 / rate * 3600.0) as u64),
            }
        })
        .filter(|it| {
            let full = it.sets * 5 >= it.limit as usize * 4;
            it.ipc_ns == IpcNs::HOST || filters.ipc_ns.is_some() || it.leaked > 0 || full
        })
        .collect()
}

fn executable(row: &Row<'_>) -> String {
    crate::render::culprits::executable(
        row.image.and_then(|image| image.exe.as_deref()),
        row.comm(),
    )
}

fn object(
    case: &Case,
    start: Option<&RecordingStart>,
    findings: &Findings<'_>,
    groups: &[(By, Vec<Group>)],
    bugs: &[bug::Bug],
) -> Value {
    let rows = |rows: &[&Row<'_>]| rows.iter().map(|row| row.json()).collect::<Vec<_>>();
    let by = |wanted: By| {
        groups
            .iter()
            .find(|(by, _)| *by == wanted)
            .map(|(_, groups)| groups)
    };
    json::json_envelope(
        "report",
        &json!({
            "kernel": kernel(start),
            "recording": start,
            "complete": !case.incomplete,
            "notes": case.notes,
            "traced_since_boot_ns": case.since,
            "leaked": rows(&findings.leaked),
            "stuck": rows(&findings.stuck),
            "accidents": rows(&findings.accidents),
            "over_completed": rows(&findings.over_completed),
            "ended_with_namespace": rows(&findings.ended),
            "undecided": findings.undecided,
            "bugs": bugs,
            "by_process": by(By::Process),
            "by_executable": by(By::Executable),
            "by_container": by(By::Container),
            "by_stack": by(By::Stack),
            "victims": findings.victims,
            "namespaces": findings.exhaustion,
            "totals": case.ledger.totals(),
        }),
    )
}

/// Of the machine that it is about.
fn kernel(start: Option<&RecordingStart>) -> String {
    start.map_or_else(|| Environment::read().kernel, |start| start.kernel.clone())
}
