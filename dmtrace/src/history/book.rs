//! What is to be kept, on its way into the file; or what is left of it while there is no file.
//! No clock and no thread: the caller says what time it is.

mod file;
mod findings;
mod sums;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::PathBuf,
    time::Duration,
};

use dmtrace_core::{
    ids::{BootTime, IpcNs, Key, SemId},
    verdict::{Class, EarlierFinding},
};

use super::{
    layout::{PackedRecord, TableKind},
    record::{
        AnswerHead, EnospcRecord, FindingEnd, HistoryEntry, HistoryQuery, HistoryRecord, HowGone,
        LossRecord, RatesRecord, RunRecord, Stamp, StoredFinding,
    },
    store::Store,
    tallies::{CountedLeaks, Tallies},
};
use crate::finding::VerdictReport;

/// Between two commits at least.
pub(crate) const COMMIT: Duration = Duration::from_secs(1);
/// Records that wait for the file at most, in bytes: the memory while there is none.
const PENDING: usize = 1 << 20;
/// With so many bytes a commit does not wait for its second.
const PRESSING: usize = PENDING / 2;
/// Findings that stand, and are known by their cookie.
const STANDING: usize = 65_536;
/// Between two attempts to open the file: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Where the history is, and how much is kept.
#[derive(Clone, Debug)]
pub struct HistoryOptions {
    /// The file.
    pub path: PathBuf,
    /// Its largest size in bytes.
    pub limit: u64,
    /// What ended longer ago is dropped.
    pub retention: Duration,
    /// Identity of this boot; empty if it is not known.
    pub boot_id: String,
}

/// Something to keep.
#[derive(Clone, Debug)]
pub enum HistoryNote {
    /// Tracing has begun.
    Began {
        /// Name of the backend.
        backend: String,
        /// Release of the kernel.
        kernel: String,
        /// Nothing was missed since the run before: its probes stayed.
        continuous: bool,
    },
    /// A finding, or one that was told before.
    Found(Box<StoredFinding>),
    /// A finding stands no longer.
    Gone {
        /// The cookie.
        sem: SemId,
        /// Its key, if that is still known.
        key: Option<Key>,
        /// What it was found to be, where the cookie is there: if it is something else by now, that
        /// stands. `None`: whatever it was.
        state: Option<&'static str>,
        /// In which way.
        how: HowGone,
        /// Who removed it: `name[pid]`.
        by: Option<String>,
    },
    /// Every finding that stands has been told since [`HistoryNote::Began`]: what else stood is gone.
    Settled {
        /// But for these of an earlier run, which are there: this one did not see them being made.
        left: BTreeSet<(SemId, Key)>,
    },
    /// Counts.
    Tallies(Tallies),
    /// Tracing ends in good order.
    Stopped,
}

/// A finding that stands.
#[derive(Clone, Debug)]
struct ActiveFinding {
    id: u64,
    state: String,
    /// Who made it; empty where an earlier run has found it.
    program: String,
    found: BootTime,
    /// Told since tracing began.
    reported: bool,
    /// When this run has found it; what is learned of it later revises the record.
    told: Option<Stamp>,
    /// What it was found to be, where an earlier run has found it.
    verdict: Option<Box<VerdictReport>>,
}

/// A finding that stands since an earlier run.
#[derive(Clone, Debug, PartialEq)]
pub struct PastFinding {
    /// The set.
    pub sem: SemId,
    /// Its key.
    pub key: Key,
    /// What it was found to be.
    pub state: String,
    /// When: the set is older than this, another one with its numbers is not.
    pub found: BootTime,
    /// The verdict of then.
    pub verdict: Option<Box<VerdictReport>>,
}

impl PastFinding {
    /// The leak, if it is one: what it was then it still is, as far as nobody knows better.
    pub fn as_leak(&self) -> Option<EarlierFinding> {
        let verdict = self.verdict.as_deref()?;
        let Some(Class::Leaked(how)) = verdict.class else {
            return None;
        };
        Some(EarlierFinding {
            sem: self.sem,
            key: self.key,
            found: self.found,
            how,
            culprit: verdict.culprit.clone(),
            missing: verdict.missing_step,
        })
    }
}

/// How the history is, for a status.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct HistoryStatus {
    /// Whether it goes into the file now, and not into memory only.
    pub on_disk: bool,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Records that wait for the file.
    pub pending: usize,
    /// Records that were dropped because they waited for too long, or came too fast.
    pub lost: u64,
    /// Records that made room for newer ones.
    pub dropped_for_space: u64,
    /// Records that were older than the retention.
    pub dropped_for_age: u64,
    /// Why there is no file now.
    pub trouble: Option<String>,
}

