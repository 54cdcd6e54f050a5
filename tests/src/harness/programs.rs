//! Where the programs under test are.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, ensure};

/// The binary `dmtrace`: `DMTRACE_BIN`, or the one of this build, which is made if it is missing.
/// cargo does not rebuild it for these tests: run `cargo build` after changes.
///
/// # Errors
/// It cannot be built.
pub fn dmtrace_bin() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    find_program("DMTRACE_BIN", "dmtrace", &["-p", "dmtrace"], &BUILT)
}

/// The binary `cookie-actor`; `COOKIE_ACTOR_BIN` overrides.
///
/// # Errors
/// It cannot be built.
pub fn actor_bin() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let args = ["-p", "dmtrace-tests", "--bin", "cookie-actor"];
    find_program("COOKIE_ACTOR_BIN", "cookie-actor", &args, &BUILT)
}

/// The binary `xtask`; `XTASK_BIN` overrides.
///
/// # Errors
/// It cannot be built.
pub fn xtask_bin() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    find_program("XTASK_BIN", "xtask", &["-p", "xtask"], &BUILT)
}

fn find_program(
    variable: &str,
    name: &str,
    args: &[&str],
    built: &OnceLock<Result<(), String>>,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{variable}={}: no such file; correct or unset it",
            path.display()
        );
        return Ok(path);
    }
    let exe = std::env::current_exe()?;
    // A test is `<profile>/deps/name-hash`, a binary `<profile>/name`.
    let dir = exe.parent().context("test without a directory")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().context("deps without a directory")?
    } else {
        dir
    };
    let path = dir.join(name);
    if !path.is_file() {
        let result =
            built.get_or_init(|| build_programs(dir, args).map_err(|error| format!("{error:#}")));
        if let Err(error) = result {
            anyhow::bail!("{}: {error}; set {variable}", path.display());
        }
    }
    ensure!(
        path.is_file(),
        "{}: not there after a build; set {variable}",
        path.display()
    );
    Ok(path)
}

fn build_programs(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.arg("build").args(args);
    if dir.ends_with("release") {
        command.arg("--release");
    }
    let target = dir.parent().context("profile without a directory")?;
    command.arg("--target-dir").arg(target);
    let status = command.status().context("cargo")?;
    ensure!(status.success(), "cargo build failed");
    Ok(())
}
