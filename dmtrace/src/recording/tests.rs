//! What is read of a recording that is whole, cut off, damaged, too new.

use proptest::prelude::*;

use super::*;

fn sample() -> Vec<u8> {
    let start = Start {
        abi: ABI,
        version: "test".into(),
        ..Start::default()
    };
    let mut writer = Writer::begin(Vec::new(), &start).expect("begin");
    writer.message(&[1, 2, 3]).expect("message");
    writer
        .sem(
            SemKey { ns: 1, semid: 2 },
            &SemRecord {
                key: 7,
                ..SemRecord::default()
            },
        )
        .expect("record");
    writer.snapshot(&Snapshot::default()).expect("snapshot");
    writer.message(&[4]).expect("message");
    writer.end(&serde_json::json!({"seen": 2})).expect("end")
}

fn frames(bytes: &[u8]) -> Result<(usize, Tail), RecordingError> {
    let (mut reader, _) = Reader::open(bytes)?;
    let mut count = 0;
    while reader.next_frame()?.is_some() {
        count += 1;
    }
    Ok((count, reader.tail().cloned().expect("a tail at the end")))
}

#[test]
fn a_whole_recording_is_read_whole() {
    assert_eq!(frames(&sample()).expect("readable"), (5, Tail::Whole));
}

#[test]
fn a_recording_cut_at_any_byte_is_read_up_to_there_and_says_so() {
    let whole = sample();
    let mut last = 0;
    for len in 0..whole.len() {
        match frames(&whole[..len]) {
            Ok((count, tail)) => {
                assert!(count >= last, "frames must not get fewer with more bytes");
                last = count;
                let at_boundary = tail == Tail::Whole;
                assert!(at_boundary || matches!(tail, Tail::Cut { at, .. } if at < len as u64 + 1));
            }
            Err(RecordingError::Empty) => assert_eq!(last, 0),
            Err(other) => panic!("cut at {len}: {other}"),
        }
    }
    assert_eq!(last, 4);
}

#[test]
fn a_flipped_bit_is_noticed() {
    let whole = sample();
    let (count, _) = frames(&whole).expect("readable");
    for at in MAGIC.len()..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        if let Ok((got, tail)) = frames(&damaged) {
            assert!(got < count, "bit flipped at {at} went unnoticed: {tail:?}");
        }
    }
}

#[test]
fn call_sites_are_kept_with_their_names() {
    let site: CallSite = serde_json::from_value(serde_json::json!({
        "frames": [{"module": 0, "address": 16, "how": "observed",
            "symbols": [{"function": "main"}]}],
        "modules": [{"path": "/bin/x", "build_id": "abcd"}],
        "end": "complete",
    }))
    .expect("a call site without a mount namespace");
    let of = SiteOf {
        sem: SemId::default(),
        key: Key(7),
        at: BootTime(3),
        maker: ProcId::default(),
        site: 5,
    };
    let mut writer = Writer::begin(Vec::new(), &Start::default()).expect("begin");
    writer.site(5, &site).expect("site");
    writer.site_of(&of).expect("site of a cookie");
    let file = writer.end(&0).expect("end");
    let (mut reader, _) = Reader::open(&file[..]).expect("open");
    let frame = reader.next_frame().expect("readable");
    assert!(matches!(frame, Some(Frame::Site(5, read)) if *read == site));
    let frame = reader.next_frame().expect("readable");
    assert!(matches!(frame, Some(Frame::SiteOf(read)) if read == of));
}

#[test]
fn a_newer_layout_is_refused() {
    let start = Start {
        abi: ABI + 1,
        ..Start::default()
    };
    let file = Writer::begin(Vec::new(), &start)
        .expect("begin")
        .end(&0)
        .expect("end");
    assert!(matches!(frames(&file), Err(RecordingError::TooNew { .. })));
}

#[test]
fn something_else_is_not_a_recording() {
    assert!(matches!(
        frames(b"#!/bin/sh\necho hello\n"),
        Err(RecordingError::NotARecording)
    ));
    assert!(matches!(frames(b""), Err(RecordingError::Empty)));
}

/// Frames of any kind and content.
#[derive(Clone, Debug)]
enum Any {
    Message(Vec<u8>),
    Sem(i32, u32),
    Snapshot(i64),
    Facts(u64),
    Packages(String),
    Later(Vec<u8>),
}

fn any_frame() -> impl Strategy<Value = Any> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Any::Message),
        (any::<i32>(), any::<u32>()).prop_map(|(semid, key)| Any::Sem(semid, key)),
        any::<i64>().prop_map(Any::Snapshot),
        any::<u64>().prop_map(Any::Facts),
        "[a-z/]{0,12}".prop_map(Any::Packages),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Any::Later),
    ]
}

fn write(writer: &mut Writer<Vec<u8>>, frame: &Any) -> io::Result<()> {
    match frame {
        Any::Message(bytes) => writer.message(bytes),
        Any::Sem(semid, key) => {
            let record = SemRecord {
                key: *key,
                ..SemRecord::default()
            };
            let sem = SemKey {
                ns: 1,
                semid: *semid,
            };
            writer.sem(sem, &record)
        }
        Any::Snapshot(wall) => writer.snapshot(&Snapshot {
            wall: UnixTime(*wall),
            ..Snapshot::default()
        }),
        Any::Facts(now) => writer.facts(&HostFacts {
            now: BootTime(*now),
            ..HostFacts::default()
        }),
        Any::Packages(path) => {
            writer.packages(&[(path.clone(), Err("not known".to_owned()))].into())
        }
        Any::Later(bytes) => writer.frame(999, &[bytes]),
    }
}

/// Content of a frame, comparable.
fn content(frame: &Frame) -> String {
    match frame {
        Frame::Sem(key, record) => format!("sem {} {}", key.semid, record.key),
        other => format!("{other:?}"),
    }
}

fn contents(bytes: &[u8]) -> Result<(Vec<String>, Tail), RecordingError> {
    let (mut reader, _) = Reader::open(bytes)?;
    let mut found = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        found.push(content(&frame));
    }
    Ok((found, reader.tail().cloned().expect("a tail at the end")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut at every byte: exactly the frames that are whole are read, and the rest is told with
    /// the offset of the first that is not.
    #[test]
    fn any_recording_cut_at_any_byte(frames in prop::collection::vec(any_frame(), 0..8)) {
        let start = Start { abi: ABI, ..Start::default() };
        let mut writer = Writer::begin(Vec::new(), &start).expect("begin");
        let mut ends = vec![writer.out.len()];
        for frame in &frames {
            write(&mut writer, frame).expect("written");
            ends.push(writer.out.len());
        }
        let whole = writer.out;
        let (all, tail) = contents(&whole).expect("readable");
        prop_assert_eq!(all.len(), frames.len());
        prop_assert_eq!(tail, Tail::Whole);
        for length in 0..whole.len() {
            let found = contents(&whole[..length]);
            if length < ends[0] {
                prop_assert!(matches!(found, Err(RecordingError::Empty)), "{length}");
                continue;
            }
            let complete = ends.iter().filter(|&&end| end <= length).count() - 1;
            let (found, tail) = found.expect("readable from its first frame on");
            prop_assert_eq!(&found[..], &all[..complete]);
            let expected = u64::try_from(ends[complete]).expect("small");
            match tail {
                Tail::Whole => prop_assert_eq!(ends[complete], length),
                Tail::Cut { at, .. } => {
                    prop_assert_eq!(at, expected);
                    prop_assert!(length > ends[complete]);
                }
            }
        }
    }
}
