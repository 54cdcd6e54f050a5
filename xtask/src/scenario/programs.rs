//! What goes into the guests: programs and scripts as they are when the suite begins. A suite
//! takes minutes; what is built or edited meanwhile does not change it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use kernel_lab::{install_missing, kernel::KernelSpec};
use tempfile::TempDir;

use super::script::Scenario;
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
    /// For scenarios that stop programs, and `cargo xtask stepper`.
    pub stepper: Option<PathBuf>,
    /// cookie-actor for 32 bits, if the target can be had.
    pub actor32: Option<PathBuf>,
    /// This program, for scenarios that play its demo.
    pub xtask: Option<PathBuf>,
    /// The folder `tests/vm`, with the README.
    pub scripts: PathBuf,
    copies: TempDir,
}

const STATIC: &str = "x86_64-unknown-linux-musl";
/// For musl, rustup has no standard library at 32 bits since Rust 1.99.
const STATIC32: &str = "i686-unknown-linux-gnu";

impl ScenarioPrograms {
    /// Builds them statically linked, so that the guest's C library does not matter. Without the
    /// target for that they are those of the host, which must not be newer than Debian 12.
    pub(crate) fn build() -> Result<Self> {
        Self::build_with(&[])
    }

    /// The same, and more.
    pub(super) fn build_with(extra: &[ExtraProgram]) -> Result<Self> {
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
        let readme = host::workspace_root().join("README.md");
        fs::copy(&readme, scripts.join("README.md"))
            .with_context(|| readme.display().to_string())?;
        let target = has_target(STATIC).then_some(STATIC);
        let build = |package: &str, kind: &str, names: &[&str], target: Option<&str>| {
            build_package(package, kind, names, target, Profile::Release)
        };
        let program =
            |package: &str, names: &[&str], target| build(package, "--bin", names, target);
        let dmtrace = program("dmtrace", &["dmtrace"], target)?;
        let tests = program("dmtrace-tests", &["cookie-actor", "cookie-storm"], target)?;
        let stepper = match extra.contains(&ExtraProgram::Stepper) {
            false => None,
            true => {
                let folder = build("dmtrace-tests", "--example", &["cookie-stepper"], target)?;
                Some(kept(folder.join("cookie-stepper"), "cookie-stepper")?)
            }
        };
        let actor32 = match has_target(STATIC32) {
            true => Some(program("dmtrace-tests", &["cookie-actor"], Some(STATIC32))?),
            false => None,
        };
        let xtask = match extra.contains(&ExtraProgram::Xtask) {
            false => None,
            true => {
                // It only starts others: not worth to be optimised.
                let folder = build_package("xtask", "--bin", &["xtask"], target, Profile::Debug)?;
                Some(kept(folder.join("xtask"), "xtask")?)
            }
        };
        Ok(Self {
            xtask,
            dmtrace: kept(dmtrace.join("dmtrace"), "dmtrace")?,
            actor: kept(tests.join("cookie-actor"), "cookie-actor")?,
            storm: kept(tests.join("cookie-storm"), "cookie-storm")?,
            stepper,
            actor32: actor32
                .map(|built| kept(built.join("cookie-actor"), "cookie-actor32"))
                .transpose()?,
            scripts,
            copies,
        })
    }

    /// A dmtrace that calls a cookie an orphan at an age of seconds. Nobody else is to have it.
    pub(crate) fn build_with_short_ages(&self) -> Result<PathBuf> {
        let target = has_target(STATIC).then_some(STATIC);
        let mut command = build_command("dmtrace", "--bin", &["dmtrace"], target, Profile::Release);
        command.args(["--features", "short-ages"]);
        let dir = run_build(command, "dmtrace", "--bin", target, Profile::Release)?;
        let copy = self.copies.path().join("dmtrace-short-ages");
        fs::copy(dir.join("dmtrace"), &copy).with_context(|| dir.display().to_string())?;
        Ok(copy)
    }
}

/// What only some scenarios need, and takes minutes to build.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ExtraProgram {
    /// This program, for its demo.
    Xtask,
    /// Stops programs, and searches.
    Stepper,
}

impl FromStr for ExtraProgram {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "xtask" => Ok(Self::Xtask),
            "cookie-stepper" => Ok(Self::Stepper),
            other => bail!("{other:?} is no program"),
        }
    }
}

impl ExtraProgram {
    /// What those of the scenarios need that run on one of the kernels.
    pub(super) fn needed_by(scenarios: &[&Scenario], specs: &[&KernelSpec]) -> Vec<Self> {
        let runs = |it: &&&Scenario| {
            specs
                .iter()
                .any(|spec| it.unfit_reason(spec.name).is_none())
        };
        let needed = scenarios.iter().filter(runs);
        needed.flat_map(|it| it.programs.clone()).collect()
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
    let command = build_command(package, kind, names, target, profile);
    run_build(command, package, kind, target, profile)
}

fn build_command(
    package: &str,
    kind: &str,
    names: &[&str],
    target: Option<&str>,
    profile: Profile,
) -> Command {
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
    command
}

fn run_build(
    mut command: Command,
    package: &str,
    kind: &str,
    target: Option<&str>,
    profile: Profile,
) -> Result<PathBuf> {
    host::quiet_unless_terminal(&mut command);
    host::check_command(&mut command, package)?;
    let dir = host::target_dir()?.join(target.unwrap_or_default());
    Ok(dir
        .join(profile.target_folder())
        .join(build::output_folder(kind)))
}
