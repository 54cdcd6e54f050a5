//! Load for `cargo xtask bench`: calls in a loop with their cost, cookies at a given rate, and
//! semaphores that are only there. Works in an IPC namespace of its own, which takes what is left
//! with it.

use std::{
    io::{self, BufRead as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use dmtrace_tests::load::{self, Amount, LoadCall};
use serde_json::json;

/// Calls in a loop, cookies at a rate, semaphores that are only there.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print what calls cost, a JSON line each
    Calls {
        /// Which; all if not given
        #[arg(long, value_enum, value_delimiter = ',')]
        of: Vec<LoadCall>,
        /// Time for each, in milliseconds
        #[arg(long, default_value_t = 100)]
        millis: u64,
        /// So many calls of each in place of a time
        #[arg(long)]
        count: Option<u64>,
        /// Batches of which the median is taken
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        batches: u32,
        /// Processor to stay on
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// Print the nanoseconds that a million instructions take
    Calibrate,
    /// Make, use and remove cookies
    Cookies {
        /// Operations a second of all threads; as many as possible if not given
        #[arg(long)]
        rate: Option<u64>,
        /// For how long
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Threads
        #[arg(long, default_value_t = 1)]
        threads: u32,
        /// Cookies that are made at the beginning, and stay until standard input ends
        #[arg(long, default_value_t = 0)]
        leave: u32,
    },
    /// Make semaphores, print a line, and remove them when standard input ends
    Hold {
        /// How many
        #[arg(long)]
        count: u32,
        /// No cookies, but private sets
        #[arg(long)]
        plain: bool,
    },
    /// Fill memory with random bytes and the number of a cookie behind them, print where it is, and
    /// keep it until standard input ends
    Fill {
        /// How much, in MiB
        #[arg(long)]
        mib: u32,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    load::own_namespace().context("IPC namespace: run as root")?;
    match args.what {
        What::Calls {
            of,
            millis,
            count,
            batches,
            cpu,
        } => {
            if let Some(cpu) = cpu {
                load::stay_on(cpu).with_context(|| format!("processor {cpu}"))?;
            }
            let amount = count.map_or(Amount::Time(Duration::from_millis(millis)), Amount::Calls);
            let all = LoadCall::ALL.to_vec();
            for call in if of.is_empty() { all } else { of } {
                let cost = load::measure_call(call, amount, batches)?;
                say(&json!({
                    "call": call.name(),
                    "calls": cost.calls,
                    "cpu_ns": cost.cpu_ns,
                    "wall_ns": cost.wall_ns,
                }))?;
            }
        }
        What::Calibrate => say(&json!({ "million_ns": load::calibrate_clock()? }))?,
        What::Cookies {
            rate,
            seconds,
            threads,
            leave,
        } => {
            let held = load::hold_sets(leave, false)?;
            let done = load::play_cookies(rate, Duration::from_secs(seconds), threads)?;
            say(&json!({
                "operations": done.operations,
                "seconds": done.time.as_secs_f64(),
            }))?;
            if leave > 0 {
                until_eof();
            }
            load::release_sets(&held)?;
        }
        What::Hold { count, plain } => {
            let held = load::hold_sets(count, plain)?;
            say(&json!({ "held": held.len() }))?;
            until_eof();
            load::release_sets(&held)?;
        }
        What::Fill { mib } => {
            let filled = load::fill_memory(mib)?;
            let bytes = filled.len() * size_of::<u64>();
            say(&json!({ "address": filled.as_ptr().addr(), "bytes": bytes }))?;
            until_eof();
            std::hint::black_box(filled);
        }
    }
    Ok(())
}

fn say(line: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn until_eof() {
    for _line in io::stdin().lock().lines() {}
}
