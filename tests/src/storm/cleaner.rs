//! Who cleans while the operations run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Storm, StormShared, command::read_output, count_sets};

/// Who cleans.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Cleaner {
    /// Nobody: what the storm does by itself.
    None,
    /// `dmtrace clean --apply`
    Dmtrace,
    /// The same where nothing traces: what it removes are orphans.
    DmtraceNoTrace,
    /// `dmsetup udevcomplete_all -y`
    UdevcompleteAll,
}

impl Cleaner {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dmtrace => "dmtrace",
            Self::DmtraceNoTrace => "dmtrace_no_trace",
            Self::UdevcompleteAll => "udevcomplete_all",
        }
    }

    /// Whether a trace is the second witness.
    pub(super) const fn is_traced(self) -> bool {
        !matches!(self, Self::DmtraceNoTrace)
    }

    /// Whether every leak must go.
    pub(super) const fn is_dmtrace(self) -> bool {
        matches!(self, Self::Dmtrace | Self::DmtraceNoTrace)
    }
}

/// What a cleaner did.
#[derive(Debug, Default)]
pub(super) struct CleanedCounts {
    pub(super) rounds: u64,
    /// Rounds that were ended by SIGKILL.
    pub(super) killed: u64,
    /// Time of all rounds.
    pub(super) time: Duration,
    /// Its processes.
    pub(super) pids: BTreeSet<u32>,
    /// Outcomes that it told, by name.
    pub(super) outcomes: BTreeMap<String, u64>,
    /// What it said when it could not work.
    pub(super) errors: Vec<String>,
}

impl CleanedCounts {
    pub(super) fn add_counts(&mut self, more: Self) {
        self.rounds += more.rounds;
        self.killed += more.killed;
        self.time += more.time;
        self.pids.extend(more.pids);
        for (name, count) in more.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
        self.errors.extend(more.errors);
    }
}

/// One round of this many is killed.
const KILLED: u32 = 8;

/// Cleans in a tight loop until the operations are done.
pub(super) fn run_cleaner(plan: &Storm, shared: &StormShared) -> Result<CleanedCounts> {
    let mut random = fastrand::Rng::with_seed(!plan.seed);
    let mut all = CleanedCounts::default();
    while !shared.done.load(Ordering::Relaxed) {
        if plan.cleaner == Cleaner::None {
            thread::sleep(Duration::from_millis(200));
        } else {
            let usual = all.time / u32::try_from(all.rounds.max(1))?;
            let kill = plan.cleaner.is_dmtrace() && random.u32(..KILLED) == 0;
            let kill = kill.then(|| usual.mul_f64(random.f64() * 1.2));
            all.add_counts(clean_round(plan, kill)?);
        }
        shared.peak.fetch_max(count_sets()?, Ordering::Relaxed);
    }
    Ok(all)
}

/// One round; killed after that time.
pub(super) fn clean_round(plan: &Storm, kill: Option<Duration>) -> Result<CleanedCounts> {
    let mut command = match plan.cleaner {
        Cleaner::UdevcompleteAll => {
            let mut command = Command::new("dmsetup");
            command.args(["udevcomplete_all", "-y"]);
            command
        }
        _ => {
            let mut command = Command::new("dmtrace");
            // Two seconds: younger ones it would wait for.
            command.args(["--json", "clean", "--apply", "--yes", "--older-than", "2s"]);
            command.args(["--max", "100000", "--audit"]);
            command.arg(plan.out.join("audit"));
            command
        }
    };
    let mut said: File = tempfile::tempfile()?;
    // Where nothing traces, whoever reads numbers is somebody who has them.
    let stdout = match plan.cleaner.is_traced() {
        true => Stdio::from(said.try_clone()?),
        false => Stdio::null(),
    };
    let mut complained: File = tempfile::tempfile()?;
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(complained.try_clone()?)
        .spawn()
        .context("the cleaner")?;
    let mut out = CleanedCounts {
        rounds: 1,
        pids: [child.id()].into(),
        ..CleanedCounts::default()
    };
    if let Some(time) = kill {
        thread::sleep(time);
        // It may have ended.
        child.kill()?;
    }
    let status = child.wait()?;
    out.time = began.elapsed();
    let text = read_output(&mut said)?;
    // 4: not all could be read; 5: something has moved.
    match status.code() {
        None => out.killed = 1,
        Some(0 | 4 | 5) if plan.cleaner == Cleaner::Dmtrace => {
            let result: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            for cookie in result["cookies"].as_array().into_iter().flatten() {
                let outcome = cookie["outcome"].as_str().unwrap_or("none");
                *out.outcomes.entry(outcome.to_owned()).or_default() += 1;
            }
        }
        Some(0) => {}
        Some(4 | 5) if plan.cleaner.is_dmtrace() => {}
        Some(code) => {
            let why = read_output(&mut complained)?;
            out.errors.push(format!("exit {code}: {}", why.trim()));
        }
    }
    Ok(out)
}
