//! What is kept, and what it says later.

use std::{collections::BTreeSet, time::Duration};

use dmtrace_core::ids::{BootTime, IpcNs};

use super::{
    DAY, Desk, end_note, finding_note, history_options, of_file, run_note, stamp_at,
    stored_findings,
};
use crate::history::{
    DowntimeReason, DowntimeRecord, HistoryNote, HistoryRecord, HowGone, ProgramCounts, ReadError,
    Stamp, Tallies, read_file,
};

#[test]
fn a_finding_and_its_end_are_there_after_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/history.redb");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(7, "leaked", stamp_at(1)));
    desk.add_note(stamp_at(2), finding_note(8, "stuck", stamp_at(2)));
    desk.book.commit_pending(stamp_at(3));
    desk.add_note(stamp_at(4), end_note(7, HowGone::Removed));
    // Before it is written, it is told.
    let told = desk.read_entries(stamp_at(4));
    assert_eq!(
        stored_findings(&told)[0].gone.as_ref().unwrap().at,
        stamp_at(4)
    );
    assert!(matches!(
        read_file(&path, &Default::default()),
        Err(ReadError::Busy)
    ));
    desk.book.commit_pending(stamp_at(5));
    drop(desk);
    let entries = of_file(&path);
    let found = stored_findings(&entries);
    assert_eq!(found.len(), 2);
    let end = found[0].gone.as_ref().unwrap();
    assert_eq!((end.at, end.how), (stamp_at(4), HowGone::Removed));
    assert_eq!(end.by.as_deref(), Some("dmsetup[9]"));
    assert_eq!((found[1].sem.semid, &found[1].gone), (8, &None));
    assert_eq!(entries[0].boot_id, "first");
}

#[test]
fn while_nothing_happens_there_is_nothing_to_wake_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(0));
    assert_eq!(desk.book.next_due(stamp_at(0).boot), None);
    desk.add_note(stamp_at(1), finding_note(7, "leaked", stamp_at(1)));
    assert_eq!(
        desk.book.next_due(stamp_at(1).boot),
        Some(Duration::ZERO),
        "at once"
    );
    desk.book.write_due(stamp_at(1));
    assert_eq!(desk.book.next_due(stamp_at(1).boot), None);
    desk.add_note(stamp_at(1), finding_note(8, "leaked", stamp_at(1)));
    let due = desk.book.next_due(stamp_at(1).boot);
    assert_eq!(due, Some(Duration::from_secs(1)), "one commit a second");
    desk.book.write_due(stamp_at(2));
    assert_eq!(desk.book.next_due(stamp_at(2).boot), None);
}

#[test]
fn what_stands_is_told_once_however_often_the_service_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    for run in 0..3 {
        let mut desk = Desk::open(&path, stamp_at(run * 100));
        let stood = desk.book.past_findings();
        let stood: Vec<_> = stood.iter().map(|it| (it.sem.semid, it.found)).collect();
        let known = [(7, stamp_at(1).boot), (8, stamp_at(2).boot)];
        let expected: &[_] = match run {
            0 => &[],
            1 => &known,
            _ => &known[..1],
        };
        assert_eq!(stood, expected, "run {run}");
        desk.add_note(stamp_at(run * 100), run_note());
        desk.add_note(
            stamp_at(run * 100 + 1),
            finding_note(7, "leaked", stamp_at(run * 100 + 1)),
        );
        // What this run has told is not of before.
        assert!(desk.book.past_findings().iter().all(|it| it.sem.semid != 7));
        if run == 0 {
            desk.add_note(stamp_at(2), finding_note(8, "leaked", stamp_at(2)));
        }
        desk.add_note(
            stamp_at(run * 100 + 3),
            HistoryNote::Settled {
                left: BTreeSet::new(),
            },
        );
        desk.add_note(stamp_at(run * 100 + 4), HistoryNote::Stopped);
        desk.book.commit_pending(stamp_at(run * 100 + 4));
    }
    let entries = of_file(&path);
    let found = stored_findings(&entries);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!((found[0].found, &found[0].gone), (stamp_at(1), &None));
    // The other one went while nobody looked.
    let end = found[1].gone.as_ref().unwrap();
    assert_eq!((end.at, end.how), (stamp_at(103), HowGone::Unseen));
}

