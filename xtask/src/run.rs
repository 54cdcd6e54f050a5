//! Builds dmtrace and becomes it, so that Ctrl-C and exit codes are its own.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Profile},
    host, setup,
};

/// Verbs that read or change what only root may.
const PRIVILEGED: [&str; 8] = [
    "watch", "exec", "record", "report", "explain", "clean", "serve", "doctor",
];

/// Of these, those that need nothing but a recording, if they are given one.
const READS_RECORDING: [&str; 2] = ["report", "explain"];

/// `cargo xtask run`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the debug build
    #[arg(long)]
    debug: bool,
    /// What dmtrace is to do, such as `watch`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Returns only with an error.
///
/// # Errors
/// The build fails, or the program cannot be started.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::ensure_setup()?;
    let program = build::build_binary("dmtrace", "dmtrace", Profile::from_debug(args.debug))?;
    let mut command = if host::is_root() {
        Command::new(&program)
    } else {
        match privileged_verb(&args.arguments) {
            Some(verb) => sudo_command(&program, verb)?,
            None => Command::new(&program),
        }
    };
    let error = command.args(&args.arguments).exec();
    Err(error).with_context(|| format!("{}: cannot be started", program.display()))
}

/// The verb, if it needs root; `--help` does not.
fn privileged_verb(arguments: &[OsString]) -> Option<&'static str> {
    let own = || arguments.iter().take_while(|argument| *argument != "--");
    if own().any(|argument| argument == "--help" || argument == "-h") {
        return None;
    }
    let verb = own().find(|argument| !argument.to_string_lossy().starts_with('-'))?;
    let known = PRIVILEGED
        .into_iter()
        .find(|name| OsStr::new(name) == verb)?;
    let is_given_file = || own().any(|argument| Path::new(argument).is_file());
    (!READS_RECORDING.contains(&known) || !is_given_file()).then_some(known)
}

fn sudo_command(program: &Path, verb: &str) -> Result<Command> {
    if !host::has_program("sudo") {
        bail!(
            "{verb}: needs root and there is no sudo; as root run: {} {verb}",
            program.display()
        );
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_verb(line: &str) -> Option<&'static str> {
        let arguments: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        privileged_verb(&arguments)
    }

    #[test]
    fn verbs_that_read_the_kernel_or_destroy_need_root() {
        assert_eq!(parse_verb("--json watch --pid 3"), Some("watch"));
        assert_eq!(parse_verb("exec -- make -h"), Some("exec"));
        assert_eq!(parse_verb("list"), None);
        assert_eq!(parse_verb("list watch"), None);
        assert_eq!(parse_verb("report"), Some("report"));
        assert_eq!(parse_verb("explain 0x0d4d1234 Cargo.toml"), None);
        assert_eq!(parse_verb("watch --help"), None);
        assert_eq!(parse_verb(""), None);
    }
}
