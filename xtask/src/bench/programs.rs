//! What a run needs: dmtrace, the load, the floor.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result};

use super::part::BenchPart;
use crate::{
    build::{self, Profile},
    host,
    linker::{self, LinkerPlace},
    scenario::programs::static_program,
    setup,
};

/// Built programs, those that the parts need; those of the guest are linked statically.
#[derive(Default)]
pub(super) struct BenchPrograms {
    dmtrace: Option<PathBuf>,
    load: Option<PathBuf>,
    floor: Option<PathBuf>,
    object: Option<PathBuf>,
    recording: Option<PathBuf>,
    static_dmtrace: Option<PathBuf>,
    static_load: Option<PathBuf>,
    static_floor: Option<PathBuf>,
}

impl BenchPrograms {
    /// Builds what the parts need.
    pub(super) fn build(parts: &[BenchPart]) -> Result<Self> {
        setup::ensure_setup()?;
        let mut built = Self::default();
        let has = |part: BenchPart| parts.contains(&part);
        let guest = has(BenchPart::Vm);
        let calls = BenchPart::CALLS.into_iter().any(has);
        let here = |part: &BenchPart| !matches!(part, BenchPart::Vm | BenchPart::Size);
        let packaged = |kind, name| build::build_packaged("dmtrace", kind, name);
        if parts.iter().any(here) {
            built.dmtrace = Some(packaged("--bin", "dmtrace")?);
            let load = build::build_binary("dmtrace-tests", "bench-load", Profile::Release)?;
            built.load = Some(load);
        }
        if calls {
            built.floor = Some(packaged("--example", "bench-floor")?);
        }
        if calls || guest {
            built.object = Some(build_object()?);
        }
        if has(BenchPart::Report) {
            built.recording = Some(packaged("--example", "bench-recording")?);
        }
        if guest || has(BenchPart::Size) {
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

    pub(super) fn dmtrace_path(&self) -> Result<&Path> {
        built_path(&self.dmtrace, "dmtrace")
    }

    /// `bench-load`.
    pub(super) fn load_path(&self) -> Result<&Path> {
        built_path(&self.load, "bench-load")
    }

    /// `bench-floor`.
    pub(super) fn floor_path(&self) -> Result<&Path> {
        built_path(&self.floor, "bench-floor")
    }

    /// The object with the empty programs.
    pub(super) fn object_path(&self) -> Result<&Path> {
        built_path(&self.object, "the empty programs")
    }

    /// `bench-recording`.
    pub(super) fn recording_path(&self) -> Result<&Path> {
        built_path(&self.recording, "bench-recording")
    }

    pub(super) fn static_dmtrace(&self) -> Result<&Path> {
        built_path(&self.static_dmtrace, "static dmtrace")
    }

    /// `bench-load`, linked statically.
    pub(super) fn static_load(&self) -> Result<&Path> {
        built_path(&self.static_load, "static bench-load")
    }

    /// `bench-floor`, linked statically.
    pub(super) fn static_floor(&self) -> Result<&Path> {
        built_path(&self.static_floor, "static bench-floor")
    }
}

fn built_path<'a>(path: &'a Option<PathBuf>, name: &str) -> Result<&'a Path> {
    path.as_deref()
        .with_context(|| format!("{name}: not built for these parts; please report this as a bug"))
}

/// The empty programs, built as dmtrace/build.rs builds the real ones, in a target directory of
/// their own because of the flags.
fn build_object() -> Result<PathBuf> {
    const TARGET: &str = "bpfel-unknown-none";
    let target_dir = host::target_dir()?.join("ebpf-floor");
    let mut command = host::cargo_command();
    command.args(["build", "--package", "dmtrace-ebpf", "--bin", "floor"]);
    command.args(["--release", "--locked", "-Zbuild-std=core"]);
    command.args(["--target", TARGET, "--target-dir"]);
    command.arg(&target_dir);
    command.env("RUSTC_BOOTSTRAP", "1");
    let place = LinkerPlace::for_sysroot(&setup::rustc_sysroot()?).map_err(Error::msg)?;
    command.env(linker::VARIABLE, place.program_path());
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
    host::quiet_unless_terminal(&mut command);
    host::check_command(&mut command, "the empty programs")?;
    Ok(target_dir.join(TARGET).join("release/floor"))
}

/// Size of a file in bytes.
pub(super) fn file_size(path: &Path) -> Result<u64> {
    let meta = path
        .metadata()
        .with_context(|| path.display().to_string())?;
    Ok(meta.len())
}
