//! What went wrong, as it happens.

use std::{collections::BTreeMap, fs::File, io::Write as _, path::Path, sync::Mutex};

use anyhow::{Context as _, Result};

/// A file with a line for each harm, and how many of each kind.
pub(super) struct Harms(Mutex<(File, BTreeMap<String, u64>)>);

impl Harms {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self(Mutex::new((file, BTreeMap::new()))))
    }

    /// A live operation was harmed. `kind` is one of a few words.
    pub(super) fn report_harm(&self, kind: &str, what: &str) {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let now = uptime.split(' ').next().unwrap_or_default();
        if let Ok(mut harms) = self.0.lock() {
            *harms.1.entry(kind.to_owned()).or_default() += 1;
            let text = what.split_whitespace().collect::<Vec<_>>().join(" ");
            // The count is what is judged.
            let _best_effort = writeln!(harms.0, "{now} {kind}: {text}");
        }
    }

    pub(super) fn finish(self) -> BTreeMap<String, u64> {
        self.0.into_inner().map(|harms| harms.1).unwrap_or_default()
    }
}
