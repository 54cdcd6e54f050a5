//! Moments, and which records a query wants.

use super::*;

#[test]
fn moments_are_written_for_people_and_read_back() {
    let stamp = Stamp {
        wall_ms: 1_000_000_000_250,
        boot: BootTime(77),
    };
    let text = serde_json::to_string(&stamp).unwrap();
    assert_eq!(text, r#"{"time":"2001-09-09T01:46:40.250Z","boot_ns":77}"#);
    assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap(), stamp);
    let later = stamp.at_boot(BootTime(2_000_000_077));
    assert_eq!(later.wall_ms - stamp.wall_ms, 2000);
}

#[test]
fn a_finding_is_asked_for_by_time_and_number() {
    let stamp = |wall_ms| Stamp {
        wall_ms,
        boot: BootTime(0),
    };
    let mut finding = StoredFinding {
        version: StoredFinding::VERSION,
        sem: SemId {
            ns: IpcNs::HOST,
            semid: 7,
        },
        key: Key(0x0d4d_1234),
        state: "leaked".to_owned(),
        program: String::new(),
        found: stamp(100),
        gone: None,
        calls: None,
        story: Story::default(),
    };
    let standing = HistoryRecord::Finding(Box::new(finding.clone()));
    finding.gone = Some(FindingEnd {
        at: stamp(200),
        how: HowGone::Removed,
        by: None,
    });
    let over = HistoryRecord::Finding(Box::new(finding));
    let since = |ms| HistoryQuery {
        since_ms: Some(ms),
        ..HistoryQuery::default()
    };
    assert!(since(150).matches(&over) && since(150).matches(&standing));
    assert!(!since(201).matches(&over) && since(201).matches(&standing));
    let until = |ms| HistoryQuery {
        until_ms: Some(ms),
        ..HistoryQuery::default()
    };
    assert!(!until(100).matches(&over) && until(101).matches(&over));
    let number = |key, semid| HistoryQuery {
        key,
        semid,
        ..HistoryQuery::default()
    };
    assert!(number(Some(Key(0x0d4d_1234)), None).matches(&over));
    assert!(number(Some(Key(1)), Some(7)).matches(&over));
    assert!(!number(None, Some(8)).matches(&over));
    let gap = HistoryRecord::Gap(DowntimeRecord {
        from: stamp(1),
        to: stamp(2),
        why: DowntimeReason::Stopped,
    });
    assert!(HistoryQuery::default().matches(&gap));
    assert!(!number(None, Some(7)).matches(&gap));
}
