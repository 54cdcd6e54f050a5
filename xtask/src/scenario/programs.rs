//! What goes into the guests: programs and scripts as they are when the suite begins. A suite
//! takes minutes; what is built or edited meanwhile does not change it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use kernel_lab::install_missing;
use tempfile::TempDir;

use crate::{
    build::{self, Profile},
    host,
};

/// Links programs for 32 bits, with a C library that can be linked statically.
const CC32: &str = "i686-linux-gnu-gcc";
/// That C library, and its package: the compiler only recommends it.
const LIBC32: (&str, &str) = ("/usr/i686-linux-gnu/lib/libc.a", "libc6-dev-i386-cross");

pub(crate) struct ScenarioPrograms {
    pub dmtrace: PathBuf,
    pub actor: PathBuf,
    pub storm: PathBuf,
    /// cookie-actor for 32 bits, if the target can be had.
    pub actor32: Option<PathBuf>,
    /// The folder `tests/vm`.
    pub scripts: PathBuf,
    _copies: TempDir,
}

const STATIC: &str = "x86_64-unknown-linux-musl";
/// For musl, rustup has no standard library at 32 bits since Rust 1.99.
const STATIC32: &str = "i686-unknown-linux-gnu";

impl ScenarioPrograms {
    /// Builds them statically linked, so that the guest's C library does not matter. Without the
    /// target for that they are those of the host, which must not be newer than Debian 12.
    pub(crate) fn build() -> Result<Self> {
        install_missing(&[(CC32, "gcc-i686-linux-gnu")], &[LIBC32])?;
        let copies = tempfile::Builder::new()
            .prefix("dmtrace-suite-")
            .tempdir()?;
        let kept = |built: PathBuf, name: &str| -> Result<PathBuf> {
            let copy = copies.path().join(name);
            fs::copy(&built, &copy).with_context(|| built.display().to_string())?;
            Ok(copy)
        };
        let scripts = copies.path().join("vm");
        copy_scripts(&host::workspace_root().join("tests/vm"), &scripts)?;
        let target = has_target(STATIC).then_some(STATIC);
        let program = |package: &str, names: &[&str], target: Option<&str>| {
            build_package(package, "--bin", names, target, Profile::Release)
        };
        let dmtrace = program("dmtrace", &["dmtrace"], target)?;
        let tests = program("dmtrace-tests", &["cookie-actor", "cookie-storm"], target)?;
        let actor32 = match has_target(STATIC32) {
            true => Some(program("dmtrace-tests", &["cookie-actor"], Some(STATIC32))?),
            false => None,
        };
        Ok(Self {
            dmtrace: kept(dmtrace.join("dmtrace"), "dmtrace")?,
            actor: kept(tests.join("cookie-actor"), "cookie-actor")?,
            storm: kept(tests.join("cookie-storm"), "cookie-storm")?,
            actor32: actor32
                .map(|built| kept(built.join("cookie-actor"), "cookie-actor32"))
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

/// A program, or an example with `--example` as its `kind`, as it is packaged: linked statically
/// if the toolchain has the target for that.
pub(crate) fn static_program(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let target = has_target(STATIC).then_some(STATIC);
    Ok(build_package(package, kind, &[name], target, Profile::Dist)?.join(name))
}

/// Whether the toolchain has a target, or can get it.
fn has_target(target: &str) -> bool {
    let installed = || {
        let sysroot = PathBuf::from(host::output_of("rustc", &["--print", "sysroot"])?);
        let libraries = sysroot.join("lib/rustlib").join(target).join("lib");
        libraries.is_dir().then_some(())
    };
    installed().is_some() || host::output_of("rustup", &["target", "add", target]).is_some()
}

/// Builds programs of a package, for the host without `target`; returns the folder they are in.
fn build_package(
    package: &str,
    kind: &str,
    names: &[&str],
    target: Option<&str>,
    profile: Profile,
) -> Result<PathBuf> {
    let mut command = host::cargo_command();
    command.args(["build", profile.cargo_option(), "--package", package]);
    command.args(names.iter().flat_map(|name| [kind, name]));
    command.args(target.iter().flat_map(|target| ["--target", target]));
    if let Some(target) = target.filter(|_| profile == Profile::Dist) {
        build::build_small(&mut command, target);
    }
    command.env("CARGO_TARGET_I686_UNKNOWN_LINUX_GNU_LINKER", CC32);
    command.env(
        "CARGO_TARGET_I686_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        "-Ctarget-feature=+crt-static",
    );
    host::quiet_unless_terminal(&mut command);
    host::check_command(&mut command, package)?;
    let dir = host::target_dir()?.join(target.unwrap_or_default());
    Ok(dir
        .join(profile.target_folder())
        .join(build::output_folder(kind)))
}
