//! A story for a terminal.

use std::path::Path;

use anyhow::Result;

use crate::{
    cli::filter::{Filters, shell_word},
    finding::Story,
    output::{Out, time::Moment, wrap_text},
    render::{doubt::DoubtCounts, removal, row::Row},
    wording::count_noun,
};

/// Columns for who did something.
const WHO: usize = 22;

/// A heading, and what is below it.
pub(super) struct StorySection {
    pub(super) title: String,
    pub(super) items: Vec<String>,
}

/// Prints it. `past`: what is to be said of a story that is over; `more`: sections behind that on
/// whose fault it is.
pub(super) fn print_story(
    story: &Story,
    past: &[String],
    more: &[StorySection],
    out: &mut Out,
) -> Result<()> {
    out.print_line(&story.title)?;
    let (label, rest) = story
        .headline
        .split_once(':')
        .unwrap_or((&story.headline, ""));
    for (number, line) in wrap_text(&story.headline, out.prose_width())
        .iter()
        .enumerate()
    {
        let shown = if number == 0 && (rest.is_empty() || line.starts_with(label)) {
            line.replacen(label, &out.paint_state(label), 1)
        } else {
            line.clone()
        };
        out.print_line(&shown)?;
    }
    // What is unknown has its reason in the verdict already.
    if story.confidence != story.headline {
        print_paragraph(&story.confidence, out)?;
    }
    past.iter()
        .try_for_each(|line| print_paragraph(line, out))?;
    if !story.life.is_empty() {
        print_heading(&happened_heading(story), out)?;
        for moment in &story.life {
            let who = match moment.tid {
                Some(tid) => format!("{}/{tid}", moment.who),
                None => moment.who.clone(),
            };
            let line = format!("  {:12}  {who:WHO$} {}", moment.shown, moment.text());
            out.print_hanging(&line, 2 + 12 + 2 + WHO + 1)?;
        }
    }
    if let Some(missing) = &story.missing {
        print_heading("WHAT IS MISSING", out)?;
        print_item(&missing.text, out)?;
    }
    print_heading("WHOSE FAULT", out)?;
    for line in &story.fault {
        print_item(line, out)?;
    }
    for section in more {
        print_list(&section.title, &section.items, out)?;
    }
    if !story.victims.is_empty() {
        print_heading("WHO SUFFERS", out)?;
        for victim in &story.victims {
            print_item(&victim.text, out)?;
        }
    }
    if !story.evidence.is_empty() {
        print_heading("EVIDENCE", out)?;
        for fact in &story.evidence {
            print_item(fact, out)?;
        }
    }
    print_list("WHAT TO DO", &story.remedies, out)?;
    print_list("WHAT NOT TO DO", &story.avoid, out)
}

/// The heading says what the times of day lack.
fn happened_heading(story: &Story) -> String {
    let mut times = story.life.iter().filter_map(|it| it.time.as_deref());
    match times.find_map(Moment::parse) {
        Some(first) => format!(
            "WHAT HAPPENED ({}, {})",
            first.date_text(),
            first.zone_text()
        ),
        None => "WHAT HAPPENED".to_owned(),
    }
}

fn print_heading(text: &str, out: &mut Out) -> Result<()> {
    out.print_line("")?;
    Ok(out.print_line(text)?)
}

fn print_list(title: &str, lines: &[String], out: &mut Out) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    print_heading(title, out)?;
    lines.iter().try_for_each(|line| print_item(line, out))
}

fn print_item(text: &str, out: &mut Out) -> Result<()> {
    let width = out.prose_width() - 4;
    for (number, line) in wrap_text(text, width).iter().enumerate() {
        out.print_line(&format!(
            "{}{line}",
            if number == 0 { "  " } else { "    " }
        ))?;
    }
    Ok(())
}

fn print_paragraph(text: &str, out: &mut Out) -> Result<()> {
    wrap_text(text, out.prose_width())
        .iter()
        .try_for_each(|line| Ok(out.print_line(line)?))
}

/// What else is there.
pub(super) fn print_remaining(
    rows: &[Row<'_>],
    shown: &[&Row<'_>],
    filters: &Filters,
    recording: Option<&Path>,
    out: &mut Out,
) -> Result<()> {
    let findings = rows
        .iter()
        .filter(|row| row.is_finding() && row.semaphore.is_live())
        .count();
    let more = findings.saturating_sub(shown.len());
    if more > 0 {
        out.print_line("")?;
        out.print_line(&format!(
            "{}: {}",
            count_noun(more, "more finding", "more findings"),
            next_commands(&filters.args_text(), recording)
        ))?;
    }
    let doubts: DoubtCounts = rows.iter().filter_map(Row::doubt).collect();
    let next = match recording {
        None => format!("dmtrace report{}", filters.args_text()),
        Some(_) => next_commands(&filters.args_text(), recording),
    };
    if let Some(line) = doubts.line("", &next) {
        out.print_line("")?;
        out.print_hanging(&line, 0)?;
    }
    let removed = rows.iter().filter(|row| removal::is_removed_leak(row));
    let told = shown.iter().filter(|row| removal::is_removed_leak(row));
    let more = removed.count().saturating_sub(told.count());
    if more > 0 {
        let file = recording.map_or_else(String::new, |path| {
            format!(" {}", shell_word(&path.display().to_string()))
        });
        out.print_line("")?;
        out.print_line(&format!(
            "{}: dmtrace report{}{file}",
            count_noun(
                more,
                "more leak that was removed",
                "more leaks that were removed"
            ),
            filters.args_text()
        ))?;
    }
    Ok(())
}

/// Where the others are told, of the same machine or recording.
pub(super) fn next_commands(filters: &str, recording: Option<&Path>) -> String {
    match recording {
        None => format!("dmtrace list{filters}; by program: dmtrace report{filters}"),
        Some(path) => {
            let path = shell_word(&path.display().to_string());
            format!("dmtrace report{filters} {path}")
        }
    }
}
