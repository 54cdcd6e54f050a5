//! `dmtrace report --since`: what was found in a time, and how often.

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::{history_model::gather, history_text};
use crate::{
    cli::{
        Failure,
        args::Report,
        failure::exit,
        report::{Limit, culprit::culprits},
        when::When,
    },
    history::Stamp,
    output::Out,
    render::{
        culprits::{Leak, groups},
        stored,
    },
};

/// Runs the verb. `since` is the beginning of the time.
pub(in crate::cli) fn run(
    args: &Report,
    since: When,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let now = Stamp::now().wall_ms;
    let until = args.until.map_or(now, |until| until.wall_ms(now));
    let since = since.wall_ms(now);
    if since >= until {
        return Err(Failure::Usage("--since must be before --until".to_owned()).into());
    }
    let past = gather(args, since, until)?;
    let leaks: Vec<Leak> = past.leaked.iter().map(stored::leak).collect();
    let groups = groups(&leaks, args.by);
    let culprits = culprits(&leaks);
    if as_json {
        let mut object = past.object(&groups);
        object["culprits"] = json!(culprits);
        out.print_json(&object)?;
    } else {
        history_text::print(&past, &culprits, &groups, Limit::of(args), out)?;
        for note in &past.head.notes {
            eprintln!("dmtrace: {note}");
        }
    }
    Ok(if past.any() {
        exit::findings()
    } else if past.is_complete() {
        exit::CLEAN
    } else {
        exit::incomplete()
    })
}
