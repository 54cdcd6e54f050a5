//! The report for people.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use dmtrace_core::{
    cleanup::prospect::{CleanFlags, Prospect},
    verdict::Evidence,
};

use super::{ReportFindings, ReportLimit, culprit::ReportCulprit, group_text::who_leaks};
use crate::{
    case::Case,
    output::{
        Out,
        time::{self, Clock},
        wrap_text,
    },
    recording::RecordingStart,
    render::{
        culprits::{CulpritGroup, GroupBy},
        removal::{self, RemovedLeak},
        row::Row,
    },
    wording::count_noun,
};

pub(super) fn print_report(
    case: &Case,
    start: Option<&RecordingStart>,
    findings: &ReportFindings<'_>,
    culprits: &[ReportCulprit],
    groups: &[(GroupBy, Vec<CulpritGroup>)],
    limit: ReportLimit,
    out: &mut Out,
) -> Result<()> {
    print_head(case, start, out)?;
    let scope = findings.scope;
    if !findings.removed.is_empty() {
        print_leak_count(case, findings, out)?;
        out.print_line("")?;
    } else if findings.leaked.is_empty() && !findings.older.has_any() {
        out.print_line(&if case.incomplete {
            format!("No leaked cookie is known{scope}, but the data is incomplete: not certain.")
        } else if findings.doubts.any() || findings.pending.any() {
            format!("No cookie{scope} is known to be leaked.")
        } else {
            format!("No cookie{scope} is leaked.")
        })?;
        let more = !findings.stuck.is_empty()
            || !findings.accidents.is_empty()
            || !findings.over_completed.is_empty();
        if more {
            out.print_line("")?;
        }
    }
    findings.older.print_head(scope, out)?;
    let forgotten = case.ledger.forgotten_removals();
    if let Some(text) = forgotten_text(forgotten, &findings.recording) {
        for line in wrap_text(&text, out.prose_width()) {
            out.print_line(&line)?;
        }
        out.print_line("")?;
    }
    who_leaks(culprits, groups, limit, out)?;
    if !findings.removed.is_empty() {
        let clock = report_clock(start);
        let removed = findings.removed.iter();
        let removed: Vec<RemovedLeak> = removed
            .filter_map(|row| RemovedLeak::from_row(row, &clock))
            .collect();
        let source = format!("{}{}", findings.filters, findings.recording);
        removal::print_removals(&removed, limit.0, &source, out)?;
    }
    findings.older.print(&findings.filters, limit, out)?;
    findings.suspects.print(limit, out)?;
    if !findings.stuck.is_empty() {
        out.print_line(&format!(
            "STUCK WAITERS (details: dmtrace explain COOKIE{}{})",
            findings.filters, findings.recording
        ))?;
        for row in findings.stuck.iter().take(limit.0) {
            let text = row
                .verdict
                .as_ref()
                .map(|verdict| verdict.class.to_string())
                .unwrap_or_default();
            let device = match row.device_names() {
                device if device.is_empty() => device,
                device => format!("  {device}"),
            };
            out.print_line(&format!(
                "  {}  semid {}  {}{device}  {text}",
                row.semaphore.key,
                row.semaphore.id.semid,
                row.owner_text()
            ))?;
        }
        limit.print_rest(findings.stuck.len(), out)?;
        out.print_line("")?;
    }
    print_closed("REMOVED WHILE IN USE", &findings.accidents, limit, out)?;
    print_closed("COMPLETED TOO OFTEN", &findings.over_completed, limit, out)?;
    if !findings.ended.is_empty() {
        out.print_line("ENDED WITH THEIR IPC NAMESPACE")?;
        let mut owners: BTreeMap<String, usize> = BTreeMap::new();
        for row in &findings.ended {
            *owners.entry(row.owner_text()).or_default() += 1;
        }
        for (owner, count) in owners.iter().take(limit.0) {
            out.print_line(&format!("  {count:>6}  {owner}"))?;
        }
        limit.print_rest(owners.len(), out)?;
        out.print_line("")?;
    }
    if !findings.victims.is_empty() {
        out.print_line("VICTIMS: could not create a semaphore (ENOSPC)")?;
        for victim in findings.victims.iter().take(limit.0) {
            let also = match victim.holds_older.to_text() {
                _ if victim.also_culprit => "  (leaks as well, see above)".to_owned(),
                none if none.is_empty() => none,
                held => format!("; {held}"),
            };
            let line = format!(
                "  {:>6}  {}[{}]{also}",
                victim.failed, victim.comm, victim.pid
            );
            out.print_hanging(&line, 10)?;
            if let Some(command) = &victim.command {
                out.print_line(&format!("          command   {command}"))?;
            }
        }
        limit.print_rest(findings.victims.len(), out)?;
        out.print_line("")?;
    }
    for it in &findings.exhaustion {
        let rate = match (it.leaks_per_hour, it.exhausted_in_seconds) {
            (Some(rate), Some(seconds)) => {
                let age = |seconds| time::age_text(Duration::from_secs(seconds));
                let over = age(it.observed_seconds.unwrap_or_default());
                format!(
                    "; {rate:.1} leaks an hour over {over}: full in {}",
                    age(seconds)
                )
            }
            _ => String::new(),
        };
        let orphaned = match it.orphaned {
            0 => String::new(),
            count => format!(", {count} orphaned"),
        };
        out.print_line(&format!(
            "IPC namespace {}: {} of {} sets in use, {} leaked{orphaned}{}{rate}",
            it.ipc_ns, it.sets, it.limit, it.leaked, findings.scope
        ))?;
    }
    if findings.undecided > 0 {
        out.print_line(&format!(
            "{} undecided: {}",
            count_noun(findings.undecided, "cookie is", "cookies are"),
            undecided_command(&findings.filters, &findings.recording)
        ))?;
    }
    for line in findings.pending.lines() {
        for line in wrap_text(&line, out.prose_width()) {
            out.print_line(&line)?;
        }
    }
    if start.is_none() {
        let prospects = findings
            .leaked
            .iter()
            .filter_map(|row| row.clean_prospect(&case.ledger, &case.facts, &case.completeness));
        for line in removal_lines(prospects, &findings.filters) {
            out.print_line(&line)?;
        }
    }
    Ok(())
}

