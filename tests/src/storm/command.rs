//! A program that is let live, or killed.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// What is to become of a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CommandFate {
    /// It may do its work.
    Live,
    /// SIGKILL after this time, wherever it is then.
    After(Duration),
    /// SIGKILL when it enters its nth call of this name.
    AtCall(&'static str, u32),
}

/// How a program ended.
pub(super) enum CommandEnd {
    /// It has ended well.
    Well,
    /// It was killed as it was to be.
    Killed,
    /// Anything else, and what it said.
    Badly(String),
    /// It was given up.
    Hung,
}

/// A program that takes longer hangs: a guest is slow, but not as slow.
const LONGEST: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(5);

/// Runs a program with its arguments.
pub(super) fn run_command(
    words: &[&str],
    input: &str,
    lvm: &Path,
    fate: CommandFate,
) -> Result<(CommandEnd, Duration)> {
    let mut line = Vec::new();
    if let CommandFate::AtCall(call, nth) = fate {
        let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
        let strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"];
        line.extend(strace.map(str::to_owned));
        line.extend(["-e".to_owned(), format!("trace={call}")]);
        line.extend(["-e".to_owned(), inject]);
    }
    line.extend(words.iter().map(|&word| word.to_owned()));
    let (program, arguments) = line.split_first().context("no program")?;
    // A file, not a pipe: whoever inherits a pipe could keep it open.
    let mut said: File = tempfile::tempfile()?;
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LVM_SYSTEM_DIR", lvm)
        .stdin(stdin)
        .stdout(said.try_clone()?)
        .stderr(Stdio::from(said.try_clone()?))
        .spawn()
        .with_context(|| line.join(" "))?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        let elapsed = began.elapsed();
        if matches!(fate, CommandFate::After(time) if elapsed >= time) {
            child.kill()?;
            break Some(child.wait()?);
        }
        if elapsed > LONGEST {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(TICK);
    };
    let took = began.elapsed();
    Ok((
        classify_end(status, fate, &line, &read_output(&mut said)?),
        took,
    ))
}

/// What a program has said, which need not be text.
pub(super) fn read_output(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn classify_end(
    status: Option<ExitStatus>,
    fate: CommandFate,
    line: &[String],
    text: &str,
) -> CommandEnd {
    match status {
        None => CommandEnd::Hung,
        // The actor goes on then, as libdm does, which takes it for success.
        Some(_) if text.contains("removed-by-another") => {
            CommandEnd::Badly(format!("{}: its cookie was removed", line.join(" ")))
        }
        Some(status) if status.success() => CommandEnd::Well,
        Some(status) if fate != CommandFate::Live && status.signal() == Some(libc::SIGKILL) => {
            CommandEnd::Killed
        }
        Some(status) => CommandEnd::Badly(format!("{}: {status}: {text}", line.join(" "))),
    }
}
