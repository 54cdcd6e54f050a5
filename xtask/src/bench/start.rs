//! From the start of the program until it traces.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    programs::BenchPrograms,
    tracer::{self, TracerMode},
    usage,
};

/// Measures it, in pairs with bpftrace if that is there.
pub(super) fn measure_start(programs: &BenchPrograms, rounds: u32) -> Result<Value> {
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.push(start_dmtrace(programs)?);
        if TracerMode::Bpftrace.is_installed() {
            other.push(start_bpftrace()?);
        }
    }
    Ok(json!({ "dmtrace_ms": own, "bpftrace_ms": other }))
}

/// Milliseconds until all probes are armed, the kernel's tables read, and the trace made known.
fn start_dmtrace(programs: &BenchPrograms) -> Result<f64> {
    let begun = Instant::now();
    let mut child = Command::new(programs.dmtrace_path()?)
        .arg("watch")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("dmtrace")?;
    let mark = tracer::registration_file(&child);
    while !mark.exists() {
        if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(20) {
            bail!("dmtrace watch: does not trace");
        }
        thread::sleep(Duration::from_micros(100));
    }
    let time = begun.elapsed();
    usage::end_tracer(&child)?;
    Ok(time.as_secs_f64() * 1e3)
}

/// Milliseconds until a script with one empty probe has begun and ended.
fn start_bpftrace() -> Result<f64> {
    let mut bpftrace = Command::new("bpftrace");
    bpftrace.args([
        "-e",
        "BEGIN { exit(); } tracepoint:syscalls:sys_enter_semget { }",
    ]);
    bpftrace.stdin(Stdio::null()).stderr(Stdio::null());
    let (time, _) = usage::run_command(bpftrace.stdout(Stdio::null()))?;
    Ok(time.as_secs_f64() * 1e3)
}
