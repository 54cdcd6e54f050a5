//! Builds dmtrace.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{host, scenario::programs::static_program, setup};

/// `cargo xtask build`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised: the default
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Faster to build, with assertions
    #[arg(long)]
    debug: bool,
    /// As it is packaged: static and small, takes minutes
    #[arg(long, conflicts_with_all = ["release", "debug"])]
    packaged: bool,
}

/// How to build.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profile {
    /// Optimised.
    Release,
    /// As it is packaged: small, takes minutes to link.
    Dist,
    /// With assertions.
    Debug,
}

impl Profile {
    /// From the option `--debug`.
    pub(crate) fn from_debug(asked: bool) -> Self {
        if asked { Self::Debug } else { Self::Release }
    }

    /// Its folder in cargo's target directory.
    pub(crate) fn target_folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
            Self::Debug => "debug",
        }
    }

    /// What cargo is told.
    pub(crate) fn cargo_option(self) -> &'static str {
        match self {
            Self::Release => "--profile=release",
            Self::Dist => "--profile=dist",
            Self::Debug => "--profile=dev",
        }
    }
}

/// Sets the machine up, builds, tells where the program is.
///
/// # Errors
/// Something to build with is missing, or the build fails.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure_setup()?;
    let path = if args.packaged {
        static_program("dmtrace", "--bin", "dmtrace")?
    } else {
        build_binary(
            "dmtrace",
            "dmtrace",
            Profile::from_debug(args.debug && !args.release),
        )?
    };
    println!("{}", path.display());
    Ok(())
}

/// Builds the program `name` of `package`.
///
/// # Errors
/// The build fails.
pub(crate) fn build_binary(package: &str, name: &str, profile: Profile) -> Result<PathBuf> {
    build_one(package, "--bin", name, profile)
}

/// Builds a program, or an example with `--example` as its `kind`, as it is packaged.
///
/// # Errors
/// The build fails.
pub(crate) fn build_packaged(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    build_one(package, kind, name, Profile::Dist)
}

/// Has cargo build a program for `target` that is as small as it gets.
///
/// The standard library is built with it, and for size: the one that comes with the toolchain is
/// optimised for speed, and can read debug information to put names into a backtrace; the packaged
/// program has neither names nor debug information. The toolchain's own linker folds functions of
/// the same code into one. All of that is unstable, and as fixed as the toolchain is.
pub(crate) fn build_small(command: &mut Command, target: &str) {
    command.args([
        "-Zbuild-std=std,panic_unwind",
        "-Zbuild-std-features=optimize_for_size",
    ]);
    command.env("RUSTC_BOOTSTRAP", "1");
    let name = target.to_uppercase().replace('-', "_");
    let flags = "-Zunstable-options -Clinker-features=+lld -Clink-self-contained=+linker \
                 -Clink-arg=-Wl,--icf=all";
    command.env(format!("CARGO_TARGET_{name}_RUSTFLAGS"), flags);
}

/// Where cargo puts what was asked for by this option, below the folder of the profile.
pub(crate) fn output_folder(kind: &str) -> &'static str {
    if kind == "--example" { "examples" } else { "" }
}

fn build_one(package: &str, kind: &str, name: &str, profile: Profile) -> Result<PathBuf> {
    let mut command = host::cargo_command();
    command.args([
        "build",
        profile.cargo_option(),
        "--package",
        package,
        kind,
        name,
    ]);
    host::quiet_unless_terminal(&mut command);
    host::check_command(&mut command, name)?;
    let dir = host::target_dir()?.join(profile.target_folder());
    let path = dir.join(output_folder(kind)).join(name);
    ensure!(
        path.is_file(),
        "{}: not there after the build; unset CARGO_BUILD_TARGET",
        path.display()
    );
    Ok(path)
}
