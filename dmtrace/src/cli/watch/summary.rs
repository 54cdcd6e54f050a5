//! What `watch` and `record` say at their end.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use dmtrace_core::verdict::{Class, Judged, Thresholds};
use serde_json::json;

use super::counted::CountedFindings;
use crate::{
    case::read_marks,
    cli::{
        failure::exit,
        filter::{Filters, shell_word},
    },
    output::{Out, json, time},
    probe::registry::running_tracers,
    render::{doubt::DoubtCounts, older_holders::OlderHolders, pending::PendingCounts, row::Row},
    trace::{ended::is_removed_leak, run::TraceEnd},
    wording::{count_noun, finding_commands},
};

/// More are not named.
const MAX_VICTIMS: usize = 5;

/// What the commands after a trace are to look at.
pub(super) struct Kept<'a> {
    /// Where the trace was kept; without it, what it knew ends with it.
    pub(super) recording: Option<&'a Path>,
    pub(super) filters: &'a Filters,
}

impl Kept<'_> {
    /// The commands that say more of findings.
    fn next_commands(&self, leaked: usize) -> String {
        let filters = self.filters.args_text();
        if let Some(path) = self.recording {
            let file = shell_word(&path.display().to_string());
            return finding_commands(leaked, Some(&file), &filters);
        }
        let own = std::process::id();
        if running_tracers().iter().any(|tracer| tracer.pid != own) {
            // Another trace knows them as well.
            return finding_commands(leaked, None, &filters);
        }
        "shown above; --record FILE keeps a trace, so that report, explain and clean know who made \
         what after its end"
            .to_owned()
    }
}

/// Prints what happened in sum, and chooses the exit code.
///
/// `told`: the cookies whose findings were told while the trace ran.
pub(super) fn print_summary(
    ending: &TraceEnd,
    kept: &Kept<'_>,
    told: &CountedFindings,
    limits: Option<String>,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let filters = kept.filters;
    let ledger = ending.session.ledger();
    let totals = ledger.totals();
    let wanted = |judged: &Judged<'_>| {
        let mut row = Row::from_books(ledger, judged.semaphore, judged.set, ending.facts.now);
        row.age = row.age.or_else(|| row.stamp_age(&ending.facts));
        row.verdict = Some(judged.verdict.clone());
        filters.passes(&row.candidate())
    };
    let judged: Vec<Judged<'_>> = ending
        .judge_cookies(&Thresholds::default())
        .into_iter()
        .filter(|it| wanted(it))
        .collect();
    let count = |of: fn(Class) -> bool| judged.iter().filter(|it| of(it.verdict.class)).count();
    let ended: Vec<Judged<'_>> = ending
        .judge_closed(&Thresholds::default())
        .into_iter()
        .filter(|it| it.verdict.class.is_finding() || is_removed_leak(it))
        .filter(|it| wanted(it))
        .collect();
    let standing = judged.iter().filter(|it| it.verdict.class.is_finding());
    let counts = FindingCounts {
        gone: told.count_gone(
            standing.map(|it| it.semaphore),
            ended.iter().map(|it| it.semaphore),
        ),
        all: count(Class::is_finding),
        leaked: count(|class| matches!(class, Class::Leaked(_))),
        doubts: judged.iter().filter_map(Judged::doubt).collect(),
        pending: ending.pending_of(&judged, &Thresholds::default()),
    };
    let accounting = &ending.accounting;
    let unread = ending.unread_summary();
    let certain = accounting.is_exact() && unread.is_none();
    let elapsed = ending.ran;
    if as_json {
        out.print_json(&json::json_envelope(
            "summary",
            &json!({
                "seconds": elapsed.as_secs_f64(),
                "backend": ending.session.tracer().backend(),
                "totals": totals,
                "findings": counts.all,
                "findings_gone": counts.gone,
                "findings_told": told.count(),
                "undecided": count(|class| matches!(class, Class::Unknown(_))),
                "doubts": counts.doubts,
                "pending": counts.pending,
                "accounting": accounting,
                "device_mapper": ending.session.dm_report(),
                "exact": accounting.is_exact(),
                "complete": certain,
                "unread": unread,
            }),
        ))?;
    } else {
        let (sets, cookies) = (&totals.sets, &totals.cookies);
        out.print_line("")?;
        out.print_line(&format!(
            "{}{}: {} made ({}), {} removed ({}), {} there now ({})",
            time::age_text(elapsed),
            if filters.is_empty() {
                ""
            } else {
                ", whole host"
            },
            count_noun(sets.created, "set", "sets"),
            count_noun(cookies.created, "cookie", "cookies"),
            sets.destroyed,
            cookies.destroyed,
            sets.live,
            cookies.live
        ))?;
        if let Some(limits) = limits {
            out.print_line(&limits)?;
            for line in victim_lines(ending, &judged) {
                out.print_hanging(&line, 4)?;
            }
        }
        print_findings(counts, kept, certain, out)?;
        if let Some(unread) = &unread {
            out.print_line(unread)?;
        }
        out.print_line(&format!("accounting: {}", accounting.summary_line()))?;
        for deficit in &accounting.deficits {
            out.print_line(&format!("  {deficit}"))?;
        }
    }
    out.flush()?;
    Ok(if counts.all > 0 || counts.gone > 0 {
        exit::findings_code()
    } else if certain && !counts.doubts.any() {
        exit::CLEAN
    } else {
        exit::incomplete_code()
    })
}

