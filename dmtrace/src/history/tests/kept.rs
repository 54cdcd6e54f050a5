//! What is kept, and what it says later.

use std::time::Duration;

use dmtrace_core::ids::{BootTime, IpcNs};

use super::{DAY, Desk, at, began, finding, findings, gone, of_file, options};
use crate::history::{
    Gap, HowGone, Lives, Note, ReadError, Record, Stamp, Tallies, WhyGap, read_file,
};

#[test]
fn a_finding_and_its_end_are_there_after_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/history.redb");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(1), finding(7, "leaked", at(1)));
    desk.note(at(2), finding(8, "stuck", at(2)));
    desk.book.commit(at(3));
    desk.note(at(4), gone(7, HowGone::Removed));
    // Before it is written, it is told.
    let told = desk.entries(at(4));
    assert_eq!(findings(&told)[0].gone.as_ref().unwrap().at, at(4));
    assert!(matches!(
        read_file(&path, &Default::default()),
        Err(ReadError::Busy)
    ));
    desk.book.commit(at(5));
    drop(desk);
    let entries = of_file(&path);
    let found = findings(&entries);
    assert_eq!(found.len(), 2);
    let end = found[0].gone.as_ref().unwrap();
    assert_eq!((end.at, end.how), (at(4), HowGone::Removed));
    assert_eq!(end.by.as_deref(), Some("dmsetup[9]"));
    assert_eq!((found[1].sem.semid, &found[1].gone), (8, &None));
    assert_eq!(entries[0].boot_id, "first");
}

#[test]
fn while_nothing_happens_there_is_nothing_to_wake_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), at(0));
    assert_eq!(desk.book.due(at(0).boot), None);
    desk.note(at(1), finding(7, "leaked", at(1)));
    assert_eq!(desk.book.due(at(1).boot), Some(Duration::ZERO), "at once");
    desk.book.tick(at(1));
    assert_eq!(desk.book.due(at(1).boot), None);
    desk.note(at(1), finding(8, "leaked", at(1)));
    let due = desk.book.due(at(1).boot);
    assert_eq!(due, Some(Duration::from_secs(1)), "one commit a second");
    desk.book.tick(at(2));
    assert_eq!(desk.book.due(at(2).boot), None);
}

#[test]
fn what_stands_is_told_once_however_often_the_service_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    for run in 0..3 {
        let mut desk = Desk::open(&path, at(run * 100));
        let stood = desk.book.stood();
        let stood: Vec<_> = stood.iter().map(|it| (it.sem.semid, it.found)).collect();
        let known = [(7, at(1).boot), (8, at(2).boot)];
        let expected: &[_] = match run {
            0 => &[],
            1 => &known,
            _ => &known[..1],
        };
        assert_eq!(stood, expected, "run {run}");
        desk.note(at(run * 100), began());
        desk.note(at(run * 100 + 1), finding(7, "leaked", at(run * 100 + 1)));
        // What this run has told is not of before.
        assert!(desk.book.stood().iter().all(|it| it.sem.semid != 7));
        if run == 0 {
            desk.note(at(2), finding(8, "leaked", at(2)));
        }
        desk.note(at(run * 100 + 3), Note::Settled);
        desk.note(at(run * 100 + 4), Note::Stopped);
        desk.book.commit(at(run * 100 + 4));
    }
    let entries = of_file(&path);
    let found = findings(&entries);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!((found[0].found, &found[0].gone), (at(1), &None));
    // The other one went while nobody looked.
    let end = found[1].gone.as_ref().unwrap();
    assert_eq!((end.at, end.how), (at(103), HowGone::Unseen));
}

#[test]
fn another_verdict_ends_a_finding_and_begins_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(1), finding(7, "stuck", at(1)));
    desk.note(at(9), finding(7, "leaked", at(9)));
    let entries = desk.entries(at(9));
    let found = findings(&entries);
    assert_eq!(found[0].gone.as_ref().unwrap().how, HowGone::OtherVerdict);
    assert_eq!((found[1].state.as_str(), &found[1].gone), ("leaked", &None));
}

#[test]
fn a_reboot_ends_what_stood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(0), began());
    desk.note(at(1), finding(7, "leaked", at(1)));
    desk.book.commit(at(5));
    drop(desk);
    let mut options = options(&path);
    options.boot_id = "second".to_owned();
    let now = Stamp {
        boot: BootTime(1),
        ..at(1000)
    };
    let mut desk = Desk::with(options, now);
    desk.note(now, began());
    let entries = desk.entries(now);
    let found = findings(&entries);
    assert_eq!(found[0].gone.as_ref().unwrap().how, HowGone::Rebooted);
    // The same semid in another boot is another cookie.
    desk.note(now, finding(7, "leaked", now));
    assert_eq!(findings(&desk.entries(now)).len(), 2);
    assert_eq!(gaps(&mut desk, now)[0].why, WhyGap::Rebooted);
}

