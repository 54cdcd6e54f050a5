//! What to paste into a bug tracker: one text for each program that leaks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use dmtrace_core::event::Package;
use serde::Serialize;

use super::{ReportFindings, ReportLimit, executable_of};
use crate::{
    case::Case,
    finding::Story,
    host::{Roots, package},
    output::{
        Out,
        time::{self, Clock},
        wrap_text,
    },
    recording::RecordingStart,
    render::{
        culprits::leak_text,
        row::{Row, confidence_word},
        timeline::StoryContext,
    },
    wording::count_noun,
};

/// Time for looking up packages, in all.
const LOOK_UP: Duration = Duration::from_secs(2);
/// A rate over less than this says more about the moment than about the program.
const RATED: Duration = Duration::from_secs(60);

/// Lines on the process that belong into a bug report.
const DETAILS: [&str; 4] = ["command", "runs as", "below", "call site"];

/// The leaks of one program.
#[derive(Debug, Serialize)]
pub(super) struct BugReport {
    /// Path of the executable, or its name.
    pub(super) program: String,
    pub(super) package: Option<Package>,
    /// Why the package is not known.
    pub(super) package_unknown: Option<String>,
    pub(super) leaked: usize,
    /// Of these, seen and not inferred.
    pub(super) observed: usize,
    /// What happened to them, with counts.
    pub(super) how: BTreeMap<String, usize>,
    /// The step that did not happen, with counts.
    pub(super) missing: BTreeMap<String, usize>,
    /// Leaks an hour; `None` after less than a minute, or without a trace.
    pub(super) leaks_per_hour: Option<f64>,
    /// Over so many seconds.
    pub(super) observed_seconds: Option<u64>,
    /// Seconds until its IPC namespace is full at that rate.
    pub(super) exhausted_in_seconds: Option<u64>,
    /// Sets in use and the limit, in the namespace of the example.
    pub(super) sets: usize,
    pub(super) limit: u32,
    /// Its story: command line, devices, step by step.
    pub(super) example: Story,
}

/// Bugs by program, who leaks most first.
pub(super) fn find_bugs(
    case: &Case,
    start: Option<&RecordingStart>,
    findings: &ReportFindings<'_>,
    limit: ReportLimit,
) -> Vec<BugReport> {
    let mut programs: BTreeMap<String, Vec<&Row<'_>>> = BTreeMap::new();
    for row in &findings.leaked {
        if row.image.is_some() || !row.comm().is_empty() {
            programs.entry(executable_of(row)).or_default().push(row);
        }
    }
    let mut ranked: Vec<_> = programs.into_iter().collect();
    ranked.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(&b.0)));
    let until = Instant::now() + LOOK_UP;
    let telling = StoryContext {
        ledger: &case.ledger,
        facts: &case.facts,
        completeness: &case.completeness,
        clock: report_clock(start),
        here: start.is_none(),
        source: String::new(),
    };
    ranked
        .into_iter()
        .take(limit.0)
        .filter_map(|(program, rows)| build_bug(case, &telling, program, &rows, until))
        .collect()
}

fn report_clock(start: Option<&RecordingStart>) -> Clock {
    start.map_or_else(Clock::now, RecordingStart::clock)
}

fn build_bug(
    case: &Case,
    telling: &StoryContext<'_>,
    program: String,
    rows: &[&Row<'_>],
    until: Instant,
) -> Option<BugReport> {
    let observed = |row: &&&Row<'_>| {
        let verdict = row.verdict.as_ref();
        verdict.is_some_and(|verdict| confidence_word(verdict) == "observed")
    };
    // One that was seen and not inferred tells more.
    let example = rows.iter().find(observed).or(rows.first())?;
    let key = example.image.and_then(package::package_key);
    let package = match (telling.here, key.and_then(|key| case.packages.get(&key))) {
        (_, Some(known)) => known.clone(),
        (true, None) => example.image.map_or_else(
            || Err("the program was not captured".to_owned()),
            |image| package::of_process(&Roots::host(), image, until),
        ),
        (false, None) => Err("the recording does not say".to_owned()),
    };
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    let mut missing: BTreeMap<String, usize> = BTreeMap::new();
    for verdict in rows.iter().filter_map(|row| row.verdict.as_ref()) {
        *causes
            .entry(leak_text(&verdict.class.to_string()))
            .or_default() += 1;
        if let Some(step) = verdict.missing {
            *missing.entry(step.to_string()).or_default() += 1;
        }
    }
    let traced = case.since.map(|since| case.facts.now.duration_since(since));
    let fresh = rows
        .iter()
        .filter(|row| row.semaphore.created.is_some() && row.semaphore.created >= case.since)
        .count();
    let rate = traced
        .filter(|traced| *traced >= RATED && fresh > 0)
        .map(|traced| fresh as f64 * 3600.0 / traced.as_secs_f64());
    let mut spaces = case.snapshot.namespaces.iter();
    let ns = spaces.find(|ns| ns.ns == example.semaphore.id.ns);
    let (sets, limit) = ns.map_or((0, 0), |ns| (ns.sets.len(), ns.limits.semmni));
    let free = (limit as usize).saturating_sub(sets);
    Some(BugReport {
        program,
        package_unknown: package.as_ref().err().cloned(),
        package: package.ok(),
        leaked: rows.len(),
        observed: rows.iter().filter(observed).count(),
        how: causes,
        missing,
        leaks_per_hour: rate,
        observed_seconds: traced.map(|traced| traced.as_secs()),
        exhausted_in_seconds: rate
            .filter(|_| limit > 0)
            .map(|rate| (free as f64 / rate * 3600.0) as u64),
        sets,
        limit,
        example: telling.build_story(example),
    })
}

