//! `dmtrace explain`: what happened to one cookie, which step is missing, whose fault it is, who
//! only suffers, what to do and what not to do.

mod history;
#[cfg(test)]
mod tests;
mod text;
mod witnesses;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use dmtrace_core::{
    facts::SetSnapshot,
    ids::{Key, SemId},
    verdict::{Class, Healthy},
};
use serde_json::json;

use super::{
    args::{ExplainArgs, SearchHow},
    failure::{Failure, exit},
    filter::{Filters, shell_word},
    value::CookieName,
};
use witnesses::Hearsay;

use crate::{
    case::{Case, SearchDepth, TraceUse},
    finding::Story,
    history::{HistoryQuery, StoredFinding, query::is_no_history},
    output::{Out, json, print_remark, time::Clock},
    recording::RecordingStart,
    render::{doubt::DoubtCounts, removal, row::Row, timeline::StoryContext},
    wording::{chain_text, count_noun},
};

/// Stories of one number at most: the same key may be in several namespaces.
const STORIES: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExplainTarget {
    /// The one that needs attention most.
    Worst,
    /// With this key.
    Key(Key),
    /// With this semid.
    SemId(i32),
    /// A decimal number that may be either.
    Either(Key, i32),
}

pub(crate) fn run(args: &ExplainArgs, as_json: bool, out: &mut Out) -> Result<ExitCode> {
    let (target, file) = parse_target(args.cookie.as_deref(), args.file.clone())?;
    if args.history.is_some() {
        if let Some(path) = file {
            let text = format!(
                "--history: a recording is explained by itself; leave out {}, or --history",
                path.display()
            );
            return Err(Failure::Usage(text).into());
        }
        let told = tell_past(args, target, None, |_| true, as_json, out)?;
        return told.ok_or_else(|| {
            let scope = args.filters.scope_text();
            Failure::Usage(format!("the history does not know such a cookie{scope}")).into()
        });
    }
    let (case, start) = load_case(args, file.as_deref())?;
    let clock = match &start {
        Some(start) => start.clock(),
        None => Clock::now(),
    };
    let rows = matching_rows(&case, &args.filters);
    let picked = choose_rows(&rows, target, &case);
    let (mut notes, mut incomplete) = (case.notes.clone(), case.incomplete);
    let telling = StoryContext {
        ledger: &case.ledger,
        facts: &case.facts,
        completeness: &case.completeness,
        clock,
        here: start.is_none(),
        source: source_options(args, file.as_deref()),
    };
    // What this trace did not see being made, an earlier one may have found.
    let unknown = match picked.as_slice() {
        [row] if row.is_older_than_trace() => Some(row.semaphore.id),
        _ => None,
    };
    let is_wanted = |finding: &StoredFinding| {
        unknown.is_none_or(|sem| finding.sem == sem && finding.gone.is_none())
    };
    // Of this machine; a recording is explained by itself.
    if (picked.is_empty() || unknown.is_some())
        && target != ExplainTarget::Worst
        && start.is_none()
        && !args.source.no_trace
    {
        match tell_past(args, target, Some(&case), is_wanted, as_json, out) {
            Ok(Some(code)) => return Ok(code),
            Ok(None) => {}
            Err(error) if is_no_history(&error) => {}
            Err(error) => {
                // It may be a leak that was removed.
                notes.push(chain_text(&error));
                incomplete = true;
            }
        }
    }
    let is_asked = start.is_none() && args.search.search != Some(SearchHow::No);
    let is_asked = is_asked && picked.iter().any(|row| row.semaphore.is_live());
    let heard = is_asked.then(|| case.hear_witnesses()).flatten();
    let sems = picked.iter().map(|row| row.semaphore.id);
    let hearsay = Hearsay::find_all(heard.as_ref(), &telling.clock, sems);
    let stories: Vec<Story> = picked.iter().map(|row| telling.build_story(row)).collect();
    if as_json {
        let told = stories.iter().zip(&picked).zip(&hearsay);
        let explanations = told.map(|((story, row), hearsay)| {
            let mut object = json!(story);
            removal::add_end(&mut object, row, &telling.clock);
            object["witnesses"] = json!(hearsay.as_ref().map(Hearsay::to_json));
            object
        });
        out.print_json(&json::json_envelope(
            "explain",
            &json!({
                "complete": !incomplete,
                "notes": notes,
                "recording": start,
                "explanations": explanations.collect::<Vec<_>>(),
            }),
        ))?;
    } else {
        for (number, (story, hearsay)) in stories.iter().zip(&hearsay).enumerate() {
            if number > 0 {
                out.print_line("")?;
            }
            let more = hearsay.as_ref().map_or_else(Vec::new, Hearsay::to_sections);
            text::print_story(story, &[], &more, out)?;
        }
        if stories.is_empty() {
            let message = not_found_message(target, &rows, &case, &args.filters, file.as_deref());
            out.print_line(&message)?;
        } else if target == ExplainTarget::Worst {
            text::print_remaining(&rows, &picked, &args.filters, file.as_deref(), out)?;
        }
        for note in &notes {
            print_remark(note);
        }
    }
    let is_found = |row: &&Row<'_>| row.is_finding() || removal::is_removed_leak(row);
    // Of one that was asked for, its own answer counts; without one, everything that is there.
    let shown: DoubtCounts = match target {
        ExplainTarget::Worst => rows.iter().filter_map(Row::doubt).collect(),
        _ => picked.iter().filter_map(|row| row.doubt()).collect(),
    };
    Ok(if picked.iter().any(is_found) {
        exit::findings_code()
    } else if incomplete || shown.any() {
        exit::incomplete_code()
    } else {
        exit::CLEAN
    })
}