/// Whoever failed and has older cookies itself, the most first: nobody is to take it for a victim
/// alone.
fn victim_lines(ending: &TraceEnd, judged: &[Judged<'_>]) -> Vec<String> {
    let pairs = judged.iter().map(|it| (it.semaphore, &it.verdict));
    let holders = OlderHolders::find(pairs, &read_marks());
    let mut victims: Vec<_> = ending
        .session
        .ledger()
        .processes()
        .filter(|process| process.tally.enospc_failures > 0)
        .map(|process| (holders.count(process.image_id.id), process))
        .filter(|(held, _)| held.all() > 0)
        .collect();
    victims.sort_by_key(|(held, _)| std::cmp::Reverse(held.all()));
    let victims = victims.into_iter().take(MAX_VICTIMS);
    victims
        .map(|(held, process)| {
            format!(
                "  {}[{}]: {} failed; {}",
                process.name,
                process.image_id.id.tgid,
                process.tally.enospc_failures,
                held.to_text()
            )
        })
        .collect()
}

/// What was found, in numbers.
#[derive(Clone, Copy)]
struct FindingCounts {
    /// Cookies with a finding that are gone, such as leaks that were removed.
    gone: usize,
    /// There at the end.
    all: usize,
    /// Leaks among these.
    leaked: usize,
    /// Cookies of which nobody can tell whether they are leaked.
    doubts: DoubtCounts,
    /// Verdicts that are not final.
    pending: PendingCounts,
}

fn print_findings(
    counts: FindingCounts,
    kept: &Kept<'_>,
    certain: bool,
    out: &mut Out,
) -> Result<()> {
    let FindingCounts {
        gone,
        all,
        leaked,
        doubts,
        pending,
    } = counts;
    let scope = kept.filters.scope_text();
    if all > 0 {
        let gone = match gone {
            0 => String::new(),
            gone => format!(", and {gone} more gone by now"),
        };
        out.print_line(&format!(
            "{}{gone}{scope}; {}",
            count_noun(all, "finding", "findings"),
            kept.next_commands(leaked)
        ))?;
    } else if gone > 0 {
        out.print_line(&format!(
            "no leak now{scope}; {} in between, gone by now; {}",
            count_noun(gone, "finding", "findings"),
            kept.next_commands(0)
        ))?;
    } else if !certain {
        out.print_line(&format!(
            "no leak seen{scope}, but that is not certain, for the reason below"
        ))?;
    } else if doubts.any() || pending.any() {
        out.print_line(&format!("no leak proven{scope}"))?;
    } else {
        out.print_line(&format!("no leak{scope}"))?;
    }
    // Not of a recording: a search is made on the machine, now.
    let next = format!("dmtrace report{}", kept.filters.args_text());
    if let Some(line) = doubts.line(scope, &next) {
        out.print_hanging(&line, 0)?;
    }
    for line in pending.lines() {
        out.print_line(&line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::capture_output;

    #[test]
    fn the_last_line_counts_what_is_there_and_what_is_gone() {
        let filters = Filters::default();
        let kept = Kept {
            recording: Some(Path::new("r1.dmt")),
            filters: &filters,
        };
        let line = |all, gone| {
            let counts = FindingCounts {
                gone,
                all,
                leaked: all,
                doubts: DoubtCounts::default(),
                pending: PendingCounts::default(),
            };
            capture_output(None, |out| print_findings(counts, &kept, true, out))
        };
        let read = "who and why: dmtrace report r1.dmt";
        let remove = "remove: dmtrace clean --trace r1.dmt";
        assert_eq!(line(0, 0), "no leak\n");
        assert_eq!(line(126, 0), format!("126 findings; {read}; {remove}\n"));
        let both = format!("3 findings, and 12 more gone by now; {read}; {remove}\n");
        assert_eq!(line(3, 12), both);
        let gone = format!("no leak now; 1 finding in between, gone by now; {read}\n");
        assert_eq!(line(0, 1), gone);
    }
}
