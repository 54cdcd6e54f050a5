//! One cookie is one finding, and one leak, whatever it is found to be meanwhile.

use super::{Desk, end_note, finding_note, stamp_at, stored_findings};
use crate::history::{FindingEnd, HistoryNote, HistoryRecord, HowGone};

/// What is kept of one cookie: state, and how it ended.
fn kept_ends(desk: &mut Desk) -> Vec<(String, Option<HowGone>)> {
    let entries = desk.read_entries(stamp_at(100));
    let findings = stored_findings(&entries).into_iter();
    let ends = findings.map(|it| (it.state.clone(), it.gone.as_ref().map(|gone| gone.how)));
    ends.collect()
}

fn cleared_note(semid: i32, state: &'static str) -> HistoryNote {
    match end_note(semid, HowGone::OtherVerdict) {
        HistoryNote::Gone {
            sem, key, how, by, ..
        } => HistoryNote::Gone {
            sem,
            key,
            state: Some(state),
            how,
            by,
        },
        other => other,
    }
}

/// So many leaks are counted, of all programs.
fn counted_leaks(desk: &mut Desk) -> u64 {
    let entries = desk.read_entries(stamp_at(100));
    let rates = entries.iter().filter_map(|entry| match &entry.record {
        HistoryRecord::Rates(rates) => Some(rates),
        _ => None,
    });
    let programs = rates.flat_map(|rates| rates.programs.values());
    programs.map(|it| it.leaked).sum()
}

#[test]
fn a_finding_that_becomes_another_one_stands_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(1));
    desk.add_note(stamp_at(2), finding_note(7, "stuck", stamp_at(2)));
    // Its waiter is killed: it is found leaked, and then it is said that it is stuck no longer.
    desk.add_note(stamp_at(9), finding_note(7, "leaked", stamp_at(9)));
    desk.add_note(stamp_at(9), cleared_note(7, "stuck"));
    let stuck = ("stuck".to_owned(), Some(HowGone::OtherVerdict));
    let leaked = |how| ("leaked".to_owned(), how);
    assert_eq!(kept_ends(&mut desk), [stuck.clone(), leaked(None)]);
    desk.add_note(stamp_at(12), end_note(7, HowGone::Removed));
    let removed = leaked(Some(HowGone::Removed));
    assert_eq!(kept_ends(&mut desk), [stuck.clone(), removed.clone()]);
    // The same end once more, as of a cookie that was gone before anybody looked.
    let HistoryNote::Found(mut again) = finding_note(7, "leaked", stamp_at(12)) else {
        panic!();
    };
    again.gone = Some(FindingEnd {
        at: stamp_at(12),
        how: HowGone::Removed,
        by: None,
    });
    desk.add_note(stamp_at(13), HistoryNote::Found(again));
    assert_eq!(kept_ends(&mut desk), [stuck, removed]);
    assert_eq!(counted_leaks(&mut desk), 1);
}

#[test]
fn a_leak_that_was_none_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(1));
    for semid in [1, 2] {
        desk.add_note(stamp_at(2), finding_note(semid, "leaked", stamp_at(2)));
    }
    assert_eq!(counted_leaks(&mut desk), 2);
    desk.add_note(stamp_at(9), cleared_note(2, "leaked"));
    assert_eq!(counted_leaks(&mut desk), 1);
    desk.add_note(stamp_at(20), finding_note(2, "leaked", stamp_at(20)));
    assert_eq!(counted_leaks(&mut desk), 2);
}

/// What is learned of a finding later, such as how its owner ended, belongs to it.
#[test]
fn a_finding_is_kept_in_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(&dir.path().join("h"), stamp_at(1));
    desk.add_note(stamp_at(2), finding_note(7, "leaked", stamp_at(2)));
    let HistoryNote::Found(mut revised) = finding_note(7, "leaked", stamp_at(9)) else {
        panic!();
    };
    revised.story.headline = "owner ended; completed only then".to_owned();
    desk.add_note(stamp_at(9), HistoryNote::Found(revised));
    let entries = desk.read_entries(stamp_at(100));
    let findings = stored_findings(&entries);
    assert_eq!(findings.len(), 1);
    assert_eq!(
        findings[0].story.headline,
        "owner ended; completed only then"
    );
    assert_eq!(findings[0].found, stamp_at(2), "it was found then");
    assert_eq!(counted_leaks(&mut desk), 1);
}