pub(super) fn print_bugs(
    case: &Case,
    start: Option<&RecordingStart>,
    bugs: &[BugReport],
    out: &mut Out,
) -> Result<()> {
    if bugs.is_empty() {
        return Ok(out.print_line(if case.incomplete {
            "No program is known to leak cookies, but the data is incomplete: not certain."
        } else {
            "No program is known to leak cookies: there is nothing to report."
        })?);
    }
    for (number, bug) in bugs.iter().enumerate() {
        if number > 0 {
            for line in ["", "----", ""] {
                out.print_line(line)?;
            }
        }
        print_bug(case, start, bug, out)?;
    }
    Ok(())
}

fn print_bug(
    case: &Case,
    start: Option<&RecordingStart>,
    bug: &BugReport,
    out: &mut Out,
) -> Result<()> {
    out.print_line(&format!(
        "{} leaves device-mapper udev cookies behind (System V semaphores)",
        bug.program
    ))?;
    out.print_line("")?;
    let mut field = |label: &str, text: &str| -> Result<()> {
        for (number, line) in wrap_text(text, 67).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            out.print_line(&format!("{label:<12} {line}"))?;
        }
        Ok(())
    };
    let package = match (&bug.package, &bug.package_unknown) {
        (Some(it), _) => format!("{} {} ({})", it.name, it.version, it.manager),
        (None, Some(why)) => format!("unknown: {why}"),
        (None, None) => "unknown".to_owned(),
    };
    field("program", &bug.program)?;
    field("package", &package)?;
    field("kernel", &super::kernel_text(start))?;
    let unsure = bug.leaked - bug.observed;
    let unsure = if unsure > 0 {
        format!(" ({unsure} of them inferred, not seen)")
    } else {
        String::new()
    };
    let leaked = count_noun(bug.leaked, "cookie", "cookies");
    field("leaked", &format!("{leaked}{unsure}"))?;
    for (what, count) in &bug.how {
        field("what", &format!("{count} x {what}"))?;
    }
    for (step, count) in &bug.missing {
        field("missing", &format!("{count} x {step}"))?;
    }
    let over = bug.observed_seconds.map_or_else(
        || "without a trace".to_owned(),
        |seconds| format!("over {}", time::age_text(Duration::from_secs(seconds))),
    );
    match bug.leaks_per_hour {
        Some(rate) => field("rate", &format!("{rate:.1} an hour, {over}"))?,
        None => field("rate", &format!("unknown (not enough was seen, {over})"))?,
    }
    if bug.limit > 0 {
        let full = bug
            .exhausted_in_seconds
            .map_or_else(String::new, |seconds| {
                format!(
                    "; full in {} at that rate, then no program can make a semaphore",
                    time::age_text(Duration::from_secs(seconds))
                )
            });
        let used = format!("{} of {} semaphore sets{full}", bug.sets, bug.limit);
        field("in use", &used)?;
    }
    for line in &bug.example.fault {
        match line.split_once(": ") {
            Some((label, text)) if DETAILS.contains(&label) => field(label, text)?,
            _ => {}
        }
    }
    if case.incomplete {
        field("caution", "the data is incomplete: more may have happened")?;
    }
    out.print_line("")?;
    out.print_line(&format!("One of them, {}:", bug.example.title))?;
    for moment in &bug.example.life {
        out.print_line(&format!(
            "  {:12}  {}  {}",
            moment.shown,
            moment.who,
            moment.text()
        ))?;
    }
    out.print_line("")?;
    let fields = (env!("CARGO_PKG_VERSION"), bug.example.confidence.as_str());
    Ok(out.print_line(&format!("Seen by dmtrace {}; {}.", fields.0, fields.1))?)
}
