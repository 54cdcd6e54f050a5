//! What a run needs: dmtrace, the load, the floor.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result};

use super::part::Part;
use crate::{
    build::{self, Profile},
    host,
    linker::{self, Place},
    scenario::programs::static_program,
    setup,
};

/// Built programs, those that the parts need; those of the guest are linked statically.
#[derive(Default)]
pub(super) struct Programs {
    dmtrace: Option<PathBuf>,
    load: Option<PathBuf>,
    floor: Option<PathBuf>,
    object: Option<PathBuf>,
    recording: Option<PathBuf>,
    static_dmtrace: Option<PathBuf>,
    static_load: Option<PathBuf>,
    static_floor: Option<PathBuf>,
}

impl Programs {
    /// Builds what the parts need.
    pub(super) fn build(parts: &[Part]) -> Result<Self> {
        setup::ensure()?;
        let mut built = Self::default();
        let has = |part: Part| parts.contains(&part);
        let guest = has(Part::Vm);
        let calls = Part::CALLS.into_iter().any(has);
        let here = |part: &Part| !matches!(part, Part::Vm | Part::Size);
        let packaged = |kind, name| build::packaged("dmtrace", kind, name);
        if parts.iter().any(here) {
            built.dmtrace = Some(packaged("--bin", "dmtrace")?);
            let load = build::binary("dmtrace-tests", "bench-load", Profile::Release)?;
            built.load = Some(load);
        }
        if calls {
            built.floor = Some(packaged("--example", "bench-floor")?);
        }
        if calls || guest {
            built.object = Some(object()?);
        }
        if has(Part::Report) {
            built.recording = Some(packaged("--example", "bench-recording")?);
        }
        if guest || has(Part::Size) {
            built.static_dmtrace = Some(static_program("dmtrace", "--bin", "dmtrace")?);
        }
        if guest {
            let load = static_program("dmtrace-tests", "--bin", "bench-load")?;
            built.static_load = Some(load);
            let floor = static_program("dmtrace", "--example", "bench-floor")?;
            built.static_floor = Some(floor);
        }
        Ok(built)
    }

    pub(super) fn dmtrace(&self) -> Result<&Path> {
        built(&self.dmtrace, "dmtrace")
    }

    /// `bench-load`.
    pub(super) fn load(&self) -> Result<&Path> {
        built(&self.load, "bench-load")
    }

    /// `bench-floor`.
    pub(super) fn floor(&self) -> Result<&Path> {
        built(&self.floor, "bench-floor")
    }

    /// The object with the empty programs.
    pub(super) fn object(&self) -> Result<&Path> {
        built(&self.object, "the empty programs")
    }

    /// `bench-recording`.
    pub(super) fn recording(&self) -> Result<&Path> {
        built(&self.recording, "bench-recording")
    }

    pub(super) fn static_dmtrace(&self) -> Result<&Path> {
        built(&self.static_dmtrace, "static dmtrace")
    }

    /// `bench-load`, linked statically.
    pub(super) fn static_load(&self) -> Result<&Path> {
        built(&self.static_load, "static bench-load")
    }

    /// `bench-floor`, linked statically.
    pub(super) fn static_floor(&self) -> Result<&Path> {
        built(&self.static_floor, "static bench-floor")
    }
}

fn built<'a>(path: &'a Option<PathBuf>, name: &str) -> Result<&'a Path> {
    path.as_deref()
        .with_context(|| format!("{name}: not built for these parts; please report this as a bug"))
}

/// The empty programs, built as dmtrace/build.rs builds the real ones, in a target directory of
/// their own because of the flags.
fn object() -> Result<PathBuf> {
    const TARGET: &str = "bpfel-unknown-none";
    let target_dir = host::target_dir()?.join("ebpf-floor");
    let mut command = host::cargo();
    command.args(["build", "--package", "dmtrace-ebpf", "--bin", "floor"]);
    command.args(["--release", "--locked", "-Zbuild-std=core"]);
    command.args(["--target", TARGET, "--target-dir"]);
    command.arg(&target_dir);
    command.env("RUSTC_BOOTSTRAP", "1");
    let place = Place::of(&setup::sysroot()?).map_err(Error::msg)?;
    command.env(linker::VARIABLE, place.program());
    let flags = [
        &*format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command.env("CARGO_PROFILE_RELEASE_LTO", "false");
    command.env("CARGO_PROFILE_RELEASE_STRIP", "none");
    command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    command.env_remove("RUSTFLAGS");
    host::quiet(&mut command);
    host::check(&mut command, "the empty programs")?;
    Ok(target_dir.join(TARGET).join("release/floor"))
}

/// Size of a file in bytes.
pub(super) fn size(path: &Path) -> Result<u64> {
    let meta = path
        .metadata()
        .with_context(|| path.display().to_string())?;
    Ok(meta.len())
}
