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
    let later = stamp.at(BootTime(2_000_000_077));
    assert_eq!(later.wall_ms - stamp.wall_ms, 2000);
}

#[test]
fn a_finding_is_asked_for_by_time_and_number() {
    let stamp = |wall_ms| Stamp {
        wall_ms,
        boot: BootTime(0),
    };
    let mut finding = Finding {
        version: Finding::VERSION,
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
    let standing = Record::Finding(Box::new(finding.clone()));
    finding.gone = Some(Gone {
        at: stamp(200),
        how: HowGone::Removed,
        by: None,
    });
    let over = Record::Finding(Box::new(finding));
    let since = |ms| Query {
        since_ms: Some(ms),
        ..Query::default()
    };
    assert!(since(150).wants(&over) && since(150).wants(&standing));
    assert!(!since(201).wants(&over) && since(201).wants(&standing));
    let until = |ms| Query {
        until_ms: Some(ms),
        ..Query::default()
    };
    assert!(!until(100).wants(&over) && until(101).wants(&over));
    let number = |key, semid| Query {
        key,
        semid,
        ..Query::default()
    };
    assert!(number(Some(Key(0x0d4d_1234)), None).wants(&over));
    assert!(number(Some(Key(1)), Some(7)).wants(&over));
    assert!(!number(None, Some(8)).wants(&over));
    let gap = Record::Gap(Gap {
        from: stamp(1),
        to: stamp(2),
        why: WhyGap::Stopped,
    });
    assert!(Query::default().wants(&gap));
    assert!(!number(None, Some(7)).wants(&gap));
}
