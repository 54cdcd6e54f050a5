//! `cargo xtask storm`: real operations on a real kernel, some of them killed, and a cleaner in a
//! tight loop. With `dmtrace clean` no live operation may fail, and every leak must go; what
//! `dmsetup udevcomplete_all` does in its place is counted.

mod cleaner;
mod docs;
mod numbers;

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use kernel_lab::{
    Freshness, Kernel, Lab, RunEnd, RunOutcome, RunSpec, Streams, guest_file,
    kernel::{self, KernelSpec},
};

use self::{
    cleaner::{Cleaner, results_dir},
    numbers::StormNumbers,
};
use super::{kept::program_fingerprint, programs::ScenarioPrograms};
use crate::{guests, tally::TestTally};

/// Real operations under `clean --apply` in a tight loop, in a virtual machine.
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
    /// How long operations are begun, in seconds of the guest
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=20_000))]
    seconds: u64,
    /// Who cleans meanwhile; repeatable
    #[arg(long = "cleaner", value_enum, value_delimiter = ',', default_values = ["none", "dmtrace", "udevcomplete-all"])]
    cleaners: Vec<Cleaner>,
    /// Nothing traces, and `dmtrace clean --apply` removes what no process holds, at an age of
    /// seconds: by a dmtrace that is built for this, with shorter times than any other
    #[arg(long, conflicts_with_all = ["cleaners", "write_docs"])]
    no_trace: bool,
    /// What the random choices begin with; by default another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// Operations at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=9))]
    workers: u8,
    /// Set the wall clock forth or back by up to three hours, again and again
    #[arg(long)]
    clock_steps: bool,
    /// Write the table to docs/cleanup.md, with the outcomes of former runs of the same dmtrace
    /// for what was not run now
    #[arg(long)]
    write_docs: bool,
}

/// One storm.
#[derive(Clone, Copy)]
struct StormRun {
    cleaner: Cleaner,
    seconds: u64,
    seed: u64,
    workers: u8,
    clock: WallClock,
}

/// What the wall clock does meanwhile.
#[derive(Clone, Copy)]
enum WallClock {
    Steady,
    /// It is set by hours, forth and back.
    Stepped,
}

impl WallClock {
    /// The word of tests/vm/storm.sh.
    const fn word(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Stepped => "stepped",
        }
    }
}

/// Carries out the command line.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let specs = kernel::resolve_kernels(&args.kernels)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}");
    let cleaners = match args.no_trace {
        true => &[Cleaner::DmtraceNoTrace][..],
        false => &args.cleaners,
    };
    let runs: Vec<StormRun> = cleaners
        .iter()
        .map(|&cleaner| StormRun {
            cleaner,
            seconds: args.seconds,
            seed,
            workers: args.workers,
            clock: if args.clock_steps {
                WallClock::Stepped
            } else {
                WallClock::Steady
            },
        })
        .collect();
    let mut programs = ScenarioPrograms::build()?;
    if args.no_trace {
        programs.dmtrace = programs.build_with_short_ages()?;
    }
    let wrong = run_storms(&specs, &runs, &programs)?;
    if args.write_docs {
        docs::write_table(&program_fingerprint(&programs.dmtrace)?)?;
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A short storm, for `cargo xtask test`: with a wall clock that nobody can rely on.
pub(crate) fn run_tier() -> Result<TestTally> {
    let specs = kernel::resolve_kernels(&["6.12".to_owned()])?;
    let run = StormRun {
        cleaner: Cleaner::Dmtrace,
        seconds: 45,
        seed: u64::from(std::process::id()),
        workers: 3,
        clock: WallClock::Stepped,
    };
    println!("seed {}", run.seed);
    Ok(
        match run_storms(&specs, &[run], &ScenarioPrograms::build()?)? {
            0 => TestTally::PASSED,
            _ => TestTally::FAILED,
        },
    )
}

/// Storms on each kernel, prints a line for each, and what is wrong; returns how much is.
fn run_storms(
    specs: &[&KernelSpec],
    runs: &[StormRun],
    programs: &ScenarioPrograms,
) -> Result<usize> {
    let program = program_fingerprint(&programs.dmtrace)?;
    let mut lab = guests::open_lab(Freshness::Cached)?;
    println!("{}", StormNumbers::head_line());
    let mut wrong = Vec::new();
    for &spec in specs {
        let kernel = lab.prepare_kernel(spec)?;
        for run in runs {
            let (name, out) = (run.cleaner.name(), results_dir(&kernel.name, run.cleaner));
            let numbers = match run_storm(&lab, &kernel, programs, *run, &out) {
                Ok(numbers) => numbers,
                Err(error) => {
                    wrong.push(format!("{name} on {}: {error:#}", kernel.name));
                    continue;
                }
            };
            println!("{}", numbers.table_line(&kernel.name, name));
            numbers.keep_numbers(&out, &program)?;
            for why in numbers.find_complaints(run.cleaner == Cleaner::UdevcompleteAll) {
                wrong.push(format!("{name} on {}: {why}", kernel.name));
            }
            for harm in read_harms(&out) {
                println!("  | {harm}");
            }
        }
    }
    for why in &wrong {
        println!("FAIL {why}");
    }
    Ok(wrong.len())
}

/// Harms that are printed of each storm; all are in its files.
const SHOWN: usize = 5;

fn read_harms(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("harm")).unwrap_or_default();
    text.lines()
        .take(SHOWN)
        .map(|line| line.chars().take(300).collect())
        .collect()
}

fn run_storm(
    lab: &Lab,
    kernel: &Kernel,
    programs: &ScenarioPrograms,
    run: StormRun,
    out: &Path,
) -> Result<StormNumbers> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    let outcome = lab.run(
        kernel,
        &RunSpec {
            argv: vec![
                "sh".to_owned(),
                "/job/storm.sh".to_owned(),
                run.seconds.to_string(),
                run.cleaner.name().to_owned(),
                run.seed.to_string(),
                run.workers.to_string(),
                run.clock.word().to_owned(),
            ],
            files: vec![
                guest_file(&programs.scripts.join("storm.sh"), "/job/storm.sh")?,
                guest_file(&programs.dmtrace, "/job/dmtrace")?,
                guest_file(&programs.actor, "/job/cookie-actor")?,
                guest_file(&programs.storm, "/job/cookie-storm")?,
            ],
            out: Some(out.to_owned()),
            // Operations that hang are given up after 120 s, and there may be some in a row.
            timeout: Duration::from_secs(run.seconds + 900),
            streams: Streams::Capture,
            ..RunSpec::default()
        },
    )?;
    check_outcome(&outcome)?;
    StormNumbers::read(&out.join("summary.json"))
}

fn check_outcome(outcome: &RunOutcome) -> Result<()> {
    if let Some(splat) = outcome.splats.first() {
        bail!("the kernel complained: {splat}");
    }
    match outcome.end {
        RunEnd::Exited(0) => Ok(()),
        _ => bail!(
            "{}: {}",
            outcome.summary(),
            String::from_utf8_lossy(&outcome.stderr)
        ),
    }
}
