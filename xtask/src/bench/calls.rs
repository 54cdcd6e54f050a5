//! What tracers add to a call: each round measures every tracer once, in a random order, and right
//! before it the same calls without one.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    part::BenchPart,
    programs::BenchPrograms,
    tracer::{self, TracerMode},
};

/// Cost of each kind of call, by name: processor time and time that passes, nanoseconds.
type Costs = BTreeMap<String, (f64, f64)>;

/// Measures these kinds of calls; returns for each what is kept.
pub(super) fn measure_calls(
    programs: &BenchPrograms,
    calls: &[BenchPart],
    rounds: u32,
    millis: u64,
) -> Result<Vec<(BenchPart, Value)>> {
    let hooks = tracer::attached_hooks(programs)?;
    let (modes, missing): (Vec<TracerMode>, Vec<TracerMode>) = TracerMode::ALL
        .into_iter()
        .partition(|mode| mode.is_installed());
    let load = programs.load_path()?;
    let plain = || Command::new(load);
    let mut pairs: BTreeMap<(&str, String), Vec<[f64; 2]>> = BTreeMap::new();
    for round in 0..rounds {
        let mut order = modes.clone();
        shuffle_items(&mut order);
        for mode in order {
            eprintln!("bench: round {} of {rounds}: {}", round + 1, mode.name());
            let before = run_load(&mut plain(), calls, millis)?;
            let running = mode.start_tracer(programs, &hooks)?;
            let traced = run_load(&mut mode.load_command(load), calls, millis);
            if let Some(running) = running {
                running.stop()?;
            }
            for (call, traced) in traced.with_context(|| mode.name())? {
                let Some(before) = before.get(&call) else {
                    continue;
                };
                let pair = if mode.stops_the_load() {
                    [before.1, traced.1]
                } else {
                    [before.0, traced.0]
                };
                pairs.entry((mode.name(), call)).or_default().push(pair);
            }
        }
    }
    let missing: Vec<&str> = missing.into_iter().map(TracerMode::name).collect();
    Ok(calls
        .iter()
        .map(|&part| {
            let mut by_mode = serde_json::Map::new();
            for ((mode, call), pairs) in &pairs {
                if call == part.name() {
                    by_mode.insert((*mode).to_owned(), json!(pairs));
                }
            }
            let data = json!({
                "rounds": rounds,
                "hooks": hooks,
                "pairs": by_mode,
                "not_installed": missing,
            });
            (part, data)
        })
        .collect())
}

/// Runs the load once.
fn run_load(command: &mut Command, calls: &[BenchPart], millis: u64) -> Result<Costs> {
    let names: Vec<&str> = calls.iter().map(|part| part.name()).collect();
    command.args(["calls", "--of", &names.join(",")]);
    command.args(["--millis", &millis.to_string()]);
    command.args(["--cpu", &tracer::load_cpu().to_string()]);
    read_costs(command)
}

/// What a load prints.
fn read_costs(command: &mut Command) -> Result<Costs> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("bench-load")?;
    ensure!(
        output.status.success(),
        "bench-load: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            let cost: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let number = |name: &str| cost[name].as_f64().with_context(|| line.to_owned());
            let call = cost["call"].as_str().unwrap_or_default().to_owned();
            Ok((call, (number("cpu_ns")?, number("wall_ns")?)))
        })
        .collect()
}

/// Another order each time.
fn shuffle_items<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let number = RandomState::new().build_hasher().finish() as usize;
        items.swap(last, number % (last + 1));
    }
}
