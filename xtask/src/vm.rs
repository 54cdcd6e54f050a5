//! `cargo xtask vm`: a command on a real kernel with real device-mapper, udev and lvm2.
//!
//! `docs/vm-lab.md` explains how to use it.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use kernel_lab::{
    FileSpec, Freshness, GuestClock, LAB_FAILED, Lab, Layer, RunEnd, RunOutcome, RunSpec, Streams,
    format_table,
    kernel::{self, KernelSpec},
};

use crate::{
    guests::{self, LAYERS, print_note},
    scenario,
};

/// Run a command as root in a virtual machine with a real kernel, device-mapper and udevd.
///
/// Exit codes: the command's own; 120 the lab failed; 121 the kernel's log has a splat; 124 the
/// command ran out of time. With several kernels: that of the first that failed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel to boot: 5.10, 6.1, 6.12, 7.2, newest or all; repeatable. If not given: 6.1, with
    /// --prepare all
    #[arg(long = "kernel", value_name = "KERNEL", value_delimiter = ',')]
    kernels: Vec<String>,
    /// Host file or directory for the guest; GUEST is /job/NAME if not given, /job is the
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
    /// Put more programs into the guest: docker
    #[arg(long, value_name = "LAYER", value_parser = guests::layer_named)]
    with: Option<&'static Layer>,
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
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    suite: scenario::SuiteArgs,
    /// Command and arguments; one word alone is a shell line
    #[arg(last = true, required_unless_present_any = ["prepare", "list", "suite"], value_name = "CMD")]
    command: Vec<String>,
}

/// What to do about the cache.
#[derive(clap::Args)]
struct CacheArgs {
    /// Only fetch and build what the kernels need
    #[arg(long, conflicts_with_all = ["list", "command"])]
    prepare: bool,
    /// Look for newer kernel packages than the cached ones
    #[arg(long)]
    refresh: bool,
    /// List the kernels and what is cached of them; with --suite, the scenarios
    #[arg(long, conflicts_with = "command")]
    list: bool,
}

impl CacheArgs {
    fn freshness(&self) -> Freshness {
        if self.refresh {
            Freshness::Newest
        } else {
            Freshness::Cached
        }
    }
}

/// Carries out the command line and ends the process with its exit code.
pub(crate) fn main(args: &Args) -> ! {
    let code = run_task(args).unwrap_or_else(|error| {
        print_note(&format!("{error:#}"));
        LAB_FAILED
    });
    std::process::exit(code)
}

fn run_task(args: &Args) -> Result<i32> {
    if args.suite.suite {
        return scenario::main(
            &args.suite,
            &args.kernels,
            args.cache.list,
            args.cache.freshness(),
        );
    }
    if args.cache.list {
        return list_kernels().map(|()| 0);
    }
    let specs = match args.kernels.as_slice() {
        [] if args.cache.prepare => kernel::resolve_kernels(&["all".to_owned()])?,
        [] => kernel::resolve_kernels(&["6.1".to_owned()])?,
        names => kernel::resolve_kernels(names)?,
    };
    let mut lab = guests::open_lab(args.cache.freshness())?;
    if args.cache.prepare {
        return Ok(fill_cache(&mut lab, &specs, args));
    }
    if let Some(layer) = args.with {
        lab.prepare_layer(layer)?;
    }
    let several = specs.len() > 1;
    let mut rows = Vec::new();
    let mut first_failure = 0;
    for spec in specs {
        if several {
            print_note(&format!("kernel {}", spec.name));
        }
        let row = lab
            .prepare_kernel(spec)
            .and_then(|kernel| lab.run(&kernel, &run_spec(args, spec, several)))
            .map_err(|error| {
                let text = format!("{error:#}");
                print_note(&text);
                text
            });
        let code = match &row {
            Ok(outcome) => {
                print_problems(outcome);
                outcome.exit_code()
            }
            Err(_) => LAB_FAILED,
        };
        if first_failure == 0 {
            first_failure = code;
        }
        rows.push((spec.name.to_owned(), row));
    }
    if several {
        eprint!("{}", format_table(&rows));
    }
    Ok(first_failure)
}

/// The run that the command line asks for, on one of its kernels.
fn run_spec(args: &Args, kernel: &KernelSpec, several: bool) -> RunSpec {
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
        layer: args.with,
        memory_mb: args.memory,
        cpus: args.cpus,
        clock: GuestClock::Host,
        streams: Streams::Live,
    }
}

/// Prints what is not the command's own doing.
fn print_problems(outcome: &RunOutcome) {
    let kernel = &outcome.kernel.name;
    match &outcome.end {
        RunEnd::Exited(_) => {}
        RunEnd::TimedOut => print_note(&format!(
            "kernel {kernel}: the command ran out of time (--timeout)"
        )),
        RunEnd::LabFailed(why) => {
            print_note(&format!(
                "kernel {kernel}: {} boot(s), the last failed: {why}",
                outcome.boots
            ));
        }
    }
    for line in outcome.splats.iter().take(5) {
        print_note(&format!("kernel {kernel}: splat: {line}"));
    }
    if let Some(more) = outcome.splats.len().checked_sub(5).filter(|more| *more > 0) {
        print_note(&format!(
            "kernel {kernel}: and {more} splats more, see dmesg.log in the cache's runs"
        ));
    }
}

/// Fills the cache for all of `specs`; one that cannot be had does not stop the others.
fn fill_cache(lab: &mut Lab, specs: &[&KernelSpec], args: &Args) -> i32 {
    let mut code = 0;
    for spec in specs {
        match lab.prepare_kernel(spec) {
            Ok(kernel) => {
                print_note(&format!(
                    "kernel {}: ready, {} ({})",
                    spec.name, kernel.release, kernel.version
                ));
            }
            Err(error) => {
                print_note(&format!("{error:#}"));
                code = LAB_FAILED;
            }
        }
    }
    let all = args.kernels.is_empty() && args.with.is_none();
    for layer in LAYERS.iter().filter(|it| all || args.with == Some(*it)) {
        match lab.prepare_layer(layer) {
            Ok(()) => print_note(&format!("layer {}: ready", layer.name)),
            Err(error) => {
                print_note(&format!("{error:#}"));
                code = LAB_FAILED;
            }
        }
    }
    code
}

/// Prints the matrix.
fn list_kernels() -> Result<()> {
    let lab = guests::inspect_lab()?;
    println!("{:8} {:24} {:24} suite", "kernel", "release", "package");
    for spec in kernel::MATRIX {
        match lab.cached_kernel(spec) {
            Some(kernel) => println!(
                "{:8} {:24} {:24} {}",
                spec.name, kernel.release, kernel.version, kernel.suite
            ),
            None => println!("{:8} {:24} {:24} not cached", spec.name, "-", "-"),
        }
    }
    Ok(())
}
