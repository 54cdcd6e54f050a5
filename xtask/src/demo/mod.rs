//! The whole in one terminal and a few seconds: makes good and bad cookies on real semaphores,
//! without device-mapper, and shows what dmtrace says about them. What it prints is what the
//! README prints: `--write-docs` writes it there, `--check-docs` compares.

mod cast;
mod docs;
mod screen;
mod show;
mod stage;
mod terminal;

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Profile},
    host, setup,
};
use screen::{Screen, Width};
use show::DemoOutcome;
use stage::DemoStage;

/// As dmtrace's own: environment or privilege.
const ENVIRONMENT: u8 = 3;

/// `cargo xtask demo`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write what is printed into the samples of README.md
    #[arg(long)]
    write_docs: bool,
    /// Fail unless it is what README.md prints
    #[arg(long, conflicts_with = "write_docs")]
    check_docs: bool,
    /// A built dmtrace: set for the half that runs as root, and by tests
    #[arg(long, hide = true, requires = "actor")]
    program: Option<PathBuf>,
    /// A built cookie-actor, with it
    #[arg(long, hide = true, requires = "program")]
    actor: Option<PathBuf>,
}

/// What the demo runs.
struct DemoPrograms {
    dmtrace: PathBuf,
    actor: PathBuf,
}

/// Builds, becomes root if that is possible, and plays.
///
/// # Errors
/// A build fails, a program cannot be started, or the README says something else.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if let (Some(dmtrace), Some(actor)) = (&args.program, &args.actor) {
        let programs = DemoPrograms {
            dmtrace: dmtrace.clone(),
            actor: actor.clone(),
        };
        return play_demo(&programs, args);
    }
    setup::ensure_setup()?;
    eprintln!("demo: building dmtrace, which takes minutes the first time");
    let programs = DemoPrograms {
        dmtrace: build::build_binary("dmtrace", "dmtrace", Profile::Release)?,
        actor: build::build_binary("dmtrace-tests", "cookie-actor", Profile::Release)?,
    };
    if host::is_root() || !host::has_program("sudo") {
        return play_demo(&programs, args);
    }
    let mut command = Command::new("sudo");
    command
        .arg("--")
        .arg(std::env::current_exe().context("the path of xtask: unreadable")?)
        .args([OsStr::new("demo"), OsStr::new("--program")])
        .arg(programs.dmtrace)
        .arg("--actor")
        .arg(programs.actor);
    for (asked, option) in [
        (args.write_docs, "--write-docs"),
        (args.check_docs, "--check-docs"),
    ] {
        if asked {
            command.arg(option);
        }
    }
    Err(command.exec()).context("sudo: cannot be started")
}

fn play_demo(programs: &DemoPrograms, args: &Args) -> Result<ExitCode> {
    stage::stop_on_signals();
    let for_docs = args.write_docs || args.check_docs;
    let mut screen = Screen::new(if for_docs { Width::Docs } else { Width::Own });
    let mut stage = DemoStage::enter(programs)?;
    let shown = show::show_all(programs, &mut stage, &mut screen, for_docs);
    // On each way out, also after an error and Ctrl-C.
    let left = stage.clear_stage();
    let outcome = shown?;
    if !left.is_empty() {
        bail!(
            "semid {}: not removed; run: ipcrm -s {}",
            left.join(", "),
            left.join(" -s ")
        );
    }
    match outcome {
        DemoOutcome::Complete => {}
        DemoOutcome::Interrupted => {
            screen.print_note("\nStopped; what it had made is removed.");
            return Ok(ExitCode::from(130));
        }
        DemoOutcome::Untraceable => {
            if for_docs {
                bail!("README.md: needs a machine that can be traced; see the message above");
            }
            return Ok(ExitCode::from(ENVIRONMENT));
        }
        DemoOutcome::Silent(what) => bail!("dmtrace watch: did not show {what}; run it again"),
    }
    if args.write_docs {
        docs::write_samples(&screen)?;
    } else if args.check_docs {
        docs::check_samples(&screen)?;
    }
    Ok(ExitCode::SUCCESS)
}
