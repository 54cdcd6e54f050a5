//! Leaks that somebody has removed: who did, when, and how many. The same words for a recording,
//! for this machine and for a history.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use dmtrace_core::verdict::Class;
use serde_json::{Value, json};

use super::{
    culprits::LeakCounts,
    leak_end::{how_gone, is_removal},
    row::Row,
};
use crate::{
    history::{FindingEnd, Stamp, StoredFinding},
    output::{
        Out,
        time::{Clock, moment_text},
        wrap_text,
    },
    wording::count_noun,
};

/// So many removers, processes or cookies are named.
const NAMED: usize = 3;

/// Whether a row is a leak that somebody has removed.
pub(crate) fn is_removed_leak(row: &Row<'_>) -> bool {
    let class = row.verdict.as_ref().map(|verdict| verdict.class);
    matches!(class, Some(Class::CleanedUp(_)))
}

/// The end of a removed leak as a history has it; `None` for any other row.
fn end_of_row(row: &Row<'_>, clock: &Clock) -> Option<FindingEnd> {
    let ending = row.semaphore.ending.as_ref()?;
    is_removed_leak(row).then(|| FindingEnd {
        at: Stamp {
            wall_ms: clock.moment_at(ending.at).as_millis(),
            boot: ending.at,
        },
        how: how_gone(Some(ending.kind)),
        by: ending.by.as_ref().map(ToString::to_string),
    })
}

/// A removed leak as JSON: the row, and `gone` as in a history.
pub(crate) fn removed_json(row: &Row<'_>, clock: &Clock) -> Value {
    let mut object = row.to_json();
    add_end(&mut object, row, clock);
    object
}

/// Adds when a removed leak was removed, and by whom.
pub(crate) fn add_end(object: &mut Value, row: &Row<'_>, clock: &Clock) {
    if let Some(end) = end_of_row(row, clock) {
        object["gone"] = json!(end);
    }
}

/// How many of some leaks were removed, and by whom; `None` if none was.
pub(crate) fn removed_text(counts: &LeakCounts) -> Option<String> {
    let LeakCounts { total, removed, .. } = *counts;
    let many = match removed {
        0 => return None,
        1 if total == 1 => String::new(),
        all if all == total => format!("all {all}"),
        some => format!("{some} of {total}"),
    };
    let by = removers_text(&counts.removed_by);
    let text = match (many.as_str(), by.as_str()) {
        ("", "") => "by whom is not known".to_owned(),
        (many, "") => many.to_owned(),
        ("", by) => by.to_owned(),
        (many, by) if counts.removed_by.len() > 1 => format!("{many}: {by}"),
        (many, by) => format!("{many} {by}"),
    };
    Some(text)
}

