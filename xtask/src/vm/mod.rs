//! `cargo xtask vm`: a command on a real kernel with real device-mapper, udev and lvm2.
//!
//! `docs/vm-lab.md` tells how to use it. [`Lab`] is the library behind the command line.

mod accel;
mod apt;
mod boot;
mod cache;
mod cpio;
mod frame;
mod guest;
mod host;
mod image;
mod kernel;
mod modules;
mod out;
mod sources;
mod splat;
mod vmlinux;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use self::{
    apt::Apt,
    cache::Cache,
    guest::FileSpec,
    image::Image,
    kernel::{Kernel, Spec},
};

/// The lab itself failed: no kernel, no boot.
const LAB_FAILED: i32 = 120;
/// The kernel complained in its log.
const SPLAT: i32 = 121;
/// The command ran out of time.
const TIMED_OUT: i32 = 124;

/// Run a command as root in a virtual machine with a real kernel, device-mapper and udevd.
///
/// Exit codes: the command's own; 120 the lab failed; 121 the kernel's log has a splat; 124 the
/// command ran out of time. With several kernels: that of the first that failed.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel to boot: 5.10, 6.1, 6.12, 7.2, newest or all; repeatable
    #[arg(long = "kernel", value_name = "KERNEL", default_value = "6.1")]
    kernels: Vec<String>,
    /// Host file or directory for the guest; GUEST is /work/NAME if not given, /work is the
    /// working directory and in PATH; repeatable
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<FileSpec>,
    /// Environment variable for the command; repeatable
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Where the guest's /out goes; with several kernels, a directory per kernel below it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Time limit of the command in seconds
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(512..))]
    memory: u32,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Never a shell: a single word is a program too, not a shell line
    #[arg(long)]
    shell_less: bool,
    /// Boot a full systemd instead of the lab's own small init (slower)
    #[arg(long)]
    systemd: bool,
    /// Only fetch and build what the kernels need
    #[arg(long, conflicts_with_all = ["list", "command"])]
    prepare: bool,
    /// Look for newer kernel packages than the cached ones
    #[arg(long)]
    refresh: bool,
    /// List the kernels and what is cached of them
    #[arg(long, conflicts_with = "command")]
    list: bool,
    /// Command and arguments; one word alone is a shell line
    #[arg(last = true, required_unless_present_any = ["prepare", "list"], value_name = "CMD")]
    command: Vec<String>,
}

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
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processors.
    pub cpus: u32,
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
            memory_mb: 2048,
            cpus: 2,
            streams: Streams::Live,
        }
    }
}

/// What happens to the command's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// They go to this process's own, as they come.
    Live,
    /// They are collected in the outcome.
    #[expect(dead_code, reason = "for the scenario suite")]
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
    #[expect(dead_code, reason = "for the scenario suite")]
    /// The command's standard output, if captured.
    pub stdout: Vec<u8>,
    #[expect(dead_code, reason = "for the scenario suite")]
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
    /// Opens the cache and makes sure of the host's programs.
    pub fn open(refresh: bool) -> Result<Self> {
        host::ensure_programs()?;
        Ok(Self {
            cache: Cache::open()?,
            apt: None,
            refresh,
        })
    }

    /// Kernel and root image, from the cache or newly built.
    pub fn prepare(&mut self, spec: &Spec) -> Result<(Kernel, Image)> {
        if !self.refresh
            && let Some(kernel) = kernel::cached(&self.cache, spec)
            && let Some(image) = image::cached(&self.cache)
        {
            return Ok((kernel, image));
        }
        let _lock = self.cache.lock()?;
        if self.apt.is_none() {
            self.apt = Some(Apt::open(&self.cache.path("apt"))?);
        }
        let apt = self.apt.as_mut().context("apt state: not open")?;
        let kernel = kernel::prepare(&self.cache, apt, spec, self.refresh)?;
        Ok((kernel, image::prepare(&self.cache, apt)?))
    }

    /// Runs a command on one kernel.
    pub fn run_one(&mut self, kernel: &Spec, run: &RunSpec) -> Result<Outcome> {
        let (kernel, image) = self.prepare(kernel)?;
        boot::run(&self.cache, &kernel, &image, run)
    }
}

