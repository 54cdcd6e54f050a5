//! Instructions of a guest, by backend: QEMU's `-icount` makes each take the same time, so that
//! the guest's clock counts them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kernel_lab::{Freshness, GuestClock, Lab, RunSpec, Streams, guest_file, kernel};
use serde_json::{Map, Value, json};

use super::programs::BenchPrograms;
use crate::{guests, host};

/// Measures on these kernels.
pub(super) fn measure_guests(programs: &BenchPrograms, kernels: &[String]) -> Result<Value> {
    let mut lab = guests::open_lab(Freshness::Cached)?;
    let mut rows = Map::new();
    for spec in kernel::resolve_kernels(kernels)? {
        eprintln!("bench: kernel {}", spec.name);
        let kernel = lab.prepare_kernel(spec)?;
        let (release, modes) = measure_kernel(&lab, &kernel, programs)?;
        rows.insert(
            spec.name.to_owned(),
            json!({ "release": release, "modes": modes }),
        );
    }
    Ok(json!({ "kernels": rows }))
}

fn measure_kernel(
    lab: &Lab,
    kernel: &kernel::Kernel,
    programs: &BenchPrograms,
) -> Result<(String, Value)> {
    let script = host::workspace_root().join("tests/vm/bench.sh");
    let outcome = lab.run(
        kernel,
        &RunSpec {
            argv: vec!["sh".to_owned(), "/job/bench.sh".to_owned()],
            files: vec![
                guest_file(&script, "/job/bench.sh")?,
                guest_file(programs.static_dmtrace()?, "/job/dmtrace")?,
                guest_file(programs.static_load()?, "/job/bench-load")?,
                guest_file(programs.static_floor()?, "/job/bench-floor")?,
                guest_file(programs.object_path()?, "/job/floor.o")?,
            ],
            timeout: Duration::from_secs(900),
            cpus: 1,
            clock: GuestClock::Instructions,
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    let said = String::from_utf8_lossy(&outcome.stdout);
    if outcome.exit_code() != 0 {
        let errors = String::from_utf8_lossy(&outcome.stderr);
        bail!(
            "kernel {}: {}: {said}{errors}",
            kernel.name,
            outcome.summary()
        );
    }
    Ok((kernel.release.clone(), parse_modes(&said)?))
}

/// Instructions a call, by mode and call, from what the guest's script says: lines of JSON, each
/// mode announced by a line of its own.
fn parse_modes(said: &str) -> Result<Value> {
    let mut scale = None;
    let mut mode = String::new();
    let mut all: Map<String, Value> = Map::new();
    for line in said.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("mode ") {
            name.clone_into(&mut mode);
            all.insert(mode.clone(), json!({}));
            continue;
        }
        if let Some(why) = line.strip_prefix("not armed: ") {
            all.insert(mode.clone(), json!({ "not_armed": why }));
            continue;
        }
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if let Some(million) = value["million_ns"].as_f64() {
            scale = Some(1e6 / million);
            continue;
        }
        let scale = scale.context("the guest did not calibrate")?;
        let call = value["call"].as_str().unwrap_or_default();
        let cost = value["cpu_ns"].as_f64().with_context(|| line.to_owned())?;
        if let Some(calls) = all.get_mut(&mode).and_then(Value::as_object_mut) {
            calls.insert(call.to_owned(), json!((cost * scale).round()));
        }
    }
    Ok(Value::Object(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_become_instructions() {
        let said = "{\"million_ns\": 500000.0}\nmode none\n{\"call\":\"semop\",\"cpu_ns\":500.0}\n\
                    mode fentry\nnot armed: no BTF\n";
        let modes = parse_modes(said).unwrap();
        assert_eq!(modes["none"]["semop"], json!(1000.0));
        assert_eq!(modes["fentry"]["not_armed"], "no BTF");
        assert!(parse_modes("mode x\n{\"call\":\"semop\",\"cpu_ns\":1.0}").is_err());
    }
}
