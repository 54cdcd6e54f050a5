//! `dmtrace explain` of a cookie that is gone, from the history.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::{
    cli::{filter::Filters, report::history_text::ending_lines},
    finding::Story,
    history::{Entry, Finding, Query, Record, query},
    render::{candidate::Candidate, stored},
};

/// A finding of the past, for people and for programs.
pub(in crate::cli) struct Past {
    pub(in crate::cli) story: Story,
    /// What comes after its first lines: when it was found, and how it ended.
    pub(in crate::cli) ending: Vec<String>,
    /// The same as JSON.
    pub(in crate::cli) value: Value,
}

/// The last finding that a query wants and the filters let pass, and how many there are. None where
/// there is no history.
///
/// # Errors
/// There is a history, and it cannot be read.
pub(in crate::cli) fn explain(
    history: Option<&Path>,
    query: &Query,
    filters: &Filters,
) -> Result<Option<(Past, usize)>> {
    let Some((_, entries)) = query::find(history, query)? else {
        return Ok(None);
    };
    let findings: Vec<Finding> = entries
        .into_iter()
        .filter_map(finding)
        .filter(|finding| filters.pass(&Candidate::stored(finding)))
        .collect();
    let told = findings.iter().rev().find_map(|finding| {
        Some(Past {
            story: stored::told(finding)?,
            ending: ending_lines(finding),
            value: stored::value(finding),
        })
    });
    Ok(told.map(|past| (past, findings.len())))
}

fn finding(entry: Entry) -> Option<Finding> {
    match entry.record {
        Record::Finding(finding) => Some(*finding),
        _ => None,
    }
}
