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
mod search;
mod size;
mod start;
mod stat;
mod store;
mod table;
mod target;
mod tracefs;
mod tracer;
mod usage;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;

use self::{part::BenchPart, programs::BenchPrograms};
use crate::host;

/// Measure what dmtrace costs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; repeatable; all if not given
    #[arg(long = "part", value_enum, value_delimiter = ',')]
    parts: Vec<BenchPart>,
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
    let parts: Vec<BenchPart> = BenchPart::value_variants()
        .iter()
        .copied()
        .filter(|part| all || args.parts.contains(part))
        .collect();
    let needs_root =
        |part: &BenchPart| !matches!(part, BenchPart::Report | BenchPart::Size | BenchPart::Vm);
    ensure!(
        host::is_root() || !parts.iter().any(needs_root),
        "bench: tracing needs root; as another user: --part report,size,vm"
    );
    let programs = BenchPrograms::build(&parts)?;
    let store = store::ResultStore::open()?;
    let calls: Vec<BenchPart> = BenchPart::CALLS
        .into_iter()
        .filter(|part| parts.contains(part))
        .collect();
    if parts.iter().any(needs_root) {
        tracefs::mount_privately()?;
    }
    if !calls.is_empty() {
        for (part, data) in calls::measure_calls(&programs, &calls, args.rounds, args.millis)? {
            store.keep_result(part, &data)?;
            print!("{}", table::calls_table(part, &data));
        }
    }
    for part in parts {
        let data = match part {
            BenchPart::Pipeline => pipeline::measure_pipeline(&programs)?,
            BenchPart::Memory => memory::measure_memory(&programs)?,
            BenchPart::List => report::measure_list(&programs, args.rounds)?,
            BenchPart::Report => report::measure_report(&programs, args.events)?,
            BenchPart::Search => search::measure_search(&programs, args.rounds)?,
            BenchPart::Startup => start::measure_start(&programs, args.rounds)?,
            BenchPart::Size => size::measure_size(&programs)?,
            BenchPart::Vm => vm::measure_guests(&programs, &args.kernels)?,
            _ => continue,
        };
        store.keep_result(part, &data)?;
        print!("{}", table::other_tables(part, &data));
    }
    print!("{}", target::targets_text(&target::judge_targets(&store)));
    if args.write_docs {
        docs::write_tables(&store)?;
    }
    Ok(ExitCode::SUCCESS)
}
