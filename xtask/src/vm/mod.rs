//! `cargo xtask vm`: a command on a real kernel with real device-mapper, udev and lvm2.
//!
//! `docs/vm-lab.md` tells how to use it. [`Lab`] is the library behind the command line.

mod accel;
mod apt;
mod boot;
mod cache;
mod cli;
mod cpio;
mod docs;
mod frame;
mod guest;
pub mod host;
mod image;
pub mod kernel;
mod layer;
mod modules;
mod out;
mod qemu;
pub mod service;
mod sources;
mod splat;
pub mod storm;
pub mod suite;
pub mod tool;
mod vmlinux;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

pub use self::cli::{Args, main};
use self::{
    apt::Apt,
    cache::Cache,
    guest::FileSpec,
    image::Image,
    kernel::{Kernel, Spec},
    layer::Layer,
};

/// The lab itself failed: no kernel, no boot.
const LAB_FAILED: i32 = 120;
/// The kernel complained in its log.
const SPLAT: i32 = 121;
/// The command ran out of time.
const TIMED_OUT: i32 = 124;

/// What to run in a guest.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Program and arguments; one word alone is a shell line.
    pub argv: Vec<String>,
    /// Never a shell.
    pub shell_less: bool,
    /// `NAME=VALUE` for the command.
    pub env: Vec<String>,
    /// Files for the guest.
    pub files: Vec<FileSpec>,
    /// Where the guest's `/out` goes.
    pub out: Option<PathBuf>,
    /// Time limit of the command.
    pub timeout: Duration,
    /// Full systemd as PID 1.
    pub systemd: bool,
    /// What is laid over the root image.
    pub layer: Option<&'static Layer>,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
    /// What makes the guest's clock go.
    pub clock: Clock,
    /// What happens to the command's streams.
    pub streams: Streams,
}

impl Default for RunSpec {
    fn default() -> Self {
        Self {
            argv: Vec::new(),
            shell_less: false,
            env: Vec::new(),
            files: Vec::new(),
            out: None,
            timeout: Duration::from_secs(300),
            systemd: false,
            layer: None,
            memory_mb: 2048,
            cpus: 2,
            clock: Clock::Host,
            streams: Streams::Live,
        }
    }
}

/// What makes the guest's clock go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's clock.
    Host,
    /// The guest's instructions, each of which takes a nanosecond. Needs emulation and one
    /// processor; what the guest measures is the same in each run.
    Instructions,
}

/// What happens to the command's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// They go to this process's own, as they come.
    Live,
    /// They are collected in the outcome.
    Capture,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this code.
    Exited(i32),
    /// The command was stopped because its time was over.
    TimedOut,
    /// The guest failed, not the command; why.
    Lab(String),
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The kernel it ran on.
    pub kernel: Kernel,
    /// How it ended.
    pub end: End,
    /// Lines of the kernel's log that are splats.
    pub splats: Vec<String>,
    /// Times the guest was booted.
    pub boots: u32,
    /// `kvm` or `tcg`.
    pub accel: &'static str,
    /// From power-on to the command's start, in the boot that got there.
    pub boot_time: Option<Duration>,
    /// All of it.
    pub total_time: Duration,
    /// The command's standard output, if captured.
    pub stdout: Vec<u8>,
    /// The command's standard error, if captured.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// The exit code that tells it. A splat outweighs all: what else went wrong may follow from it.
    pub fn code(&self) -> i32 {
        match self.end {
            _ if !self.splats.is_empty() => SPLAT,
            End::Exited(code) => code,
            End::TimedOut => TIMED_OUT,
            End::Lab(_) => LAB_FAILED,
        }
    }

    /// It in a few words.
    pub fn summary(&self) -> String {
        let end = match &self.end {
            End::Exited(0) => "ok".to_owned(),
            End::Exited(code) => format!("exit {code}"),
            End::TimedOut => "timed out".to_owned(),
            End::Lab(why) => format!("lab: {why}"),
        };
        match self.splats.first() {
            Some(line) => format!("{end}; SPLAT: {line}"),
            None => end,
        }
    }
}

/// The lab: what is built and what can be run.
pub struct Lab {
    cache: Cache,
    apt: Option<Apt>,
    refresh: bool,
}

impl Lab {
    /// Opens the cache and makes sure of the host's programs. `refresh` looks for newer kernels
    /// than the cached ones.
    pub fn open(refresh: bool) -> Result<Self> {
        host::ensure_programs()?;
        Ok(Self {
            cache: Cache::open()?,
            apt: None,
            refresh,
        })
    }

    /// Makes a kernel, and the root image, ready: from the cache or newly built.
    pub fn prepare(&mut self, spec: &Spec) -> Result<Kernel> {
        if !self.refresh
            && let Some(kernel) = kernel::cached(&self.cache, spec)
            && image::cached(&self.cache).is_some()
        {
            return Ok(kernel);
        }
        let _lock = self.cache.lock()?;
        let apt = Self::apt(&mut self.apt, &self.cache)?;
        let kernel = kernel::prepare(&self.cache, apt, spec, self.refresh)?;
        image::prepare(&self.cache, apt)?;
        Ok(kernel)
    }

    /// Makes a layer ready: from the cache or newly built.
    pub fn prepare_layer(&mut self, layer: &Layer) -> Result<()> {
        if layer.cached(&self.cache).is_some() {
            return Ok(());
        }
        let _lock = self.cache.lock()?;
        layer.prepare(&self.cache, Self::apt(&mut self.apt, &self.cache)?)
    }

    /// apt's state, opened when it is first needed.
    fn apt<'a>(apt: &'a mut Option<Apt>, cache: &Cache) -> Result<&'a mut Apt> {
        if apt.is_none() {
            *apt = Some(Apt::open(&cache.path("apt"))?);
        }
        apt.as_mut().context("apt state: not open")
    }

    /// Runs a command on a kernel that is ready.
    pub fn run_one(&self, kernel: &Kernel, run: &RunSpec) -> Result<Outcome> {
        let image = image::cached(&self.cache)
            .context("root image: not built; run `cargo xtask vm --prepare`")?;
        let layer = match run.layer {
            Some(layer) => Some(layer.cached(&self.cache).with_context(|| {
                format!(
                    "layer {}: not built; run `cargo xtask vm --prepare`",
                    layer.name
                )
            })?),
            None => None,
        };
        boot::run(&self.cache, kernel, &Disks { image, layer }, run)
    }
}

/// What a guest's root is made of.
struct Disks {
    image: Image,
    /// Laid over the image.
    layer: Option<PathBuf>,
}

/// A file of the host at its place in the guest.
pub fn guest_file(host: &Path, guest: &str) -> Result<FileSpec> {
    format!("{}:{guest}", host.display()).parse()
}

/// A line of the lab's own, told from the command's by its prefix.
fn say(line: &str) {
    eprintln!("vm: {line}");
}