/// How many leaked in all, where some of them were removed: there and removed add up.
fn print_leak_count(case: &Case, findings: &ReportFindings<'_>, out: &mut Out) -> Result<()> {
    let (standing, removed) = (findings.leaked.len(), findings.removed.len());
    let unsure = if case.incomplete && standing == 0 {
        " as far as is known: the data is incomplete"
    } else {
        ""
    };
    let text = format!(
        "{} leaked{}: {removed} removed, {standing} still there{unsure}",
        count_noun(standing + removed, "cookie", "cookies"),
        findings.scope
    );
    for line in wrap_text(&text, out.prose_width()) {
        out.print_line(&line)?;
    }
    Ok(())
}

/// That more was removed than is remembered: it is not in the counts. `recording`: it is about this
/// one, else about this machine.
fn forgotten_text(forgotten: u64, recording: &str) -> Option<String> {
    let more = match recording {
        "" => "; with dmtrace serve: dmtrace report --since TIME",
        _ => "",
    };
    (forgotten > 0).then(|| {
        let (one, many) = ("cookie that ended earlier", "cookies that ended earlier");
        format!(
            "Not looked at: {}, no longer remembered{more}.",
            count_noun(forgotten, one, many)
        )
    })
}

/// The command that tells more of what is undecided, of the same machine or recording.
fn undecided_command(filters: &str, recording: &str) -> String {
    if recording.is_empty() {
        format!("dmtrace list --state unknown{filters}")
    } else {
        format!("dmtrace explain --state unknown{filters}{recording}")
    }
}

