//! Thirty days of cookies through books, verdicts and history, with a clock that is turned:
//! memory and disk stay bounded, and what is told at the end is true.
//!
//! `DMTRACE_TEST_LIVES` says how many cookies; with a million and more, memory is measured.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use dmtrace_core::{
    ids::{BootTime, SemId},
    ledger::{Ledger, Retention},
    verdict::{Completeness, Context, Thresholds, survey_cookies},
};

use super::kernel::{FakeKernel, Truth, WALL0};
use crate::{
    history::{
        Book, HistoryEntry, HistoryNote, HistoryOptions, HistoryQuery, HistoryRecord,
        ProgramCounts, Stamp, Tallies,
    },
    service::chronicle::{CountedChange, counted_change, end_note, ended_finding, stored_finding},
    stack::Symbolizer,
    trace::ended::EndedCookies,
};

const DAYS: u64 = 30;
const LIMIT: u64 = 64 << 20;

/// A service in miniature.
struct TinyService {
    ledger: Ledger,
    book: Book,
    told: BTreeMap<SemId, &'static str>,
    ended: EndedCookies,
    names: RefCell<Symbolizer>,
    tallies: Tallies,
    /// Most that was there at any time.
    most: HighMarks,
}

#[derive(Clone, Copy, Debug, Default)]
struct HighMarks {
    closed: usize,
    processes: usize,
    told: usize,
    file: u64,
}

pub(super) fn stamp_at(boot: BootTime) -> Stamp {
    Stamp {
        wall_ms: WALL0 * 1000 + (boot.0 / 1_000_000) as i64,
        boot,
    }
}

pub(super) fn open_book(path: &Path, now: Stamp) -> Book {
    let options = HistoryOptions {
        path: path.to_owned(),
        limit: LIMIT,
        retention: Duration::from_secs(90 * 86_400),
        boot_id: "boot".to_owned(),
    };
    Book::open(options, now, Box::new(|text| panic!("{text}")))
}

impl TinyService {
    fn drain_events(&mut self, kernel: &mut FakeKernel) {
        for event in kernel.take_events() {
            for change in self.ledger.apply(&event) {
                match counted_change(&change, &self.ledger) {
                    Some(CountedChange::Program(program, lives)) => {
                        self.tallies.count_lives(&program, &lives);
                    }
                    Some(CountedChange::CreationFailed(program)) => {
                        self.tallies
                            .count_enospc(change.sem.ns, &program, stamp_at(change.at));
                    }
                    None => {}
                }
            }
        }
    }

    fn survey_kernel(&mut self, kernel: &FakeKernel) {
        let snapshot = kernel.snapshot();
        let drift = self.ledger.reconcile(&snapshot).drift_count();
        assert_eq!(drift, 0);
        let facts = kernel.facts();
        self.ledger.observe_exits(&facts);
        let now = stamp_at(facts.now);
        let context = Context {
            facts: &facts,
            completeness: &Completeness::default(),
            thresholds: &Thresholds::default(),
        };
        let mut seen = BTreeMap::new();
        for judged in survey_cookies(&self.ledger, Some(&snapshot), &context) {
            let (id, class) = (judged.semaphore.id, judged.verdict.class);
            if class.is_finding() {
                if self.told.get(&id) != Some(&class.label()) {
                    let found = stored_finding(&judged, &self.ledger, &facts, &self.names, now);
                    self.book.add_note(now, HistoryNote::Found(Box::new(found)));
                }
                seen.insert(id, class.label());
            }
        }
        for id in self.told.keys().filter(|id| !seen.contains_key(id)) {
            self.book.add_note(now, end_note(*id, None, &self.ledger));
        }
        self.told = seen;
        for judged in self.ended.take_findings(&self.ledger, &context) {
            let found = ended_finding(&judged, &self.ledger, &facts, &self.names, now);
            self.book.add_note(now, HistoryNote::Found(Box::new(found)));
        }
        let tallies = std::mem::take(&mut self.tallies);
        self.book.add_note(now, HistoryNote::Tallies(tallies));
        self.book.write_due(now);
        self.most.closed = self.most.closed.max(self.ledger.closed_cookies().count());
        self.most.processes = self.most.processes.max(self.ledger.processes_kept());
        self.most.told = self.most.told.max(self.told.len());
        self.most.file = self.most.file.max(self.book.status().file_bytes);
    }
}

/// Resident pages of this process, in KiB.
fn resident_kib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}

