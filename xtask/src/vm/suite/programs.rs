//! The programs that go into the guest.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    host,
};

/// Built programs.
pub struct Programs {
    /// dmtrace.
    pub dmtrace: PathBuf,
    /// cookie-actor.
    pub actor: PathBuf,
    /// cookie-actor for 32 bits, if the target can be had.
    pub actor32: Option<PathBuf>,
}

const STATIC: &str = "x86_64-unknown-linux-musl";
const STATIC32: &str = "i686-unknown-linux-musl";

impl Programs {
    /// Builds them statically linked, so that the guest's C library does not matter. Without the
    /// target for that they are those of the host, which must not be newer than Debian 12.
    pub fn build() -> Result<Self> {
        Ok(Self {
            dmtrace: program("dmtrace", "dmtrace")?,
            actor: program("dmtrace-tests", "cookie-actor")?,
            actor32: has_target(STATIC32)
                .then(|| for_target("dmtrace-tests", "cookie-actor", STATIC32))
                .transpose()?,
        })
    }
}

fn program(package: &str, name: &str) -> Result<PathBuf> {
    if has_target(STATIC) {
        for_target(package, name, STATIC)
    } else {
        build::binary(package, name, Profile::Release)
    }
}

/// Whether the toolchain has a target, or can get it.
fn has_target(target: &str) -> bool {
    let installed = host::output("rustup", &["target", "list", "--installed"])
        .is_some_and(|list| list.lines().any(|line| line == target));
    installed || host::output("rustup", &["target", "add", target]).is_some()
}

fn for_target(package: &str, name: &str, target: &str) -> Result<PathBuf> {
    let mut command = host::cargo();
    command.args(["build", "--release", "--package", package, "--bin", name]);
    command.args(["--target", target]);
    host::quiet(&mut command);
    host::check(&mut command, name)?;
    let path = host::target_dir()?.join(target).join("release").join(name);
    path.is_file()
        .then_some(())
        .with_context(|| format!("{}: not there after the build", path.display()))?;
    Ok(path)
}
