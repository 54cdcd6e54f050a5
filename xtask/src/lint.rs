//! Formatting, clippy on both sides of the kernel border, and the rules of the house that no
//! compiler knows.

mod house;
mod layers;

use std::{
    env::consts::ARCH,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{host, setup, tally::TestTally};

/// What a check returns: nothing, or what is wrong.
type Check = fn() -> Result<()>;

const CHECKS: [(&str, Check); 15] = [
    ("rustfmt", check_rustfmt),
    ("ring-only-in-emit", house::check_ring),
    ("times-only-in-output", house::check_times),
    ("file-lengths", house::check_lengths),
    ("no-local-paths", house::local_paths),
    ("no-registry-hosts", house::registry_hosts),
    ("dependencies-allowed", dependencies_allowed),
    ("dependencies-used", dependencies_used),
    ("numbers-agree", house::check_plurals),
    ("floors", layers::check_floors),
    ("circles", layers::check_circles),
    ("pure-core", layers::pure_core),
    ("clippy-workspace", clippy_workspace),
    ("clippy-without-live", clippy_without_live),
    ("clippy-ebpf", clippy_ebpf),
];

/// Sets the machine up and runs all checks.
///
/// # Errors
/// The machine cannot be set up.
pub(crate) fn main() -> Result<ExitCode> {
    setup::ensure_setup()?;
    let tally = run_checks();
    println!("\n{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs all checks, each counted as a test.
pub(crate) fn run_checks() -> TestTally {
    println!("\n== lint");
    let start = Instant::now();
    let mut tally = TestTally::default();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check() {
            Ok(()) => {
                println!(
                    "lint {name} ... ok ({:.1} s)",
                    start.elapsed().as_secs_f64()
                );
                tally += TestTally::PASSED;
            }
            Err(error) => {
                println!("lint {name} ... FAILED\n{error:#}");
                tally += TestTally::FAILED;
            }
        }
    }
    println!("-- lint: {tally}, {:.1} s", start.elapsed().as_secs_f64());
    tally
}

fn check_rustfmt() -> Result<()> {
    host::check_command(
        host::cargo_command().args(["fmt", "--all", "--check"]),
        "cargo fmt --all",
    )
}

/// Licences, duplicates and sources, by deny.toml.
fn dependencies_allowed() -> Result<()> {
    let mut command = Command::new(setup::cargo_deny()?);
    command
        .current_dir(host::workspace_root())
        .stdin(Stdio::null());
    command.args(["--workspace", "check", "bans", "licenses", "sources"]);
    run_silent(&mut command, "cargo deny")
}

/// No member of the workspace asks for what it does not use.
fn dependencies_used() -> Result<()> {
    let mut command = Command::new(setup::cargo_machete()?);
    command
        .current_dir(host::workspace_root())
        .stdin(Stdio::null());
    run_silent(&mut command, "cargo machete")
}

/// Shows what a command says only if it fails.
fn run_silent(command: &mut Command, what: &str) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{what}: cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{}{}\n{what}: {}",
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim(),
            output.status
        );
    }
    Ok(())
}

fn clippy_workspace() -> Result<()> {
    check_clippy(host::cargo_command().args(["clippy", "--workspace", "--all-targets"]))
}

fn clippy_without_live() -> Result<()> {
    check_clippy(host::cargo_command().args([
        "clippy",
        "--package",
        "dmtrace",
        "--no-default-features",
    ]))
}

/// The kernel side, with the configuration that dmtrace/build.rs gives it. In a target directory
/// of its own, because the flags would otherwise make cargo build the userspace side anew.
fn clippy_ebpf() -> Result<()> {
    let mut command = host::cargo_command();
    command.args([
        "clippy",
        "--package",
        "dmtrace-ebpf",
        "--release",
        "-Zbuild-std=core",
    ]);
    command.args(["--target", "bpfel-unknown-none", "--target-dir"]);
    command.arg(host::target_dir()?.join("ebpf-lint"));
    command.env("RUSTC_BOOTSTRAP", "1");
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
    );
    check_clippy(&mut command)
}

/// Fails on any warning. Not with `-D warnings`: the first crate that has one would then keep
/// clippy from those that depend on it, and their findings would come to light one run later.
fn check_clippy(command: &mut Command) -> Result<()> {
    let output = command
        .args(["--quiet", "--keep-going"])
        .stderr(Stdio::piped())
        .output()
        .context("clippy: cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    if !output.status.success() || !said.is_empty() {
        bail!(
            "{said}\nclippy: {}; warnings are failures here",
            output.status
        );
    }
    Ok(())
}
