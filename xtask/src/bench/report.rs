//! `list` with a full table, `report` of a long recording.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    pipeline,
    programs::{self, BenchPrograms},
    tracer::{self, BenchTracer},
    usage,
};
use crate::host;

/// As many sets as Debian's limit for a namespace allows.
const SETS: u32 = 32_000;

/// `list` with that many sets, in pairs with `ipcs`.
pub(super) fn measure_list(programs: &BenchPrograms, rounds: u32) -> Result<Value> {
    let mut cases = Vec::new();
    for (name, plain, traced) in [
        ("cookies", false, false),
        ("cookies, and a trace that knows them", false, true),
        ("other sets", true, false),
    ] {
        let running = traced
            .then(|| BenchTracer::start_dmtrace(programs, &["watch"]))
            .transpose()?;
        let mut load = hold_sets(programs, plain)?;
        let pairs = (0..rounds)
            .map(|_| measure_pair(programs, &load))
            .collect::<Result<Vec<_>>>();
        drop(load.stdin.take());
        load.wait()?;
        if let Some(running) = running {
            running.stop()?;
        }
        let pairs = pairs?;
        cases.push(json!({
            "case": name,
            "ipcs_ms": pairs.iter().map(|it| it.0).collect::<Vec<_>>(),
            "list_ms": pairs.iter().map(|it| it.1).collect::<Vec<_>>(),
            "peak_bytes": pairs.iter().map(|it| it.2).max(),
        }));
    }
    Ok(json!({ "sets": SETS, "cases": cases }))
}

fn hold_sets(programs: &BenchPrograms, plain: bool) -> Result<Child> {
    let mut load = Command::new(programs.load_path()?);
    load.args(["hold", "--count", &SETS.to_string()]);
    if plain {
        load.arg("--plain");
    }
    let mut child = load
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("bench-load")?;
    pipeline::read_json_line(&mut child)?;
    Ok(child)
}

/// Milliseconds of `ipcs` and of `list`, and the peak of the latter.
fn measure_pair(programs: &BenchPrograms, load: &Child) -> Result<(f64, f64, u64)> {
    let mut ipcs = Command::new("nsenter");
    ipcs.args(["-i", "-t", &load.id().to_string(), "ipcs", "-s"]);
    let (ipcs, _) = usage::run_command(ipcs.stdin(Stdio::null()).stdout(tracer::null_sink()?))?;
    let mut list = Command::new(programs.dmtrace_path()?);
    list.arg("list")
        .stdin(Stdio::null())
        .stderr(tracer::null_sink()?);
    let (time, used) = usage::run_command(list.stdout(tracer::null_sink()?))?;
    ensure!(
        used.status.code().is_some_and(|code| code < 2),
        "dmtrace list: {}",
        used.status
    );
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    Ok((millis(ipcs), millis(time), used.peak))
}

/// `report` of a recording with this many events.
pub(super) fn measure_report(programs: &BenchPrograms, events: u64) -> Result<Value> {
    let path = host::target_dir()?.join("bench/long.dmt");
    let output = Command::new(programs.recording_path()?)
        .arg(&path)
        .arg(events.to_string())
        .output()
        .context("bench-recording")?;
    let made: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("bench-recording: {}: {said}", output.status)
    })?;
    let size = programs::file_size(&path)?;
    let runs = (0..3)
        .map(|_| {
            let mut report = Command::new(programs.dmtrace_path()?);
            report.arg("report").arg(&path).stdin(Stdio::null());
            let (time, used) = usage::run_command(report.stdout(tracer::null_sink()?))?;
            ensure!(
                used.status.code() == Some(1),
                "dmtrace report: {}, not 1 for findings",
                used.status
            );
            Ok((time.as_secs_f64(), used.cpu.as_secs_f64(), used.peak))
        })
        .collect::<Result<Vec<_>>>();
    // It takes gigabytes.
    fs::remove_file(&path).with_context(|| path.display().to_string())?;
    let runs = runs?;
    Ok(json!({
        "events": made["events"],
        "leaks": made["leaks"],
        "bytes": size,
        "seconds": runs.iter().map(|it| it.0).collect::<Vec<_>>(),
        "cpu_seconds": runs.iter().map(|it| it.1).collect::<Vec<_>>(),
        "peak_bytes": runs.iter().map(|it| it.2).max(),
    }))
}
