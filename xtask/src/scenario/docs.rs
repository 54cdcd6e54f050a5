//! The table in `docs/compatibility.md`.

use anyhow::Result;

use super::{script::Scenario, table::ScenarioTable};
use crate::docs;

/// Writes the table between its two marks.
pub(super) fn write_table(scenarios: &[Scenario], table: &ScenarioTable) -> Result<()> {
    docs::write_generated(
        "compatibility.md",
        "vm --suite",
        &table_body(scenarios, table),
    )
}

fn table_body(scenarios: &[Scenario], table: &ScenarioTable) -> String {
    let mut text = String::from("\n| scenario | what dmtrace must say |");
    let mut line = String::from("\n|---|---|");
    for kernel in table.kernel_names() {
        text.push_str(&format!(" {kernel} |"));
        line.push_str("---|");
    }
    text.push_str(&line);
    text.push('\n');
    for (entry, words) in table.row_words() {
        let expect = scenarios.iter().find(|it| it.name == entry);
        let expect = expect.map_or("the same", |it| it.expect.as_str());
        text.push_str(&format!("| `{entry}` | {expect} |"));
        for word in words {
            text.push_str(&format!(" {word} |"));
        }
        text.push('\n');
    }
    text.push('\n');
    for (kernel, entry, reason) in table.skipped_cells() {
        text.push_str(&format!("* `{entry}` is skipped on {kernel}: {reason}.\n"));
    }
    text.push_str(&format!("\nIn sum: {}.\n\n", table.to_tally()));
    text
}
