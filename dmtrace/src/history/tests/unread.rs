//! What others have written: newer programs, older ones, and whoever can write the file.

use redb::{Database, ReadableTable as _};
use serde_json::{Value, json};

use super::{Desk, finding_note, of_file, run_note, stamp_at, stored_findings};
use crate::history::{
    HistoryEntry, HistoryQuery, HistoryRecord, StoredFinding, UnreadFinding, layout::FINDINGS,
};

/// Changes the findings in a file, each with its number.
fn tamper_findings(path: &std::path::Path, change: impl Fn(usize, &mut Value)) {
    let db = Database::open(path).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let mut table = txn.open_table(FINDINGS).unwrap();
        let rows: Vec<(u64, i64, i64, Vec<u8>)> = table
            .iter()
            .unwrap()
            .map(|row| {
                let (id, row) = row.unwrap();
                let (from, to, packed) = row.value();
                (id.value(), from, to, packed.to_vec())
            })
            .collect();
        for (number, (id, from, to, packed)) in rows.into_iter().enumerate() {
            let text = lz4_flex::block::decompress_size_prepended(&packed).unwrap();
            let mut value = serde_json::from_slice(&text).unwrap();
            change(number, &mut value);
            let packed = lz4_flex::block::compress_prepend_size(value.to_string().as_bytes());
            table.insert(id, (from, to, packed.as_slice())).unwrap();
        }
    }
    txn.commit().unwrap();
}

fn unread_findings(entries: &[HistoryEntry]) -> Vec<UnreadFinding> {
    let unread = entries.iter().filter_map(|entry| match entry.record {
        HistoryRecord::Unread(unread) => Some(unread),
        _ => None,
    });
    unread.collect()
}

fn write_three(path: &std::path::Path) {
    let mut desk = Desk::open(path, stamp_at(0));
    desk.add_note(stamp_at(0), run_note());
    for semid in 1..=3 {
        desk.add_note(
            stamp_at(semid),
            finding_note(semid as i32, "leaked", stamp_at(semid)),
        );
    }
    desk.book.commit_pending(stamp_at(4));
}

#[test]
fn findings_of_a_newer_program_are_counted_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    write_three(&path);
    tamper_findings(&path, |number, value| {
        assert_eq!(value["version"], StoredFinding::VERSION);
        if number == 1 {
            value["version"] = json!(StoredFinding::VERSION + 1);
            value["story"] = json!({"of": "tomorrow"});
            value["state"] = json!({"of": "tomorrow"});
        }
    });
    let entries = of_file(&path);
    assert_eq!(stored_findings(&entries).len(), 2);
    let [newer] = unread_findings(&entries)[..] else {
        panic!("{entries:?}");
    };
    assert!(newer.is_newer());
    assert_eq!(newer.semid, Some(2));
    // It is asked for by its number as others are.
    let query = HistoryQuery {
        semid: Some(2),
        ..HistoryQuery::default()
    };
    assert!(query.matches(&HistoryRecord::Unread(newer)));
    let other = HistoryQuery {
        semid: Some(3),
        ..HistoryQuery::default()
    };
    assert!(!other.matches(&HistoryRecord::Unread(newer)));
    // A service that is older than the file leaves it alone, and passes on that it is there.
    let mut desk = Desk::open(&path, stamp_at(10));
    desk.add_note(stamp_at(10), run_note());
    desk.book.commit_pending(stamp_at(11));
    let entries = desk.read_entries(stamp_at(11));
    assert_eq!(unread_findings(&entries), [newer]);
    let sent = serde_json::to_vec(
        &entries
            .iter()
            .find(|it| matches!(it.record, HistoryRecord::Unread(_))),
    );
    let heard = HistoryEntry::from_json(&sent.unwrap()).unwrap();
    assert_eq!(heard.record, HistoryRecord::Unread(newer));
}

#[test]
fn findings_of_0_1_0_have_no_version_and_are_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    write_three(&path);
    tamper_findings(&path, |_, value| {
        value.as_object_mut().unwrap().remove("version");
    });
    let entries = of_file(&path);
    let found = stored_findings(&entries);
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|finding| finding.version == 1));
}

/// Whatever one field of one finding is, the others are there.
#[test]
fn one_bad_field_loses_no_other_finding() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    write_three(&path);
    let fields = [
        "version", "ns", "semid", "key", "state", "program", "found", "gone", "calls", "story",
        "boot_id", "id", "type",
    ];
    let wrong = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!("\u{0}"),
        json!([[]]),
        json!({"pid": []}),
    ];
    for field in fields {
        for wrong in &wrong {
            let copy = dir.path().join("copy");
            std::fs::copy(&path, &copy).unwrap();
            tamper_findings(&copy, |number, value| {
                if number == 1 {
                    value[field] = wrong.clone();
                }
            });
            let entries = of_file(&copy);
            let found = stored_findings(&entries);
            let semids: Vec<i32> = found.iter().map(|it| it.sem.semid).collect();
            assert!(
                semids.contains(&1) && semids.contains(&3),
                "{field}: {wrong}: {semids:?}"
            );
            // None is dropped without a word.
            assert_eq!(
                found.len() + unread_findings(&entries).len(),
                3,
                "{field}: {wrong}: {entries:?}"
            );
            assert!(unread_findings(&entries).iter().all(|it| !it.is_newer()));
        }
    }
}