/// `by dmtrace[77]`; of several `8 by dmtrace[77], 4 by dmsetup[78]`, of many by their names.
pub(crate) fn removers_text(removers: &BTreeMap<String, usize>) -> String {
    if let (1, Some(by)) = (removers.len(), removers.keys().next()) {
        return format!("by {by}");
    }
    if removers.len() <= NAMED {
        let texts = removers
            .iter()
            .map(|(by, count)| format!("{count} by {by}"));
        return texts.collect::<Vec<_>>().join(", ");
    }
    let mut names: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (by, count) in removers {
        let (cookies, processes) = names.entry(program_name(by)).or_default();
        *cookies += count;
        *processes += 1;
    }
    let texts = names.iter().map(|(name, (cookies, processes))| {
        let processes = count_noun(*processes, "process", "processes");
        format!("{cookies} by {name} ({processes})")
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// The name in `name[pid]`.
fn program_name(by: &str) -> &str {
    by.rsplit_once('[').map_or(by, |(name, _)| name)
}

/// A removed leak, for people.
#[derive(Clone, Debug)]
pub(crate) struct RemovedLeak {
    key: String,
    /// Who removed it: `name[pid]`.
    by: Option<String>,
    /// When, milliseconds since 1970.
    wall_ms: i64,
}

impl RemovedLeak {
    pub(crate) fn from_row(row: &Row<'_>, clock: &Clock) -> Option<Self> {
        let end = end_of_row(row, clock)?;
        Some(Self {
            key: row.semaphore.key.to_string(),
            by: end.by,
            wall_ms: end.at.wall_ms,
        })
    }

    pub(crate) fn from_stored(finding: &StoredFinding) -> Option<Self> {
        let gone = finding.gone.as_ref()?;
        is_removal(gone.how).then(|| Self {
            key: finding.key.to_string(),
            by: gone.by.clone(),
            wall_ms: gone.at.wall_ms,
        })
    }
}

/// Prints who removed leaks, when and which. `source`: where `explain` finds them, after a space.
pub(crate) fn print_removals(
    removed: &[RemovedLeak],
    most: usize,
    source: &str,
    out: &mut Out,
) -> Result<()> {
    if removed.is_empty() {
        return Ok(());
    }
    out.print_line("REMOVED LEAKS")?;
    let mut groups: BTreeMap<&str, Vec<&RemovedLeak>> = BTreeMap::new();
    for leak in removed {
        let by = leak.by.as_deref().map_or("", program_name);
        groups.entry(by).or_default().push(leak);
    }
    let mut groups: Vec<Vec<&RemovedLeak>> = groups.into_values().collect();
    groups.sort_by_key(|leaks| std::cmp::Reverse(leaks.len()));
    for leaks in groups.iter().take(most) {
        let removers: BTreeSet<&str> = leaks.iter().filter_map(|it| it.by.as_deref()).collect();
        let by = match removers.len() {
            0 => "by whom is not known".to_owned(),
            _ => format!("by {}", first_few(removers.iter().copied())),
        };
        print_wrapped(&format!("  {:>6}  ", leaks.len()), &by, out)?;
        let times = leaks.iter().map(|it| it.wall_ms);
        let (first, last) = (times.clone().min(), times.max());
        let [first, last] = [first, last].map(|at| moment_text(at.unwrap_or_default()));
        let when = if first == last {
            first
        } else {
            format!("{first} to {last}")
        };
        print_wrapped(INDENT, &when, out)?;
        print_wrapped(
            INDENT,
            &first_few(leaks.iter().map(|it| it.key.as_str())),
            out,
        )?;
    }
    if let Some(more @ 1..) = groups.len().checked_sub(most) {
        out.print_line(&format!("  and {more} more: --all"))?;
    }
    out.print_line(&format!("  One of them: dmtrace explain COOKIE{source}"))?;
    Ok(out.print_line("")?)
}

/// What stands before the lines of an entry that are not its first.
const INDENT: &str = "          ";

fn print_wrapped(first: &str, text: &str, out: &mut Out) -> Result<()> {
    for (number, line) in wrap_text(text, 80 - INDENT.len()).iter().enumerate() {
        let before = if number == 0 { first } else { INDENT };
        out.print_line(&format!("{before}{line}"))?;
    }
    Ok(())
}

/// `a, b, c and 125 more`.
pub(crate) fn first_few<'a>(all: impl Iterator<Item = &'a str> + Clone) -> String {
    let named: Vec<&str> = all.clone().take(NAMED).collect();
    let named = named.join(", ");
    match all.count().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(total: usize, removers: &[(&str, usize)]) -> LeakCounts {
        LeakCounts {
            total,
            removed: removers.iter().map(|(_, count)| count).sum(),
            removed_by: removers
                .iter()
                .map(|(by, n)| ((*by).to_owned(), *n))
                .collect(),
            ..LeakCounts::default()
        }
    }

    #[test]
    fn who_removed_how_many_is_said_in_a_line() {
        let text = |total, removers: &[(&str, usize)]| removed_text(&counts(total, removers));
        assert_eq!(text(3, &[]), None);
        assert_eq!(text(1, &[("ipcrm[5]", 1)]).unwrap(), "by ipcrm[5]");
        assert_eq!(
            text(12, &[("dmtrace[77]", 12)]).unwrap(),
            "all 12 by dmtrace[77]"
        );
        assert_eq!(text(3, &[("ipcrm[5]", 1)]).unwrap(), "1 of 3 by ipcrm[5]");
        assert_eq!(
            text(14, &[("dmsetup[78]", 4), ("dmtrace[77]", 8)]).unwrap(),
            "12 of 14: 4 by dmsetup[78], 8 by dmtrace[77]"
        );
        let many = ["ipcrm[1]", "ipcrm[2]", "ipcrm[3]", "ipcrm[4]"].map(|by| (by, 1));
        assert_eq!(text(4, &many).unwrap(), "all 4: 4 by ipcrm (4 processes)");
    }
}
