//! The machine and the folder that a task works on.

use std::{
    env, fs,
    io::IsTerminal,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_owned)
}

/// Where cargo builds: two levels above this program, however that was configured.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("the path of xtask: unreadable")?;
    let dir = exe.ancestors().nth(2);
    Ok(dir.context("xtask: not in a target directory")?.to_owned())
}

/// cargo, in the root of the workspace.
pub(crate) fn cargo_command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).stdin(Stdio::null());
    command
}

/// Keeps cargo silent unless somebody watches: what it says is not what the task was asked for.
pub(crate) fn quiet_unless_terminal(command: &mut Command) {
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
}

/// Runs a command that reports its own errors on stderr.
pub(crate) fn check_command(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: cannot run {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{what}: failed ({status}); see the messages above");
    }
    Ok(())
}

/// What a command prints, if it succeeds.
pub(crate) fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(workspace_root())
        .stdin(Stdio::null());
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Whether `PATH` has a program.
pub(crate) fn has_program(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
