//! `dmtrace exec`: what a command leaves behind.

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{actor_bin, in_private_ns, new_trial};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{NEEDS, tracer::run_dmtrace};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        new_trial(
            "exec::a_clean_command_keeps_its_exit_code",
            NEEDS,
            a_clean_command_keeps_its_exit_code,
        ),
        new_trial(
            "exec::a_killed_command_is_named",
            NEEDS,
            a_killed_command_is_named,
        ),
        new_trial(
            "exec::a_grandchild_that_detached_itself_is_named",
            NEEDS,
            a_grandchild_that_detached_itself_is_named,
        ),
        new_trial(
            "exec::others_are_not_blamed_on_the_command",
            NEEDS,
            others_are_not_blamed_on_the_command,
        ),
        new_trial(
            "exec::a_command_that_is_not_there_is_a_usage_error",
            NEEDS,
            a_command_that_is_not_there_is_a_usage_error,
        ),
    ]
}

fn actor_path() -> Result<String> {
    actor_bin()?
        .into_os_string()
        .into_string()
        .ok()
        .context("path of the actor")
}

/// Runs `dmtrace exec` and reads its report.
fn run_exec(args: &[&str]) -> Result<(Value, i32)> {
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("report.json");
    let report = report.to_str().context("path")?;
    let output = run_dmtrace(&[&["exec", "--json", "--report", report], args].concat())?;
    let text = std::fs::read_to_string(report).with_context(|| format!("{output:?}"))?;
    Ok((
        serde_json::from_str(&text)?,
        output.status.code().unwrap_or(-1),
    ))
}

fn a_clean_command_keeps_its_exit_code() -> Result<()> {
    in_private_ns(|| {
        let actor = actor_path()?;
        let (object, code) = run_exec(&["--", &actor, "churn", "--tag", "x"])?;
        ensure!(
            object["left"].as_array().is_some_and(Vec::is_empty),
            "{object}"
        );
        ensure!(code == 0, "exit code {code}");
        let output = run_dmtrace(&["exec", "--", "sh", "-c", "exit 7"])?;
        ensure!(output.status.code() == Some(7), "{output:?}");
        Ok(())
    })?
}

fn a_killed_command_is_named() -> Result<()> {
    in_private_ns(|| {
        let actor = actor_path()?;
        let output = run_dmtrace(&[
            "exec",
            "--grace",
            "0s",
            "--",
            &actor,
            "cycle",
            "--stop-at",
            "after-inc",
        ])?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{output:?}");
        ensure!(text.contains("1 cookie left by this command"), "{text}");
        ensure!(
            text.contains("--stop-at after-inc"),
            "its command line is missing: {text}"
        );
        let output = run_dmtrace(&[
            "exec",
            "--error-exitcode",
            "42",
            "--grace",
            "0s",
            "--",
            &actor,
            "cycle",
            "--stop-at",
            "after-inc",
        ])?;
        ensure!(output.status.code() == Some(42), "{output:?}");
        Ok(())
    })?
}

fn a_grandchild_that_detached_itself_is_named() -> Result<()> {
    in_private_ns(|| {
        let script = format!(
            "setsid sh -c '{} cycle --stop-at after-setval; exit 0' & sleep 0.5; exit 0",
            actor_path()?
        );
        let (object, code) = run_exec(&["--grace", "0s", "--", "sh", "-c", &script])?;
        let left = object["left"].as_array().context("no list")?;
        ensure!(left.len() == 1 && code == 1, "{object}");
        ensure!(
            left[0]["process"]["cmdline"]
                .to_string()
                .contains("after-setval"),
            "{object}"
        );
        Ok(())
    })?
}

fn others_are_not_blamed_on_the_command() -> Result<()> {
    in_private_ns(|| {
        let mut stranger = dmtrace_tests::harness::start_actor(&[
            "moby",
            "--count",
            "200",
            "--every-ms",
            "5",
            "--hold",
        ])?;
        stranger.read_until("leaked")?;
        let (object, code) = run_exec(&["--grace", "0s", "--", "sleep", "0.5"])?;
        ensure!(
            object["left"].as_array().is_some_and(Vec::is_empty),
            "{object}"
        );
        ensure!(code == 0, "exit code {code}");
        stranger.kill_group();
        Ok(())
    })?
}

fn a_command_that_is_not_there_is_a_usage_error() -> Result<()> {
    let output = run_dmtrace(&["exec", "--", "/nonexistent/program"])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(
        text.lines()
            .filter(|line| line.contains("/nonexistent/program"))
            .count()
            == 1,
        "{text}"
    );
    Ok(())
}