/// The records that wait, the findings that stand, and the file.
pub(crate) struct Book {
    options: HistoryOptions,
    warn: Box<dyn FnMut(&str) + Send>,
    store: Option<Store>,
    /// Whether a file was open before: its numbers and its standing findings are known.
    adopted: bool,
    next: u64,
    pending: BTreeMap<u64, PackedRecord>,
    pending_bytes: usize,
    endings: BTreeMap<u64, (i64, Vec<u8>)>,
    active_findings: BTreeMap<(SemId, Key), ActiveFinding>,
    counted_leaks: CountedLeaks,
    settled: bool,
    left_standing: BTreeSet<(SemId, Key)>,
    run: Option<(u64, RunRecord)>,
    last_run: Option<u64>,
    continuous: bool,
    rates: Option<(u64, RatesRecord)>,
    enospc_records: BTreeMap<IpcNs, (u64, EnospcRecord)>,
    losses: BTreeMap<&'static str, (u64, LossRecord)>,
    /// The first moment: what is old is measured from it by the clock that does not jump.
    first: Option<Stamp>,
    committed: Option<BootTime>,
    /// Next attempt to open the file, and the pause after that.
    retry: (BootTime, Duration),
    lost: u64,
    trouble: Option<String>,
}

impl Book {
    /// Opens the file, or explains why not and goes on without.
    pub(crate) fn open(
        options: HistoryOptions,
        now: Stamp,
        warn: Box<dyn FnMut(&str) + Send>,
    ) -> Self {
        let mut book = Self {
            options,
            warn,
            store: None,
            adopted: false,
            next: 0,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            endings: BTreeMap::new(),
            active_findings: BTreeMap::new(),
            counted_leaks: CountedLeaks::default(),
            settled: false,
            left_standing: BTreeSet::new(),
            run: None,
            last_run: None,
            continuous: false,
            rates: None,
            enospc_records: BTreeMap::new(),
            losses: BTreeMap::new(),
            first: None,
            committed: None,
            retry: (now.boot, RETRY.0),
            lost: 0,
            trouble: None,
        };
        book.reopen_file(now);
        book
    }

    pub(crate) fn add_note(&mut self, now: Stamp, note: HistoryNote) {
        match note {
            HistoryNote::Began {
                backend,
                kernel,
                continuous,
            } => {
                let run = RunRecord {
                    began: now,
                    ended: None,
                    orderly: false,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    kernel,
                    backend,
                };
                self.continuous = continuous;
                if self.adopted {
                    self.note_gap(now);
                }
                let id = self.add_record(HistoryRecord::Run(run.clone()));
                self.run = Some((id, run));
                self.last_run = Some(id);
            }
            HistoryNote::Found(finding) => self.add_finding(*finding),
            HistoryNote::Gone {
                sem,
                key,
                state,
                how,
                by,
            } => {
                let least = key.unwrap_or_default();
                let most = key.unwrap_or(Key(u32::MAX));
                let places = self.active_findings.range((sem, least)..=(sem, most));
                let places = places.filter(|(_, it)| state.is_none_or(|state| it.state == state));
                let places: Vec<(SemId, Key)> = places.map(|(place, _)| *place).collect();
                let gone = FindingEnd { at: now, how, by };
                for place in places {
                    if let Some(standing) = self.active_findings.remove(&place) {
                        self.end_finding(standing.id, &gone);
                        self.settle_leak(place, &standing, how);
                    }
                }
            }
            HistoryNote::Settled { left } => {
                self.settled = true;
                self.left_standing = left;
                self.end_untold(now);
            }
            HistoryNote::Tallies(tallies) => self.add_tallies(now, tallies),
            HistoryNote::Stopped => {
                if let Some((id, mut run)) = self.run.take() {
                    run.ended = Some(now);
                    run.orderly = true;
                    self.put_record(id, HistoryRecord::Run(run));
                }
            }
        }
    }

    /// How long until [`Book::write_due`] has something to do; `None` while there is nothing.
    pub(crate) fn next_due(&self, now: BootTime) -> Option<Duration> {
        if self.pending.is_empty() && self.endings.is_empty() {
            return None;
        }
        if self.store.is_none() {
            return Some(self.retry.0.duration_since(now));
        }
        if self.pending_bytes > PRESSING {
            return Some(Duration::ZERO);
        }
        let wait = |committed| COMMIT.saturating_sub(now.duration_since(committed));
        Some(self.committed.map_or(Duration::ZERO, wait))
    }

    /// Writes what waits, if it is time.
    pub(crate) fn write_due(&mut self, now: Stamp) {
        if self.next_due(now.boot) == Some(Duration::ZERO) {
            self.commit_pending(now);
        }
    }

    pub(crate) fn commit_pending(&mut self, now: Stamp) {
        if self.store.is_none() && self.retry.0 <= now.boot {
            self.reopen_file(now);
        }
        let old = self.retention_start(now);
        let Some(store) = &mut self.store else {
            return;
        };
        store.meta.dropped_for_space += std::mem::take(&mut self.lost);
        if let Some(id) = self.last_run {
            store.meta.last_run = id + 1;
        }
        let records: Vec<_> = self.pending.iter().map(|(id, it)| (*id, it)).collect();
        let endings: Vec<(u64, i64, &[u8])> = self
            .endings
            .iter()
            .map(|(id, (at, json))| (*id, *at, json.as_slice()))
            .collect();
        let alive = (u64::try_from(now.wall_ms).unwrap_or_default(), now.boot.0);
        self.committed = Some(now.boot);
        match store.write_records(&records, &endings, alive, old) {
            Ok(()) => {
                self.pending.clear();
                self.pending_bytes = 0;
                self.endings.clear();
            }
            Err(trouble) => self.detach_file(now, &trouble),
        }
    }

