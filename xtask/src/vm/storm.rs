//! `cargo xtask storm`: real operations on a real kernel, some of them killed, and a cleaner in a
//! tight loop. With `dmtrace clean` no live operation may fail, and every leak must go; what
//! `dmsetup udevcomplete_all` does in its place is counted.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    End, Kernel, Lab, Outcome, RunSpec, Streams,
    guest::FileSpec,
    kernel::{self},
    suite::Programs,
};
use crate::host;

/// Real operations under `clean --apply` in a tight loop, in a virtual machine.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel to boot, as for `cargo xtask vm`; repeatable
    #[arg(
        long = "kernel",
        value_name = "KERNEL",
        value_delimiter = ',',
        default_value = "6.12"
    )]
    kernels: Vec<String>,
    /// How long operations are begun, in seconds of the guest
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=20_000))]
    seconds: u64,
    /// Who cleans meanwhile; repeatable
    #[arg(long = "cleaner", value_enum, value_delimiter = ',', default_values = ["none", "dmtrace", "udevcomplete-all"])]
    cleaners: Vec<Cleaner>,
}

/// Who cleans while the operations run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Cleaner {
    /// Nobody: what the storm does by itself.
    None,
    /// `dmtrace clean --apply`
    Dmtrace,
    /// `dmsetup udevcomplete_all -y`
    UdevcompleteAll,
}

impl Cleaner {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dmtrace => "dmtrace",
            Self::UdevcompleteAll => "udevcomplete_all",
        }
    }
}

/// What a storm came to: the numbers of its summary.
type Numbers = BTreeMap<String, u64>;

/// Carries out the command line.
pub fn main(args: &Args) -> Result<ExitCode> {
    let specs = kernel::resolve(&args.kernels)?;
    let programs = Programs::build()?;
    let mut lab = Lab::open(false)?;
    println!("{}", line("kernel", "cleaner", &COLUMNS.map(str::to_owned)));
    let mut wrong = Vec::new();
    for spec in specs {
        let kernel = lab.prepare(spec)?;
        for &cleaner in &args.cleaners {
            let out = host::target_dir()?
                .join("vm-storm")
                .join(&kernel.name)
                .join(cleaner.name());
            let numbers = run(&lab, &kernel, &programs, cleaner, args.seconds, &out)?;
            let cells = COLUMNS.map(|name| number(&numbers, name).to_string());
            println!("{}", line(&kernel.name, cleaner.name(), &cells));
            for why in complaints(&numbers, cleaner) {
                wrong.push(format!("{} on {}: {why}", cleaner.name(), kernel.name));
            }
            for harm in harms(&out) {
                println!("  | {harm}");
            }
        }
    }
    for why in &wrong {
        println!("FAIL {why}");
    }
    Ok(if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Columns of the table, names of the numbers.
const COLUMNS: [&str; 8] = [
    "operations",
    "harmed",
    "kills",
    "rounds",
    "removed",
    "peak",
    "left",
    "suspended",
];

/// Harms that are printed of each storm; all are in its files.
const SHOWN: usize = 5;

fn line(kernel: &str, cleaner: &str, cells: &[String; 8]) -> String {
    let mut text = format!("{kernel:7} {cleaner:16}");
    for (cell, column) in cells.iter().zip(COLUMNS) {
        text.push_str(&format!(" {cell:>width$}", width = column.len()));
    }
    text
}

fn number(numbers: &Numbers, name: &str) -> u64 {
    numbers.get(name).copied().unwrap_or(0)
}

/// What must not be.
fn complaints(numbers: &Numbers, cleaner: Cleaner) -> Vec<String> {
    let of = |name| number(numbers, name);
    let mut wrong = Vec::new();
    if of("operations") < 10 || of("kills") == 0 {
        wrong.push("hardly anything happened".to_owned());
    }
    if cleaner == Cleaner::UdevcompleteAll {
        return wrong;
    }
    if of("harmed") > 0 {
        wrong.push(format!("{} live operations were harmed", of("harmed")));
    }
    if cleaner == Cleaner::Dmtrace {
        if of("removed") == 0 {
            wrong.push("it removed nothing".to_owned());
        }
        if of("left") > of("begin") {
            wrong.push(format!("{} sets are left", of("left")));
        }
        if of("in_use") > 0 {
            wrong.push(format!("{} were used when they were removed", of("in_use")));
        }
    }
    wrong
}

fn run(
    lab: &Lab,
    kernel: &Kernel,
    programs: &Programs,
    cleaner: Cleaner,
    seconds: u64,
    out: &Path,
) -> Result<Numbers> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    let spec = |host: &Path, guest: &str| format!("{}:{guest}", host.display()).parse::<FileSpec>();
    let outcome = lab.run_one(
        kernel,
        &RunSpec {
            argv: vec![
                "sh".to_owned(),
                "/job/storm.sh".to_owned(),
                seconds.to_string(),
                cleaner.name().to_owned(),
            ],
            files: vec![
                spec(&programs.scripts.join("storm.sh"), "/job/storm.sh")?,
                spec(&programs.dmtrace, "/job/dmtrace")?,
            ],
            out: Some(out.to_owned()),
            // Operations that hang are given up after 120 s, and there may be some in a row.
            timeout: Duration::from_secs(seconds + 900),
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    check(&outcome)?;
    let text = fs::read_to_string(out.join("summary")).context("the storm left no summary")?;
    let mut numbers: Numbers = text
        .lines()
        .filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        })
        .collect();
    for (name, outcome) in [("removed", "removed"), ("in_use", "removed_in_use")] {
        numbers.insert(name.to_owned(), outcomes(out, outcome));
    }
    Ok(numbers)
}

fn check(outcome: &Outcome) -> Result<()> {
    if let Some(splat) = outcome.splats.first() {
        bail!("the kernel complained: {splat}");
    }
    match outcome.end {
        End::Exited(0) => Ok(()),
        _ => bail!(
            "{}: {}",
            outcome.summary(),
            String::from_utf8_lossy(&outcome.stderr)
        ),
    }
}

/// Outcomes of this kind in the audit record.
fn outcomes(out: &Path, wanted: &str) -> u64 {
    let text = fs::read_to_string(out.join("audit")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line["type"] == "clean_outcome" && line["outcome"] == wanted).then_some(())
    });
    lines.count() as u64
}

fn harms(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("harm")).unwrap_or_default();
    text.lines().take(SHOWN).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pairs: &[(&str, u64)]) -> Numbers {
        let pairs = pairs.iter();
        pairs
            .map(|&(name, number)| (name.to_owned(), number))
            .collect()
    }

    #[test]
    fn harm_and_leftovers_are_failures() {
        let good = [
            ("operations", 100),
            ("kills", 9),
            ("removed", 8),
            ("begin", 1),
            ("left", 1),
        ];
        assert!(complaints(&numbers(&good), Cleaner::Dmtrace).is_empty());
        for bad in [
            ("harmed", 1),
            ("left", 2),
            ("removed", 0),
            ("in_use", 1),
            ("operations", 0),
        ] {
            let mut numbers = numbers(&good);
            numbers.insert(bad.0.to_owned(), bad.1);
            assert_eq!(complaints(&numbers, Cleaner::Dmtrace).len(), 1, "{bad:?}");
        }
        let harmed = numbers(&[("operations", 100), ("kills", 9), ("harmed", 50)]);
        assert!(complaints(&harmed, Cleaner::UdevcompleteAll).is_empty());
    }
}
