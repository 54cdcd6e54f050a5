//! Histories of former releases are read. Each file in `releases/` was written by `dmtrace serve` of
//! the release that it is named after, in a guest; add one with each release, and never change one.

use std::path::Path;

use super::{
    Desk, HistoryEntry, HistoryQuery, HistoryRecord, Stamp, read_file, run_note, stored_findings,
};
use crate::render::{culprits::Leak, stored};

/// A copy: the file is opened for writing, as a history may have to be repaired.
fn of_release(version: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/history/tests/releases")
        .join(version);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("history");
    std::fs::copy(kept, &copy).unwrap();
    (dir, copy)
}

#[test]
fn that_of_0_1_0_tells_all_that_it_told_then() {
    let (_dir, path) = of_release("0.1.0");
    let (_, entries) = read_file(&path, &HistoryQuery::default()).unwrap();
    let findings: Vec<_> = entries
        .iter()
        .filter_map(|entry| match &entry.record {
            HistoryRecord::Finding(finding) => Some(finding.as_ref()),
            _ => None,
        })
        .collect();
    let told: Vec<_> = findings
        .iter()
        .map(|it| (it.key.0, it.sem.semid, it.state.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (0x0d4d_08e7, 0, "leaked"),
            (0x0d4d_f3c1, 1, "leaked"),
            (0x0d4d_f6f4, 3, "leaked"),
            (0x0d4d_2ccb, 4, "stuck"),
            (0x0d4d_2ccb, 4, "leaked"),
            (0x0d4d_76b9, 5, "leaked"),
        ]
    );
    for finding in &findings {
        assert_eq!(finding.program, "/job/cookie-actor");
        assert!(finding.calls.is_some(), "{}: its calls", finding.key);
        let story = stored::story_from_stored(finding, false);
        let story = story.unwrap_or_else(|| panic!("{}: its story", finding.key));
        assert!(!story.life.is_empty() && !story.evidence.is_empty());
    }
    let killed: Leak = stored::leak_of(findings[0]);
    assert_eq!(killed.owner.as_deref(), Some("cookie-actor[195]+"));
    assert!(killed.observed);
    assert!(killed.how.contains("SIGKILL"), "{}", killed.how);
    assert!(!stored::leak_of(findings[2]).observed, "inferred then");
    let runs = entries
        .iter()
        .filter(|entry| matches!(&entry.record, HistoryRecord::Run(run) if run.version == "0.1.0"));
    assert_eq!(runs.count(), 1);
}

#[test]
fn that_of_0_1_0_is_taken_over_by_a_service_of_now() {
    let (_dir, path) = of_release("0.1.0");
    let (_, before) = read_file(&path, &HistoryQuery::default()).unwrap();
    let now = Stamp::now();
    let mut desk = Desk::open(&path, now);
    assert!(desk.warnings().is_empty(), "{:?}", desk.warnings());
    desk.add_note(now, run_note());
    desk.book.commit_pending(now);
    let after = desk.read_entries(now);
    let ids = |entries: &[HistoryEntry]| -> Vec<u64> { entries.iter().map(|it| it.id).collect() };
    assert!(ids(&before).iter().all(|id| ids(&after).contains(id)));
    let stories = |entries: &[HistoryEntry]| -> Vec<_> {
        let found = stored_findings(entries).into_iter();
        found.map(|it| (it.version, it.story.clone())).collect()
    };
    assert_eq!(stories(&before), stories(&after));
    assert!(stories(&after).iter().all(|(version, _)| *version == 1));
}