/// What `clean` must be given to know the same.
fn source_options(args: &ExplainArgs, file: Option<&Path>) -> String {
    let recording = file.or(args.source.trace.as_deref());
    recording.map_or_else(String::new, |path| {
        format!(" --trace {}", shell_word(&path.display().to_string()))
    })
}

/// The last finding of this number in the history that is wanted, if there is one. `here`: this
/// machine, now.
fn tell_past(
    args: &ExplainArgs,
    target: ExplainTarget,
    here: Option<&Case>,
    is_wanted: impl Fn(&StoredFinding) -> bool,
    as_json: bool,
    out: &mut Out,
) -> Result<Option<ExitCode>> {
    let (key, semid) = match target {
        ExplainTarget::Worst => (None, None),
        ExplainTarget::Key(key) => (Some(key), None),
        ExplainTarget::SemId(semid) => (None, Some(semid)),
        ExplainTarget::Either(key, semid) => (Some(key), Some(semid)),
    };
    let query = HistoryQuery {
        key,
        semid,
        ..HistoryQuery::default()
    };
    let is_missing = |finding: &StoredFinding| here.is_some_and(|case| lacks_set(case, finding));
    let (history, filters) = (args.history.as_deref(), &args.filters);
    let found = history::find_past(history, &query, filters, is_wanted, is_missing)?;
    let Some((past, found)) = found else {
        return Ok(None);
    };
    if as_json {
        let mut notes = vec!["from the history of dmtrace serve".to_owned()];
        notes.extend(past.notes);
        out.print_json(&json::json_envelope(
            "explain",
            &json!({
                "complete": true,
                "notes": notes,
                "recording": null,
                "explanations": [past.value],
            }),
        ))?;
    } else {
        text::print_story(&past.story, &past.ending, &[], out)?;
        if found > 1 && target != ExplainTarget::Worst {
            out.print_line("")?;
            out.print_line(&format!(
                "{} with this number: dmtrace report --since TIME --json",
                count_noun(found - 1, "earlier cookie", "earlier cookies")
            ))?;
        }
    }
    Ok(Some(exit::findings_code()))
}

/// Whether a cookie is not on this machine any more; not where something could not be read.
fn lacks_set(case: &Case, finding: &StoredFinding) -> bool {
    let read_all = case.snapshot.unreadable.is_empty() && case.snapshot.incomplete.is_empty();
    let is_it = |(sem, set): (SemId, &SetSnapshot)| sem == finding.sem && set.key == finding.key;
    read_all && !case.snapshot.sets().any(is_it)
}

