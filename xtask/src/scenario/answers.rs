//! What a scenario leaves behind: everything that dmtrace said of it (`finish` in
//! tests/vm/lib.sh), and what came of the advice.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

#[derive(Default)]
pub(super) struct ScenarioOutput {
    /// Lines of `watch`.
    pub(super) watch: Vec<Value>,
    pub(super) list: Value,
    /// `list` once more, after all the others: what it says twice did not change meanwhile.
    pub(super) list_again: Value,
    /// Of the running trace, as are the next two.
    pub(super) report_live: Value,
    pub(super) explain_live: Value,
    pub(super) plan: Value,
    pub(super) doctor: Value,
    /// Where a service ran beside the trace.
    pub(super) service: Option<ServiceAnswers>,
    /// Of the recording.
    pub(super) report: Value,
    pub(super) explain: Value,
    /// The command that the latter gave for its cookie; empty for none.
    pub(super) advice: String,
    /// What the command printed.
    pub(super) advice_output: String,
    pub(super) list_after: Value,
    /// `report` after the fact, by which witnesses were there.
    pub(super) suspects: Vec<(String, Value)>,
}

/// What the service said.
#[derive(Default)]
pub(super) struct ServiceAnswers {
    pub(super) status: Value,
    /// What the command of the administrator was told, in its order.
    pub(super) told: Vec<Value>,
    /// In the format of Prometheus.
    pub(super) metrics: String,
}

impl ScenarioOutput {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let text = |name: &str| fs::read_to_string(dir.join(name)).with_context(|| name.to_owned());
        let json = |name: &str| -> Result<Value> {
            serde_json::from_str(&text(name)?).with_context(|| name.to_owned())
        };
        let lines = |name: &str| -> Result<Vec<Value>> {
            let parse = |line| serde_json::from_str(line).with_context(|| name.to_owned());
            text(name)?.lines().map(parse).collect()
        };
        let service = dir.join("status.json").exists();
        let service = service.then(|| {
            Ok::<_, anyhow::Error>(ServiceAnswers {
                status: json("status.json")?,
                told: lines("told.json")?,
                metrics: text("dmtrace.prom")?,
            })
        });
        Ok(Self {
            watch: lines("watch.json")?,
            list: json("list.json")?,
            list_again: json("list-again.json")?,
            report_live: json("report-live.json")?,
            explain_live: json("explain-live.json")?,
            plan: json("plan-live.json")?,
            doctor: json("doctor.json")?,
            service: service.transpose()?,
            report: json("report.json")?,
            explain: json("explain.json")?,
            advice: text("advice")?.trim().to_owned(),
            advice_output: text("advice.out")?,
            list_after: json("list-after.json")?,
            suspects: read_suspects(dir)?,
        })
    }
}

/// `suspects-journal+accounting.json` and such.
fn read_suspects(dir: &Path) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(witnesses) = name.strip_prefix("suspects-") else {
            continue;
        };
        let witnesses = witnesses.trim_end_matches(".json").to_owned();
        let text = fs::read_to_string(dir.join(&name)).with_context(|| name.clone())?;
        let report: Value = serde_json::from_str(&text).with_context(|| name.clone())?;
        found.push((witnesses, report["suspects"].clone()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The rows of a list in an object; none if there is no list.
pub(super) fn json_rows<'a>(object: &'a Value, name: &str) -> Vec<&'a Value> {
    object[name].as_array().into_iter().flatten().collect()
}
