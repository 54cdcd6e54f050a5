//! Alert rules and the dashboard.

use std::{
    collections::BTreeSet,
    fs::File,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{Need, test};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    exposition::{self, Exposition},
    path, text, yaml,
};

const RULES: &str = "packaging/prometheus/dmtrace.rules.yml";
const RULE_TESTS: &str = "packaging/prometheus/dmtrace.rules.test.yml";
const DASHBOARD: &str = "packaging/prometheus/grafana-dashboard.json";
const PROMTOOL: &[Need] = &[Need::Program("promtool")];

pub fn tests() -> Vec<Trial> {
    vec![
        test(
            "monitoring::the_check_of_queries_is_one",
            &[],
            exposition::refuses_what_does_not_exist,
        ),
        test("monitoring::rules_use_what_exists", &[], rules),
        test("monitoring::the_dashboard_uses_what_exists", &[], dashboard),
        test("monitoring::all_metrics_are_explained", &[], explained),
        test(
            "monitoring::promtool_reads_the_rules",
            PROMTOOL,
            check_rules,
        ),
        test("monitoring::promtool_tests_the_rules", PROMTOOL, test_rules),
        test(
            "monitoring::promtool_reads_the_metrics",
            PROMTOOL,
            check_metrics,
        ),
    ]
}

fn rules() -> Result<()> {
    let exposition = Exposition::golden()?;
    let text = text(RULES)?;
    let documents = yaml(&text)?;
    let groups = documents[0]["groups"].as_vec().context("groups")?;
    let rules = groups.iter().filter_map(|group| group["rules"].as_vec());
    let mut names = BTreeSet::new();
    for rule in rules.flatten() {
        let name = rule["alert"].as_str().context("no name")?;
        names.insert(name.to_owned());
        exposition.check(rule["expr"].as_str().context("no expression")?)?;
        let runbook = rule["annotations"]["runbook"].as_str();
        let runbook = runbook.with_context(|| format!("{name}: no runbook"))?;
        ensure!(runbook.contains("dmtrace explain"), "{name}: {runbook}");
    }
    let expected = [
        "CookieLeakRate",
        "CookieStuck",
        "DmtraceBlind",
        "SemExhaustion",
    ];
    ensure!(names.iter().eq(expected), "{names:?}");
    Ok(())
}

fn dashboard() -> Result<()> {
    let exposition = Exposition::golden()?;
    let board: Value = serde_json::from_str(&text(DASHBOARD)?)?;
    let panels = board["panels"].as_array().context("panels")?;
    let mut ids = BTreeSet::new();
    let mut queries = 0;
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64()), "{} twice", panel["id"]);
        let targets = panel["targets"].as_array();
        for target in targets.into_iter().flatten() {
            let query = target["expr"].as_str().context("no query")?;
            exposition.check(query)?;
            ensure!(
                query.contains("instance=~\"$instance\""),
                "all hosts: {query}"
            );
            queries += 1;
        }
    }
    ensure!(queries > 20, "{queries} queries only");
    for variable in board["templating"]["list"]
        .as_array()
        .context("variables")?
    {
        if let Some(query) = variable["definition"].as_str() {
            exposition.check(query)?;
        }
    }
    Ok(())
}

/// The table of docs/metrics.md has each metric, and no other.
fn explained() -> Result<()> {
    let page = text("docs/metrics.md")?;
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `dmtrace_"));
    let told: BTreeSet<String> = rows
        .filter_map(|row| Some(format!("dmtrace_{}", row.split('`').next()?)))
        .collect();
    let real = Exposition::golden()?.names();
    let missing: Vec<_> = real.difference(&told).collect();
    let invented: Vec<_> = told.difference(&real).collect();
    ensure!(missing.is_empty(), "not explained: {missing:?}");
    ensure!(
        invented.is_empty(),
        "explained, but not there: {invented:?}"
    );
    Ok(())
}

fn promtool(args: &[&str], stdin: Stdio) -> Result<()> {
    let output = Command::new("promtool").args(args).stdin(stdin).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    Ok(())
}

fn check_rules() -> Result<()> {
    promtool(
        &["check", "rules", &path(RULES).display().to_string()],
        Stdio::null(),
    )
}

fn test_rules() -> Result<()> {
    promtool(
        &["test", "rules", &path(RULE_TESTS).display().to_string()],
        Stdio::null(),
    )
}

/// What the program writes is what `golden_text` in dmtrace/src/metrics compares with this file.
fn check_metrics() -> Result<()> {
    let golden = File::open(path("dmtrace/src/metrics/golden.prom"))?;
    promtool(&["check", "metrics"], golden.into())
}
