//! The command line: syntax only. `--help`, man pages and completions come from here.

mod clean;
mod search;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use dmtrace_core::backend::Backend;

use super::{
    columns::COLUMNS,
    examples::{
        CLEAN_EXAMPLES, EXEC_EXAMPLES, EXIT_CODES, EXPLAIN_EXAMPLES, LIST_EXAMPLES,
        REPORT_EXAMPLES, SERVE_EXAMPLES, WATCH_EXAMPLES, watch_help,
    },
    filter::Filters,
    value::{self, ColumnNames},
    when::When,
};
use crate::{metrics::ListenAddress, probe::Options, render::culprits::GroupBy};

pub(crate) use clean::CleanArgs;
pub(crate) use search::{SearchArgs, SearchHow};

/// Who leaks device-mapper udev cookies and System V semaphores, why, is it safe to clean, and
/// how to stop it.
#[derive(Debug, Parser)]
#[command(name = "dmtrace", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Print JSON (one object, or one line for each event) instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Colour the state: when writing to a terminal, always, never.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        ignore_case = true
    )]
    pub color: ColorChoice,
    /// Show times in UTC instead of the local zone; JSON always has UTC.
    #[arg(long, global = true)]
    pub utc: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Trace live: one line for each change of a cookie, a summary at Ctrl-C.
    #[command(after_help = WATCH_EXAMPLES, after_long_help = watch_help())]
    Watch(WatchArgs),
    /// Show cookies as they are now, in all IPC namespaces; needs no eBPF.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show who leaks: culprits ranked, victims of exhaustion apart.
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Explain one cookie: what happened, which step is missing, whose fault, what (not) to do.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Run a command and say which cookies it or its children left behind.
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// Trace into a file for `report` and `explain`, here or on another machine.
    Record(RecordArgs),
    /// Trace for months: a service that names leaks as they happen.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Remove leaked cookies, and nothing else; only shows what it would do unless --apply.
    #[command(after_help = CLEAN_EXAMPLES)]
    Clean(CleanArgs),
    /// Check whether this machine can be traced, and what will not work.
    Doctor(DoctorArgs),
}

/// How to trace.
#[derive(Args, Clone, Copy, Debug)]
pub struct TuningArgs {
    /// Use this backend and no other (default: the best that the kernel takes).
    #[arg(long, value_name = "BACKEND", ignore_case = true)]
    pub backend: Option<BackendArg>,
    /// Size of the ring buffer, in KiB; rounded up to a power of two.
    #[arg(long, value_name = "KIB", default_value_t = 4096, value_parser = value::number_in(4..=1_048_576_u32))]
    pub ring: u32,
    /// Semaphore sets that can be followed at the same time.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = value::number_in(1..=16_777_216_u32))]
    pub max_semaphores: u32,
    /// Processes that can be kept at the same time.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = value::number_in(1..=1_048_576_u32))]
    pub max_processes: u32,
}

impl TuningArgs {
    /// As the tracer takes it.
    pub fn probe_options(&self) -> Options {
        Options {
            backend: self.backend.map(BackendArg::to_backend),
            ring_bytes: self.ring.saturating_mul(1024),
            max_sems: self.max_semaphores,
            max_procs: self.max_processes,
        }
    }
}

/// Names of backends on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum BackendArg {
    /// Trampolines: exact and cheapest.
    Fentry,
    /// Breakpoints.
    Kprobe,
    /// Syscall tracepoints: the last resort.
    Tracepoint,
}

impl BackendArg {
    /// As the tracer takes it.
    const fn to_backend(self) -> Backend {
        match self {
            Self::Fentry => Backend::Trampoline,
            Self::Kprobe => Backend::Kprobe,
            Self::Tracepoint => Backend::Tracepoint,
        }
    }
}

/// Columns and headers of a table.
#[derive(Args, Clone, Debug)]
pub struct TableArgs {
    /// Columns, separated by commas; `-o help` lists them.
    #[arg(
        short,
        long,
        value_name = "COLUMNS",
        value_delimiter = ',',
        value_parser = ColumnNames::shown_columns(COLUMNS),
        hide_possible_values = true
    )]
    pub output: Vec<String>,
    /// Sort by this column; a leading `-` reverses.
    #[arg(
        long,
        value_name = "COLUMN",
        allow_hyphen_values = true,
        value_parser = ColumnNames::sort_columns(COLUMNS),
        hide_possible_values = true
    )]
    pub sort: Option<String>,
    /// Print no header line, and no summary.
    #[arg(long)]
    pub no_headers: bool,
    /// Print each row on one line, however narrow the terminal is.
    #[arg(long)]
    pub no_trunc: bool,
}

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Show every semaphore, not only cookies.
    #[arg(short, long)]
    pub all: bool,
    /// Stop after this time, such as 10s or 5m.
    #[arg(short, long, value_name = "TIME", value_parser = value::duration_arg)]
    pub duration: Option<Duration>,
    /// Stop after this many lines: events and findings; the call site below a finding is part of it.
    #[arg(short = 'n', long, value_name = "N", value_parser = value::number_in(1..=u64::from(u32::MAX)))]
    pub count: Option<u64>,
    /// Also write everything to this file, as `dmtrace record` does.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// Where the data comes from.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// Use this recording for who made what. The semaphores are still those of now.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Do not use running traces: a snapshot only.
    #[arg(long)]
    pub no_trace: bool,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Show every semaphore set, not only those with a cookie's key.
    #[arg(short, long)]
    pub all: bool,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub search: SearchArgs,
}

