//! Builds dmtrace.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{host, setup};

/// `cargo xtask build`
#[derive(clap::Args)]
pub struct Args {
    /// Optimised: the default
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Faster to build, with assertions
    #[arg(long)]
    debug: bool,
}

/// How to build.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Profile {
    /// Optimised.
    Release,
    /// With assertions.
    Debug,
}

impl Profile {
    /// From the option `--debug`.
    pub fn debug(asked: bool) -> Self {
        if asked { Self::Debug } else { Self::Release }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}

/// Sets the machine up, builds, tells where the program is.
///
/// # Errors
/// Something to build with is missing, or the build fails.
pub fn main(args: &Args) -> Result<()> {
    setup::ensure()?;
    let path = binary(
        "dmtrace",
        "dmtrace",
        Profile::debug(args.debug && !args.release),
    )?;
    println!("{}", path.display());
    Ok(())
}

/// Builds the program `name` of `package`.
///
/// # Errors
/// The build fails.
pub fn binary(package: &str, name: &str, profile: Profile) -> Result<PathBuf> {
    let mut command = host::cargo();
    command.args(["build", "--package", package, "--bin", name]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    host::quiet(&mut command);
    host::check(&mut command, name)?;
    let path = host::target_dir()?.join(profile.directory()).join(name);
    ensure!(
        path.is_file(),
        "{}: not there after the build; unset CARGO_BUILD_TARGET",
        path.display()
    );
    Ok(path)
}
