//! A storm: real operations of device-mapper's users run in parallel, some are killed, and a
//! cleaner works in a tight loop. Runs in a virtual machine, started by `tests/vm/storm.sh`.
//!
//! An operation that nobody kills must succeed, and its node must be there when it has made one,
//! and gone when it has removed one. What does not is *harm*. What the trace has seen is the
//! second witness: no cookie may be removed while it is in use, none without an audit record.

mod cleaner;
mod command;
mod harm;
mod summary;
mod trace;
mod worker;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

pub use cleaner::Cleaner;
use harm::Harms;
pub use summary::StormSummary;

use crate::dm;

/// How to storm.
#[derive(Clone, Debug)]
pub struct Storm {
    /// How long operations are begun.
    pub time: Duration,
    /// Who cleans meanwhile.
    pub cleaner: Cleaner,
    /// What the random choices begin with.
    pub seed: u64,
    /// One worker for each: a directory with `lvm.conf`, and a file `disk` with the path of a
    /// device for cryptsetup. The volume group of worker N is `vgN`.
    pub places: Vec<PathBuf>,
    /// Where to write.
    pub out: PathBuf,
}

/// What all threads share.
struct StormShared {
    began: Instant,
    /// Operations are begun until then.
    end: Instant,
    cleaner: Cleaner,
    /// The cleaner works until then.
    done: AtomicBool,
    harms: Harms,
    /// What was done, by name.
    counts: Mutex<std::collections::BTreeMap<String, u64>>,
    /// Most sets at a time.
    peak: AtomicU64,
}

impl StormShared {
    fn count_one(&self, name: &str) {
        self.add_count(name, 1);
    }

    fn add_count(&self, name: &str, more: u64) {
        if let Ok(mut counts) = self.counts.lock() {
            *counts.entry(name.to_owned()).or_default() += more;
        }
    }

    fn is_running(&self) -> bool {
        Instant::now() < self.end
    }

    /// How long everybody rests in the middle of something. A search proves nothing while udev works;
    /// with a trace there is no need of it.
    fn lull_left(&self) -> Option<Duration> {
        if self.cleaner.is_traced() {
            return None;
        }
        let second = self.began.elapsed().as_secs() % LULL_EVERY.as_secs();
        let left = LULL_EVERY.as_secs() - second;
        (left <= LULL.as_secs()).then_some(Duration::from_secs(left))
    }
}

/// A lull is at the end of each span of this length,
const LULL_EVERY: Duration = Duration::from_secs(40);
/// and as long as two searches.
const LULL: Duration = Duration::from_secs(22);

/// For cookies whose uevents may be outstanding: udev's timeout, its grace, and some more.
const UDEV_TIMEOUT: Duration = Duration::from_secs(120);

/// Storms, and tells what came of it.
///
/// # Errors
/// It cannot be done here. That something was harmed is in the summary.
pub fn run_storm(plan: &Storm) -> Result<StormSummary> {
    let begin = count_sets()?;
    let start = || trace::StormTrace::start(&plan.out);
    let tracer = plan.cleaner.is_traced().then(start).transpose()?;
    let began = Instant::now();
    let shared = StormShared {
        began,
        end: began + plan.time,
        cleaner: plan.cleaner,
        done: AtomicBool::new(false),
        harms: Harms::create(&plan.out.join("harm"))?,
        counts: Mutex::default(),
        peak: AtomicU64::new(begin),
    };
    let cleaned = thread::scope(|scope| -> Result<cleaner::CleanedCounts> {
        let cleaning = scope.spawn(|| cleaner::run_cleaner(plan, &shared));
        let mut workers: Vec<_> = plan
            .places
            .iter()
            .enumerate()
            .map(|(index, place)| {
                let random = fastrand::Rng::with_seed(plan.seed.wrapping_add(index as u64));
                let mut worker = worker::StormWorker::new(index + 1, place, &shared, random);
                scope.spawn(move || worker.run_until_end())
            })
            .collect();
        let random = fastrand::Rng::with_seed(!plan.seed);
        let mut cycles = worker::StormWorker::new(0, &plan.out, &shared, random);
        workers.push(scope.spawn(move || cycles.run_cycles()));
        let mut lost = 0;
        for worker in workers {
            lost += u32::from(worker.join().is_err());
        }
        // Operations that are under way have come to their ends with the cleaner still at work.
        shared.done.store(true, Ordering::Relaxed);
        let cleaned = cleaning.join();
        anyhow::ensure!(lost == 0, "{lost} workers panicked");
        cleaned.map_err(|_| anyhow::anyhow!("the cleaner panicked"))?
    })?;
    let seconds = began.elapsed().as_secs();
    settle_udev();
    let mut left = count_sets()?;
    let deadline = Instant::now() + UDEV_TIMEOUT;
    let mut cleaned = cleaned;
    while plan.cleaner.is_dmtrace() && left > begin && Instant::now() < deadline {
        thread::sleep(Duration::from_secs(1));
        cleaned.add_counts(cleaner::clean_round(plan, None)?);
        left = count_sets()?;
    }
    if left > begin {
        let list = Command::new("dmtrace").arg("list").output();
        let list = list.context("dmtrace list")?;
        fs::write(plan.out.join("left"), list.stdout)?;
    }
    let seen = tracer.map(trace::StormTrace::finish).transpose()?;
    let harms = shared.harms.finish();
    let audit = trace::compare_audit(&plan.out.join("audit"), &cleaned, seen.as_ref())?;
    let exact = seen.as_ref().is_none_or(|it| it.exact);
    let surprise = !harms.is_empty() || audit.live > 0 || left > begin || !exact;
    if seen.is_some() && (!surprise || plan.cleaner != Cleaner::Dmtrace) {
        // Megabytes, of use only where something has to be understood.
        fs::remove_file(plan.out.join("watch"))?;
    }
    Ok(StormSummary {
        cleaner: plan.cleaner.name(),
        seed: plan.seed,
        workers: plan.places.len(),
        seconds,
        begin,
        peak: shared.peak.load(Ordering::Relaxed),
        left,
        suspended: dm::list_devices("").iter().filter(|(_, is)| *is).count(),
        harms,
        counts: shared.counts.into_inner().unwrap_or_default(),
        audit,
        cleaned,
        seen,
    })
}

/// Semaphore sets of this namespace.
fn count_sets() -> Result<u64> {
    let path = "/proc/sysvipc/sem";
    let text = fs::read_to_string(path).context(path)?;
    Ok(text.lines().count().saturating_sub(1) as u64)
}

fn settle_udev() {
    // In vain where udev is stuck; what is left then is told.
    let _ended = Command::new("udevadm")
        .args(["settle", "--timeout=60"])
        .status();
}
