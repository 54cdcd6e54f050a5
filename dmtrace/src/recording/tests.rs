//! What is read of a recording that is whole, cut off, damaged, too new.

use proptest::prelude::*;

use super::*;

fn sample_bytes() -> Vec<u8> {
    let start = RecordingStart {
        abi: ABI,
        version: "test".into(),
        ..RecordingStart::default()
    };
    let mut writer = RecordingWriter::begin(Vec::new(), &start).expect("begin");
    writer.write_message(&[1, 2, 3]).expect("message");
    writer
        .write_sem(
            SemKey { ns: 1, semid: 2 },
            &SemRecord {
                key: 7,
                ..SemRecord::default()
            },
        )
        .expect("record");
    writer
        .write_snapshot(&Snapshot::default())
        .expect("snapshot");
    writer.write_message(&[4]).expect("message");
    writer.finish(&serde_json::json!({"seen": 2})).expect("end")
}

fn read_frames(bytes: &[u8]) -> Result<(usize, RecordingTail), RecordingError> {
    let (mut reader, _) = RecordingReader::open(bytes)?;
    let mut count = 0;
    while reader.next_frame()?.is_some() {
        count += 1;
    }
    Ok((count, reader.tail().cloned().expect("a tail at the end")))
}

#[test]
fn a_whole_recording_is_read_whole() {
    assert_eq!(
        read_frames(&sample_bytes()).expect("readable"),
        (5, RecordingTail::Whole)
    );
}

#[test]
fn a_recording_cut_at_any_byte_is_read_up_to_there_and_says_so() {
    let whole = sample_bytes();
    let mut last = 0;
    for len in 0..whole.len() {
        match read_frames(&whole[..len]) {
            Ok((count, tail)) => {
                assert!(count >= last, "frames must not get fewer with more bytes");
                last = count;
                let at_boundary = tail == RecordingTail::Whole;
                assert!(
                    at_boundary
                        || matches!(tail, RecordingTail::Cut { at, .. } if at < len as u64 + 1)
                );
            }
            Err(RecordingError::NoBytes | RecordingError::Empty) => assert_eq!(last, 0),
            Err(other) => panic!("cut at {len}: {other}"),
        }
    }
    assert_eq!(last, 4);
}

#[test]
fn a_flipped_bit_is_noticed() {
    let whole = sample_bytes();
    let (count, _) = read_frames(&whole).expect("readable");
    for at in MAGIC.len()..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        if let Ok((got, tail)) = read_frames(&damaged) {
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
    let mut writer = RecordingWriter::begin(Vec::new(), &RecordingStart::default()).expect("begin");
    writer.write_site(5, &site).expect("site");
    writer.site_of(&of).expect("site of a cookie");
    let file = writer.finish(&0).expect("end");
    let (mut reader, _) = RecordingReader::open(&file[..]).expect("open");
    let frame = reader.next_frame().expect("readable");
    assert!(matches!(frame, Some(RecordedFrame::Site(5, read)) if *read == site));
    let frame = reader.next_frame().expect("readable");
    assert!(matches!(frame, Some(RecordedFrame::SiteOf(read)) if read == of));
}

#[test]
fn a_newer_layout_is_refused() {
    let start = RecordingStart {
        abi: ABI + 1,
        ..RecordingStart::default()
    };
    let file = RecordingWriter::begin(Vec::new(), &start)
        .expect("begin")
        .finish(&0)
        .expect("end");
    assert!(matches!(
        read_frames(&file),
        Err(RecordingError::TooNew { .. })
    ));
}

#[test]
fn something_else_is_not_a_recording() {
    assert!(matches!(
        read_frames(b"#!/bin/sh\necho hello\n"),
        Err(RecordingError::NotARecording)
    ));
    assert!(matches!(read_frames(b""), Err(RecordingError::NoBytes)));
}

/// Frames of any kind and content.
#[derive(Clone, Debug)]
enum AnyFrame {
    Message(Vec<u8>),
    Sem(i32, u32),
    Snapshot(i64),
    Facts(u64),
    Packages(String),
    Later(Vec<u8>),
}

fn any_frame() -> impl Strategy<Value = AnyFrame> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(AnyFrame::Message),
        (any::<i32>(), any::<u32>()).prop_map(|(semid, key)| AnyFrame::Sem(semid, key)),
        any::<i64>().prop_map(AnyFrame::Snapshot),
        any::<u64>().prop_map(AnyFrame::Facts),
        "[a-z/]{0,12}".prop_map(AnyFrame::Packages),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(AnyFrame::Later),
    ]
}

fn write_any(writer: &mut RecordingWriter<Vec<u8>>, frame: &AnyFrame) -> io::Result<()> {
    match frame {
        AnyFrame::Message(bytes) => writer.write_message(bytes),
        AnyFrame::Sem(semid, key) => {
            let record = SemRecord {
                key: *key,
                ..SemRecord::default()
            };
            let sem = SemKey {
                ns: 1,
                semid: *semid,
            };
            writer.write_sem(sem, &record)
        }
        AnyFrame::Snapshot(wall) => writer.write_snapshot(&Snapshot {
            wall: UnixTime(*wall),
            ..Snapshot::default()
        }),
        AnyFrame::Facts(now) => writer.write_facts(&HostFacts {
            now: BootTime(*now),
            ..HostFacts::default()
        }),
        AnyFrame::Packages(path) => {
            writer.write_packages(&[(path.clone(), Err("not known".to_owned()))].into())
        }
        AnyFrame::Later(bytes) => writer.write_frame(999, &[bytes]),
    }
}

/// Content of a frame, comparable.
fn frame_content(frame: &RecordedFrame) -> String {
    match frame {
        RecordedFrame::Sem(key, record) => format!("sem {} {}", key.semid, record.key),
        other => format!("{other:?}"),
    }
}

fn read_contents(bytes: &[u8]) -> Result<(Vec<String>, RecordingTail), RecordingError> {
    let (mut reader, _) = RecordingReader::open(bytes)?;
    let mut found = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        found.push(frame_content(&frame));
    }
    Ok((found, reader.tail().cloned().expect("a tail at the end")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut at every byte: exactly the frames that are whole are read, and the rest is told with
    /// the offset of the first that is not.
    #[test]
    fn any_recording_cut_at_any_byte(frames in prop::collection::vec(any_frame(), 0..8)) {
        let start = RecordingStart { abi: ABI, ..RecordingStart::default() };
        let mut writer = RecordingWriter::begin(Vec::new(), &start).expect("begin");
        let mut ends = vec![writer.out.len()];
        for frame in &frames {
            write_any(&mut writer, frame).expect("written");
            ends.push(writer.out.len());
        }
        let whole = writer.out;
        let (all, tail) = read_contents(&whole).expect("readable");
        prop_assert_eq!(all.len(), frames.len());
        prop_assert_eq!(tail, RecordingTail::Whole);
        for length in 0..whole.len() {
            let found = read_contents(&whole[..length]);
            if length < ends[0] {
                let none = matches!(found, Err(RecordingError::NoBytes | RecordingError::Empty));
                prop_assert!(none, "{length}");
                continue;
            }
            let complete = ends.iter().filter(|&&end| end <= length).count() - 1;
            let (found, tail) = found.expect("readable from its first frame on");
            prop_assert_eq!(&found[..], &all[..complete]);
            let expected = u64::try_from(ends[complete]).expect("small");
            match tail {
                RecordingTail::Whole => prop_assert_eq!(ends[complete], length),
                RecordingTail::Cut { at, .. } => {
                    prop_assert_eq!(at, expected);
                    prop_assert!(length > ends[complete]);
                }
            }
        }
    }
}
