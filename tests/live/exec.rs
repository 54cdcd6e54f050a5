//! `dmtrace exec`: what a command leaves behind.

use anyhow::{Context, Result, ensure};
use dmtrace_tests::harness::{actor_bin, in_private_ns, test};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{NEEDS, tracer::dmtrace};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("exec::a_clean_command_keeps_its_exit_code", NEEDS, clean),
        test("exec::a_killed_command_is_named", NEEDS, killed),
        test(
            "exec::a_grandchild_that_detached_itself_is_named",
            NEEDS,
            detached,
        ),
        test("exec::others_are_not_blamed_on_the_command", NEEDS, others),
        test(
            "exec::a_command_that_is_not_there_is_a_usage_error",
            NEEDS,
            missing,
        ),
    ]
}

fn actor() -> Result<String> {
    actor_bin()?
        .into_os_string()
        .into_string()
        .ok()
        .context("path of the actor")
}

/// Runs `dmtrace exec` and reads its report.
fn exec(args: &[&str]) -> Result<(Value, i32)> {
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("report.json");
    let report = report.to_str().context("path")?;
    let output = dmtrace(&[&["exec", "--json", "--report", report], args].concat())?;
    let text = std::fs::read_to_string(report).with_context(|| format!("{output:?}"))?;
    Ok((
        serde_json::from_str(&text)?,
        output.status.code().unwrap_or(-1),
    ))
}

fn clean() -> Result<()> {
    in_private_ns(|| {
        let actor = actor()?;
        let (object, code) = exec(&["--", &actor, "churn", "--tag", "x"])?;
        ensure!(
            object["left"].as_array().is_some_and(Vec::is_empty),
            "{object}"
        );
        ensure!(code == 0, "exit code {code}");
        let output = dmtrace(&["exec", "--", "sh", "-c", "exit 7"])?;
        ensure!(output.status.code() == Some(7), "{output:?}");
        Ok(())
    })?
}

fn killed() -> Result<()> {
    in_private_ns(|| {
        let actor = actor()?;
        let output = dmtrace(&[
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
        let output = dmtrace(&[
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

fn detached() -> Result<()> {
    in_private_ns(|| {
        let script = format!(
            "setsid sh -c '{} cycle --stop-at after-setval; exit 0' & sleep 0.5; exit 0",
            actor()?
        );
        let (object, code) = exec(&["--grace", "0s", "--", "sh", "-c", &script])?;
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

fn others() -> Result<()> {
    in_private_ns(|| {
        let mut stranger = dmtrace_tests::harness::actor(&[
            "moby",
            "--count",
            "200",
            "--every-ms",
            "5",
            "--hold",
        ])?;
        stranger.until("leaked")?;
        let (object, code) = exec(&["--grace", "0s", "--", "sleep", "0.5"])?;
        ensure!(
            object["left"].as_array().is_some_and(Vec::is_empty),
            "{object}"
        );
        ensure!(code == 0, "exit code {code}");
        stranger.kill();
        Ok(())
    })?
}

fn missing() -> Result<()> {
    let output = dmtrace(&["exec", "--", "/nonexistent/program"])?;
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
