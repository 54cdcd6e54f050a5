//! `cargo xtask`: build, run, test and measure dmtrace. One file per task.

mod bench;
mod build;
mod demo;
mod docs;
mod guests;
mod host;
mod linker;
mod lint;
mod run;
mod scenario;
mod setup;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Build, run, test and measure dmtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what a build needs: parts of the Rust toolchain, bpf-linker, a C linker
    Setup,
    /// Build dmtrace
    Build(build::Args),
    /// Build dmtrace and run it, as root where it needs that
    Run(run::Args),
    /// Run the tests of all tiers
    Test(test::Args),
    /// Formatting, clippy on both sides, the rules of the house
    Lint,
    /// Show the whole in one terminal: good and bad cookies, and what dmtrace says of them
    Demo(demo::Args),
    Bench(bench::Args),
    Vm(vm::Args),
    Storm(scenario::storm::Args),
    Stepper(scenario::stepper::Args),
}

fn main() -> ExitCode {
    match run_task(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::ensure_setup()?,
        Task::Build(args) => build::main(&args)?,
        Task::Run(args) => return run::main(&args),
        Task::Test(args) => return test::main(&args),
        Task::Lint => return lint::main(),
        Task::Demo(args) => return demo::main(&args),
        Task::Bench(args) => return bench::main(&args),
        Task::Vm(args) => vm::main(&args),
        Task::Storm(args) => return scenario::storm::main(&args),
        Task::Stepper(args) => return scenario::stepper::main(&args),
    }
    Ok(ExitCode::SUCCESS)
}
