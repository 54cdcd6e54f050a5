//! Real operations of device-mapper's users, some of them killed, and a cleaner in a tight loop.
//! `tests/vm/storm.sh` prepares a virtual machine for it.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use dmtrace_tests::storm::{Cleaner, Storm, run_storm};

/// Makes and removes devices, kills some of those who do, and lets a cleaner work meanwhile.
#[derive(Parser)]
struct Args {
    /// How long operations are begun
    #[arg(long)]
    seconds: u64,
    /// Who cleans meanwhile
    #[arg(long, value_enum)]
    cleaner: Cleaner,
    /// What the random choices begin with
    #[arg(long)]
    seed: u64,
    /// A worker's directory, with lvm.conf and disk; repeatable
    #[arg(long = "place", required = true)]
    places: Vec<PathBuf>,
    /// Where to write
    #[arg(long, default_value = "/out")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run_with_args(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cookie-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_with_args(args: Args) -> anyhow::Result<()> {
    let plan = Storm {
        time: Duration::from_secs(args.seconds),
        cleaner: args.cleaner,
        seed: args.seed,
        places: args.places,
        out: args.out,
    };
    let summary = run_storm(&plan)?.to_json();
    let path = plan.out.join("summary.json");
    fs::write(&path, format!("{summary:#}\n")).with_context(|| path.display().to_string())
}