/// What a clean-up would do with the leaked ones, as its plan says.
fn removal_lines(prospects: impl Iterator<Item = Prospect>, filters: &str) -> Vec<String> {
    let (mut plain, mut abandoned, mut forced, mut kept) = (0, 0, 0, 0);
    let mut later = 0;
    for prospect in prospects {
        later += usize::from(
            prospect.flags == Some(CleanFlags::default()) && !prospect.waits.is_empty(),
        );
        *match prospect.flags {
            None => &mut kept,
            Some(flags) if flags.force_unknown => &mut forced,
            Some(flags) if flags.abandoned => &mut abandoned,
            Some(_) => &mut plain,
        } += 1;
    }
    let all = plain + abandoned + forced + kept;
    let mut lines = Vec::new();
    if plain > 0 {
        let some = (plain < all).then(|| format!("{plain} of {all}"));
        let young = (later > 0).then(|| format!("{later} not yet, touched too recently"));
        let parts: Vec<String> = some.into_iter().chain(young).collect();
        let some = if parts.is_empty() {
            String::new()
        } else {
            format!(" ({})", parts.join("; "))
        };
        lines.push(format!(
            "See what can be removed{some}: dmtrace clean{filters}"
        ));
    }
    if abandoned > 0 {
        lines.push(format!(
            "Left by living processes ({abandoned} of {all}): dmtrace clean --abandoned{filters}"
        ));
    }
    if forced > 0 {
        lines.push(format!(
            "Nobody saw {forced} of {all} leak; if you are sure of one: dmtrace clean \
             --force-unknown COOKIE{filters}"
        ));
    }
    if kept > 0 {
        lines.push(format!(
            "Kept, and why ({kept} of {all}): dmtrace clean{filters}"
        ));
    }
    lines
}

/// Of the machine that it is about.
pub(super) fn report_clock(start: Option<&RecordingStart>) -> Clock {
    start.map_or_else(Clock::now, RecordingStart::clock)
}

pub(super) fn print_head(case: &Case, start: Option<&RecordingStart>, out: &mut Out) -> Result<()> {
    let kernel = super::kernel_text(start);
    let clock = report_clock(start);
    let traced = match (case.since, &case.trace_unread) {
        (Some(since), _) => format!(
            "traced {} since {}",
            time::age_text(case.facts.now.duration_since(since)),
            clock.moment_at(since)
        ),
        (None, Some(_)) => {
            "creators are unknown: it cannot be told whether a trace is running (see \
                            below)"
                .to_owned()
        }
        (None, None) => "no trace: creators are unknown; run dmtrace watch or record".to_owned(),
    };
    out.print_line(&format!(
        "dmtrace {} report, kernel {kernel}",
        env!("CARGO_PKG_VERSION")
    ))?;
    out.print_line(&traced)?;
    Ok(out.print_line("")?)
}

