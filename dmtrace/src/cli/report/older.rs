//! Cookies that are older than any trace: which of them nobody holds, who holds the others, and what
//! is not known.

use std::collections::BTreeMap;

use anyhow::Result;
use dmtrace_core::{
    search::orphan::OrphanObstacle,
    verdict::{Class, Doubt, Evidence, ProcessFate, Undecided},
};
use serde::Serialize;

use super::limit::ReportLimit;
use crate::{
    output::{Out, wrap_text},
    render::{row::Row, searched::files_line},
    wording::count_noun,
};

/// What is known of them.
#[derive(Default)]
pub(crate) struct OlderCookies<'a> {
    /// Nobody holds them.
    pub(super) orphaned: Vec<&'a Row<'a>>,
    /// Somebody does, the most first.
    pub(super) holders: Vec<CookieHolder>,
    /// Undecided for want of a trace.
    unseen: Vec<&'a Row<'a>>,
    /// Why a search proves nothing of the rest, with how many.
    reasons: BTreeMap<String, usize>,
}

/// A process that has the numbers of cookies which nobody saw being made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct CookieHolder {
    pid: u32,
    comm: String,
    exe: String,
    /// Of how many.
    cookies: usize,
    /// Of how many of these it is the last one that the kernel knows to have used them.
    last_used: usize,
}

