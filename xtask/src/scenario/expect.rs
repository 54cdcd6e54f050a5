//! Whether dmtrace said what a scenario expects, and nothing else.
//!
//! Kinds of expectations (`expect KIND KEY=VALUE...` in the scripts); keys are in `fields.rs`:
//!
//! | kind | is about |
//! |---|---|
//! | `leaked`, `stuck` | a row of `report`; `count=N` for N alike; every row must be expected; culprit or cause, confidence, missing step, evidence and device are a must, `device=-` if there is none |
//! | `was` | a finding of `watch` that is over at the end, with its `device=`; every finding must be expected |
//! | `row` | a row of `list`, whatever its state |
//! | `change` | lines of `watch`; `count=N`, or `count=0` for what must not happen |
//! | `explain` | what `explain` says of the worst cookie: see `explain.rs` |
//! | `lives` | `count=N` cookies of which `watch` shows every step, with `up=` increments and `down=` decrements |
//! | `cookies` | totals: created, destroyed, live, found, vanished |
//! | `victim` | somebody who got ENOSPC; every victim must be expected |
//! | `undecided` | `count=N` cookies that are rightly not decided |
//! | `suspect` | who made a cookie before any trace, by `semid=`; whoever is named in any `suspects-WITNESSES.json` must be it, and somebody must be where the witnesses of `named=` were there: see `suspects.rs` |
//! | `schedule` | the unit that must be named in `suspects-timer.json` |
//! | `inexact` | the accounts need not add up |

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    answers::{ScenarioOutput, json_rows},
    consistency,
    expectation::Expectation,
    explain,
    fields::{self, field_of},
    lives, suspects,
    table::ScenarioCell,
};

/// Judges what a scenario left in `dir`; `after` is what became of the guest.
pub(super) fn judge_scenario(dir: &Path, after: Option<&str>) -> ScenarioCell {
    if let Ok(reason) = fs::read_to_string(dir.join("skip")) {
        return ScenarioCell::Skipped(reason.trim().to_owned());
    }
    let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
    match status.trim() {
        "" => {
            let why = after.unwrap_or("the guest left nothing");
            return ScenarioCell::Failed(vec![why.to_owned()]);
        }
        "0" => {}
        "124" | "137" => return ScenarioCell::Failed(vec!["it ran out of time".to_owned()]),
        code => return ScenarioCell::Failed(vec![format!("its script ended with {code}")]),
    }
    let complaints = read_output(dir).map(|(said, wanted)| find_complaints(&said, &wanted));
    match complaints {
        Ok(complaints) if complaints.is_empty() => ScenarioCell::Passed,
        Ok(complaints) => ScenarioCell::Failed(complaints),
        Err(error) => ScenarioCell::Failed(vec![format!("{error:#}")]),
    }
}

fn read_output(dir: &Path) -> Result<(ScenarioOutput, Vec<Expectation>)> {
    let said = ScenarioOutput::read(dir)?;
    let text = fs::read_to_string(dir.join("expect")).context("expect")?;
    let wanted = text
        .lines()
        .map(Expectation::parse)
        .collect::<Result<_>>()?;
    Ok((said, wanted))
}

/// Everything that is not as it should be.
fn find_complaints(said: &ScenarioOutput, wanted: &[Expectation]) -> Vec<String> {
    let of = |kind: &'static str| wanted.iter().filter(move |it| it.kind == kind);
    let mut complaints = Vec::new();
    for kind in ["leaked", "stuck"] {
        let rows = json_rows(&said.report, kind);
        complaints.extend(assign_rows(kind, &rows, of(kind)));
        complaints.extend(same_in_list(kind, &rows, said));
    }
    complaints.extend(check_findings(said, wanted));
    complaints.extend(consistency::find_contradictions(said));
    complaints.extend(explain::find_complaints(
        &said.explain,
        &said.report,
        of("explain"),
    ));
    let victims = json_rows(&said.report, "victims");
    complaints.extend(assign_rows("victim", &victims, of("victim")));
    let listed = json_rows(&said.list, "semaphores");
    for it in of("row") {
        let fitting = listed.iter().filter(|row| it.differences(row).is_empty());
        if fitting.count() != it.expected_count() {
            complaints.push(format!("list has no such row: {}", it.text()));
        }
    }
    for it in of("change") {
        let changes = said.watch.iter().filter(|line| line["type"] == "change");
        let fitting = changes
            .filter(|line| it.differences(line).is_empty())
            .count();
        let exact = it.get("count").unwrap_or("1");
        if !fields::value_is(Some(&fitting.to_string()), exact) {
            complaints.push(format!("{fitting} times in watch: {}", it.text()));
        }
    }
    complaints.extend(whole_lives(said, of("lives")));
    let undecided = of("undecided")
        .next()
        .map_or(0, Expectation::expected_count) as u64;
    if said.report["undecided"] != undecided {
        complaints.push(format!(
            "{} cookies are undecided, not {undecided}",
            said.report["undecided"]
        ));
    }
    complaints.extend(check_totals(said, of("cookies")));
    complaints.extend(suspects::find_complaints(
        &said.suspects,
        of("suspect"),
        of("schedule"),
    ));
    if of("inexact").next().is_none() {
        complaints.extend(check_accounts(said));
    }
    complaints
}

