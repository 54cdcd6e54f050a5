//! How many operations on cookies a second go through without loss, and what happens past that.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    programs::BenchPrograms,
    tracer::{self, BenchTracer},
};
use crate::host;

/// Operations a second that are tried, the last one as many as the machine makes.
const RATES: [Option<u64>; 6] = [
    Some(50_000),
    Some(100_000),
    Some(200_000),
    Some(300_000),
    Some(400_000),
    None,
];
const SECONDS: &str = "5";
/// Cookies that stay while the rest goes past the limit.
const LEFT: u64 = 500;

pub(super) fn measure_pipeline(programs: &BenchPrograms) -> Result<Value> {
    let file = host::target_dir()?.join("bench/pipeline.dmt");
    let path = file.display().to_string();
    let record = ["record", "--json", "--force", &path];
    let mut rows = Vec::new();
    for rate in RATES {
        rows.push(measure_one(programs, &["watch", "--json"], rate, 1)?);
        rows.push(measure_one(programs, &record, rate, 1)?);
    }
    // As many as two threads make, and somebody looks at the maps meanwhile.
    rows.push(measure_one(programs, &record, None, 2)?);
    let _absent = fs::remove_file(&file);
    Ok(json!({ "rows": rows, "left": LEFT }))
}

/// One load under one tracer.
fn measure_one(
    programs: &BenchPrograms,
    args: &[&str],
    rate: Option<u64>,
    threads: u32,
) -> Result<Value> {
    let running = BenchTracer::dmtrace_read(programs, args)?;
    let mut load = Command::new(programs.load_path()?);
    load.args(["cookies", "--seconds", SECONDS]);
    load.args(["--threads", &threads.to_string()]);
    load.args(["--leave", &LEFT.to_string()]);
    if let Some(rate) = rate {
        load.args(["--rate", &rate.to_string()]);
    }
    let mut child = load
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("bench-load")?;
    let done = read_json_line(&mut child)?;
    let known = left_by(programs, child.id())?;
    drop(child.stdin.take());
    child.wait()?;
    let (said, usage) = running.stop()?;
    let summary: Value = serde_json::from_str(&said).context("dmtrace: no summary")?;
    let accounting = &summary["accounting"];
    let received = accounting["received"].as_f64().unwrap_or(0.0);
    let seconds = done["seconds"].as_f64().unwrap_or(1.0);
    Ok(json!({
        "verb": args.first(),
        "threads": threads,
        "wanted": rate,
        "rate": done["operations"].as_f64().unwrap_or(0.0) / seconds,
        "seen": accounting["seen"],
        "submitted": accounting["submitted"],
        "dropped": accounting["dropped"],
        "received": accounting["received"],
        "exact": summary["exact"],
        "deficits": accounting["deficits"],
        "drift": accounting["drift"],
        "cpu_ns_per_event": usage.cpu.as_nanos() as f64 / received.max(1.0),
        "cpu_share": usage.cpu.as_secs_f64() / seconds,
        "peak_bytes": usage.peak,
        "left_known": known,
    }))
}

/// A line of JSON from a load.
pub(super) fn read_json_line(child: &mut Child) -> Result<Value> {
    let out = child.stdout.as_mut().context("bench-load: no output")?;
    let mut text = String::new();
    BufReader::new(out).read_line(&mut text)?;
    serde_json::from_str(&text).context("bench-load: it has failed")
}

/// Cookies that `list` shows with this process as their observed maker.
fn left_by(programs: &BenchPrograms, pid: u32) -> Result<usize> {
    let output = tracer::pinned_command(programs.dmtrace_path()?)
        .args(["list", "--json", "--pid", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("dmtrace list")?;
    let list: Value = serde_json::from_slice(&output.stdout).context("dmtrace list")?;
    Ok(list["semaphores"].as_array().map_or(0, Vec::len))
}
