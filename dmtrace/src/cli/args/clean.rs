//! The arguments of `clean`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{SearchArgs, SourceArgs};
use crate::cli::{
    filter::Filters,
    value::{self, CookieName},
};

/// Arguments of `clean`.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags")]
pub struct CleanArgs {
    /// Only these: a cookie (0x0d4d1234) or its semid, several if need be.
    #[arg(value_name = "COOKIE")]
    pub cookies: Vec<CookieName>,
    /// Do it. Without this, only the plan is shown.
    #[arg(long)]
    pub apply: bool,
    /// Do not ask.
    #[arg(short, long, requires = "apply")]
    pub yes: bool,
    /// Write the plan to this file, which must not exist; with --apply, carry out exactly the plan
    /// in it (orphans: within five minutes).
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Refuse a plan that does more than this [default: any number of proven leaks and orphans,
    /// and 100 of everything else].
    #[arg(long, value_name = "N", value_parser = value::parse_number::<usize>)]
    pub max: Option<usize>,
    /// Keep what was touched more recently than this [default: 60s; 10m for what is not proven, and for
    /// orphans whose owner had not begun to wait; for orphans it can only be longer].
    #[arg(long, value_name = "TIME", value_parser = value::duration_arg)]
    pub older_than: Option<Duration>,
    /// Also remove cookies of living processes that have provably moved on without waiting.
    #[arg(long)]
    pub abandoned: bool,
    /// Also complete what a stuck thread waits for, as far as it is provably lost and udev's work
    /// is done; never more.
    #[arg(long)]
    pub complete: bool,
    /// Also remove a cookie of which nobody has seen that it leaked; name it: COOKIE. Several: with
    /// filters and --plan FILE, then --apply --plan FILE.
    ///
    /// All other rules hold: it has the form of a cookie, nobody waits on it, no living process is
    /// known to use or carry it or may have made it, udev has given up, it is old.
    #[arg(long)]
    pub force_unknown: bool,
    /// Remove nothing: double the number of sets that the kernel allows (kernel.sem), up to 32768,
    /// until the next boot. Shows it; with --apply does it.
    #[arg(long, conflicts_with_all = ["cookies", "plan", "abandoned", "complete", "force_unknown"])]
    pub raise_limit: bool,
    /// Undo --raise-limit, as long as nobody else has changed it since and the old limit has room.
    /// Shows it; with --apply does it.
    #[arg(long, conflicts_with_all = ["cookies", "plan", "abandoned", "complete", "force_unknown",
        "raise_limit"])]
    pub restore_limit: bool,
    /// Write the audit record here.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/log/dmtrace-clean.jsonl"
    )]
    pub audit: PathBuf,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub search: SearchArgs,
}
