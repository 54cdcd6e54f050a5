//! `cargo xtask bench`: what dmtrace costs, in one run, interleaved and paired.
//!
//! Each part keeps its results in `target/bench`; `--write-docs` makes `docs/overhead.md` of the
//! last ones of the same dmtrace.

mod calls;
mod docs;
mod memory;
mod part;
mod pipeline;
mod programs;
mod report;
mod size;
mod start;
mod stat;
mod store;
mod table;
mod target;
mod tracer;
mod usage;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;

use self::{part::Part, programs::Programs};
use crate::host;

/// Measure what dmtrace costs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; repeatable; all if not given
    #[arg(long = "part", value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Rounds, in each of which everything is measured once in a random order
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Time for each kind of call in each round, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(5..=60_000))]
    millis: u64,
    /// Events in the recording that `report` reads
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    events: u64,
    /// Kernels of the part `vm`, as for `cargo xtask vm`; repeatable
    #[arg(
        long = "kernel",
        value_name = "KERNEL",
        value_delimiter = ',',
        default_values = ["5.10", "6.12"]
    )]
    kernels: Vec<String>,
    /// Write docs/overhead.md, with former results of the same dmtrace for what was not measured
    /// now
    #[arg(long)]
    write_docs: bool,
}

/// Carries out the command line.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let all = args.parts.is_empty();
    let parts: Vec<Part> = Part::value_variants()
        .iter()
        .copied()
        .filter(|part| all || args.parts.contains(part))
        .collect();
    let needs_root = |part: &Part| !matches!(part, Part::Report | Part::Size | Part::Vm);
    ensure!(
        host::is_root() || !parts.iter().any(needs_root),
        "bench: tracing needs root; as another user: --part report,size,vm"
    );
    let programs = Programs::build(&parts)?;
    let store = store::Store::open()?;
    let calls: Vec<Part> = Part::CALLS
        .into_iter()
        .filter(|part| parts.contains(part))
        .collect();
    if !calls.is_empty() {
        for (part, data) in calls::measure(&programs, &calls, args.rounds, args.millis)? {
            store.keep(part, &data)?;
            print!("{}", table::calls(part, &data));
        }
    }
    for part in parts {
        let data = match part {
            Part::Pipeline => pipeline::measure(&programs)?,
            Part::Memory => memory::measure(&programs)?,
            Part::List => report::list(&programs, args.rounds)?,
            Part::Report => report::report(&programs, args.events)?,
            Part::Startup => start::measure(&programs, args.rounds)?,
            Part::Size => size::measure(&programs)?,
            Part::Vm => vm::measure(&programs, &args.kernels)?,
            _ => continue,
        };
        store.keep(part, &data)?;
        print!("{}", table::other(part, &data));
    }
    print!("{}", target::text(&target::judge(&store)));
    if args.write_docs {
        docs::write(&store)?;
    }
    Ok(ExitCode::SUCCESS)
}