fn load_case(args: &ExplainArgs, file: Option<&Path>) -> Result<(Case, Option<RecordingStart>)> {
    if let Some(path) = file {
        if args.source.trace.is_some() || args.source.no_trace {
            let text = "a recording is explained by itself: leave out --trace and --no-trace";
            return Err(Failure::Usage(text.to_owned()).into());
        }
        let (case, start) = Case::of_recording(path)?;
        return Ok((case, Some(start)));
    }
    let join = if args.source.no_trace {
        TraceUse::No
    } else {
        TraceUse::History
    };
    let wish = args.search.to_wish(SearchDepth::Fast);
    let case = Case::of_searched_host(args.source.trace.as_deref(), join, &wish)?;
    Ok((case, None))
}

/// What the words on the command line mean: a number, a recording, or both.
fn parse_target(
    first: Option<&str>,
    second: Option<PathBuf>,
) -> Result<(ExplainTarget, Option<PathBuf>)> {
    let Some(word) = first else {
        return Ok((ExplainTarget::Worst, second));
    };
    let (key, semid) = match word.parse::<CookieName>() {
        Ok(name) => (name.key, name.semid),
        Err(_) => (None, None),
    };
    let target = match (key, semid) {
        (Some(key), Some(semid)) => ExplainTarget::Either(key, semid),
        (Some(key), None) => ExplainTarget::Key(key),
        (None, Some(semid)) => ExplainTarget::SemId(semid),
        // What has a path's form is no cookie that was mistyped, also where it is not there.
        (None, None)
            if second.is_none() && (word.contains(['/', '.']) || Path::new(word).exists()) =>
        {
            return Ok((ExplainTarget::Worst, Some(PathBuf::from(word))));
        }
        (None, None) => {
            let text = if Path::new(word).exists() {
                format!("{word}: the cookie comes first, then the recording")
            } else {
                format!("{word}: give a cookie (0x0d4d1234), a semid, or a recording")
            };
            return Err(Failure::Usage(text).into());
        }
    };
    Ok((target, second))
}

/// Every cookie, live ones first, then those that are gone.
pub(super) fn all_rows(case: &Case) -> Vec<Row<'_>> {
    let live = case.judge_all();
    let closed = case.judge_closed();
    live.into_iter()
        .chain(closed)
        .map(|judged| case.row_of(judged))
        .collect()
}

/// Those of them that the filters let pass.
pub(super) fn matching_rows<'a>(case: &'a Case, filters: &Filters) -> Vec<Row<'a>> {
    let mut rows = all_rows(case);
    rows.retain(|row| filters.passes(&row.candidate()));
    rows
}

fn choose_rows<'r, 'a>(
    rows: &'r [Row<'a>],
    target: ExplainTarget,
    case: &Case,
) -> Vec<&'r Row<'a>> {
    let is = |row: &Row<'_>| match target {
        ExplainTarget::Worst => false,
        ExplainTarget::Key(key) => row.semaphore.key == key,
        ExplainTarget::SemId(semid) => row.semaphore.id.semid == semid,
        ExplainTarget::Either(key, semid) => {
            row.semaphore.key == key || row.semaphore.id.semid == semid
        }
    };
    if target == ExplainTarget::Worst {
        return worst_row(rows, case).into_iter().collect();
    }
    let fitting: Vec<&Row<'_>> = rows.iter().filter(|row| is(row)).collect();
    let live: Vec<&Row<'_>> = fitting
        .iter()
        .copied()
        .filter(|row| row.semaphore.is_live())
        .take(STORIES)
        .collect();
    if live.is_empty() {
        // Of several that had this number, the last one that there is something to say of.
        let wanted = |row: &&&Row<'_>| row.is_finding() || removal::is_removed_leak(row);
        let last = fitting.iter().rev().find(wanted).or(fitting.last());
        return last.copied().into_iter().collect();
    }
    live
}

