//! `dmtrace explain` of a cookie that is gone, from the history.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{
    cli::{filter::Filters, report::history_text::ending_lines},
    finding::Story,
    history::{HistoryQuery, HistoryRecord, StoredFinding, query},
    render::{candidate::Candidate, stored},
};

/// A finding of the past, for people and for programs.
pub(in crate::cli) struct PastStory {
    pub(in crate::cli) story: Story,
    /// What comes after its first lines: when it was found, and how it ended.
    pub(in crate::cli) ending: Vec<String>,
    /// The same as JSON.
    pub(in crate::cli) value: Value,
    /// On findings that cannot be shown.
    pub(in crate::cli) notes: Vec<String>,
}

/// The last finding that a query wants and the filters let pass, and how many there are. None where
/// there is no history, or no such finding that is wanted. `is_missing`: the kernel does not have
/// the cookie, as far as was looked.
///
/// # Errors
/// There is a history, and it cannot be read; or it has such findings, and none of them can be.
pub(in crate::cli) fn find_past(
    history: Option<&Path>,
    query: &HistoryQuery,
    filters: &Filters,
    is_wanted: impl Fn(&StoredFinding) -> bool,
    is_missing: impl Fn(&StoredFinding) -> bool,
) -> Result<Option<(PastStory, usize)>> {
    let Some((_, entries)) = query::find_entries(history, query)? else {
        return Ok(None);
    };
    let mut findings: Vec<StoredFinding> = Vec::new();
    let (mut newer, mut unreadable) = (0, 0);
    for entry in entries {
        match entry.record {
            HistoryRecord::Finding(finding)
                if filters.passes(&Candidate::from_stored(&finding)) && is_wanted(&finding) =>
            {
                findings.push(*finding);
            }
            HistoryRecord::Unread(it) if it.is_newer() => newer += 1,
            HistoryRecord::Unread(_) => unreadable += 1,
            _ => {}
        }
    }
    let notes = stored::unread_notes(newer, unreadable);
    let told = findings.iter().rev().find_map(|finding| {
        let missing = is_missing(finding);
        let story = stored::story_from_stored(finding, missing)?;
        let ending = ending_lines(finding, missing).into_iter();
        Some(PastStory {
            story,
            ending: ending.chain(notes.iter().cloned()).collect(),
            value: stored::story_json(finding, missing),
            notes: notes.clone(),
        })
    });
    match told {
        None if !notes.is_empty() => bail!("of this cookie {}", notes.join("; ")),
        told => Ok(told.map(|past| (past, findings.len()))),
    }
}
