//! The table in `docs/cleanup.md`.

use anyhow::Result;
use kernel_lab::kernel::MATRIX;

use super::{
    cleaner::{Cleaner, results_dir},
    numbers::{COLUMNS, StormNumbers},
};
use crate::docs;

/// Writes the table between its two marks, of what was run with this program.
pub(super) fn write_table(program: &str) -> Result<()> {
    let mut rows = Vec::new();
    for kernel in MATRIX {
        for cleaner in Cleaner::ALL {
            let kept = StormNumbers::read_kept(&results_dir(kernel.name, cleaner), program);
            rows.extend(kept.map(|numbers| (kernel.name, cleaner.name(), numbers)));
        }
    }
    docs::write_generated("cleanup.md", "storm", &table_body(&rows))
}

fn table_body(rows: &[(&str, &str, StormNumbers)]) -> String {
    let mut text = String::from("\n| kernel | cleaner |");
    let mut line = String::from("\n|---|---|");
    for (column, _) in COLUMNS {
        text.push_str(&format!(" {column} |"));
        line.push_str("--:|");
    }
    text.push_str(&line);
    text.push('\n');
    for (kernel, cleaner, numbers) in rows {
        text.push_str(&format!("| {kernel} | `{cleaner}` |"));
        for (column, _) in COLUMNS {
            text.push_str(&format!(" {} |", numbers.column_value(column)));
        }
        text.push('\n');
    }
    text.push('\n');
    for (column, meaning) in COLUMNS {
        text.push_str(&format!("* *{column}*: {meaning}.\n"));
    }
    for cleaner in Cleaner::ALL {
        let of = |name: &str| {
            let ours = rows.iter().filter(|(_, whose, _)| *whose == cleaner.name());
            let mut sums = std::collections::BTreeMap::new();
            for (part, count) in ours.flat_map(|(.., numbers)| numbers.parts_of(name)) {
                *sums.entry(part).or_insert(0) += count;
            }
            let parts: Vec<String> = sums
                .iter()
                .map(|(part, count)| format!("{count} {part}"))
                .collect();
            if parts.is_empty() {
                "none".to_owned()
            } else {
                parts.join(", ")
            }
        };
        if rows.iter().any(|(_, whose, _)| *whose == cleaner.name()) {
            text.push_str(&format!(
                "\nWith `{}` in sum: operations {}; kills {}; harm {}.\n",
                cleaner.name(),
                of("operations"),
                of("kills"),
                of("harm")
            ));
        }
    }
    text.push('\n');
    text
}