    /// What an earlier run has told and left standing.
    pub(crate) fn past_findings(&self) -> Vec<PastFinding> {
        let before = self.active_findings.iter().filter(|(_, it)| !it.reported);
        before
            .map(|(&(sem, key), it)| PastFinding {
                sem,
                key,
                state: it.state.clone(),
                found: it.found,
                verdict: it.verdict.clone(),
            })
            .collect()
    }

    pub(crate) fn status(&self) -> HistoryStatus {
        let meta = self.store.as_ref().map(|store| store.meta);
        let meta = meta.unwrap_or_default();
        HistoryStatus {
            on_disk: self.store.is_some(),
            file_bytes: self.store.as_ref().map_or(0, Store::file_length),
            pending: self.pending.len(),
            lost: self.lost,
            dropped_for_space: meta.dropped_for_space,
            dropped_for_age: meta.dropped_for_age,
            trouble: self.trouble.clone(),
        }
    }

    /// What an answer begins with.
    pub(crate) fn answer_head(&self, now: Stamp) -> AnswerHead {
        let meta = self.store.as_ref().map(|store| store.meta);
        let mut head = super::read::answer_head(&meta.unwrap_or_default());
        head.alive_ms = now.wall_ms;
        head.dropped_for_space += self.lost;
        if let Some(trouble) = &self.trouble {
            head.notes.push(format!(
                "the history is in memory only, and not complete: {trouble}"
            ));
        }
        head
    }

    /// Every record that a query wants, oldest first, until the callback breaks.
    pub(crate) fn read_entries(
        &mut self,
        now: Stamp,
        query: &HistoryQuery,
        tell: &mut dyn FnMut(HistoryEntry) -> ControlFlow<()>,
    ) {
        let mut done = false;
        if let Some(store) = &self.store {
            let (pending, endings) = (&self.pending, &self.endings);
            let mut overlay = |mut entry: HistoryEntry| {
                if pending.contains_key(&entry.id) {
                    return ControlFlow::Continue(());
                }
                end_of(endings, &mut entry);
                if query.matches(&entry.record) {
                    tell(entry)
                } else {
                    ControlFlow::Continue(())
                }
            };
            match store.read_entries(query, &mut overlay) {
                Ok(flow) => done = flow.is_break(),
                Err(trouble) => self.detach_file(now, &trouble),
            }
        }
        for (id, stored) in self.pending.iter().filter(|_| !done) {
            let Some(mut entry) = stored.unpack_entry(*id) else {
                continue;
            };
            end_of(&self.endings, &mut entry);
            if query.matches(&entry.record) && tell(entry).is_break() {
                return;
            }
        }
    }

    /// Counts records that did not even arrive here.
    pub(crate) const fn count_lost(&mut self, count: u64) {
        self.lost += count;
    }

    /// Before this (milliseconds since 1970) is old. Both the wall clock and the time since the
    /// first note must say so: a clock that jumps ahead would empty the history.
    fn retention_start(&mut self, now: Stamp) -> i64 {
        let first = *self.first.get_or_insert(now);
        let steady = first.at_boot(now.boot).wall_ms;
        let keep = i64::try_from(self.options.retention.as_millis()).unwrap_or(i64::MAX);
        now.wall_ms.min(steady).saturating_sub(keep)
    }

    const fn next_number(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }

    fn add_record(&mut self, record: HistoryRecord) -> u64 {
        let id = self.next_number();
        self.put_record(id, record);
        id
    }

    fn put_record(&mut self, id: u64, record: HistoryRecord) {
        self.put_of(id, self.options.boot_id.clone(), record);
    }

    fn put_of(&mut self, id: u64, boot_id: String, record: HistoryRecord) {
        let entry = HistoryEntry {
            id,
            boot_id,
            record,
        };
        let stored = PackedRecord::from_entry(&entry);
        self.pending_bytes += stored.packed_cost();
        if let Some(before) = self.pending.insert(id, stored) {
            self.pending_bytes -= before.packed_cost();
        }
        while self.pending_bytes > PENDING {
            // Findings first: the rest is small, few, and still being written.
            let mut pending = self.pending.iter();
            let finding = pending.find(|(_, it)| it.kind == TableKind::Finding);
            let oldest = finding.or_else(|| self.pending.first_key_value());
            let Some(id) = oldest.map(|(id, _)| *id) else {
                break;
            };
            let Some(dropped) = self.pending.remove(&id) else {
                break;
            };
            self.pending_bytes -= dropped.packed_cost();
            self.endings.remove(&id);
            self.lost += 1;
        }
    }
}

fn end_of(endings: &BTreeMap<u64, (i64, Vec<u8>)>, entry: &mut HistoryEntry) {
    if let (HistoryRecord::Finding(finding), Some((_, json))) =
        (&mut entry.record, endings.get(&entry.id))
    {
        finding.gone = serde_json::from_slice(json).ok();
    }
}
