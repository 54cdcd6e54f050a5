//! Alert rules and the dashboard.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dmtrace_tests::harness::{TestNeed, new_trial};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    exposition::{self, Exposition},
    parse_yaml, read_file, repository_path,
};

const RULES: &str = "packaging/prometheus/dmtrace.rules.yml";
const RULE_TESTS: &str = "packaging/prometheus/dmtrace.rules.test.yml";
const DASHBOARD: &str = "packaging/prometheus/grafana-dashboard.json";
const PROMTOOL: &[TestNeed] = &[TestNeed::Program("promtool")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "monitoring::the_check_of_queries_is_one",
            &[],
            exposition::refuses_what_does_not_exist,
        ),
        new_trial(
            "monitoring::rules_use_what_exists",
            &[],
            rules_use_what_exists,
        ),
        new_trial(
            "monitoring::the_dashboard_uses_what_exists",
            &[],
            the_dashboard_uses_what_exists,
        ),
        new_trial(
            "monitoring::all_metrics_are_explained",
            &[],
            all_metrics_are_explained,
        ),
        new_trial(
            "monitoring::promtool_reads_the_rules",
            PROMTOOL,
            check_rules,
        ),
        new_trial(
            "monitoring::promtool_reads_the_dashboards_queries",
            PROMTOOL,
            check_queries,
        ),
        new_trial("monitoring::promtool_tests_the_rules", PROMTOOL, test_rules),
        new_trial(
            "monitoring::promtool_reads_the_metrics",
            PROMTOOL,
            check_metrics,
        ),
    ]
}

fn rules_use_what_exists() -> Result<()> {
    let exposition = Exposition::read_golden()?;
    let text = read_file(RULES)?;
    let documents = parse_yaml(&text)?;
    let groups = documents[0]["groups"].as_vec().context("groups")?;
    let rules = groups.iter().filter_map(|group| group["rules"].as_vec());
    let mut names = BTreeSet::new();
    for rule in rules.flatten() {
        let name = rule["alert"].as_str().context("no name")?;
        names.insert(name.to_owned());
        exposition.check_query(rule["expr"].as_str().context("no expression")?)?;
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

fn read_board() -> Result<Value> {
    Ok(serde_json::from_str(&read_file(DASHBOARD)?)?)
}

/// What all panels of the dashboard ask for.
fn panel_queries(board: &Value) -> Result<Vec<&str>> {
    let panels = board["panels"].as_array().context("panels")?;
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let queries: Option<Vec<&str>> = targets
        .flatten()
        .map(|target| target["expr"].as_str())
        .collect();
    let queries = queries.context("no query")?;
    ensure!(queries.len() > 20, "{} queries only", queries.len());
    Ok(queries)
}

fn the_dashboard_uses_what_exists() -> Result<()> {
    let exposition = Exposition::read_golden()?;
    let board = read_board()?;
    let panels = board["panels"].as_array().context("panels")?;
    let mut ids = BTreeSet::new();
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64()), "{} twice", panel["id"]);
    }
    for query in panel_queries(&board)? {
        exposition.check_query(query)?;
        ensure!(
            query.contains("instance=~\"$instance\""),
            "all hosts: {query}"
        );
    }
    for variable in board["templating"]["list"]
        .as_array()
        .context("variables")?
    {
        if let Some(query) = variable["definition"].as_str() {
            exposition.check_query(query)?;
        }
    }
    Ok(())
}

/// The table of docs/metrics.md has each metric, and no other.
fn all_metrics_are_explained() -> Result<()> {
    let page = read_file("docs/metrics.md")?;
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `dmtrace_"));
    let told: BTreeSet<String> = rows
        .filter_map(|row| Some(format!("dmtrace_{}", row.split('`').next()?)))
        .collect();
    let real = Exposition::read_golden()?.metric_names();
    let missing: Vec<_> = real.difference(&told).collect();
    let invented: Vec<_> = told.difference(&real).collect();
    ensure!(missing.is_empty(), "not explained: {missing:?}");
    ensure!(
        invented.is_empty(),
        "explained, but not there: {invented:?}"
    );
    Ok(())
}

fn run_promtool(args: &[&str], stdin: Stdio) -> Result<()> {
    let output = Command::new("promtool").args(args).stdin(stdin).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    Ok(())
}

fn check_rules() -> Result<()> {
    run_promtool(
        &[
            "check",
            "rules",
            &repository_path(RULES).display().to_string(),
        ],
        Stdio::null(),
    )
}

/// The dashboard's queries as rules, with a value for Grafana's variable.
fn check_queries() -> Result<()> {
    let board = read_board()?;
    let rules: Vec<Value> = panel_queries(&board)?
        .into_iter()
        .enumerate()
        .map(|(number, query)| {
            let expr = query.replace("$instance", ".*");
            json!({ "record": format!("panel:{number}"), "expr": expr })
        })
        .collect();
    let mut file = tempfile::NamedTempFile::new()?;
    // JSON is YAML, too.
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    write!(file, "{groups}")?;
    let path = file.path().display().to_string();
    run_promtool(&["check", "rules", &path], Stdio::null())
}

fn test_rules() -> Result<()> {
    run_promtool(
        &[
            "test",
            "rules",
            &repository_path(RULE_TESTS).display().to_string(),
        ],
        Stdio::null(),
    )
}

/// What the program writes is what `golden_text` in dmtrace/src/metrics compares with this file.
fn check_metrics() -> Result<()> {
    let golden = File::open(repository_path("dmtrace/src/metrics/golden.prom"))?;
    run_promtool(&["check", "metrics"], golden.into())
}
