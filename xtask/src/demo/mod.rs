//! The whole in one terminal and a few seconds: makes good and bad cookies on real semaphores,
//! without device-mapper, and shows what dmtrace says about them; with `--broken` a host on which
//! it has happened already. What it prints is what the README prints: `--write-docs` writes it
//! there, `--check-docs` compares.

mod broken;
mod cast;
mod docs;
mod relay;
mod screen;
mod shadow;
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
use broken::BrokenOutcome;
use docs::ReadmeSamples;
use screen::{Screen, Width};
use show::DemoOutcome;
use stage::DemoStage;

/// As dmtrace's own: environment or privilege.
const ENVIRONMENT: u8 = 3;
/// As dmtrace's own: incomplete data.
const INCOMPLETE: u8 = 4;
/// As a shell says it of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// `cargo xtask demo`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A host whose semaphores are used up and that nobody traced, and the three commands that end
    /// that: takes two minutes, as root. Exit code 4: dmtrace keeps leaks on this machine, and says why
    #[arg(long)]
    broken: bool,
    /// Write what is printed into the samples of README.md
    #[arg(long)]
    write_docs: bool,
    /// Fail unless it is what README.md prints
    #[arg(long, conflicts_with = "write_docs")]
    check_docs: bool,
    /// Another README.md
    #[arg(long, hide = true)]
    readme: Option<PathBuf>,
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
        (args.broken, "--broken"),
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
    if args.broken {
        return play_broken(programs, args, &mut screen);
    }
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
            return Ok(ExitCode::from(INTERRUPTED));
        }
        DemoOutcome::Untraceable => {
            if for_docs {
                bail!("README.md: needs a machine that can be traced; see the message above");
            }
            return Ok(ExitCode::from(ENVIRONMENT));
        }
        DemoOutcome::Silent(what) => bail!("dmtrace watch: did not show {what}; run it again"),
    }
    finish_docs(args, &screen, "demo")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes or compares the samples after such marks.
fn finish_docs(args: &Args, screen: &Screen, mark: &'static str) -> Result<()> {
    let readme = args.readme.clone();
    let path = readme.unwrap_or_else(|| host::workspace_root().join("README.md"));
    let samples = ReadmeSamples { path, mark };
    if args.write_docs {
        samples.write(screen)
    } else if args.check_docs {
        samples.check(screen)
    } else {
        Ok(())
    }
}

fn play_broken(programs: &DemoPrograms, args: &Args, screen: &mut Screen) -> Result<ExitCode> {
    let Some(stage) = DemoStage::enter_apart(programs)? else {
        screen.print_note(
            "demo --broken: needs an IPC namespace of its own, so that nothing of this",
        );
        screen.print_note("machine is touched; run it as root, outside of containers");
        return Ok(ExitCode::from(ENVIRONMENT));
    };
    match broken::play_broken(programs, &stage, screen)? {
        BrokenOutcome::Mended => {
            finish_docs(args, screen, "broken")?;
            Ok(ExitCode::SUCCESS)
        }
        BrokenOutcome::Kept(left) => {
            screen.print_note(&format!(
                "\nkept: {left}, because something about this machine leaves a doubt; clean says"
            ));
            screen.print_note(
                "above what, and what lifts it. On a host where root can read every process and",
            );
            screen.print_note(
                "whose clock was not set, they go. The demo ends, and they end with it.",
            );
            Ok(ExitCode::from(INCOMPLETE))
        }
        BrokenOutcome::Interrupted => {
            screen.print_note("\nStopped; what it had made ends with it.");
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}
