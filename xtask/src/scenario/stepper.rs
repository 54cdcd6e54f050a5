//! `cargo xtask stepper`: real programs are stopped at every system call, and dmtrace's search must
//! find whoever needs their cookies, or another rule must keep them. No moment may be missed.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use kernel_lab::{Freshness, Kernel, Lab, RunEnd, RunSpec, Streams, guest_file, kernel};
use serde_json::Value;

use super::programs::{ExtraProgram, ScenarioPrograms};
use crate::{guests, host};

/// Real programs at every system call: does a search find who needs their cookies?
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel to boot, as for `cargo xtask vm`; repeatable
    #[arg(
        long = "kernel",
        value_name = "KERNEL",
        value_delimiter = ',',
        default_value = "6.12"
    )]
    kernels: Vec<String>,
    /// So many moments, each a cookie at a stop
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    moments: u64,
}

/// A guest that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Carries out the command line.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let specs = kernel::resolve_kernels(&args.kernels)?;
    let programs = ScenarioPrograms::build_with(&[ExtraProgram::Stepper])?;
    let mut lab = guests::open_lab(Freshness::Cached)?;
    let mut wrong = Vec::new();
    for spec in specs {
        let kernel = lab.prepare_kernel(spec)?;
        let sums = match step_programs(&lab, &kernel, &programs, args.moments) {
            Ok(sums) => sums,
            Err(error) => {
                wrong.push(format!("{}: {error:#}", kernel.name));
                continue;
            }
        };
        print!("{}", sums.to_text(&kernel.name));
        let complaints = sums.find_complaints(args.moments);
        wrong.extend(
            complaints
                .iter()
                .map(|why| format!("{}: {why}", kernel.name)),
        );
    }
    for why in &wrong {
        println!("FAIL {why}");
    }
    Ok(match wrong.as_slice() {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn step_programs(
    lab: &Lab,
    kernel: &Kernel,
    programs: &ScenarioPrograms,
    moments: u64,
) -> Result<Sums> {
    let out = host::target_dir()?.join("vm-stepper").join(&kernel.name);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
    }
    let stepper = programs.stepper.as_deref();
    let stepper = stepper.context("cookie-stepper: was not built")?;
    let script = |name: &str| guest_file(&programs.scripts.join(name), &format!("/job/{name}"));
    let outcome = lab.run(
        kernel,
        &RunSpec {
            argv: vec![
                "sh".to_owned(),
                "/job/stepper.sh".to_owned(),
                moments.to_string(),
            ],
            files: vec![
                script("stepper.sh")?,
                script("stepped.sh")?,
                script("lib.sh")?,
                guest_file(stepper, "/job/cookie-stepper")?,
                guest_file(&programs.actor, "/job/cookie-actor")?,
            ],
            out: Some(out.clone()),
            timeout: LIMIT,
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    if let Some(splat) = outcome.splats.first() {
        bail!("the kernel complained: {splat}");
    }
    if !matches!(outcome.end, RunEnd::Exited(0)) {
        let text = String::from_utf8_lossy(&outcome.stderr);
        bail!("{}: {text}", outcome.summary());
    }
    Sums::read(&out.join("steps"))
}

/// What the stepper said of all programs.
#[derive(Debug, Default)]
struct Sums {
    stops: u64,
    moments: u64,
    cookies: u64,
    missed: u64,
    held: BTreeMap<String, u64>,
    covered: BTreeMap<String, u64>,
    /// By program: a moment that was missed, or that it did not end well.
    wrong: Vec<String>,
}

impl Sums {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context("the stepper left nothing")?;
        let mut sums = Self::default();
        for line in text.lines() {
            sums.add(&serde_json::from_str(line).with_context(|| line.to_owned())?);
        }
        Ok(sums)
    }

    fn add(&mut self, line: &Value) {
        let number = |name: &str| line[name].as_u64().unwrap_or(0);
        self.stops += number("stops");
        self.moments += number("moments");
        self.cookies += number("cookies");
        self.missed += number("missed");
        for (sums, name) in [(&mut self.held, "held"), (&mut self.covered, "covered")] {
            for (place, count) in line[name].as_object().into_iter().flatten() {
                *sums.entry(place.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        let program = line["program"].as_str().unwrap_or("a program");
        for miss in line["misses"].as_array().into_iter().flatten() {
            self.wrong.push(format!("{program}: missed: {miss}"));
        }
        if line["code"] != 0 {
            self.wrong
                .push(format!("{program}: ended with {}", line["code"]));
        }
        if number("left") + number("vanished") > 0 {
            self.wrong.push(format!(
                "{program}: its cookies were left, or removed by somebody else"
            ));
        }
    }

    fn to_text(&self, kernel: &str) -> String {
        let parts = |sums: &BTreeMap<String, u64>| -> String {
            let parts = sums.iter().map(|(name, count)| format!("{count} {name}"));
            parts.collect::<Vec<_>>().join(", ")
        };
        let Self {
            stops,
            moments,
            cookies,
            missed,
            ..
        } = self;
        format!(
            "{kernel}: {moments} moments of {cookies} cookies at {stops} stops\n  held: {}\n  \
             covered by another rule: {}\n  missed: {missed}\n",
            parts(&self.held),
            parts(&self.covered)
        )
    }

    fn find_complaints(&self, wanted: u64) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        if self.missed > 0 {
            wrong.push(format!("{} moments were missed", self.missed));
        }
        if self.moments < wanted {
            wrong.push(format!("{} moments of {wanted}", self.moments));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sums_of(lines: &[Value]) -> Sums {
        let mut sums = Sums::default();
        lines.iter().for_each(|line| sums.add(line));
        sums
    }

    fn good_line() -> Value {
        json!({
            "program": "dmsetup create a", "stops": 90, "moments": 40, "cookies": 1, "missed": 0,
            "held": {"heap": 38}, "covered": {"never_used": 2}, "misses": [], "code": 0, "left": 0,
            "vanished": 0,
        })
    }

    #[test]
    fn parts_add_up() {
        let sums = sums_of(&[good_line(), good_line()]);
        assert_eq!(sums.find_complaints(80), Vec::<String>::new());
        let text = sums.to_text("6.12");
        assert!(
            text.contains("80 moments of 2 cookies at 180 stops"),
            "{text}"
        );
        assert!(
            text.contains("76 heap") && text.contains("4 never_used"),
            "{text}"
        );
        assert_eq!(sums.find_complaints(81).len(), 1);
    }

    #[test]
    fn a_miss_is_a_failure() {
        for (name, bad) in [
            ("missed", json!(1)),
            ("misses", json!(["dmsetup at the exit of call 1"])),
            ("code", json!(5)),
            ("code", Value::Null),
            ("left", json!(1)),
            ("vanished", json!(1)),
        ] {
            let mut line = good_line();
            line[name] = bad;
            assert_eq!(sums_of(&[line]).find_complaints(40).len(), 1, "{name}");
        }
    }
}