/// A run that did not see a cookie being made cannot find again what an earlier one has found.
#[test]
fn what_cannot_be_found_again_stands_until_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(0), run_note());
    for semid in [7, 8] {
        let found = finding_note(semid, "leaked", stamp_at(1));
        desk.add_note(stamp_at(1), found);
    }
    desk.add_note(stamp_at(2), HistoryNote::Stopped);
    desk.book.commit_pending(stamp_at(2));
    drop(desk);
    let mut desk = Desk::open(&path, stamp_at(100));
    desk.add_note(stamp_at(100), run_note());
    let past = desk.book.past_findings();
    let left = past.iter().filter(|it| it.sem.semid == 7);
    let left = left.map(|it| (it.sem, it.key)).collect();
    desk.add_note(stamp_at(101), HistoryNote::Settled { left });
    let ends = |desk: &mut Desk, now| {
        let entries = desk.read_entries(now);
        let found = stored_findings(&entries);
        let ends = found.iter().map(|it| it.gone.as_ref().map(|end| end.how));
        ends.collect::<Vec<_>>()
    };
    let gone = Some(HowGone::Unseen);
    assert_eq!(ends(&mut desk, stamp_at(102)), [None, gone]);
    desk.add_note(stamp_at(110), end_note(7, HowGone::Removed));
    let removed = Some(HowGone::Removed);
    assert_eq!(ends(&mut desk, stamp_at(111)), [removed, gone]);
}

#[test]
fn another_verdict_ends_a_finding_and_begins_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(7, "stuck", stamp_at(1)));
    desk.add_note(stamp_at(9), finding_note(7, "leaked", stamp_at(9)));
    let entries = desk.read_entries(stamp_at(9));
    let found = stored_findings(&entries);
    assert_eq!(found[0].gone.as_ref().unwrap().how, HowGone::OtherVerdict);
    assert_eq!((found[1].state.as_str(), &found[1].gone), ("leaked", &None));
}

#[test]
fn a_reboot_ends_what_stood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(0), run_note());
    desk.add_note(stamp_at(1), finding_note(7, "leaked", stamp_at(1)));
    desk.book.commit_pending(stamp_at(5));
    drop(desk);
    let mut options = history_options(&path);
    options.boot_id = "second".to_owned();
    let now = Stamp {
        boot: BootTime(1),
        ..stamp_at(1000)
    };
    let mut desk = Desk::with_options(options, now);
    desk.add_note(now, run_note());
    let entries = desk.read_entries(now);
    let found = stored_findings(&entries);
    assert_eq!(found[0].gone.as_ref().unwrap().how, HowGone::Rebooted);
    // The same semid in another boot is another cookie.
    desk.add_note(now, finding_note(7, "leaked", now));
    assert_eq!(stored_findings(&desk.read_entries(now)).len(), 2);
    assert_eq!(read_gaps(&mut desk, now)[0].why, DowntimeReason::Rebooted);
}

fn read_gaps(desk: &mut Desk, now: Stamp) -> Vec<DowntimeRecord> {
    let gap = |entry: crate::history::HistoryEntry| match entry.record {
        HistoryRecord::Gap(gap) => Some(gap),
        _ => None,
    };
    desk.read_entries(now).into_iter().filter_map(gap).collect()
}

#[test]
fn times_without_a_trace_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    desk.add_note(stamp_at(0), run_note());
    assert_eq!(read_gaps(&mut desk, stamp_at(0)), []);
    desk.add_note(stamp_at(60), HistoryNote::Stopped);
    desk.book.commit_pending(stamp_at(61));
    drop(desk);
    // Killed: its last word is all that is known.
    let mut desk = Desk::open(&path, stamp_at(100));
    desk.add_note(stamp_at(100), run_note());
    desk.book.commit_pending(stamp_at(110));
    drop(desk);
    let mut desk = Desk::open(&path, stamp_at(200));
    desk.add_note(stamp_at(200), run_note());
    let found = read_gaps(&mut desk, stamp_at(200));
    assert_eq!(found.len(), 2, "{found:?}");
    let gap = |from, to, why| DowntimeRecord {
        from: stamp_at(from),
        to: stamp_at(to),
        why,
    };
    assert_eq!(found[0], gap(60, 100, DowntimeReason::Stopped));
    assert_eq!(found[1], gap(110, 200, DowntimeReason::Killed));
    desk.book.commit_pending(stamp_at(210));
    drop(desk);
    // Probes that stayed leave no gap.
    let mut desk = Desk::open(&path, stamp_at(300));
    let note = HistoryNote::Began {
        backend: "fentry".to_owned(),
        kernel: "6.12".to_owned(),
        continuous: true,
    };
    desk.add_note(stamp_at(300), note);
    assert_eq!(read_gaps(&mut desk, stamp_at(300)).len(), 2);
}