fn gaps(desk: &mut Desk, now: Stamp) -> Vec<Gap> {
    let gap = |entry: crate::history::Entry| match entry.record {
        Record::Gap(gap) => Some(gap),
        _ => None,
    };
    desk.entries(now).into_iter().filter_map(gap).collect()
}

#[test]
fn times_without_a_trace_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    desk.note(at(0), began());
    assert_eq!(gaps(&mut desk, at(0)), []);
    desk.note(at(60), Note::Stopped);
    desk.book.commit(at(61));
    drop(desk);
    // Killed: its last word is all that is known.
    let mut desk = Desk::open(&path, at(100));
    desk.note(at(100), began());
    desk.book.commit(at(110));
    drop(desk);
    let mut desk = Desk::open(&path, at(200));
    desk.note(at(200), began());
    let found = gaps(&mut desk, at(200));
    assert_eq!(found.len(), 2, "{found:?}");
    let gap = |from, to, why| Gap {
        from: at(from),
        to: at(to),
        why,
    };
    assert_eq!(found[0], gap(60, 100, WhyGap::Stopped));
    assert_eq!(found[1], gap(110, 200, WhyGap::Killed));
    desk.book.commit(at(210));
    drop(desk);
    // Probes that stayed leave no gap.
    let mut desk = Desk::open(&path, at(300));
    let note = Note::Began {
        backend: "fentry".to_owned(),
        kernel: "6.12".to_owned(),
        continuous: true,
    };
    desk.note(at(300), note);
    assert_eq!(gaps(&mut desk, at(300)).len(), 2);
}

#[test]
fn counts_of_an_hour_are_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let mut desk = Desk::open(&path, at(0));
    let hour = |desk: &mut Desk, seconds: u64| {
        let mut tallies = Tallies::default();
        let lives = Lives {
            created: 3,
            completed: 2,
            leaked: 1,
        };
        tallies.lives("/usr/sbin/lvm", &lives);
        desk.note(at(seconds), Note::Tallies(tallies));
        desk.book.commit(at(seconds));
    };
    for minute in 0..120 {
        hour(&mut desk, minute * 60);
    }
    let rates: Vec<Lives> = desk
        .entries(at(9000))
        .iter()
        .filter_map(|entry| match &entry.record {
            Record::Rates(rates) => Some(rates.programs["/usr/sbin/lvm"]),
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
    let mut desk = Desk::open(&dir.path().join("h"), at(0));
    for seconds in [10, 11, 50, 300] {
        let mut tallies = Tallies::default();
        for _ in 0..1000 {
            tallies.starved(IpcNs::HOST, "/usr/sbin/lvm", at(seconds));
        }
        tallies.lost("messages were dropped", 5, at(seconds));
        desk.note(at(seconds), Note::Tallies(tallies));
    }
    let mut starved = Vec::new();
    let mut lost = Vec::new();
    for entry in desk.entries(at(400)) {
        match entry.record {
            Record::Starved(it) => starved.push((it.from, it.to, it.count)),
            Record::Loss(it) => lost.push((it.from, it.count)),
            _ => {}
        }
    }
    assert_eq!(starved, [(at(10), at(50), 3000), (at(300), at(300), 1000)]);
    assert_eq!(lost, [(at(10), 15), (at(300), 5)]);
}

#[test]
fn what_is_too_old_goes_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), at(0));
    desk.note(at(1), finding(1, "leaked", at(1)));
    desk.note(at(2), finding(2, "leaked", at(2)));
    desk.note(at(3), gone(1, HowGone::Removed));
    desk.book.commit(at(3));
    for day in 1..100 {
        let now = at(day * DAY);
        desk.note(now, finding(100 + day as i32, "accident", now));
        desk.note(now, gone(100 + day as i32, HowGone::AlreadyGone));
        desk.book.commit(now);
    }
    let entries = desk.entries(at(99 * DAY));
    let semids: Vec<i32> = findings(&entries).iter().map(|it| it.sem.semid).collect();
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
    desk.note(at(99 * DAY), gone(2, HowGone::Removed));
    for day in 100..200 {
        let now = at(day * DAY);
        desk.note(now, finding(100 + day as i32, "leaked", now));
        desk.book.commit(now);
    }
    let entries = desk.entries(at(200 * DAY));
    assert!(findings(&entries).iter().all(|it| it.sem.semid != 2));
}

#[test]
fn a_clock_that_jumps_ahead_empties_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), at(0));
    desk.note(at(1), finding(1, "leaked", at(1)));
    desk.note(at(2), gone(1, HowGone::Removed));
    desk.book.commit(at(2));
    let jumped = Stamp {
        wall_ms: at(4000 * DAY).wall_ms,
        boot: at(60).boot,
    };
    desk.note(jumped, finding(2, "leaked", jumped));
    desk.book.commit(jumped);
    assert_eq!(findings(&desk.entries(jumped)).len(), 2);
}
