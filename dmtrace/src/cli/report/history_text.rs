//! The report on a time for people.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use super::history_model::HistoryReport;
use crate::{
    cli::report::{ReportLimit, culprit::ReportCulprit, group_text::who_leaks},
    history::{DowntimeReason, HowGone, OTHERS, ProgramCounts, StoredFinding},
    output::{Out, time, wrap_text},
    render::{
        culprits::{CulpritGroup, GroupBy},
        removal::{self, RemovedLeak},
        stored,
    },
    wording::{count_noun, of_number, times_text},
};

pub(super) fn print_report(
    past: &HistoryReport,
    culprits: &[ReportCulprit],
    groups: &[(GroupBy, Vec<CulpritGroup>)],
    limit: ReportLimit,
    out: &mut Out,
) -> Result<()> {
    print_head(past, out)?;
    if past.leaked.is_empty() {
        let scope = past.scope;
        let text = if past.is_complete() {
            format!("No cookie leaked in this time{scope}.")
        } else {
            format!(
                "No leaked cookie is known of this time{scope}, but not all of it was seen: not \
                 certain."
            )
        };
        print_paragraph(&text, out)?;
        out.print_line("")?;
    } else {
        let standing = past.leaked.iter().filter(|it| it.gone.is_none()).count();
        let text = format!(
            "{} leaked{}: {}{standing} still there",
            count_noun(past.leaked.len(), "cookie", "cookies"),
            past.scope,
            endings_text(&past.leaked)
        );
        print_paragraph(&text, out)?;
        out.print_line("")?;
    }
    if !past.withdrawn.is_empty() {
        let text = format!(
            "Not counted: {} leaked for a while, and {} judged otherwise later.",
            count_noun(
                past.withdrawn.len(),
                "cookie that looked",
                "cookies that looked"
            ),
            of_number(&past.withdrawn.len(), "was", "were"),
        );
        print_paragraph(&text, out)?;
        out.print_line("")?;
    }
    who_leaks(culprits, groups, limit, out)?;
    let removed = past.leaked.iter().filter_map(RemovedLeak::from_stored);
    let removed: Vec<RemovedLeak> = removed.collect();
    removal::print_removals(&removed, limit.0, &past.options, out)?;
    print_findings("STUCK WAITERS", limit, &past.stuck, false, out)?;
    print_findings("REMOVED WHILE IN USE", limit, &past.accidents, true, out)?;
    print_findings(
        "COMPLETED TOO OFTEN",
        limit,
        &past.over_completed,
        true,
        out,
    )?;
    print_victims(past, limit, out)?;
    print_programs(past, limit, out)?;
    print_gaps(past, limit, out)?;
    if !past.left_out.is_empty() {
        let what = past.left_out.join(" and ");
        let text = format!(
            "Left out: {what}, of which the history does not keep what the filters ask for."
        );
        print_paragraph(&text, out)?;
    }
    if !past.leaked.is_empty() || !past.stuck.is_empty() {
        out.print_line(&format!(
            "One of them, step by step: dmtrace explain COOKIE{}",
            past.options
        ))?;
    }
    Ok(())
}

fn print_head(past: &HistoryReport, out: &mut Out) -> Result<()> {
    out.print_line(&format!(
        "dmtrace {} report, from {} to {}",
        env!("CARGO_PKG_VERSION"),
        time::moment_text(past.since),
        time::moment_text(past.until)
    ))?;
    out.print_line(&format!(
        "traced for {} of {}",
        time::age_text(past.traced),
        time::age_text(past.window())
    ))?;
    if let Some(at) = past.head.complete_since_ms.filter(|&at| at >= past.since) {
        print_paragraph(
            &format!(
                "records made room for newer ones: what ended before {} is not complete",
                time::moment_text(at)
            ),
            out,
        )?;
    }
    Ok(out.print_line("")?)
}

/// How those that are gone went: `12 removed, 3 gone with their IPC namespace, `.
fn endings_text(findings: &[StoredFinding]) -> String {
    let mut ends: BTreeMap<HowGone, usize> = BTreeMap::new();
    for gone in findings.iter().filter_map(|it| it.gone.as_ref()) {
        *ends.entry(gone.how).or_default() += 1;
    }
    ends.iter()
        .map(|(how, &count)| format!("{count} {}, ", stored::ending_label(*how, count)))
        .collect()
}

/// Findings one by one, with when, who, and how they ended.
fn print_findings(
    title: &str,
    limit: ReportLimit,
    findings: &[StoredFinding],
    culprit: bool,
    out: &mut Out,
) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    out.print_line(title)?;
    for finding in findings.iter().rev().take(limit.0) {
        let leak = stored::leak_of(finding);
        let mut line = format!(
            "  {}  {}  semid {}",
            time::moment_text(finding.found.wall_ms),
            finding.key,
            finding.sem.semid
        );
        line.push_str(&format!("  {}", leak.owner.as_deref().unwrap_or("-")));
        out.print_line(&line)?;
        let mut rest: Vec<String> = Vec::new();
        if !culprit {
            rest.push(finding.story.headline.clone());
        }
        if let Some(by) = stored::culprit_text(&finding.story.cookie).filter(|_| culprit) {
            rest.push(format!("by {by}"));
        }
        if !leak.devices.is_empty() {
            rest.push(leak.devices.join(", "));
        }
        if !culprit {
            rest.push(stored::ending_text(finding.gone.as_ref()));
        }
        let width = out.prose_width() - 12;
        for (number, line) in wrap_text(&rest.join("; "), width).iter().enumerate() {
            let indent = if number == 0 { 10 } else { 12 };
            out.print_line(&format!("{:indent$}{line}", ""))?;
        }
    }
    limit.print_rest(findings.len(), out)?;
    Ok(out.print_line("")?)
}