/// Reads what a report is ranked by; what is none of these is a usage error that lists them.
fn group_by_parser() -> impl TypedValueParser<Value = GroupBy> {
    let value = |by: GroupBy| PossibleValue::new(by.name()).help(by.description());
    PossibleValuesParser::new(GroupBy::ALL.map(value)).try_map(move |text| {
        let named = GroupBy::ALL
            .into_iter()
            .find(|by| value(*by).matches(&text, true));
        named.ok_or("no such way to rank")
    })
}

/// No kernel has more semaphore sets.
const MOST_SHOWN: usize = 16_777_216;

/// Arguments of `report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// A recording made by `dmtrace record`; without it the running traces and a snapshot.
    pub file: Option<PathBuf>,
    /// Rank by this [default: by program, what happened and the calls, on one screen].
    #[arg(long, value_name = "WHAT", value_parser = group_by_parser(), ignore_case = true)]
    pub by: Option<GroupBy>,
    /// Print what to paste into a bug tracker, for each program that leaks.
    #[arg(long)]
    pub bug: bool,
    /// Show at most this many of each kind [default: 5; with --by, --bug or --since 20].
    #[arg(long, value_name = "N", conflicts_with = "all", value_parser = value::number_in(1..=MOST_SHOWN))]
    pub top: Option<usize>,
    /// Show all of them.
    #[arg(short, long)]
    pub all: bool,
    /// Print nothing but leaked cookies, removed ones too, as folded stacks: `program;outermost;...;innermost COUNT`.
    #[arg(long, conflicts_with_all = ["by", "bug"])]
    pub folded: bool,
    /// Also draw a flame graph of leaked cookies into this file (SVG); replaces what is there.
    #[arg(long, value_name = "FILE")]
    pub flamegraph: Option<PathBuf>,
    /// What `dmtrace serve` has found since then: how long ago (7d, 12h), or a local time
    /// (2026-11-20, 2026-11-20 14:00; of UTC with --utc).
    #[arg(long, value_name = "TIME")]
    pub since: Option<When>,
    /// The end of that time [default: now].
    #[arg(long, value_name = "TIME", requires = "since")]
    pub until: Option<When>,
    /// Read the history from this file [default: the service, or
    /// /var/lib/dmtrace/history.redb].
    #[arg(long, value_name = "FILE", requires = "since")]
    pub history: Option<PathBuf>,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub search: SearchArgs,
}

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The cookie (0x0d4d1234) or its semid; without it the one that needs attention most.
    #[arg(allow_negative_numbers = true)]
    pub cookie: Option<String>,
    /// A recording made by `dmtrace record`; without it the running traces and a snapshot.
    pub file: Option<PathBuf>,
    /// Look in this history only; without it, in that of `dmtrace serve` for a cookie that is gone.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub history: Option<PathBuf>,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub search: SearchArgs,
}

/// Arguments of `exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Count every semaphore left behind, not only cookies.
    #[arg(short, long)]
    pub all: bool,
    /// Wait so long for udev to complete, after the command has ended.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = value::duration_arg)]
    pub grace: Duration,
    /// Write the result here (replaces what is there) instead of to standard error; standard output
    /// belongs to the command.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Exit code when something was left.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value::number_in(0..=u8::MAX))]
    pub error_exitcode: u8,
    #[command(flatten)]
    pub tuning: TuningArgs,
    #[command(flatten)]
    pub filters: Filters,
    /// The command and its arguments; `--` before it does no harm.
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Arguments of `record`.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// File to write; must not exist. It appears when tracing has begun.
    pub file: PathBuf,
    /// Stop after this time, such as 10s or 5m.
    #[arg(short, long, value_name = "TIME", value_parser = value::duration_arg)]
    pub duration: Option<Duration>,
    /// Replace the file if it exists: at the end, once the new recording is complete.
    ///
    /// Until then, and if dmtrace is killed or the disk is full, the new one is FILE.partial-PID.
    #[arg(short, long)]
    pub force: bool,
    /// Begin the next file when this one has this size, such as 64MiB or 1GB.
    ///
    /// FILE is always the current one (where --force replaces it at the end, FILE.partial-PID is);
    /// FILE.1 is the one before. Each can be read by itself: it begins with everything that was there
    /// when it was begun. With --force, recordings that are FILE.1 and so on count as older ones:
    /// they move on, and the oldest goes first. Other files end the recording, and stay as they are.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<ByteSize>,
    /// Keep so many files before the current one.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "max_size", value_parser = value::number_in(0..=1000_u32))]
    pub keep: u32,
    #[command(flatten)]
    pub tuning: TuningArgs,
}

