//! `cargo xtask`: build, run, test and measure dmtrace. One file per task.

mod vm;

use anyhow::Result;
use clap::Parser;

/// Build, run, test and measure dmtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    Vm(vm::Args),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Vm(args) => vm::main(&args),
    }
}