fn print_victims(past: &HistoryReport, limit: ReportLimit, out: &mut Out) -> Result<()> {
    if past.enospc_records.is_empty() {
        return Ok(());
    }
    out.print_line("VICTIMS: could not create a semaphore (ENOSPC)")?;
    let mut programs: BTreeMap<&str, u64> = BTreeMap::new();
    for burst in &past.enospc_records {
        for (program, count) in &burst.programs {
            *programs.entry(program).or_default() += count;
        }
    }
    let mut programs: Vec<(&str, u64)> = programs.into_iter().collect();
    programs.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for (program, count) in programs {
        out.print_line(&format!("  {count:>6}  {program}"))?;
    }
    for burst in past.enospc_records.iter().rev().take(limit.0) {
        out.print_line(&format!(
            "          {} for {}: {} in IPC namespace {}",
            time::moment_text(burst.from.wall_ms),
            time::age_text(burst.to.boot.duration_since(burst.from.boot)),
            times_text(burst.count),
            burst.ipc_ns
        ))?;
    }
    let more = past.enospc_records.len().saturating_sub(limit.0);
    if more > 0 {
        out.print_line(&format!("          and {more} earlier: --all"))?;
    }
    Ok(out.print_line("")?)
}

fn print_programs(past: &HistoryReport, limit: ReportLimit, out: &mut Out) -> Result<()> {
    let mut programs: Vec<(&str, ProgramCounts)> = past
        .programs
        .iter()
        .map(|(program, lives)| (program.as_str(), *lives))
        .collect();
    if programs.is_empty() {
        return Ok(());
    }
    programs.sort_by_key(|&(program, lives)| {
        let rest = program == OTHERS;
        (rest, std::cmp::Reverse((lives.leaked, lives.created)))
    });
    out.print_line("COOKIES BY PROGRAM, of whole hours")?;
    out.print_line("     MADE  COMPLETED   LEAKED  LEAKS A DAY")?;
    for (program, lives) in programs.iter().take(limit.0) {
        let rate = match past.per_day(lives.leaked) {
            Some(rate) if lives.leaked > 0 => format!("{rate:.1}"),
            _ => "-".to_owned(),
        };
        out.print_line(&format!(
            "{:>9} {:>10} {:>8} {rate:>12}  {program}",
            lives.created, lives.completed, lives.leaked
        ))?;
    }
    let more = programs.len().saturating_sub(limit.0);
    if more > 0 {
        let more = count_noun(more, "other program", "other programs");
        out.print_line(&format!("  and {more}: --all"))?;
    }
    Ok(out.print_line("")?)
}

fn print_gaps(past: &HistoryReport, limit: ReportLimit, out: &mut Out) -> Result<()> {
    if !past.gaps.is_empty() {
        out.print_line("TIMES WITHOUT A TRACE: what happened then is not known")?;
        for gap in past.gaps.iter().rev().take(limit.0) {
            let long = gap.to.wall_ms.saturating_sub(gap.from.wall_ms);
            let long = Duration::from_millis(u64::try_from(long).unwrap_or_default());
            let (most, why) = match gap.why {
                DowntimeReason::Stopped => ("", "service stopped"),
                DowntimeReason::Killed => (" at most", "service killed"),
                DowntimeReason::Rebooted => (" at most", "machine restarted"),
            };
            out.print_line(&format!(
                "  {} to {}",
                time::moment_text(gap.from.wall_ms),
                time::moment_text(gap.to.wall_ms)
            ))?;
            out.print_line(&format!("          {}{most}  {why}", time::age_text(long)))?;
        }
        let more = past.gaps.len().saturating_sub(limit.0);
        if more > 0 {
            out.print_line(&format!("  and {more} earlier: --all"))?;
        }
        out.print_line("")?;
    }
    if past.losses.is_empty() {
        return Ok(());
    }
    out.print_line("LOST MESSAGES")?;
    for loss in past.losses.iter().rev().take(limit.0) {
        let text = format!(
            "{}: {} {}",
            time::moment_text(loss.from.wall_ms),
            loss.count,
            loss.what
        );
        let width = out.prose_width() - 4;
        for (number, line) in wrap_text(&text, width).iter().enumerate() {
            out.print_line(&format!(
                "{}{line}",
                if number == 0 { "  " } else { "    " }
            ))?;
        }
    }
    limit.print_rest(past.losses.len(), out)?;
    Ok(out.print_line("")?)
}

/// What a story of the past says of its time: when it was found, and how it ended.
///
/// `missing`: whoever asks has looked, and the cookie is not there any more.
pub(crate) fn ending_lines(finding: &StoredFinding, missing: bool) -> Vec<String> {
    let found = time::moment_text(finding.found.wall_ms);
    match &finding.gone {
        None if missing => vec![format!(
            "found {found}; gone; how it ended is not written yet"
        )],
        None => vec![format!(
            "found {found}; still there, as far as the history knows"
        )],
        Some(gone) => vec![format!(
            "found {found}; {}, {}",
            stored::ending_text(Some(gone)),
            time::moment_text(gone.at.wall_ms)
        )],
    }
}

fn print_paragraph(text: &str, out: &mut Out) -> Result<()> {
    wrap_text(text, out.prose_width())
        .iter()
        .try_for_each(|line| Ok(out.print_line(line)?))
}
