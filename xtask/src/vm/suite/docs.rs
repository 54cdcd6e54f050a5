//! The table in `docs/compatibility.md`.

use std::fs;

use anyhow::{Context as _, Result};

use super::{scenario::Scenario, table::Table};
use crate::host;

const BEGIN: &str = "<!-- begin: written by cargo xtask vm --suite --write-docs -->\n";
const END: &str = "<!-- end -->\n";

/// Writes the table between its two marks.
pub fn write(scenarios: &[Scenario], table: &Table) -> Result<()> {
    let path = host::root().join("docs/compatibility.md");
    let shown = path.display().to_string();
    let text = fs::read_to_string(&path).with_context(|| shown.clone())?;
    let marks = text
        .split_once(BEGIN)
        .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = marks.with_context(|| format!("{shown}: its marks are gone"))?;
    let body = body(scenarios, table);
    fs::write(&path, format!("{head}{BEGIN}{body}{END}{tail}")).context(shown)
}

fn body(scenarios: &[Scenario], table: &Table) -> String {
    let mut text = String::from("\n| scenario | what dmtrace must say |");
    let mut line = String::from("\n|---|---|");
    for kernel in table.kernels() {
        text.push_str(&format!(" {kernel} |"));
        line.push_str("---|");
    }
    text.push_str(&line);
    text.push('\n');
    for (entry, words) in table.rows() {
        let expect = scenarios.iter().find(|it| it.name == entry);
        let expect = expect.map_or("the same", |it| it.expect.as_str());
        text.push_str(&format!("| `{entry}` | {expect} |"));
        for word in words {
            text.push_str(&format!(" {word} |"));
        }
        text.push('\n');
    }
    text.push('\n');
    for (kernel, entry, reason) in table.skipped() {
        text.push_str(&format!("* `{entry}` is skipped on {kernel}: {reason}.\n"));
    }
    text.push_str(&format!("\nIn sum: {}.\n\n", table.tally()));
    text
}
