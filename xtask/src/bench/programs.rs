//! What a run needs: dmtrace, the load, the floor.

use std::{
    env::consts::ARCH,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::Part;
use crate::{
    build::{self, Profile},
    host, setup,
    vm::suite::static_program,
};

/// Built programs; those of the guest are linked statically.
pub struct Programs {
    /// dmtrace.
    pub dmtrace: PathBuf,
    /// `bench-load`.
    pub load: PathBuf,
    /// `bench-floor`.
    pub floor: PathBuf,
    /// The object with empty programs.
    pub object: PathBuf,
    /// `bench-recording`.
    pub recording: PathBuf,
    /// dmtrace for the guest, and its size.
    pub static_dmtrace: Option<PathBuf>,
    /// `bench-load` for the guest.
    pub static_load: Option<PathBuf>,
    /// `bench-floor` for the guest.
    pub static_floor: Option<PathBuf>,
}

impl Programs {
    /// Builds what the parts need.
    pub fn build(parts: &[Part]) -> Result<Self> {
        setup::ensure()?;
        let guest = parts.contains(&Part::Vm);
        let program = |package, name| static_program(package, "--bin", name);
        Ok(Self {
            dmtrace: build::binary("dmtrace", "dmtrace", Profile::Release)?,
            load: build::binary("dmtrace-tests", "bench-load", Profile::Release)?,
            floor: build::release("dmtrace", "--example", "bench-floor")?,
            object: object()?,
            recording: build::release("dmtrace", "--example", "bench-recording")?,
            static_dmtrace: (guest || parts.contains(&Part::Size))
                .then(|| program("dmtrace", "dmtrace"))
                .transpose()?,
            static_load: guest
                .then(|| program("dmtrace-tests", "bench-load"))
                .transpose()?,
            static_floor: guest
                .then(|| static_program("dmtrace", "--example", "bench-floor"))
                .transpose()?,
        })
    }
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
pub fn size(path: &Path) -> Result<u64> {
    let meta = path
        .metadata()
        .with_context(|| path.display().to_string())?;
    Ok(meta.len())
}
