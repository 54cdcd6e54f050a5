//! Formatting, clippy on both sides of the kernel border, and the rules of the house that no
//! compiler knows.

mod house;

use std::{env::consts::ARCH, process::ExitCode, time::Instant};

use anyhow::Result;

use crate::{host, setup, tally::Tally};

/// What a check returns: nothing, or what is wrong.
type Check = fn() -> Result<()>;

const CHECKS: [(&str, Check); 8] = [
    ("rustfmt", rustfmt),
    ("ring-only-in-emit", house::ring),
    ("file-lengths", house::lengths),
    ("no-local-paths", house::local_paths),
    ("no-registry-hosts", house::registry_hosts),
    ("clippy-workspace", clippy_workspace),
    ("clippy-without-live", clippy_without_live),
    ("clippy-ebpf", clippy_ebpf),
];

/// Sets the machine up and runs all checks.
///
/// # Errors
/// The machine cannot be set up.
pub fn main() -> Result<ExitCode> {
    setup::ensure()?;
    let tally = all();
    println!("\n{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs all checks, each counted as a test.
pub fn all() -> Tally {
    println!("\n== lint");
    let start = Instant::now();
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        let start = Instant::now();
        match check() {
            Ok(()) => {
                println!(
                    "lint {name} ... ok ({:.1} s)",
                    start.elapsed().as_secs_f64()
                );
                tally += Tally::PASSED;
            }
            Err(error) => {
                println!("lint {name} ... FAILED\n{error:#}");
                tally += Tally::FAILED;
            }
        }
    }
    println!("-- lint: {tally}, {:.1} s", start.elapsed().as_secs_f64());
    tally
}

fn rustfmt() -> Result<()> {
    host::check(
        host::cargo().args(["fmt", "--all", "--check"]),
        "cargo fmt --all",
    )
}

fn clippy_workspace() -> Result<()> {
    clippy(&["--workspace", "--all-targets"])
}

fn clippy_without_live() -> Result<()> {
    clippy(&["--package", "dmtrace", "--no-default-features"])
}

fn clippy(packages: &[&str]) -> Result<()> {
    let mut command = host::cargo();
    command
        .args(["clippy", "--quiet", "--keep-going"])
        .args(packages);
    host::check(command.args(["--", "-Dwarnings"]), "clippy")
}

/// The kernel side, with the configuration that dmtrace/build.rs gives it. In a target directory
/// of its own, because the flags would otherwise make cargo build the userspace side anew.
fn clippy_ebpf() -> Result<()> {
    let mut command = host::cargo();
    command.args([
        "clippy",
        "--quiet",
        "--package",
        "dmtrace-ebpf",
        "--release",
    ]);
    command.args([
        "-Zbuild-std=core",
        "--target",
        "bpfel-unknown-none",
        "--target-dir",
    ]);
    command.arg(host::target_dir()?.join("ebpf-lint"));
    command.env("RUSTC_BOOTSTRAP", "1");
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
    );
    command.env_remove("RUSTFLAGS");
    host::check(
        command.args(["--", "-Dwarnings"]),
        "clippy of the kernel side",
    )
}
