//! `cargo xtask`: build, run, test and measure dmtrace. One file per task.

use anyhow::Result;
use clap::Parser;

/// Build, run, test and measure dmtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {}

fn main() -> Result<()> {
    match Task::parse() {}
}