/// A line of the lab's own, told from the command's by its prefix.
fn say(line: &str) {
    eprintln!("vm: {line}");
}

/// Carries out the command line and ends the process with its exit code.
pub fn main(args: &Args) -> ! {
    let code = dispatch(args).unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        LAB_FAILED
    });
    std::process::exit(code)
}

fn dispatch(args: &Args) -> Result<i32> {
    if args.list {
        return list().map(|()| 0);
    }
    let specs = kernel::resolve(&args.kernels)?;
    let mut lab = Lab::open(args.refresh)?;
    if args.prepare {
        return Ok(prepare_all(&mut lab, &specs));
    }
    let several = specs.len() > 1;
    let mut rows = Vec::new();
    let mut first_failure = 0;
    for spec in specs {
        if several {
            say(&format!("kernel {}", spec.name));
        }
        let row = lab
            .run_one(spec, &run_spec(args, spec, several))
            .map_err(|error| {
                let text = format!("{error:#}");
                say(&text);
                text
            });
        let code = match &row {
            Ok(outcome) => {
                report(outcome);
                outcome.code()
            }
            Err(_) => LAB_FAILED,
        };
        if first_failure == 0 {
            first_failure = code;
        }
        rows.push((spec.name.to_owned(), row));
    }
    if several {
        eprint!("{}", out::table(&rows));
    }
    Ok(first_failure)
}

/// The run that the command line asks for, on one of its kernels.
fn run_spec(args: &Args, kernel: &Spec, several: bool) -> RunSpec {
    RunSpec {
        argv: args.command.clone(),
        shell_less: args.shell_less,
        env: args.env.clone(),
        files: args.files.clone(),
        out: args.out.as_ref().map(|dir| {
            if several {
                dir.join(kernel.name)
            } else {
                dir.clone()
            }
        }),
        timeout: Duration::from_secs(args.timeout),
        systemd: args.systemd,
        memory_mb: args.memory,
        cpus: args.cpus,
        streams: Streams::Live,
    }
}

/// Tells what is not the command's own doing.
fn report(outcome: &Outcome) {
    let kernel = &outcome.kernel.name;
    match &outcome.end {
        End::Exited(_) => {}
        End::TimedOut => say(&format!(
            "kernel {kernel}: the command ran out of time (--timeout)"
        )),
        End::Lab(why) => {
            say(&format!(
                "kernel {kernel}: {} boot(s), the last failed: {why}",
                outcome.boots
            ));
        }
    }
    for line in outcome.splats.iter().take(5) {
        say(&format!("kernel {kernel}: splat: {line}"));
    }
    if let Some(more) = outcome.splats.len().checked_sub(5).filter(|more| *more > 0) {
        say(&format!(
            "kernel {kernel}: and {more} splats more, see dmesg.log in the cache's runs"
        ));
    }
}

/// Fills the cache for all of `specs`; one that cannot be had does not stop the others.
fn prepare_all(lab: &mut Lab, specs: &[&Spec]) -> i32 {
    let mut code = 0;
    for spec in specs {
        match lab.prepare(spec) {
            Ok((kernel, _)) => {
                say(&format!(
                    "kernel {}: ready, {} ({})",
                    spec.name, kernel.release, kernel.version
                ));
            }
            Err(error) => {
                say(&format!("{error:#}"));
                code = LAB_FAILED;
            }
        }
    }
    code
}

/// Prints the matrix.
fn list() -> Result<()> {
    let cache = Cache::open()?;
    println!("{:8} {:24} {:24} suite", "kernel", "release", "package");
    for spec in kernel::MATRIX {
        match kernel::cached(&cache, spec) {
            Some(kernel) => println!(
                "{:8} {:24} {:24} {}",
                spec.name, kernel.release, kernel.version, kernel.suite
            ),
            None => println!("{:8} {:24} {:24} not cached", spec.name, "-", "-"),
        }
    }
    Ok(())
}
