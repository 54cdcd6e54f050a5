//! Who traces while calls are measured.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    programs::BenchPrograms,
    usage::{self, Usage},
};
use crate::host;

/// Tracers that tell nobody when they are ready get this time.
const SETTLE: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TracerMode {
    /// Empty programs where dmtrace has its own.
    Floor,
    /// `dmtrace watch`.
    Dmtrace,
    /// A script of bpftrace with about the same contents.
    Bpftrace,
    /// The same, and the stack of who makes a cookie, which dmtrace takes, too.
    BpftraceStack,
    /// `perf trace -a`.
    Perf,
    /// `strace -f` of the load alone.
    Strace,
    /// The same, with a filter that stops at the traced calls only.
    StraceSeccomp,
}

impl TracerMode {
    pub(super) const ALL: [Self; 7] = [
        Self::Floor,
        Self::Dmtrace,
        Self::Bpftrace,
        Self::BpftraceStack,
        Self::Perf,
        Self::Strace,
        Self::StraceSeccomp,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "empty programs",
            Self::Dmtrace => "dmtrace watch",
            Self::Bpftrace => "bpftrace",
            Self::BpftraceStack => "bpftrace with stacks",
            Self::Perf => "perf trace -a",
            Self::Strace => "strace -f",
            Self::StraceSeccomp => "strace -f --seccomp-bpf",
        }
    }

    /// The program that must be installed.
    pub(super) const fn required_program(self) -> Option<&'static str> {
        match self {
            Self::Floor | Self::Dmtrace => None,
            Self::Bpftrace | Self::BpftraceStack => Some("bpftrace"),
            Self::Perf => Some("perf"),
            Self::Strace | Self::StraceSeccomp => Some("strace"),
        }
    }

    /// Whether it can be had on this machine.
    pub(super) fn is_installed(self) -> bool {
        self.required_program().is_none_or(host::has_program)
    }

    /// Whether the load sleeps while it is traced, so that only the time that passes tells.
    pub(super) const fn stops_the_load(self) -> bool {
        matches!(self, Self::Strace | Self::StraceSeccomp)
    }

    /// The load, under a tracer that starts what it traces.
    pub(super) fn load_command(self, load: &Path) -> Command {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null"]);
        strace.args(["-e", "trace=semget,semop,semtimedop,semctl"]);
        match self {
            Self::Strace => {}
            Self::StraceSeccomp => {
                strace.arg("--seccomp-bpf");
            }
            _ => return Command::new(load),
        }
        strace.arg(load);
        strace
    }

    /// Starts it, and waits until it traces. `None` if it starts the load itself.
    pub(super) fn start_tracer(
        self,
        programs: &BenchPrograms,
        hooks: &[String],
    ) -> Result<Option<BenchTracer>> {
        let mut command = match self {
            Self::Strace | Self::StraceSeccomp => return Ok(None),
            Self::Floor => {
                let mut floor = pinned_command(programs.floor_path()?);
                floor.arg(programs.object_path()?).args(hooks);
                floor
            }
            Self::Dmtrace => return BenchTracer::start_dmtrace(programs, &["watch"]).map(Some),
            Self::Bpftrace | Self::BpftraceStack => {
                let mut bpftrace = pinned_command(Path::new("bpftrace"));
                bpftrace.args(["-e", &bpftrace_script(self == Self::BpftraceStack)]);
                bpftrace
            }
            Self::Perf => {
                let mut perf = pinned_command(Path::new("perf"));
                perf.args(["trace", "-a", "-e", "semget,semop,semtimedop,semctl"]);
                perf.args(["-o", "/dev/null"]);
                perf
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        let mut child = command.spawn().context(self.name())?;
        let mut out = child.stdout.take().map(BufReader::new);
        if self != Self::Perf {
            let mut line = String::new();
            while !line.contains("armed") {
                line.clear();
                let got = out.as_mut().map(|out| out.read_line(&mut line));
                if got.transpose()?.unwrap_or(0) == 0 {
                    let _gone = child.kill();
                    let status = child.wait()?;
                    bail!("{}: does not start ({status})", self.name());
                }
            }
        }
        if self != Self::Floor {
            thread::sleep(SETTLE);
        }
        // Read, as a pipe to /dev/null would.
        thread::spawn(move || {
            let mut sink = [0; 1 << 16];
            while let Some(out) = &mut out {
                if !out.read(&mut sink).is_ok_and(|got| got > 0) {
                    break;
                }
            }
        });
        Ok(Some(BenchTracer {
            child,
            said: None,
            stderr: None,
        }))
    }
}

/// A tracer that runs.
pub(super) struct BenchTracer {
    pub child: Child,
    /// Reads what it prints, and keeps the last line.
    said: Option<JoinHandle<io::Result<String>>>,
    stderr: Option<ChildStderr>,
}

impl BenchTracer {
    /// Starts dmtrace with these arguments, its output to /dev/null, and waits until it traces.
    pub(super) fn start_dmtrace(programs: &BenchPrograms, args: &[&str]) -> Result<Self> {
        Self::start_armed(programs, args, Stdio::null())
    }

    /// The same, but reads what it prints, as a program behind a pipe would, and keeps the summary.
    pub(super) fn dmtrace_read(programs: &BenchPrograms, args: &[&str]) -> Result<Self> {
        Self::start_armed(programs, args, Stdio::piped())
    }

    fn start_armed(programs: &BenchPrograms, args: &[&str], stdout: Stdio) -> Result<Self> {
        let mut command = pinned_command(programs.dmtrace_path()?);
        command.args(args).stdin(Stdio::null());
        command.stdout(stdout).stderr(Stdio::piped());
        usage::forget_own_peak();
        let mut child = command.spawn().context("dmtrace")?;
        let mark = registration_file(&child);
        let limit = Instant::now() + Duration::from_secs(20);
        while !mark.exists() {
            if child.try_wait()?.is_some() || Instant::now() > limit {
                let _gone = child.kill();
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    stderr.read_to_string(&mut said)?;
                }
                bail!("dmtrace {}: does not trace: {said}", args.join(" "));
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(Self {
            said: child
                .stdout
                .take()
                .map(|out| thread::spawn(|| last_line(out))),
            stderr: child.stderr.take(),
            child,
        })
    }

    /// Ends it, as Ctrl-C does; its last line if that is kept, and what it used.
    pub(super) fn stop(mut self) -> Result<(String, Usage)> {
        drop(self.child.stdin.take());
        drop(self.stderr.take());
        let usage = usage::end_tracer(&self.child).context("a tracer")?;
        let said = match self.said.take() {
            Some(said) => said.join().unwrap_or_else(|panic| resume_unwind(panic))?,
            None => String::new(),
        };
        Ok((said, usage))
    }
}

fn last_line(out: ChildStdout) -> io::Result<String> {
    let mut out = BufReader::with_capacity(1 << 16, out);
    let (mut line, mut last) = (String::new(), String::new());
    while out.read_line(&mut line)? > 0 {
        std::mem::swap(&mut line, &mut last);
        line.clear();
    }
    Ok(last)
}

/// The file by which dmtrace makes a trace known, once all probes are armed.
pub(super) fn registration_file(child: &Child) -> PathBuf {
    PathBuf::from(format!("/run/dmtrace/tracer-{}.json", child.id()))
}

/// Where the load runs: the last processor.
pub(super) fn load_cpu() -> usize {
    thread::available_parallelism().map_or(1, usize::from) - 1
}

/// A tracer away from the load's processor, if there is another one.
pub(super) fn pinned_command(program: &Path) -> Command {
    if load_cpu() == 0 || !host::has_program("taskset") {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command
        .args(["-c", &format!("0-{}", load_cpu() - 1)])
        .arg(program);
    command
}

/// Where dmtrace has its programs on this machine, as it says itself.
pub(super) fn attached_hooks(programs: &BenchPrograms) -> Result<Vec<String>> {
    let output = Command::new(programs.dmtrace_path()?)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .output()
        .context("dmtrace doctor")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("dmtrace doctor")?;
    let attempts = report["attempts"].as_array().cloned().unwrap_or_default();
    let hooks: Vec<String> = attempts
        .iter()
        .filter(|attempt| attempt["outcome"] == "attached")
        .filter_map(|attempt| attempt["hooks"].as_array())
        .flatten()
        .filter_map(|hook| hook.as_str().map(str::to_owned))
        .collect();
    if hooks.is_empty() {
        bail!("dmtrace doctor: nothing can be attached on this machine");
    }
    Ok(hooks)
}

/// A script for bpftrace that follows cookies from creation to removal and prints every step.
fn bpftrace_script(stacks: bool) -> String {
    let stack = if stacks { "print(ustack);" } else { "" };
    include_str!("cookies.bt").replace("/* stack */", stack)
}

/// A sink for what is measured elsewhere.
pub(super) fn null_sink() -> Result<Stdio> {
    Ok(File::options().write(true).open("/dev/null")?.into())
}