/// What needs attention most: who is stuck longest, then the program that leaks most.
fn worst_row<'r, 'a>(rows: &'r [Row<'a>], case: &Case) -> Option<&'r Row<'a>> {
    let mut leaks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut removed: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows.iter().filter(|row| removal::is_removed_leak(row)) {
        *removed.entry(row.comm()).or_default() += 1;
    }
    for row in rows.iter().filter(|row| row.state() == "leaked") {
        *leaks.entry(row.comm()).or_default() += 1;
    }
    let rank = |row: &&Row<'_>| -> Option<(u8, Reverse<usize>, Reverse<Duration>)> {
        let age = Reverse(row.age.unwrap_or_default());
        let live = row.semaphore.is_live();
        let (first, count) = match row.verdict.as_ref()?.class {
            Class::Stuck(_) => {
                let since = row.semaphore.cookie.as_ref().and_then(|cookie| {
                    let since = cookie.waiters.iter().map(|waiting| waiting.since).min()?;
                    Some(case.facts.now.duration_since(since))
                });
                return Some((0, Reverse(0), since.map_or(age, Reverse)));
            }
            Class::Leaked(_) => (1, leaks.get(row.comm()).copied().unwrap_or(0)),
            Class::Orphaned(_) => (2, 0),
            Class::OverCompleted if live => (2, 0),
            Class::Accident => (3, 0),
            Class::OverCompleted => (4, 0),
            Class::CleanedUp(_) => (5, removed.get(row.comm()).copied().unwrap_or(0)),
            Class::Healthy(Healthy::SlowUdev) => (6, 0),
            _ if row.doubt().is_some() => (7, 0),
            _ => return None,
        };
        Some((first, Reverse(count), age))
    };
    rows.iter()
        .filter_map(|row| Some((rank(&row)?, row)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, row)| row)
}

fn not_found_message(
    target: ExplainTarget,
    rows: &[Row<'_>],
    case: &Case,
    filters: &Filters,
    recording: Option<&Path>,
) -> String {
    let scope = filters.scope_text();
    let doubts: DoubtCounts = rows.iter().filter_map(Row::doubt).collect();
    let number = match target {
        ExplainTarget::Worst if case.incomplete => {
            return format!(
                "No stuck or leaked cookie is known{scope}, but the data is incomplete: not certain."
            );
        }
        ExplainTarget::Worst if doubts.any() => {
            let next = format!("dmtrace report{}", filters.args_text());
            return doubts.line(scope, &next).unwrap_or_default();
        }
        ExplainTarget::Worst if rows.iter().any(|row| row.semaphore.is_live()) => {
            let list = match recording {
                None => format!(": dmtrace list{} shows those in use", filters.args_text()),
                Some(_) => String::new(),
            };
            return format!("No cookie is stuck or leaked{scope}{list}.");
        }
        ExplainTarget::Worst => return format!("There is no cookie{scope}."),
        ExplainTarget::Key(key) | ExplainTarget::Either(key, _) => format!("cookie {key}"),
        ExplainTarget::SemId(semid) => {
            let sets: BTreeMap<_, _> = case.snapshot.sets().collect();
            let other = case.ledger.live_sets().find(|set| {
                let known = sets.get(&set.id).copied();
                let row = Row::from_books(&case.ledger, set, known, case.facts.now);
                set.id.semid == semid && !set.is_cookie() && filters.passes(&row.candidate())
            });
            if let Some(set) = other {
                return format!(
                    "semid {semid} in IPC namespace {ns} is no cookie: its key is {:#010x}; to see \
                     it: dmtrace list --all --semid {semid} --ipc-ns {ns}",
                    set.key.0,
                    ns = set.id.ns,
                );
            }
            format!("semid {semid}")
        }
    };
    if let Some(path) = recording {
        let ended = case.ledger.totals().cookies.destroyed;
        let kept = case.ledger.closed_cookies().count() as u64;
        let older = match ended.saturating_sub(kept) {
            0 => String::new(),
            older => format!(
                " Of those that are gone the newest {kept} are looked at, {older} older ones are \
                 not."
            ),
        };
        return format!("{} has no {number}{scope}.{older}", path.display());
    }
    let spaces = case.snapshot.namespaces.len();
    let read = count_noun(spaces, "IPC namespace", "IPC namespaces");
    let forgotten = match case.ledger.forgotten_removals() {
        0 => String::new(),
        gone => format!(
            " {} earlier: a recording or the history of dmtrace serve may have it.",
            count_noun(
                gone,
                "removed cookie was forgotten",
                "removed cookies were forgotten"
            )
        ),
    };
    match scope {
        "" => format!(
            "{number} does not exist ({read} read), and no trace that runs has seen it.{forgotten}"
        ),
        _ => format!("no {number} passes the filters ({read} read).{forgotten}"),
    }
}
