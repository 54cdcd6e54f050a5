//! The table: scenario by kernel.

use crate::tally::TestTally;

/// How a scenario ended on a kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum ScenarioCell {
    Passed,
    /// Otherwise; what was wrong.
    Failed(Vec<String>),
    /// It cannot be done here; why.
    Skipped(String),
}

/// Columns of cells, each with its kernel's name.
#[derive(Debug)]
pub(super) struct ScenarioTable {
    columns: Vec<(String, Vec<(String, ScenarioCell)>)>,
}

impl ScenarioCell {
    fn outcome_word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed(_) => "FAIL",
            Self::Skipped(_) => "skipped",
        }
    }
}

impl ScenarioTable {
    /// Of columns with the same rows.
    pub(super) const fn new(columns: Vec<(String, Vec<(String, ScenarioCell)>)>) -> Self {
        Self { columns }
    }

    /// The outcome of a row on a kernel, if it was to be run there.
    pub(super) fn cell_at(&self, kernel: &str, entry: &str) -> Option<&ScenarioCell> {
        let (_, cells) = self.columns.iter().find(|(name, _)| name == kernel)?;
        let found = cells.iter().find(|(name, _)| name == entry);
        found.map(|(_, cell)| cell)
    }

    /// Names of the kernels.
    pub(super) fn kernel_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// Name and words of each row.
    pub(super) fn row_words(&self) -> Vec<(&str, Vec<&'static str>)> {
        let Some((_, first)) = self.columns.first() else {
            return Vec::new();
        };
        let row = |(place, (entry, _)): (usize, &'_ (String, ScenarioCell))| {
            let words = self.columns.iter().map(|(_, cells)| {
                cells
                    .get(place)
                    .map_or("-", |(_, cell)| cell.outcome_word())
            });
            (place, entry.clone(), words.collect::<Vec<_>>())
        };
        first
            .iter()
            .enumerate()
            .map(row)
            .filter_map(|(place, _, words)| Some((first.get(place)?.0.as_str(), words)))
            .collect()
    }

    /// As text, with the reasons of what was skipped.
    pub(super) fn to_text(&self) -> String {
        let rows = self.row_words();
        let width = rows.iter().map(|(entry, _)| entry.len()).max().unwrap_or(0);
        let mut text = format!("{:width$}", "scenario");
        for kernel in self.kernel_names() {
            text.push_str(&format!("  {kernel:7}"));
        }
        text.push('\n');
        for (entry, words) in rows {
            text.push_str(&format!("{entry:width$}"));
            for word in words {
                text.push_str(&format!("  {word:7}"));
            }
            text = text.trim_end().to_owned() + "\n";
        }
        for (kernel, entry, reason) in self.skipped_cells() {
            text.push_str(&format!("skipped: {entry} on {kernel}: {reason}\n"));
        }
        text
    }

    fn iter_cells(&self) -> impl Iterator<Item = (&str, &str, &ScenarioCell)> {
        self.columns.iter().flat_map(|(kernel, cells)| {
            let cells = cells.iter();
            cells.map(move |(entry, cell)| (kernel.as_str(), entry.as_str(), cell))
        })
    }

    /// What was skipped: kernel, scenario, reason.
    pub(super) fn skipped_cells(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.iter_cells()
            .filter_map(|(kernel, entry, cell)| match cell {
                ScenarioCell::Skipped(reason) => Some((kernel, entry, reason.as_str())),
                _ => None,
            })
    }

    pub(super) fn failed_cells(&self) -> impl Iterator<Item = (&str, &str, &ScenarioCell)> {
        self.iter_cells()
            .filter(|(.., cell)| matches!(cell, ScenarioCell::Failed(_)))
    }

    pub(super) fn to_tally(&self) -> TestTally {
        let mut tally = TestTally::default();
        for (.., cell) in self.iter_cells() {
            tally += match cell {
                ScenarioCell::Passed => TestTally::PASSED,
                ScenarioCell::Failed(_) => TestTally::FAILED,
                ScenarioCell::Skipped(_) => TestTally::SKIPPED,
            };
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_all_and_adds_up() {
        let table = ScenarioTable::new(vec![
            (
                "5.10".to_owned(),
                vec![
                    ("a".to_owned(), ScenarioCell::Passed),
                    ("bb".to_owned(), ScenarioCell::Skipped("why".to_owned())),
                ],
            ),
            (
                "6.12".to_owned(),
                vec![
                    ("a".to_owned(), ScenarioCell::Failed(vec!["no".to_owned()])),
                    ("bb".to_owned(), ScenarioCell::Passed),
                ],
            ),
        ]);
        assert_eq!(
            table.to_text(),
            "scenario  5.10     6.12   \na   pass     FAIL\nbb  skipped  pass\n\
             skipped: bb on 5.10: why\n"
        );
        assert_eq!(
            table.to_tally().to_string(),
            "2 passed, 1 failed, 1 skipped"
        );
        assert_eq!(table.failed_cells().count(), 1);
    }
}