impl<'a> OlderCookies<'a> {
    pub(super) fn find(rows: &'a [Row<'a>]) -> Self {
        let mut older = Self::default();
        let mut holders: BTreeMap<u32, CookieHolder> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.semaphore.is_live()) {
            let Some(verdict) = &row.verdict else {
                continue;
            };
            match verdict.class {
                Class::Orphaned(_) => older.orphaned.push(row),
                Class::Unknown(
                    Undecided::CreatorUnknown(_) | Undecided::PossibleOwners | Undecided::ClockSet,
                ) => older.unseen.push(row),
                _ if row.doubt() == Some(Doubt::OlderThanTrace) => older.unseen.push(row),
                _ => continue,
            }
            let last = row.set.and_then(|set| set.first).map(|state| state.pid);
            let mut first = true;
            if let Some(pid) = living_user(row) {
                let reason = format!("process {pid}, which used it last, is alive");
                *older.reasons.entry(reason).or_default() += 1;
            }
            for fact in &verdict.evidence {
                let Evidence::NotProvenBySearch { why } = fact else {
                    continue;
                };
                let held = matches!(why, OrphanObstacle::HeldBy { .. });
                if !held && std::mem::take(&mut first) && !why.is_formality() {
                    *older.reasons.entry(why.to_string()).or_default() += 1;
                }
                let OrphanObstacle::HeldBy { holder } = why else {
                    continue;
                };
                let process = &holder.process;
                let known = holders
                    .entry(process.id.tgid)
                    .or_insert_with(|| CookieHolder {
                        pid: process.id.tgid,
                        comm: process.comm.clone(),
                        exe: process.exe.clone(),
                        cookies: 0,
                        last_used: 0,
                    });
                known.cookies += 1;
                known.last_used += usize::from(last == Some(process.id.tgid));
            }
        }
        older.holders = holders.into_values().collect();
        older
            .holders
            .sort_by_key(|it| std::cmp::Reverse((it.cookies, it.last_used)));
        older
    }

    /// All of them.
    pub(super) fn rows(&self) -> impl Iterator<Item = &'a Row<'a>> {
        self.orphaned.iter().chain(&self.unseen).copied()
    }

    pub(super) fn has_any(&self) -> bool {
        !self.orphaned.is_empty()
    }

    /// What heads the report, instead of "no cookie is leaked".
    pub(super) fn print_head(&self, scope: &str, out: &mut Out) -> Result<()> {
        let orphans = self.orphaned.len();
        if orphans > 0 {
            let text = format!(
                "{} orphaned{scope}: made before any trace, and no process holds {} number.",
                count_noun(orphans, "cookie is", "cookies are"),
                if orphans == 1 { "its" } else { "their" },
            );
            print_text(&text, out)?;
        }
        if !self.unseen.is_empty() {
            let others = if orphans > 0 { "of the others" } else { "" };
            let tell = format!("Cannot tell {others}");
            let text = format!(
                "{}: {} older than any trace{scope}.",
                tell.trim_end(),
                count_noun(self.unseen.len(), "cookie is", "cookies are"),
            );
            print_text(&text, out)?;
        }
        if orphans > 0 || !self.unseen.is_empty() {
            out.print_line("")?;
        }
        Ok(())
    }

    /// Who used the orphans last, who holds the others, and why nothing is proven of the rest.
    pub(super) fn print(&self, filters: &str, limit: ReportLimit, out: &mut Out) -> Result<()> {
        if !self.orphaned.is_empty() {
            out.print_line("ORPHANED, by who used them last (not always who made them)")?;
            let mut last: BTreeMap<String, usize> = BTreeMap::new();
            for row in &self.orphaned {
                *last.entry(last_user(row)).or_default() += 1;
            }
            let mut last: Vec<_> = last.into_iter().collect();
            last.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            for (user, count) in last.iter().take(limit.0) {
                out.print_line(&format!("  {count:>6}  {user}"))?;
            }
            limit.print_rest(last.len(), out)?;
            let verdicts = self.orphaned.iter().filter_map(|row| row.verdict.as_ref());
            if let Some(line) = files_line(verdicts) {
                print_text(&line, out)?;
            }
            out.print_line("")?;
        }
        if !self.holders.is_empty() {
            out.print_line("HELD BY: these have the numbers of cookies made before any trace")?;
            for holder in self.holders.iter().take(limit.0) {
                let used = match holder.last_used {
                    0 => String::new(),
                    count => format!(", the last that used {count} of them"),
                };
                out.print_line(&format!(
                    "  {:>6}  {}[{}]{used}",
                    holder.cookies, holder.comm, holder.pid
                ))?;
            }
            limit.print_rest(self.holders.len(), out)?;
            print_text(
                "A holder that lives may still use them. When it has ended (systemctl restart of \
                 its unit), dmtrace clean finds them orphaned.",
                out,
            )?;
            out.print_line("")?;
        }
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        if !reasons.is_empty() {
            out.print_line("WHY A SEARCH PROVES NOTHING OF THE OTHERS")?;
            for (reason, count) in reasons.iter().take(limit.0) {
                out.print_hanging(&format!("  {count:>6}  {reason}"), 10)?;
            }
            limit.print_rest(reasons.len(), out)?;
            out.print_line("")?;
        }
        if self.has_any() {
            print_text(
                &format!("See what can be removed: dmtrace clean{filters}"),
                out,
            )?;
            out.print_line("")?;
        } else if !self.unseen.is_empty() {
            print_text(
                &format!("What it takes to remove them: dmtrace clean{filters}"),
                out,
            )?;
        }
        Ok(())
    }
}

/// The process that used it last, where that it lives is all that speaks for its being in use.
fn living_user(row: &Row<'_>) -> Option<u32> {
    let verdict = row.verdict.as_ref()?;
    if !matches!(verdict.class, Class::Healthy(_)) {
        return None;
    }
    verdict.evidence.iter().find_map(|fact| match fact {
        Evidence::LastOperator {
            pid,
            fate: ProcessFate::Alive,
        } => Some(*pid),
        _ => None,
    })
}

/// Who operated on it last, by the kernel.
fn last_user(row: &Row<'_>) -> String {
    match row.set.and_then(|set| set.first).map(|state| state.pid) {
        None | Some(0) => "nobody".to_owned(),
        Some(pid) => format!("process {pid}, which is gone"),
    }
}

fn print_text(text: &str, out: &mut Out) -> Result<()> {
    for line in wrap_text(text, out.prose_width()) {
        out.print_line(&line)?;
    }
    Ok(())
}
