//! The demo, scene by scene.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    DemoPrograms,
    cast::{ActorPart, CAST},
    screen::Screen,
    stage::{DemoStage, stop_requested},
    terminal::{Terminal, TerminalRead},
};

/// How long `watch` may take to show what is sure to come. Generous: the machine may be busy.
const VERB_TIMEOUT: Duration = Duration::from_secs(60);

const RECORDING: &str = "demo.dmt";

pub(super) enum DemoOutcome {
    Complete,
    Interrupted,
    /// The machine cannot be traced; what needs no trace was shown.
    Untraceable,
    /// `watch` did not say this.
    Silent(&'static str),
}

/// Shows it all; the leaks are still there at the end.
pub(super) fn show_all(
    programs: &DemoPrograms,
    stage: &mut DemoStage,
    screen: &mut Screen,
    with_exec: bool,
) -> Result<DemoOutcome> {
    print_introduction(stage, screen);
    let show = Show {
        programs,
        filter: own_namespace()?,
    };
    screen.begin_section(
        "watch",
        "watch: each step of each cookie, and what goes wrong",
    );
    let watch = show.start_watch(stage, screen)?;
    if !show_until(&watch, screen, |line| line.starts_with("TIME"))? {
        if stop_requested() {
            return Ok(DemoOutcome::Interrupted);
        }
        drop(watch);
        show.without_trace(stage, screen)?;
        return Ok(DemoOutcome::Untraceable);
    }
    for part in &CAST {
        stage.play_part(part)?;
        if !show_until(&watch, screen, |line| is_about(line, part))? {
            return Ok(if stop_requested() {
                DemoOutcome::Interrupted
            } else {
                DemoOutcome::Silent(part.verdict)
            });
        }
    }
    screen.begin_section("list", "list: what is there, also without a trace");
    show.run_verb(&["list"], stage, screen)?;
    screen.begin_section("report", "report: who leaks");
    show.run_verb(&["report"], stage, screen)?;
    screen.begin_section("explain", "explain: the story of the worst one");
    show.run_verb(&["explain"], stage, screen)?;
    screen.begin_section(
        "clean",
        "clean: what it would remove; nothing without --apply",
    );
    show.run_verb(&["clean", "--older-than", "1s"], stage, screen)?;
    if stop_requested() {
        return Ok(DemoOutcome::Interrupted);
    }
    screen.begin_section(
        "end",
        "watch at Ctrl-C, after the demo has removed its cookies",
    );
    stage.clear_stage();
    watch.interrupt();
    let mut last = Vec::new();
    watch.finish(|line| last.push(line.to_owned()))?;
    // Its sum stands after the last empty line.
    let sum = last.rsplit(String::is_empty).next();
    sum.into_iter()
        .flatten()
        .for_each(|line| screen.print_line(line));
    if with_exec {
        show.run_exec(stage, screen)?;
    }
    if stop_requested() {
        return Ok(DemoOutcome::Interrupted);
    }
    screen.print_note("\nYour machine, until Ctrl-C:  cargo xtask run -- watch");
    screen.print_note("What it has now:             cargo xtask run -- list");
    Ok(DemoOutcome::Complete)
}

fn print_introduction(stage: &DemoStage, screen: &Screen) {
    screen.print_note(if stage.is_private() {
        "Cookies on real semaphores, in an IPC namespace that ends with this demo:"
    } else {
        "Cookies on real semaphores, which are removed at the end of this demo:"
    });
    for part in &CAST {
        screen.print_note(&format!("  {}", part.about));
    }
}

/// What is the same for all verbs.
struct Show<'a> {
    programs: &'a DemoPrograms,
    filter: String,
}

