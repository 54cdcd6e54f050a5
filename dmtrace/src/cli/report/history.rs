//! `dmtrace report --since`: what was found in a time, and how often.

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{history_model::gather_report, history_text};
use crate::{
    cli::{
        Failure,
        args::ReportArgs,
        failure::exit,
        report::{ReportLimit, culprit::group_culprits},
        when::When,
    },
    history::Stamp,
    output::{Out, print_remark},
    render::{
        culprits::{Leak, group_all},
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
    if as_json {
        let mut object = past.to_json(&groups);
        object["culprits"] = json!(culprits);
        out.print_json(&object)?;
    } else {
        history_text::print_report(&past, &culprits, &groups, ReportLimit::from_args(args), out)?;
        for note in &past.head.notes {
            print_remark(note);
        }
    }
    Ok(if past.has_any() {
        exit::findings_code()
    } else if past.is_complete() {
        exit::CLEAN
    } else {
        exit::incomplete_code()
    })
}