/// Cookies that are gone, or were completed too often, with who did it and who suffered.
fn print_closed(title: &str, rows: &[&Row<'_>], limit: ReportLimit, out: &mut Out) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    out.print_line(title)?;
    for row in rows.iter().take(limit.0) {
        let culprit = row
            .verdict
            .as_ref()
            .and_then(|verdict| verdict.culprit.as_ref())
            .map_or_else(|| "unknown".to_owned(), |culprit| culprit.who.to_string());
        let device = match row.device_names() {
            device if device.is_empty() => device,
            device => format!("  {device}"),
        };
        let semaphore = row.semaphore;
        out.print_line(&format!(
            "  {}  semid {}  of {}{device}  by {culprit}",
            semaphore.key,
            semaphore.id.semid,
            row.owner_text()
        ))?;
        let facts = row.verdict.iter().flat_map(|verdict| &verdict.evidence);
        for fact in facts {
            let harm = matches!(
                fact,
                Evidence::Outstanding { .. }
                    | Evidence::LookupAfter { .. }
                    | Evidence::Suspended { .. }
                    | Evidence::RemovedBy { .. }
                    | Evidence::DecrementsFailed { .. }
                    | Evidence::Stranger { .. }
                    | Evidence::SeveralUdevds { .. }
            );
            if harm {
                out.print_line(&format!("          {fact}"))?;
            }
        }
    }
    limit.print_rest(rows.len(), out)?;
    Ok(out.print_line("")?)
}

#[cfg(test)]
mod tests {
    use dmtrace_core::verdict::Obstacle;

    use super::*;
    use crate::output::testing::capture_output;

    fn prospect(flags: Option<CleanFlags>) -> Prospect {
        Prospect {
            flags,
            waits: Vec::new(),
            obstacles: Vec::new(),
            completion_obstacles: Vec::new(),
        }
    }

    #[test]
    fn what_is_forgotten_is_said_not_to_be_counted() {
        assert_eq!(forgotten_text(0, ""), None);
        assert_eq!(
            forgotten_text(1, " r1.dmt").unwrap(),
            "Not looked at: 1 cookie that ended earlier, no longer remembered."
        );
        let here = forgotten_text(976, "").unwrap();
        assert!(
            here.starts_with("Not looked at: 976 cookies that ended"),
            "{here}"
        );
        assert!(here.ends_with("dmtrace report --since TIME."), "{here}");
    }

    #[test]
    fn a_trace_that_may_run_is_not_said_not_to() {
        let told = |case: &Case| capture_output(None, |out| print_head(case, None, out));
        let mut case = Case::empty();
        assert!(told(&case).contains("no trace: creators are unknown"));
        case.trace_unread = Some("cannot tell".to_owned());
        assert!(!told(&case).contains("no trace"), "{}", told(&case));
    }

    #[test]
    fn the_next_command_is_about_the_same() {
        assert_eq!(
            undecided_command(" --ipc-ns 7", ""),
            "dmtrace list --state unknown --ipc-ns 7"
        );
        assert_eq!(
            undecided_command("", " r1.dmt"),
            "dmtrace explain --state unknown r1.dmt"
        );
    }

    #[test]
    fn the_last_lines_count_what_a_clean_up_would_do() {
        let plain = CleanFlags::default();
        let abandoned = CleanFlags::ABANDONED;
        let forced = CleanFlags::FORCE_UNKNOWN;
        let lines = |flags: &[Option<CleanFlags>], filters: &str| {
            removal_lines(flags.iter().copied().map(prospect), filters)
        };
        assert!(lines(&[], "").is_empty());
        assert_eq!(
            lines(&[Some(plain); 2], ""),
            ["See what can be removed: dmtrace clean"]
        );
        let young = Prospect {
            waits: vec![Obstacle::TooYoung {
                seconds: 1,
                needed: 60,
            }],
            ..prospect(Some(plain))
        };
        assert_eq!(
            removal_lines(
                [young, prospect(Some(plain)), prospect(None)].into_iter(),
                ""
            ),
            [
                "See what can be removed (2 of 3; 1 not yet, touched too recently): dmtrace clean",
                "Kept, and why (1 of 3): dmtrace clean",
            ]
        );
        let mixed = [
            Some(plain),
            Some(forced),
            Some(forced),
            Some(abandoned),
            None,
        ];
        assert_eq!(
            lines(&mixed, " --ipc-ns 7"),
            [
                "See what can be removed (1 of 5): dmtrace clean --ipc-ns 7",
                "Left by living processes (1 of 5): dmtrace clean --abandoned --ipc-ns 7",
                "Nobody saw 2 of 5 leak; if you are sure of one: dmtrace clean --force-unknown \
                 COOKIE --ipc-ns 7",
                "Kept, and why (1 of 5): dmtrace clean --ipc-ns 7",
            ]
        );
    }
}
