//! `dmtrace report --since`: what was found in a time, and how often.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use serde_json::json;

use super::{bug, flamegraph, history_model::gather_report, history_text};
use crate::{
    case::{Case, TraceUse},
    cli::{
        Failure,
        args::ReportArgs,
        explain,
        failure::exit,
        report::{ReportLimit, culprit::group_culprits},
        when::When,
    },
    history::Stamp,
    output::{Out, print_remark},
    render::{
        culprits::{Leak, group_all},
        doubt::DoubtCounts,
        row::Row,
        stored,
    },
};

/// Runs the verb. `since` is the beginning of the time.
pub(in crate::cli) fn run(
    args: &ReportArgs,
    since: When,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let now = Stamp::now().wall_ms;
    let until = args.until.map_or(now, |until| until.wall_ms(now));
    let since = since.wall_ms(now);
    if since >= until {
        let text = match args.until {
            Some(_) => "--since must be before --until",
            None => "--since is in the future; give a moment that is over",
        };
        return Err(Failure::Usage(text.to_owned()).into());
    }
    let past = gather_report(args, since, until)?;
    let leaks: Vec<Leak> = past.leaked.iter().map(stored::leak_of).collect();
    let groups = group_all(&leaks, args.by);
    let culprits = group_culprits(&leaks);
    let limit = ReportLimit::from_args(args);
    // A file may be of another machine.
    let here = args.history.is_none();
    // What is there now, and was made before anybody looked, says nothing of that time, but no clean
    // bill is given over it.
    let doubts = match here && !past.has_any() {
        true => present_doubts(args),
        false => DoubtCounts::default(),
    };
    let bugs = if as_json {
        bug::find_past_bugs(&past, here, ReportLimit::NONE)
    } else if args.bug {
        bug::find_past_bugs(&past, here, limit)
    } else {
        Vec::new()
    };
    if args.folded || args.flamegraph.is_some() {
        flamegraph::write_stacks(&leaks, args, out)?;
    }
    if args.folded {
        // Nothing else: it is for another program.
    } else if as_json {
        let mut object = past.to_json(&groups);
        object["culprits"] = json!(culprits);
        object["bugs"] = json!(bugs);
        object["doubts"] = json!(doubts);
        out.print_json(&object)?;
    } else if args.bug {
        let limits = bug::BugLimits {
            incomplete: past.incomplete_text(),
            doubts,
        };
        bug::print_bugs(&bugs, past.kernel_text(), &limits, out)?;
        let programs: BTreeSet<String> = leaks.iter().map(Leak::program).collect();
        limit.print_rest(programs.len(), out)?;
    } else {
        history_text::print_report(&past, &culprits, &groups, limit, out)?;
        if let Some(line) = doubts.line(past.scope, "dmtrace report") {
            out.print_hanging(&line, 0)?;
        }
    }
    if !as_json {
        past.head.notes.iter().for_each(|note| print_remark(note));
    }
    let found = if args.bug {
        // Bugs alone were asked for.
        !bugs.is_empty()
    } else {
        past.has_any()
    };
    Ok(if found {
        exit::findings_code()
    } else if past.is_complete() && !doubts.any() {
        exit::CLEAN
    } else {
        exit::incomplete_code()
    })
}

/// Cookies that are there now of which nobody can tell whether they are leaked.
fn present_doubts(args: &ReportArgs) -> DoubtCounts {
    let Ok(case) = Case::of_host(None, TraceUse::MapsWithoutStacks) else {
        return DoubtCounts::default();
    };
    let rows = explain::matching_rows(&case, &args.filters);
    rows.iter().filter_map(Row::doubt).collect()
}
