//! Outcomes of former runs, kept beside their artefacts: the table in the documentation can be
//! made kernel by kernel. Only what was run with the same dmtrace counts.

use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use kernel_lab::kernel::MATRIX;
use serde_json::{Value, json};

use super::{
    script::Scenario,
    table::{ScenarioCell, ScenarioTable},
};
use crate::host;

/// Name of the file in the folder of a scenario's artefacts.
const NAME: &str = "outcome.json";

/// Where the artefacts of the last run are kept.
pub(super) fn results_dir(kernel: &str) -> PathBuf {
    host::target_dir()
        .unwrap_or_default()
        .join("vm-suite")
        .join(kernel)
}

/// Names a build of dmtrace.
pub(super) fn program_fingerprint(program: &Path) -> Result<String> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Keeps outcomes. What cannot be kept is missing in a later table, no more.
pub(super) fn save_cells(kernel: &str, cells: &[(String, ScenarioCell)], program: &str) {
    for (entry, cell) in cells {
        let (word, why) = match cell {
            ScenarioCell::Passed => ("pass", Vec::new()),
            ScenarioCell::Failed(why) => ("fail", why.clone()),
            ScenarioCell::Skipped(why) => ("skipped", vec![why.clone()]),
        };
        let outcome = json!({"program": program, "outcome": word, "why": why});
        let dir = results_dir(kernel).join(entry);
        let _best_effort =
            fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(NAME), outcome.to_string()));
    }
}

/// The table of all kernels: this run's outcomes, else those of former runs.
pub(super) fn complete_table(
    scenarios: &[Scenario],
    run: &ScenarioTable,
    program: &str,
) -> ScenarioTable {
    let mut columns = Vec::new();
    for spec in MATRIX {
        let entries = scenarios.iter().flat_map(|scenario| {
            let unfit = scenario.unfit_reason(spec.name);
            let entries = scenario.table_entries().into_iter();
            entries.map(move |entry| (entry, unfit.clone()))
        });
        let mut any = false;
        let cells: Vec<(String, ScenarioCell)> = entries
            .map(|(entry, unfit)| {
                let former = || load_cell(&results_dir(spec.name).join(&entry), program);
                let known = run.cell_at(spec.name, &entry).cloned().or_else(former);
                any |= known.is_some();
                let cell = known.unwrap_or_else(|| {
                    ScenarioCell::Skipped(unfit.unwrap_or_else(|| "not run".to_owned()))
                });
                (entry, cell)
            })
            .collect();
        if any {
            columns.push((spec.name.to_owned(), cells));
        }
    }
    ScenarioTable::new(columns)
}

fn load_cell(dir: &Path, program: &str) -> Option<ScenarioCell> {
    let text = fs::read_to_string(dir.join(NAME)).ok()?;
    let outcome: Value = serde_json::from_str(&text).ok()?;
    if outcome["program"] != program {
        return None;
    }
    let why: Vec<String> = serde_json::from_value(outcome["why"].clone()).ok()?;
    match outcome["outcome"].as_str()? {
        "pass" => Some(ScenarioCell::Passed),
        "skipped" => Some(ScenarioCell::Skipped(why.join("; "))),
        _ => Some(ScenarioCell::Failed(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outcomes_of_the_same_program_count() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = json!({"program": "a", "outcome": "fail", "why": ["x"]});
        fs::write(dir.path().join(NAME), outcome.to_string()).unwrap();
        let failed = ScenarioCell::Failed(vec!["x".to_owned()]);
        assert_eq!(load_cell(dir.path(), "a"), Some(failed));
        assert_eq!(load_cell(dir.path(), "b"), None);
        assert_eq!(load_cell(&dir.path().join("none"), "a"), None);
    }
}
