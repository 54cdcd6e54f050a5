//! The demo, scene by scene.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Programs,
    cast::{CAST, Part},
    screen::Screen,
    stage::{Stage, stopped},
    terminal::{Heard, Terminal},
};

/// How long `watch` may take to show what is sure to come. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

const RECORDING: &str = "demo.dmt";

pub(super) enum Outcome {
    Complete,
    Interrupted,
    /// The machine cannot be traced; what needs no trace was shown.
    Untraceable,
    /// `watch` did not say this.
    Silent(&'static str),
}

/// Shows it all; the leaks are still there at the end.
pub(super) fn all(
    programs: &Programs,
    stage: &mut Stage,
    screen: &mut Screen,
    with_exec: bool,
) -> Result<Outcome> {
    introduce(stage, screen);
    let show = Show {
        programs,
        filter: own_namespace()?,
    };
    screen.section(
        "watch",
        "watch: each step of each cookie, and what goes wrong",
    );
    let watch = show.watch(stage, screen)?;
    if !until(&watch, screen, |line| line.starts_with("TIME"))? {
        if stopped() {
            return Ok(Outcome::Interrupted);
        }
        drop(watch);
        show.without_trace(stage, screen)?;
        return Ok(Outcome::Untraceable);
    }
    for part in &CAST {
        stage.play(part)?;
        if !until(&watch, screen, |line| is_about(line, part))? {
            return Ok(if stopped() {
                Outcome::Interrupted
            } else {
                Outcome::Silent(part.verdict)
            });
        }
    }
    screen.section("list", "list: what is there, also without a trace");
    show.run(&["list"], stage, screen)?;
    screen.section("report", "report: who leaks");
    show.run(&["report"], stage, screen)?;
    screen.section("explain", "explain: the story of the worst one");
    show.run(&["explain"], stage, screen)?;
    screen.section(
        "clean",
        "clean: what it would remove; nothing without --apply",
    );
    show.run(&["clean", "--older-than", "1s"], stage, screen)?;
    if stopped() {
        return Ok(Outcome::Interrupted);
    }
    screen.section(
        "end",
        "watch at Ctrl-C, after the demo has removed its cookies",
    );
    stage.clear();
    watch.interrupt();
    let mut last = Vec::new();
    watch.finish(|line| last.push(line.to_owned()))?;
    // Its sum stands after the last empty line.
    let sum = last.rsplit(String::is_empty).next();
    sum.into_iter().flatten().for_each(|line| screen.line(line));
    if with_exec {
        show.exec(stage, screen)?;
    }
    if stopped() {
        return Ok(Outcome::Interrupted);
    }
    screen.say("\nYour machine, until Ctrl-C:  cargo xtask run -- watch");
    screen.say("What it has now:             cargo xtask run -- list");
    Ok(Outcome::Complete)
}

fn introduce(stage: &Stage, screen: &Screen) {
    screen.say(if stage.is_private() {
        "Cookies on real semaphores, in an IPC namespace that ends with this demo:"
    } else {
        "Cookies on real semaphores, which are removed at the end of this demo:"
    });
    for part in &CAST {
        screen.say(&format!("  {}", part.about));
    }
}

/// What is the same for all verbs.
struct Show<'a> {
    programs: &'a Programs,
    filter: String,
}

impl Show<'_> {
    fn command(&self, arguments: &[&str], stage: &Stage, screen: &Screen) -> Command {
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
        screen.line(&format!("$ dmtrace {}", arguments.join(" ")));
        arguments
    }

    fn watch(&self, stage: &Stage, screen: &mut Screen) -> Result<Terminal> {
        let arguments = self.of_ours(&["watch", "--record", RECORDING], screen);
        let command = self.command(&arguments, stage, screen);
        Terminal::start(command, screen.columns())
    }

    fn run(&self, arguments: &[&str], stage: &Stage, screen: &mut Screen) -> Result<()> {
        if stopped() {
            return Ok(());
        }
        let arguments = self.of_ours(arguments, screen);
        let command = self.command(&arguments, stage, screen);
        Terminal::start(command, screen.columns())?
            .finish(|line| screen.line(line))
            .map(drop)
    }

    /// A leak check of a command that leaks.
    fn exec(&self, stage: &mut Stage, screen: &mut Screen) -> Result<()> {
        screen.section("exec", "exec: a leak check for one command");
        let command = "cookie-actor cycle --stop-at after-inc";
        let arguments = ["exec", "--grace", "0s", "--"];
        let mut command = {
            let words = command.split(' ').collect::<Vec<_>>();
            let arguments = [&arguments[..], &words].concat();
            screen.line(&format!("$ dmtrace {}", arguments.join(" ")));
            self.command(&arguments, stage, screen)
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [stage.folder().to_owned()];
        let paths = paths.into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(paths).context("PATH")?);
        Terminal::start(command, screen.columns())?
            .finish(|line| {
                // What the command itself says is no part of the sample.
                if line.starts_with('{') {
                    stage.note(line);
                } else {
                    screen.line(line);
                }
            })
            .map(drop)
    }

    /// What is left on a machine that cannot be traced.
    fn without_trace(&self, stage: &mut Stage, screen: &mut Screen) -> Result<()> {
        screen
            .say("\nThis machine cannot be traced, see above. Without a trace dmtrace still shows");
        screen.say("which cookies are there, not who made them:");
        for part in &CAST {
            if !stopped() {
                stage.play(part)?;
            }
        }
        screen.section("list", "list");
        self.run(&["list"], stage, screen)?;
        screen.section("report", "report");
        self.run(&["report"], stage, screen)?;
        screen.say("\nWhat is missing, and how to get it:  cargo xtask run -- doctor");
        Ok(())
    }
}

/// Shows lines up to one of these; whether it came.
fn until(watch: &Terminal, screen: &mut Screen, wanted: impl Fn(&str) -> bool) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let mut came = false;
    while !stopped() && Instant::now() < deadline {
        match watch.next() {
            Heard::Line(line) => {
                screen.line(&line);
                came |= wanted(&line);
            }
            // What belongs to it stands in the lines below.
            Heard::Nothing if came => return Ok(true),
            Heard::Nothing => {}
            Heard::End => return Ok(false),
        }
    }
    Ok(came)
}

/// Whether a line of `watch` has the verdict of a part near its beginning, in colour or not.
fn is_about(line: &str, part: &Part) -> bool {
    let mut words = line.split_whitespace().take(4);
    words.any(|word| word.contains(part.verdict))
}

/// The number of the IPC namespace of this process.
fn own_namespace() -> Result<String> {
    let path = "/proc/self/ns/ipc";
    let link = fs::read_link(path).context(path)?;
    let link = link.to_string_lossy();
    let number = link.trim_start_matches("ipc:[").trim_end_matches(']');
    Ok(number.to_owned())
}