impl Show<'_> {
    fn verb_command(&self, arguments: &[&str], stage: &DemoStage, screen: &Screen) -> Command {
        let mut command = Command::new(&self.programs.dmtrace);
        command.args(arguments).current_dir(stage.folder());
        if screen.is_for_docs() {
            command.env("TZ", "UTC");
        }
        if !screen.colors() {
            command.env("NO_COLOR", "1");
        }
        command
    }

    /// A verb on the cookies of the demo, as a person would type it.
    fn of_ours<'b>(&'b self, arguments: &[&'b str], screen: &mut Screen) -> Vec<&'b str> {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--ipc-ns", &self.filter]);
        screen.print_line(&format!("$ dmtrace {}", arguments.join(" ")));
        arguments
    }

    fn start_watch(&self, stage: &DemoStage, screen: &mut Screen) -> Result<Terminal> {
        let arguments = self.of_ours(&["watch", "--record", RECORDING], screen);
        let command = self.verb_command(&arguments, stage, screen);
        Terminal::start(command, screen.columns())
    }

    fn run_verb(&self, arguments: &[&str], stage: &DemoStage, screen: &mut Screen) -> Result<()> {
        if stop_requested() {
            return Ok(());
        }
        let arguments = self.of_ours(arguments, screen);
        let command = self.verb_command(&arguments, stage, screen);
        Terminal::start(command, screen.columns())?
            .finish(|line| screen.print_line(line))
            .map(drop)
    }

    /// A leak check of a command that leaks.
    fn run_exec(&self, stage: &mut DemoStage, screen: &mut Screen) -> Result<()> {
        screen.begin_section("exec", "exec: a leak check for one command");
        let command = "cookie-actor cycle --stop-at after-inc";
        let arguments = ["exec", "--grace", "0s", "--"];
        let mut command = {
            let words = command.split(' ').collect::<Vec<_>>();
            let arguments = [&arguments[..], &words].concat();
            screen.print_line(&format!("$ dmtrace {}", arguments.join(" ")));
            self.verb_command(&arguments, stage, screen)
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [stage.folder().to_owned()];
        let paths = paths.into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(paths).context("PATH")?);
        Terminal::start(command, screen.columns())?
            .finish(|line| {
                // What the command itself says is no part of the sample.
                if line.starts_with('{') {
                    stage.note_set(line);
                } else {
                    screen.print_line(line);
                }
            })
            .map(drop)
    }

    /// What is left on a machine that cannot be traced.
    fn without_trace(&self, stage: &mut DemoStage, screen: &mut Screen) -> Result<()> {
        screen.print_note(
            "\nThis machine cannot be traced, see above. Without a trace dmtrace still shows",
        );
        screen.print_note("which cookies are there, not who made them:");
        for part in &CAST {
            if !stop_requested() {
                stage.play_part(part)?;
            }
        }
        screen.begin_section("list", "list");
        self.run_verb(&["list"], stage, screen)?;
        screen.begin_section("report", "report");
        self.run_verb(&["report"], stage, screen)?;
        screen.print_note("\nWhat is missing, and how to get it:  cargo xtask run -- doctor");
        Ok(())
    }
}

/// Shows lines up to one of these; whether it came.
fn show_until(
    watch: &Terminal,
    screen: &mut Screen,
    wanted: impl Fn(&str) -> bool,
) -> Result<bool> {
    let deadline = Instant::now() + VERB_TIMEOUT;
    let mut came = false;
    while !stop_requested() && Instant::now() < deadline {
        match watch.next_line() {
            TerminalRead::Line(line) => {
                screen.print_line(&line);
                came |= wanted(&line);
            }
            // What belongs to it stands in the lines below.
            TerminalRead::Nothing if came => return Ok(true),
            TerminalRead::Nothing => {}
            TerminalRead::End => return Ok(false),
        }
    }
    Ok(came)
}

/// Whether a line of `watch` has the verdict of a part near its beginning, in colour or not.
fn is_about(line: &str, part: &ActorPart) -> bool {
    let mut words = line.split_whitespace().take(4);
    words.any(|word| word.contains(part.verdict))
}

/// The number of the IPC namespace of this process.
pub(super) fn own_namespace() -> Result<String> {
    let path = "/proc/self/ns/ipc";
    let link = fs::read_link(path).context(path)?;
    let link = link.to_string_lossy();
    let number = link.trim_start_matches("ipc:[").trim_end_matches(']');
    Ok(number.to_owned())
}
