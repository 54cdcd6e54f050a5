//! What `watch` and `record` say at their end.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use dmtrace_core::verdict::{Class, Judged, Thresholds};
use serde_json::json;

use crate::{
    cli::{
        failure::exit,
        filter::{Filters, shell_word},
    },
    output::{Out, json, time},
    probe::registry::running_tracers,
    render::row::Row,
    trace::run::TraceEnd,
    wording::{count_noun, finding_commands},
};

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
/// `told` is how many findings were told while the trace ran.
pub(super) fn print_summary(
    ending: &TraceEnd,
    kept: &Kept<'_>,
    told: usize,
    limits: Option<String>,
    as_json: bool,
    out: &mut Out,
) -> Result<ExitCode> {
    let filters = kept.filters;
    let ledger = ending.session.ledger();
    let totals = ledger.totals();
    let wanted = |judged: &Judged<'_>| {
        let mut row = Row::from_books(ledger, judged.semaphore, judged.set, ending.facts.now);
        row.age = row.age.or_else(|| row.wall_age(ending.facts.wall.0));
        row.verdict = Some(judged.verdict.clone());
        filters.passes(&row.candidate())
    };
    let judged: Vec<Judged<'_>> = ending
        .judge_cookies(&Thresholds::default())
        .into_iter()
        .filter(|it| wanted(it))
        .collect();
    let count = |of: fn(Class) -> bool| judged.iter().filter(|it| of(it.verdict.class)).count();
    let ended = ending.judge_closed(&Thresholds::default()).into_iter();
    let counts = FindingCounts {
        ended: ended
            .filter(|it| it.verdict.class.is_finding() && wanted(it))
            .count(),
        all: count(Class::is_finding),
        leaked: count(|class| matches!(class, Class::Leaked(_))),
        told,
        undecided: count(|class| matches!(class, Class::Unknown(_))),
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
                "findings_told": told,
                "undecided": counts.undecided,
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
    Ok(if counts.all > 0 || told > 0 {
        exit::findings_code()
    } else if certain {
        exit::CLEAN
    } else {
        exit::incomplete_code()
    })
}

/// What was found, in numbers.
#[derive(Clone, Copy)]
struct FindingCounts {
    /// On cookies that are gone.
    ended: usize,
    /// There at the end.
    all: usize,
    /// Leaks among these.
    leaked: usize,
    /// Told while the trace ran.
    told: usize,
    /// Cookies that could not be judged.
    undecided: usize,
}

fn print_findings(
    counts: FindingCounts,
    kept: &Kept<'_>,
    certain: bool,
    out: &mut Out,
) -> Result<()> {
    let FindingCounts {
        ended,
        all,
        leaked,
        told,
        undecided,
    } = counts;
    let scope = kept.filters.scope_text();
    if all > 0 {
        let gone = match ended {
            0 => String::new(),
            ended => format!(
                ", and {} gone by now",
                count_noun(ended, "finding", "findings")
            ),
        };
        out.print_line(&format!(
            "{}{gone}{scope}; {}",
            count_noun(all, "finding", "findings"),
            kept.next_commands(leaked)
        ))?;
    } else if told > 0 {
        out.print_line(&format!(
            "no leak now{scope}; {} in between, gone by now",
            count_noun(told, "finding", "findings")
        ))?;
    } else if !certain {
        out.print_line(&format!(
            "no leak seen{scope}, but that is not certain, for the reason below"
        ))?;
    } else if undecided > 0 {
        out.print_line(&format!(
            "no leak proven{scope}; {} undecided: dmtrace list --state unknown",
            count_noun(undecided, "cookie is", "cookies are")
        ))?;
    } else {
        out.print_line(&format!("no leak{scope}"))?;
    }
    Ok(())
}
