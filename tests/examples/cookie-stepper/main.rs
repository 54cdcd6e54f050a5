//! Stops a program at every system call, and asks dmtrace's search each time whether somebody has
//! the numbers of its cookies. Whoever is missed there would lose a cookie that they need.
//!
//! An example, not a program of the package: it uses the search of the library, not the binary.

mod moments;
mod tracees;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use dmtrace_core::ids::Key;

use moments::Watch;
use tracees::{Call, Stop, Tracees};

/// Prints one JSON line: moments, where the number was, which rule covers the others, and the misses.
#[derive(Parser)]
struct Args {
    /// Look at one stop of so many
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// Look at so many moments at most; then the program is let go on
    #[arg(long, default_value_t = u64::MAX)]
    moments: u64,
    /// Where the program may write numbers into files
    #[arg(long, default_value = "/var/tmp")]
    files: PathBuf,
    /// The program, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match step_through(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cookie-stepper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn step_through(args: &Args) -> Result<()> {
    let mut watch = Watch::new(args.files.clone(), args.every);
    let program = args.command.join(" ");
    let mut tracees = Tracees::spawn(&args.command).with_context(|| program.clone())?;
    let mut stops = 0_u64;
    while let Some((task, stop)) = tracees.next_stop()? {
        stops += 1;
        // Who is about to make or remove a cookie: the call is over, and nobody else goes on.
        if let Stop::Exit { call, result } = stop {
            note_call(&mut watch, task, call, result)?;
        }
        if watch.moments.looked_at < args.moments {
            let moment = describe_stop(task, stop);
            watch.look(&tracees.processes(), &moment)?;
        }
    }
    let mut line = watch.moments.to_json();
    line["program"] = program.into();
    line["stops"] = stops.into();
    line["code"] = tracees.code.into();
    line["left"] = watch.live_count().into();
    println!("{line}");
    Ok(())
}

/// What a call did to the cookies.
fn note_call(watch: &mut Watch, task: i32, call: Call, result: i64) -> Result<()> {
    const SEMGET: u64 = libc::SYS_semget.cast_unsigned();
    const SEMCTL: u64 = libc::SYS_semctl.cast_unsigned();
    // With `IPC_64`, or without.
    const COMMAND: u64 = 0xff;
    let creates = call.args[2] & u64::from(libc::IPC_CREAT.cast_unsigned()) != 0;
    let removes = call.args[2] & COMMAND == u64::from(libc::IPC_RMID.cast_unsigned());
    match call.number {
        SEMGET if creates && result >= 0 => {
            let key = Key(u32::try_from(call.args[0] & u64::from(u32::MAX))?);
            watch.note_made(task, key, i32::try_from(result)?)
        }
        SEMCTL if removes && result == 0 => watch.note_removed(
            task,
            u32::try_from(call.args[0] & u64::from(u32::MAX))?.cast_signed(),
        ),
        _ => Ok(()),
    }
}

fn describe_stop(task: i32, stop: Stop) -> String {
    let comm = fs::read_to_string(format!("/proc/{task}/comm")).unwrap_or_default();
    let what = match stop {
        Stop::Entry(number) => format!("entry of call {number}"),
        Stop::Exit { call, result } => format!("exit of call {} with {result}", call.number),
        Stop::Event => "start of a program or process".to_owned(),
        Stop::Ended => "end of a thread".to_owned(),
    };
    format!("{}[{task}] at the {what}", comm.trim())
}