/// The smallest file that --max-size takes: it must hold more than its own beginning.
const SMALLEST: ByteSize = ByteSize::kib(64);

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| "give a size, such as 64MiB, 500MB or 1000000".to_owned())?;
    if size < SMALLEST {
        return Err(format!("{SMALLEST} is the least"));
    }
    Ok(size)
}

/// How to trace for months: smaller buffers, because the maps make good what is dropped.
#[derive(Args, Clone, Copy, Debug)]
pub struct ServeTuningArgs {
    /// Use this backend and no other (default: the best that the kernel takes).
    #[arg(long, value_name = "BACKEND", ignore_case = true)]
    backend: Option<BackendArg>,
    /// Size of the ring buffer, in KiB; rounded up to a power of two.
    #[arg(long, value_name = "KIB", default_value_t = 256, value_parser = value::number_in(4..=1_048_576_u32))]
    ring: u32,
    /// Semaphore sets that can be followed at the same time.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = value::number_in(1..=16_777_216_u32))]
    max_semaphores: u32,
    /// Processes that can be kept at the same time.
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = value::number_in(1..=1_048_576_u32))]
    max_processes: u32,
}

impl ServeTuningArgs {
    /// As the tracer takes it.
    pub fn probe_options(self) -> Options {
        TuningArgs {
            backend: self.backend,
            ring: self.ring,
            max_semaphores: self.max_semaphores,
            max_processes: self.max_processes,
        }
        .probe_options()
    }
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags")]
pub struct ServeArgs {
    /// Show the status of the running service; exit code 1 if it has active findings or
    /// orphaned cookies, 4 if that is not certain.
    #[arg(long)]
    pub status: bool,
    /// Let the running service search who holds the cookies that are older than its trace, as it does
    /// once at its start; then show its status.
    #[arg(long, conflicts_with = "status")]
    pub search: bool,
    /// Search for the service, and print what was found for it.
    #[arg(long, hide = true, conflicts_with_all = ["status", "search"])]
    pub search_worker: bool,
    /// Members of this group may ask, too (default: root only).
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Log every step of every cookie.
    #[arg(short, long)]
    pub verbose: bool,
    /// Keep tracing after SIGTERM, too, until the next start.
    ///
    /// After a crash, and over systemctl restart, tracing continues in any case, where the kernel
    /// allows. Without this any other orderly end leaves nothing behind.
    #[arg(long)]
    pub keep: bool,
    /// End the tracing that a service left running in the kernel.
    #[arg(long, conflicts_with_all = ["status", "search"])]
    pub remove: bool,
    /// Remove leaks that nobody has touched for this time (default: never remove anything).
    ///
    /// By the rules of `dmtrace clean --apply`, once a minute at most; each goes into the audit
    /// record.
    #[arg(long, value_name = "AGE", value_parser = value::duration_arg)]
    pub auto_clean: Option<Duration>,
    /// The audit record of --auto-clean [default: that of dmtrace clean].
    #[arg(long, value_name = "FILE", requires = "auto_clean")]
    pub audit: Option<PathBuf>,
    /// Keep findings in this file.
    #[arg(long, value_name = "FILE", default_value = crate::history::PATH)]
    pub history: PathBuf,
    /// Largest size of that file, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = value::number_in(4..=65_536_u64))]
    pub history_limit: u64,
    /// How long findings are kept after their end.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = value::duration_arg)]
    pub history_for: Duration,
    /// Keep no history.
    #[arg(long, conflicts_with_all = ["history", "history_limit", "history_for"])]
    pub no_history: bool,
    /// Where the kernel side outlives the service: in a BPF file system.
    #[arg(long, value_name = "DIR", default_value = crate::probe::DEFAULT_PINS)]
    pub pins: PathBuf,
    /// Serve metrics for Prometheus there: ADDRESS:PORT, or the path of a socket.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<ListenAddress>,
    /// Serve them also on an address that others can reach.
    #[arg(long, requires = "metrics")]
    pub metrics_exposed: bool,
    /// Write metrics into this directory, for node_exporter.
    #[arg(long, value_name = "DIR")]
    pub metrics_textfile: Option<PathBuf>,
    /// Run this for each new finding, which it gets as JSON on standard input. No shell is used.
    #[arg(long, value_name = "COMMAND")]
    pub on_leak: Option<String>,
    #[command(flatten)]
    pub tuning: ServeTuningArgs,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Do not attach probes: say what can be said without.
    #[arg(long)]
    pub no_attach: bool,
    #[command(flatten)]
    pub search: SearchArgs,
}