#[test]
fn counts_of_an_hour_are_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, stamp_at(0));
    let hour = |desk: &mut Desk, seconds: u64| {
        let mut tallies = Tallies::default();
        let lives = ProgramCounts {
            created: 3,
            completed: 2,
            leaked: 1,
        };
        tallies.count_lives("/usr/sbin/lvm", &lives);
        desk.add_note(stamp_at(seconds), HistoryNote::Tallies(tallies));
        desk.book.commit_pending(stamp_at(seconds));
    };
    for minute in 0..120 {
        hour(&mut desk, minute * 60);
    }
    let rates: Vec<ProgramCounts> = desk
        .read_entries(stamp_at(9000))
        .iter()
        .filter_map(|entry| match &entry.record {
            HistoryRecord::Rates(rates) => Some(rates.programs["/usr/sbin/lvm"]),
            _ => None,
        })
        .collect();
    assert_eq!(rates.len(), 2, "two hours");
    assert_eq!(rates[0].created + rates[1].created, 360);
    assert_eq!(rates[0].leaked + rates[1].leaked, 120);
}

#[test]
fn failures_that_follow_one_another_are_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(0));
    for seconds in [10, 11, 50, 300] {
        let mut tallies = Tallies::default();
        for _ in 0..1000 {
            tallies.count_enospc(IpcNs::HOST, "/usr/sbin/lvm", stamp_at(seconds));
        }
        tallies.count_lost("messages were dropped", 5, stamp_at(seconds));
        desk.add_note(stamp_at(seconds), HistoryNote::Tallies(tallies));
    }
    let mut starved = Vec::new();
    let mut lost = Vec::new();
    for entry in desk.read_entries(stamp_at(400)) {
        match entry.record {
            HistoryRecord::CreationsFailed(it) => starved.push((it.from, it.to, it.count)),
            HistoryRecord::Loss(it) => lost.push((it.from, it.count)),
            _ => {}
        }
    }
    assert_eq!(
        starved,
        [
            (stamp_at(10), stamp_at(50), 3000),
            (stamp_at(300), stamp_at(300), 1000)
        ]
    );
    assert_eq!(lost, [(stamp_at(10), 15), (stamp_at(300), 5)]);
}

#[test]
fn what_is_too_old_goes_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(1, "leaked", stamp_at(1)));
    desk.add_note(stamp_at(2), finding_note(2, "leaked", stamp_at(2)));
    desk.add_note(stamp_at(3), end_note(1, HowGone::Removed));
    desk.book.commit_pending(stamp_at(3));
    for day in 1..100 {
        let now = stamp_at(day * DAY);
        desk.add_note(now, finding_note(100 + day as i32, "accident", now));
        desk.add_note(now, end_note(100 + day as i32, HowGone::AlreadyGone));
        desk.book.commit_pending(now);
    }
    let entries = desk.read_entries(stamp_at(99 * DAY));
    let semids: Vec<i32> = stored_findings(&entries)
        .iter()
        .map(|it| it.sem.semid)
        .collect();
    assert_eq!(semids[0], 2, "it stands, however old it is");
    assert!(
        !semids.contains(&108) && semids.contains(&109),
        "{semids:?}"
    );
    assert_eq!(
        desk.book.status().dropped_for_age,
        10,
        "the first, eight days, and the counts of the first hour"
    );
    // What stood for months and is over goes, too.
    desk.add_note(stamp_at(99 * DAY), end_note(2, HowGone::Removed));
    for day in 100..200 {
        let now = stamp_at(day * DAY);
        desk.add_note(now, finding_note(100 + day as i32, "leaked", now));
        desk.book.commit_pending(now);
    }
    let entries = desk.read_entries(stamp_at(200 * DAY));
    assert!(stored_findings(&entries).iter().all(|it| it.sem.semid != 2));
}

#[test]
fn a_clock_that_jumps_ahead_empties_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(0));
    desk.add_note(stamp_at(1), finding_note(1, "leaked", stamp_at(1)));
    desk.add_note(stamp_at(2), end_note(1, HowGone::Removed));
    desk.book.commit_pending(stamp_at(2));
    let jumped = Stamp {
        wall_ms: stamp_at(4000 * DAY).wall_ms,
        boot: stamp_at(60).boot,
    };
    desk.add_note(jumped, finding_note(2, "leaked", jumped));
    desk.book.commit_pending(jumped);
    assert_eq!(stored_findings(&desk.read_entries(jumped)).len(), 2);
}