#[test]
fn thirty_days_stay_within_their_bounds() {
    let lives: u64 = std::env::var("DMTRACE_TEST_LIVES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.redb");
    let mut kernel = FakeKernel::new();
    let now = stamp_at(BootTime(kernel.now));
    let mut service = TinyService {
        ledger: Ledger::with_retention(Retention::THRIFTY),
        book: open_book(&path, now),
        told: BTreeMap::new(),
        ended: EndedCookies::default(),
        names: RefCell::default(),
        tallies: Tallies::default(),
        most: HighMarks::default(),
    };
    service.ledger.reconcile(&kernel.snapshot());
    let began = |continuous| HistoryNote::Began {
        backend: "fentry".to_owned(),
        kernel: "6.12".to_owned(),
        continuous,
    };
    service.book.add_note(now, began(false));
    let (clock, before) = (Instant::now(), resident_kib());
    let mut at_tenth = 0;
    // A life takes some tens of milliseconds by itself.
    let pause = (DAYS * 86_400_000_000_000 / lives).saturating_sub(30_000_000);
    for n in 0..lives {
        kernel.play_life(pause);
        service.drain_events(&mut kernel);
        // About as often as a service looks, and more than once for each leak.
        if n % 200 == 0 {
            service.survey_kernel(&kernel);
        }
        if n % (lives / DAYS) == 0 {
            kernel.remove_leaks(20);
            service.drain_events(&mut kernel);
            service.survey_kernel(&kernel);
            service.ledger.check_invariants().unwrap();
            // Once a day the service is restarted.
            let now = stamp_at(BootTime(kernel.now));
            service.book.add_note(now, HistoryNote::Stopped);
            service.book.commit_pending(now);
            drop(service.book);
            assert!(fs::metadata(&path).unwrap().len() <= LIMIT);
            service.book = open_book(&path, now);
            service.book.add_note(now, began(true));
        }
        if n == lives / 10 {
            at_tenth = resident_kib();
        }
    }
    kernel.now += 120_000_000_000;
    service.survey_kernel(&kernel);
    let now = stamp_at(BootTime(kernel.now));
    service.book.commit_pending(now);
    let at_end = resident_kib();
    let (truth, status) = (kernel.truth, service.book.status());
    println!(
        "{lives} lives in {:.1?}: resident {before} KiB at the start, {at_tenth} after a tenth, \
         {at_end} at the end; {truth:?}; {:?}; {status:?}",
        clock.elapsed(),
        service.most,
    );
    assert!(status.on_disk && status.file_bytes <= LIMIT && service.most.file <= LIMIT);
    assert!(
        service.most.closed <= 2 * Retention::THRIFTY.closed,
        "{:?}",
        service.most
    );
    assert!(service.most.processes <= 4096, "{:?}", service.most);
    if lives >= 1_000_000 {
        let grown = at_end.saturating_sub(at_tenth);
        assert!(
            grown <= 4096,
            "{grown} KiB more after ten times as many lives"
        );
    }
    is_true(&mut service.book, now, truth, status.dropped_for_space);
}

/// What the history says is what has happened.
fn is_true(book: &mut Book, now: Stamp, truth: Truth, dropped: u64) {
    let mut sum = ProgramCounts::default();
    let (mut leaked, mut starved, mut gaps, mut standing) = (0, 0, 0, 0);
    book.read_entries(now, &HistoryQuery::default(), &mut |entry: HistoryEntry| {
        match entry.record {
            HistoryRecord::Rates(rates) => rates
                .programs
                .values()
                .for_each(|lives| sum.add_counts(lives)),
            HistoryRecord::Finding(it) if it.state == "leaked" => {
                leaked += 1;
                standing += u64::from(it.gone.is_none());
            }
            HistoryRecord::CreationsFailed(it) => starved += it.count,
            HistoryRecord::Gap(_) => gaps += 1,
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(
        (sum.created, sum.completed),
        (truth.created, truth.completed)
    );
    assert_eq!((starved, gaps), (truth.enospc_failures, 0));
    // Those of a namespace were left, too, if somebody looked before it ended.
    let left = truth.left..=truth.left + truth.with_namespace;
    assert!(left.contains(&sum.leaked), "{} of {truth:?}", sum.leaked);
    assert!(
        leaked <= sum.leaked && leaked + dropped >= sum.leaked,
        "{leaked} of {sum:?}"
    );
    assert!(standing <= 300, "{standing}");
}
