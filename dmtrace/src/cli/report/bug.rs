//! What to paste into a bug tracker: one text for each program that leaks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use dmtrace_core::{event::Package, verdict::MissingStep};
use serde::Serialize;

use super::{ReportFindings, ReportLimit, executable_of, history_model::HistoryReport, text};
use crate::{
    case::Case,
    finding::{Known, Story},
    history::StoredFinding,
    host::{Roots, package},
    output::{Out, time, wrap_text},
    recording::RecordingStart,
    render::{
        culprits::{Leak, LeakCounts},
        doubt::DoubtCounts,
        removal,
        row::{Row, confidence_word},
        stored,
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
    #[serde(flatten)]
    pub(super) counts: LeakCounts,
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
    for row in findings.all_leaks() {
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
        clock: text::report_clock(start),
        here: start.is_none(),
        source: String::new(),
    };
    ranked
        .into_iter()
        .take(limit.0)
        .filter_map(|(program, rows)| build_bug(case, &telling, program, &rows, until))
        .collect()
}

/// The same of what a history has kept. `packages`: it is of this machine, whose packages may be
/// asked.
pub(super) fn find_past_bugs(
    past: &HistoryReport,
    packages: bool,
    limit: ReportLimit,
) -> Vec<BugReport> {
    let mut programs: BTreeMap<String, Vec<&StoredFinding>> = BTreeMap::new();
    for finding in &past.leaked {
        let leak = stored::leak_of(finding);
        if leak.image.is_some() || !leak.comm.is_empty() {
            programs.entry(leak.program()).or_default().push(finding);
        }
    }
    let mut ranked: Vec<_> = programs.into_iter().collect();
    ranked.sort_by(|a, b| b.1.len().cmp(&a.1.len()).then_with(|| a.0.cmp(&b.0)));
    let until = Instant::now() + LOOK_UP;
    ranked
        .into_iter()
        .take(limit.0)
        .filter_map(|(program, findings)| {
            build_past_bug(past, program, &findings, packages.then_some(until))
        })
        .collect()
}

/// `until`: packages of this machine may be looked up for so long.
fn build_past_bug(
    past: &HistoryReport,
    program: String,
    findings: &[&StoredFinding],
    until: Option<Instant>,
) -> Option<BugReport> {
    let observed = |it: &&&StoredFinding| {
        let verdict = it.story.cookie.verdict.as_ref();
        verdict.is_some_and(|verdict| verdict.confidence == Known::Observed)
    };
    let readable = findings
        .iter()
        .filter(observed)
        .chain(findings)
        .find_map(|it| stored::story_from_stored(it, false).map(|story| (it, story)));
    let (example, mut story) = readable?;
    story.cookie.call_site.clone_from(&example.calls);
    let image = story.cookie.image();
    let package = match (until, image) {
        (Some(until), Some(image)) => package::of_process(&Roots::host(), image, until),
        (Some(_), None) => Err("the program was not captured".to_owned()),
        (None, _) => Err("the history does not say".to_owned()),
    };
    let mut facts = LeakFacts::default();
    for finding in findings {
        let verdict = finding.story.cookie.verdict.as_ref();
        let step = verdict.and_then(|verdict| verdict.missing_step);
        facts.add_leak(&stored::leak_of(finding), step);
    }
    // What leaked before that time says nothing of its rate.
    let fresh = findings
        .iter()
        .filter(|it| it.found.wall_ms >= past.since)
        .count();
    let rate = (past.traced >= RATED && fresh > 0)
        .then(|| fresh as f64 * 3600.0 / past.traced.as_secs_f64());
    Some(BugReport {
        program,
        package_unknown: package.as_ref().err().cloned(),
        package: package.ok(),
        counts: facts.counts,
        how: facts.how,
        missing: facts.missing,
        leaks_per_hour: rate,
        observed_seconds: Some(past.traced.as_secs()),
        exhausted_in_seconds: None,
        sets: 0,
        limit: 0,
        example: story,
    })
}

/// What leaks of one program have in common.
#[derive(Default)]
struct LeakFacts {
    counts: LeakCounts,
    how: BTreeMap<String, usize>,
    missing: BTreeMap<String, usize>,
}

impl LeakFacts {
    fn add_leak(&mut self, leak: &Leak, missing: Option<MissingStep>) {
        self.counts.add_leak(leak);
        *self.how.entry(leak.how.clone()).or_default() += 1;
        if let Some(step) = missing {
            *self.missing.entry(step.to_string()).or_default() += 1;
        }
    }
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
    // Of what happens most; one that was seen and not inferred tells more.
    let leaks: Vec<Leak> = rows.iter().map(|row| Leak::from_row(row)).collect();
    let mut facts = LeakFacts::default();
    for (row, leak) in rows.iter().zip(&leaks) {
        let missing = row.verdict.as_ref().and_then(|verdict| verdict.missing);
        facts.add_leak(leak, missing);
    }
    let most = facts.how.values().max();
    let usual = rows.iter().zip(&leaks);
    let usual = usual.filter(|(_, leak)| facts.how.get(&leak.how) == most);
    let mut frequent = usual.map(|(row, _)| row);
    let example = frequent
        .clone()
        .find(observed)
        .or_else(|| frequent.next())?;
    let key = example.image.and_then(package::package_key);
    let package = match (telling.here, key.and_then(|key| case.packages.get(&key))) {
        (_, Some(known)) => known.clone(),
        (true, None) => example.image.map_or_else(
            || Err("the program was not captured".to_owned()),
            |image| package::of_process(&Roots::host(), image, until),
        ),
        (false, None) => Err("the recording does not say".to_owned()),
    };
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
        counts: facts.counts,
        how: facts.how,
        missing: facts.missing,
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

/// What keeps a list of bugs from being all there is to say.
#[derive(Debug, Default)]
pub(super) struct BugLimits {
    /// Why not everything was seen, if it was not.
    pub(super) incomplete: Option<String>,
    /// Cookies that may be leaked by anybody.
    pub(super) doubts: DoubtCounts,
}

/// `kernel`: of the machine that it is about.
pub(super) fn print_bugs(
    bugs: &[BugReport],
    kernel: &str,
    limits: &BugLimits,
    out: &mut Out,
) -> Result<()> {
    if bugs.is_empty() {
        let text = match &limits.incomplete {
            Some(why) => {
                format!("No program is known to leak cookies, but that is not certain: {why}.")
            }
            None if limits.doubts.any() => "No program is known to leak cookies.".to_owned(),
            None => "No program is known to leak cookies: there is nothing to report.".to_owned(),
        };
        out.print_hanging(&text, 0)?;
        return match limits.doubts.line("", "dmtrace report") {
            Some(line) => Ok(out.print_hanging(&line, 0)?),
            None => Ok(()),
        };
    }
    for (number, bug) in bugs.iter().enumerate() {
        if number > 0 {
            for line in ["", "----", ""] {
                out.print_line(line)?;
            }
        }
        print_bug(bug, kernel, limits.incomplete.as_deref(), out)?;
    }
    Ok(())
}

/// `incomplete`: why not everything was seen.
fn print_bug(bug: &BugReport, kernel: &str, incomplete: Option<&str>, out: &mut Out) -> Result<()> {
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
    field("kernel", kernel)?;
    let unsure = match bug.counts.inferred {
        0 => String::new(),
        inferred => format!(" ({inferred} of them inferred, not seen)"),
    };
    let leaked = count_noun(bug.counts.total, "cookie", "cookies");
    field("leaked", &format!("{leaked}{unsure}"))?;
    if let Some(text) = removal::removed_text(&bug.counts) {
        field("removed", &format!("since then, {text}"))?;
    }
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
    if let Some(why) = incomplete {
        field("caution", &format!("more may have happened: {why}"))?;
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
