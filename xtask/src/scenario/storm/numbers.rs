//! The numbers of a storm, as `cookie-storm` tells them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Columns of the table: what they are called, and what they mean.
pub(super) const COLUMNS: [(&str, &str); 12] = [
    ("seconds", "how long operations were begun, in the guest"),
    (
        "operations",
        "programs that were let live: dmsetup, lvm, cryptsetup, the library's calls",
    ),
    ("harmed", "of these: failed, hung, no node, or a node left"),
    ("kills", "programs that were killed"),
    (
        "cookies",
        "cookies that were made; nobody counts them without a trace",
    ),
    (
        "calls",
        "calls on cookies, and ends of their processes; the same",
    ),
    ("rounds", "runs of the cleaner"),
    ("removed", "cookies that it removed"),
    ("in use", "of these, such as somebody used"),
    ("peak", "most sets at a time"),
    (
        "left",
        "sets at the end that were not there at the beginning",
    ),
    ("suspended", "devices that are suspended at the end"),
];

/// Name of the file with the numbers beside a run's artefacts.
const NAME: &str = "numbers.json";

/// What a storm came to.
#[derive(Clone, Debug)]
pub(super) struct StormNumbers(Value);

impl StormNumbers {
    /// Those that the guest has left.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context("the storm left no summary")?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// Keeps them for a later table.
    pub(super) fn keep_numbers(&self, dir: &Path, program: &str) -> Result<()> {
        let mut kept = self.0.clone();
        kept["program"] = program.into();
        let path = dir.join(NAME);
        fs::write(&path, kept.to_string()).with_context(|| path.display().to_string())
    }

    /// Those of a former run of the same program.
    pub(super) fn read_kept(dir: &Path, program: &str) -> Option<Self> {
        let text = fs::read_to_string(dir.join(NAME)).ok()?;
        let kept: Value = serde_json::from_str(&text).ok()?;
        (kept["program"] == program).then_some(Self(kept))
    }

    /// A number, or the sum of those below a name.
    pub(super) fn number_of(&self, name: &str) -> u64 {
        match &self.0[name] {
            Value::Object(parts) => parts.values().filter_map(Value::as_u64).sum(),
            value => value.as_u64().unwrap_or(0),
        }
    }

    /// A cell of the table.
    pub(super) fn column_value(&self, column: &str) -> u64 {
        match column {
            "harmed" => self.number_of("harm"),
            "in use" => self.number_of("removed_in_use"),
            "left" => self.left_over(),
            name => self.number_of(name),
        }
    }

    fn left_over(&self) -> u64 {
        self.number_of("left")
            .saturating_sub(self.number_of("begin"))
    }

    /// The parts of a number, by name.
    pub(super) fn parts_of(&self, name: &str) -> Vec<(String, u64)> {
        let parts = self.0[name].as_object();
        parts
            .into_iter()
            .flatten()
            .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
            .collect()
    }

    /// The line above the lines.
    pub(super) fn head_line() -> String {
        let mut text = format!("{:7} {:16}", "kernel", "cleaner");
        for (column, _) in COLUMNS {
            text.push_str(&format!(" {column}"));
        }
        text
    }

    /// A line of the table.
    pub(super) fn table_line(&self, kernel: &str, cleaner: &str) -> String {
        let mut text = format!("{kernel:7} {cleaner:16}");
        for (column, _) in COLUMNS {
            let width = column.len();
            text.push_str(&format!(" {:>width$}", self.column_value(column)));
        }
        text
    }

    /// What must not be. Of the comparison nothing is expected but that it took place.
    pub(super) fn find_complaints(&self, comparison: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.number_of("operations") < 10 || self.number_of("kills") == 0 {
            wrong.push("hardly anything happened".to_owned());
        }
        if comparison {
            return wrong;
        }
        let mut none = |name: &str, count: u64, what: &str| {
            if count > 0 {
                wrong.push(format!("{name}: {count} {what}"));
            }
        };
        none("harmed", self.number_of("harm"), "live operations");
        none(
            "in use",
            self.number_of("removed_in_use") + self.number_of("removed_in_use_by_others"),
            "cookies were removed while they were used",
        );
        let traced = self.0["cleaner"] == "dmtrace";
        if !traced && self.0["cleaner"] != "dmtrace_no_trace" {
            return wrong;
        }
        none("left", self.left_over(), "sets");
        none("suspended", self.number_of("suspended"), "devices");
        none(
            "audit",
            self.number_of("unannounced"),
            "removals without an intent",
        );
        none(
            "audit",
            self.number_of("untrue"),
            "that are said to be removed were not",
        );
        for error in self.0["cleaner_errors"].as_array().into_iter().flatten() {
            wrong.push(format!("clean: {error}"));
        }
        if self.number_of("removed") == 0 {
            wrong.push("it removed nothing".to_owned());
        }
        if traced && self.0["exact"] != true {
            wrong.push("the trace was not exact".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good_numbers() -> Value {
        json!({
            "cleaner": "dmtrace", "exact": true, "operations": {"lvm": 60, "dmsetup": 40},
            "kills": {"lvm": 9}, "removed": 8, "begin": 1, "left": 1, "harm": {},
            "cleaner_errors": [],
        })
    }

    #[test]
    fn parts_add_up() {
        let numbers = StormNumbers(good_numbers());
        assert_eq!(numbers.number_of("operations"), 100);
        assert_eq!(
            (numbers.column_value("left"), numbers.column_value("harmed")),
            (0, 0)
        );
        assert_eq!(
            numbers.table_line("6.12", "dmtrace").len(),
            StormNumbers::head_line().len()
        );
    }

    #[test]
    fn harm_and_leftovers_are_failures() {
        assert_eq!(
            StormNumbers(good_numbers()).find_complaints(false),
            Vec::<String>::new()
        );
        for (name, bad) in [
            ("harm", json!({"no node": 1})),
            ("left", json!(2)),
            ("removed", json!(0)),
            ("removed_in_use", json!(1)),
            ("removed_in_use_by_others", json!(1)),
            ("unannounced", json!(1)),
            ("untrue", json!(1)),
            ("suspended", json!(1)),
            ("exact", json!(false)),
            ("cleaner_errors", json!(["exit 3: no"])),
            ("operations", json!({})),
        ] {
            let mut numbers = good_numbers();
            numbers[name] = bad;
            assert_eq!(
                StormNumbers(numbers).find_complaints(false).len(),
                1,
                "{name}"
            );
        }
        let mut untraced = good_numbers();
        untraced["cleaner"] = json!("dmtrace_no_trace");
        untraced["exact"] = json!(null);
        let complaints = StormNumbers(untraced.clone()).find_complaints(false);
        assert_eq!(complaints, Vec::<String>::new());
        untraced["left"] = json!(2);
        assert_eq!(StormNumbers(untraced).find_complaints(false).len(), 1);
        let mut harmed = good_numbers();
        harmed["harm"] = json!({"failed": 50});
        assert!(StormNumbers(harmed).find_complaints(true).is_empty());
    }

    #[test]
    fn only_numbers_of_the_same_program_count() {
        let dir = tempfile::tempdir().unwrap();
        StormNumbers(good_numbers())
            .keep_numbers(dir.path(), "a")
            .unwrap();
        assert!(StormNumbers::read_kept(dir.path(), "a").is_some());
        assert!(StormNumbers::read_kept(dir.path(), "b").is_none());
    }
}