/// Gives each row to one expectation; tells what is left on both sides.
fn assign_rows<'a>(
    kind: &str,
    rows: &[&Value],
    wanted: impl Iterator<Item = &'a Expectation>,
) -> Vec<String> {
    let mut free: Vec<&Value> = rows.to_vec();
    let mut complaints = Vec::new();
    for it in wanted {
        for _ in 0..it.expected_count() {
            let place = free.iter().position(|row| it.differences(row).is_empty());
            if let Some(place) = place {
                free.remove(place);
                continue;
            }
            let nearest = free
                .iter()
                .map(|row| it.differences(row))
                .min_by_key(Vec::len);
            let near =
                nearest.map_or_else(String::new, |why| format!(" (next: {})", why.join("; ")));
            complaints.push(format!("missing: {}{near}", it.text()));
        }
    }
    let extra = free
        .iter()
        .map(|row| format!("not expected: {kind} {}", row_text(row)));
    complaints.extend(extra);
    complaints
}

/// A row in a line.
fn row_text(row: &Value) -> String {
    let keys = [
        "key",
        "culprit",
        "creator",
        "pid",
        "command",
        "how",
        "cause",
        "step",
        "confidence",
    ];
    let some = keys
        .iter()
        .filter_map(|key| Some(format!("{key}={}", field_of(row, key)?)));
    some.collect::<Vec<_>>().join(" ")
}

/// `list`, which asks a running trace, must tell the same as the recording of that trace.
fn same_in_list(kind: &str, reported: &[&Value], said: &ScenarioOutput) -> Vec<String> {
    let brief = |row: &&Value| {
        let keys = [
            "key",
            "semid",
            "ns",
            "creator",
            "culprit",
            "how",
            "cause",
            "step",
            "confidence",
        ];
        keys.map(|key| field_of(row, key).unwrap_or_default())
            .join(" ")
    };
    let mut in_report: Vec<String> = reported.iter().map(brief).collect();
    let listed = json_rows(&said.list, "semaphores");
    let listed = listed.iter().filter(|row| row["state"] == kind);
    let mut in_list: Vec<String> = listed.map(brief).collect();
    in_report.sort();
    in_list.sort();
    if in_report == in_list {
        return Vec::new();
    }
    let only = |a: &[String], b: &[String]| {
        let only: Vec<&str> = a
            .iter()
            .filter(|it| !b.contains(it))
            .map(String::as_str)
            .collect();
        only.join("; ")
    };
    vec![format!(
        "{kind}: list and report differ: only list [{}], only report [{}]",
        only(&in_list, &in_report),
        only(&in_report, &in_list)
    )]
}

/// Findings of `watch`, as they came: each must be expected at the end, or as one that was.
fn check_findings(said: &ScenarioOutput, wanted: &[Expectation]) -> Vec<String> {
    let findings: Vec<&Value> = said
        .watch
        .iter()
        .filter(|line| line["type"] == "finding")
        .collect();
    let mut complaints = Vec::new();
    let fits = |it: &Expectation, finding: &Value| match it.kind.as_str() {
        "was" => it.differences(finding).is_empty(),
        kind => {
            let culprit = it.get("culprit").filter(|culprit| *culprit != "-");
            let device = it.get("device");
            finding["verdict"]["class"] == kind
                && culprit.is_none_or(|pid| field_of(finding, "culprit").is_none_or(|it| it == pid))
                && device.is_none_or(|name| {
                    fields::value_is(field_of(finding, "device").as_deref(), name)
                })
        }
    };
    for finding in &findings {
        if !wanted.iter().any(|it| fits(it, finding)) {
            let text = finding["text"].as_str().unwrap_or_default();
            complaints.push(format!("watch found: {text} ({})", row_text(finding)));
        }
    }
    for it in wanted.iter().filter(|it| it.kind == "was") {
        if !findings.iter().any(|finding| fits(it, finding)) {
            complaints.push(format!("watch did not find: {}", it.text()));
        }
    }
    complaints
}

fn check_totals<'a>(
    said: &ScenarioOutput,
    wanted: impl Iterator<Item = &'a Expectation>,
) -> Vec<String> {
    let Some(summary) = said.watch.iter().rfind(|line| line["type"] == "summary") else {
        return vec!["watch made no summary".to_owned()];
    };
    let cookies = &summary["totals"]["cookies"];
    wanted
        .flat_map(|it| &it.pairs)
        .filter(|(name, number)| !fields::value_is(Some(&cookies[name].to_string()), number))
        .map(|(name, number)| format!("cookies: {} {name}, not {number}", cookies[name]))
        .collect()
}

/// Each step of a life in good order was shown.
fn whole_lives<'a>(
    said: &ScenarioOutput,
    wanted: impl Iterator<Item = &'a Expectation>,
) -> Vec<String> {
    let wanted: Vec<&Expectation> = wanted.collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let (lives, mut complaints) = lives::count_lives(&said.watch);
    for it in &wanted {
        let number = |key| it.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
        let found = lives.get(&(number("up"), number("down"))).copied();
        if found.unwrap_or(0) != it.expected_count() {
            complaints.push(format!("lives by (up, down): {lives:?}, not {}", it.text()));
        }
    }
    complaints
}

/// The accounts of the trace and the recording add up.
fn check_accounts(said: &ScenarioOutput) -> Vec<String> {
    let mut complaints = Vec::new();
    let summary = said.watch.iter().rfind(|line| line["type"] == "summary");
    if let Some(summary) = summary
        && summary["exact"] != true
    {
        complaints.push(format!("not exact: {}", summary["accounting"]));
    }
    if said.report["complete"] != true {
        complaints.push(format!(
            "the report is not complete: {}",
            said.report["notes"]
        ));
    }
    complaints
}

#[cfg(test)]
mod tests;
