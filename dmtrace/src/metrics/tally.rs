//! What has happened since the start, summed while it happens: the books remember a bounded past.

use std::collections::{BTreeMap, BTreeSet};

use dmtrace_core::{
    event::workload::Workload,
    ids::{BootTime, SemId},
    ledger::{Change, ChangeKind, EndKind, Ledger, Semaphore},
    verdict::{Class, Judged},
};

use super::Waits;

/// Cookies whose waits are measured at the same time.
const MAX_FOLLOWED_WAITS: usize = 4096;

/// Where the maker of a cookie ran.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WorkloadOrigin {
    Host,
    /// In a container, by its cgroup.
    Container,
    /// Not known: its maker was not captured.
    Unknown,
}

impl WorkloadOrigin {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Host, Self::Container, Self::Unknown];

    /// Value of the label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
            Self::Unknown => "unknown",
        }
    }

    /// Of a set in the books.
    pub(crate) fn of_semaphore(semaphore: &Semaphore, ledger: &Ledger) -> Self {
        let image = semaphore.creator.image();
        let process = image.and_then(|image| ledger.process(image));
        let cgroup = process
            .and_then(|process| process.image.as_deref())
            .map_or("", |image| image.cgroup.as_str());
        if cgroup.is_empty() {
            Self::Unknown
        } else if Workload::from_cgroup(cgroup).container.is_some() {
            Self::Container
        } else {
            Self::Host
        }
    }
}

/// What became of a cookie that an automatic clean-up looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CleanupResult {
    Removed,
    /// Left alone: in use again, changed, or not proven.
    Kept,
    /// No cookie: a clean-up that did not end well.
    Failed,
}

impl CleanupResult {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Removed, Self::Kept, Self::Failed];

    /// Value of the label `result`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Kept => "kept",
            Self::Failed => "failed",
        }
    }
}

/// What came of telling the hook about a finding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HookRun {
    /// It ended with status 0.
    Ok,
    /// It could not be started, or ended otherwise.
    Failed,
    /// It was killed because it took too long.
    TimedOut,
    /// It was not run: too many findings waited for it.
    Dropped,
}

impl HookRun {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Ok, Self::Failed, Self::TimedOut, Self::Dropped];

    /// Value of the label `result`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timeout",
            Self::Dropped => "dropped",
        }
    }
}

/// Cookies of one origin.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct CookieTally {
    pub created: u64,
    /// Removed as the protocol says, by who had waited for it or made it.
    pub completed: u64,
    pub leaked: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MetricsTally {
    /// By [`WorkloadOrigin`].
    pub lives: [CookieTally; WorkloadOrigin::ALL.len()],
    /// Waits for udev that ended well.
    pub waits: Waits,
    /// Sets of any kind that could not be made because the limits of `kernel.sem` were reached.
    pub refused_by_limit: u64,
    /// Sets that could not be made for another reason.
    pub refused_otherwise: u64,
    /// By [`CleanupResult`].
    pub cleanup: [u64; CleanupResult::ALL.len()],
    /// By [`HookRun`].
    pub hook: [u64; HookRun::ALL.len()],
}

/// Sums while it happens.
#[derive(Clone, Debug, Default)]
pub(crate) struct MetricsCounter {
    tally: MetricsTally,
    /// Threads that wait for zero, and since when, by cookie.
    waiting: BTreeMap<SemId, Vec<(u32, BootTime)>>,
    /// Cookies that are counted as leaked already.
    leaked: BTreeSet<SemId>,
    /// Those of them that were removed since.
    removed: BTreeSet<SemId>,
}

/// So many removed leaks are remembered as counted.
const MAX_REMOVED_LEAKS: usize = 65_536;

impl MetricsCounter {
    /// The sums so far.
    pub(crate) const fn tally(&self) -> &MetricsTally {
        &self.tally
    }

    /// Changes of the books, as an observer gets them.
    pub(crate) fn count_changes(&mut self, changes: &[Change], ledger: &Ledger) {
        for change in changes {
            self.count_change(change, ledger);
        }
    }

    fn count_change(&mut self, change: &Change, ledger: &Ledger) {
        if let ChangeKind::CreateFailed { errno } = change.kind {
            if errno == libc::ENOSPC {
                self.tally.refused_by_limit += 1;
            } else {
                self.tally.refused_otherwise += 1;
            }
        }
        if !change.is_cookie() {
            return;
        }
        let sem = change.sem;
        let tid = change.who.as_ref().map(|who| who.tid);
        match change.kind {
            ChangeKind::Created { .. } => self.tally_of_cookie(sem, ledger).created += 1,
            ChangeKind::Waiting { .. } => {
                let room =
                    self.waiting.len() < MAX_FOLLOWED_WAITS || self.waiting.contains_key(&sem);
                if let (Some(tid), true) = (tid, room) {
                    let threads = self.waiting.entry(sem).or_default();
                    // After EINTR libdm waits again: one wait for whoever watches.
                    if threads.iter().all(|(known, _)| *known != tid)
                        && threads.len() < dmtrace_core::ledger::MAX_WAITERS
                    {
                        threads.push((tid, change.at));
                    }
                }
            }
            ChangeKind::Released => {
                let threads = self.waiting.get_mut(&sem);
                let place = threads
                    .as_ref()
                    .and_then(|threads| threads.iter().position(|(known, _)| Some(*known) == tid));
                if let (Some(threads), Some(place)) = (threads, place) {
                    let (_, since) = threads.swap_remove(place);
                    self.tally
                        .waits
                        .observe_wait(change.at.duration_since(since));
                }
            }
            ChangeKind::Destroyed { ending } => {
                self.waiting.remove(&sem);
                if self.leaked.remove(&sem) {
                    if self.removed.len() >= MAX_REMOVED_LEAKS {
                        self.removed.clear();
                    }
                    self.removed.insert(sem);
                }
                if matches!(ending, EndKind::ByWaiter | EndKind::ByCreator) {
                    self.tally_of_cookie(sem, ledger).completed += 1;
                }
            }
            _ => {}
        }
    }

    /// A finding, as an observer gets it. Each cookie counts as leaked once.
    pub(crate) fn count_finding(&mut self, judged: &Judged<'_>, ledger: &Ledger) {
        let semaphore = judged.semaphore;
        if matches!(judged.verdict.class, Class::Leaked(_)) && self.leaked.insert(semaphore.id) {
            let origin = WorkloadOrigin::of_semaphore(semaphore, ledger);
            self.tally.lives[origin as usize].leaked += 1;
        }
    }

    /// A leak that was removed: it is counted already if it was found while it was there.
    pub(crate) fn count_removed_leak(&mut self, judged: &Judged<'_>, ledger: &Ledger) {
        let semaphore = judged.semaphore;
        if !self.removed.remove(&semaphore.id) {
            let origin = WorkloadOrigin::of_semaphore(semaphore, ledger);
            self.tally.lives[origin as usize].leaked += 1;
        }
    }

    /// Cookies that an automatic clean-up has looked at.
    pub(crate) const fn count_cleaned(&mut self, result: CleanupResult, count: u64) {
        self.tally.cleanup[result as usize] += count;
    }

    fn tally_of_cookie(&mut self, sem: SemId, ledger: &Ledger) -> &mut CookieTally {
        let found = ledger.semaphore(sem).or_else(|| ledger.closed_cookie(sem));
        let origin = found.map_or(WorkloadOrigin::Unknown, |found| {
            WorkloadOrigin::of_semaphore(found, ledger)
        });
        &mut self.tally.lives[origin as usize]
    }
}
