//! What goes into the guests: programs and scripts as they are when the suite begins. A suite
//! takes minutes; what is built or edited meanwhile does not change it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{build, host};

/// Built programs.
pub struct Programs {
    /// dmtrace.
    pub dmtrace: PathBuf,
    /// cookie-actor.
    pub actor: PathBuf,
    /// cookie-storm.
    pub storm: PathBuf,
    /// cookie-actor for 32 bits, if the target can be had.
    pub actor32: Option<PathBuf>,
    /// The folder `tests/vm`.
    pub scripts: PathBuf,
    /// Holds the copies.
    _copies: TempDir,
}

const STATIC: &str = "x86_64-unknown-linux-musl";
const STATIC32: &str = "i686-unknown-linux-musl";

impl Programs {
    /// Builds them statically linked, so that the guest's C library does not matter. Without the
    /// target for that they are those of the host, which must not be newer than Debian 12.
    pub fn build() -> Result<Self> {
        let copies = tempfile::Builder::new()
            .prefix("dmtrace-suite-")
            .tempdir()?;
        let kept = |built: PathBuf, name: &str| -> Result<PathBuf> {
            let copy = copies.path().join(name);
            fs::copy(&built, &copy).with_context(|| built.display().to_string())?;
            Ok(copy)
        };
        let scripts = copies.path().join("vm");
        copy_scripts(&host::root().join("tests/vm"), &scripts)?;
        Ok(Self {
            dmtrace: kept(program("dmtrace", "dmtrace")?, "dmtrace")?,
            actor: kept(program("dmtrace-tests", "cookie-actor")?, "cookie-actor")?,
            storm: kept(program("dmtrace-tests", "cookie-storm")?, "cookie-storm")?,
            actor32: has_target(STATIC32)
                .then(|| for_target("dmtrace-tests", "--bin", "cookie-actor", STATIC32))
                .transpose()?
                .map(|built| kept(built, "cookie-actor32"))
                .transpose()?,
            scripts,
            _copies: copies,
        })
    }
}

/// Copies a folder of scripts with its folders.
fn copy_scripts(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_scripts(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), &copy).with_context(|| copy.display().to_string())?;
        }
    }
    Ok(())
}

fn program(package: &str, name: &str) -> Result<PathBuf> {
    static_program(package, "--bin", name)
}

/// A program, or an example with `--example` as its `kind`, linked statically if the toolchain
/// has the target for that.
pub fn static_program(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    if has_target(STATIC) {
        for_target(package, kind, name, STATIC)
    } else {
        build::release(package, kind, name)
    }
}

/// Whether the toolchain has a target, or can get it.
fn has_target(target: &str) -> bool {
    let installed = host::output("rustup", &["target", "list", "--installed"])
        .is_some_and(|list| list.lines().any(|line| line == target));
    installed || host::output("rustup", &["target", "add", target]).is_some()
}

fn for_target(package: &str, kind: &str, name: &str, target: &str) -> Result<PathBuf> {
    let mut command = host::cargo();
    command.args(["build", "--release", "--package", package, kind, name]);
    command.args(["--target", target]);
    host::quiet(&mut command);
    host::check(&mut command, name)?;
    let dir = host::target_dir()?.join(target).join("release");
    let path = dir.join(build::folder(kind)).join(name);
    path.is_file()
        .then_some(())
        .with_context(|| format!("{}: not there after the build", path.display()))?;
    Ok(path)
}
