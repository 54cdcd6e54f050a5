//! A recording that was cut off, all the way to the verdict.

use std::io::Write as _;

use dmtrace_common::{ABI, Header, Kind, ProcKey, SemBuf, SemEvent};
use dmtrace_core::{
    event::as_bytes,
    facts::{NsSnapshot, SemLimits, SemState, SetSnapshot},
    ids::{IpcNs, Key},
    verdict::{Class, Confidence, Losses},
};

use super::*;
use crate::recording::RecordingWriter;

const KEY: u32 = 0x0d4d_1234;
const SECOND: u64 = 1_000_000_000;

fn message_at(kind: Kind, at: u64, arg: i32, op: i16) -> SemEvent {
    SemEvent {
        header: Header {
            kind: kind as u16,
            flags: 0,
            tid: 11,
            ts: at,
            actor: ProcKey {
                start: 50,
                tgid: 11,
                exec: 0,
            },
        },
        ns: IpcNs::HOST.0,
        semid: 6,
        key: KEY,
        ret: 0,
        arg,
        extra: if kind == Kind::Created { 0o600 } else { 1 },
        ops: [SemBuf { num: 0, op, flg: 0 }; 4],
        comm: *b"lvm\0\0\0\0\0\0\0\0\0\0\0\0\0",
        began: 0,
    }
}

/// A cookie that is announced and left: its owner is not in the process list.
fn sample_recording() -> Vec<u8> {
    recording_that_ends_with(&serde_json::json!({"deficits": []}))
}

fn recording_that_ends_with(balance: &Value) -> Vec<u8> {
    let start = RecordingStart {
        abi: ABI,
        began: BootTime(SECOND),
        backend: "fentry".to_owned(),
        ..RecordingStart::default()
    };
    let mut writer = RecordingWriter::begin(Vec::new(), &start).unwrap();
    let empty = Snapshot {
        began: BootTime(SECOND),
        ended: BootTime(SECOND),
        namespaces: vec![NsSnapshot {
            ns: IpcNs::HOST,
            limits: SemLimits {
                semmni: 128,
                ..SemLimits::default()
            },
            ..NsSnapshot::default()
        }],
        ..Snapshot::default()
    };
    writer.write_snapshot(&empty).unwrap();
    for (kind, at, arg, op) in [
        (Kind::Created, 2, 1, 0),
        (Kind::SetVal, 3, 1, 0),
        (Kind::Op, 4, 0, 1),
        (Kind::Exit, 5, 9, 0),
    ] {
        let message = message_at(kind, at * SECOND, arg, op);
        writer.write_message(as_bytes(&message)).unwrap();
    }
    let mut full = empty;
    full.began = BootTime(100 * SECOND);
    full.ended = full.began;
    full.namespaces[0].sets = vec![SetSnapshot {
        semid: 6,
        key: Key(KEY),
        mode: 0o600,
        nsems: 1,
        first: Some(SemState {
            value: 2,
            pid: 11,
            ..SemState::default()
        }),
        ..SetSnapshot::default()
    }];
    writer.write_snapshot(&full).unwrap();
    let facts = HostFacts {
        now: BootTime(101 * SECOND),
        processes_complete: true,
        carriers_complete: true,
        ..HostFacts::default()
    };
    writer.write_facts(&facts).unwrap();
    writer.finish(balance).unwrap()
}

fn case_from(bytes: &[u8]) -> Result<Case> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Case::of_recording(file.path()).map(|(case, _)| case)
}

fn case_verdicts(case: &Case) -> Vec<(Class, Confidence)> {
    case.judge_all()
        .into_iter()
        .map(|judged| (judged.verdict.class, judged.verdict.confidence))
        .collect()
}

#[test]
fn cut_at_any_byte_it_is_read_up_to_there_and_nothing_is_certain() {
    let whole = sample_recording();
    let judged = case_verdicts(&case_from(&whole).unwrap());
    assert!(
        matches!(judged[..], [(Class::Leaked(_), Confidence::Observed)]),
        "{judged:?}"
    );
    let mut opened = 0;
    for length in 0..whole.len() {
        match case_from(&whole[..length]) {
            Err(error) => {
                assert_eq!(opened, 0, "read further with fewer bytes: {length}");
                assert_eq!(format!("{error:#}").lines().count(), 1);
            }
            Ok(case) => {
                opened += 1;
                assert!(case.incomplete, "{length}");
                let told = case
                    .notes
                    .iter()
                    .any(|note| note.contains("was not closed"));
                assert!(told, "{length}: {:?}", case.notes);
                for (class, confidence) in case_verdicts(&case) {
                    assert_ne!(confidence, Confidence::Observed, "{length}: {class:?}");
                }
            }
        }
    }
    assert!(opened > 100);
}

#[test]
fn a_recording_without_its_end_has_lost_no_event_that_is_known() {
    let whole = sample_recording();
    let mut evidence = Vec::new();
    for length in 0..whole.len() {
        let Ok(case) = case_from(&whole[..length]) else {
            continue;
        };
        for judged in case.judge_all() {
            evidence.extend(judged.verdict.evidence.iter().map(ToString::to_string));
        }
    }
    let end = "what happened after the recording's last entry is unknown";
    assert!(evidence.iter().any(|it| it == end), "{evidence:?}");
    let lost = |it: &&String| it.contains("lost");
    assert_eq!(evidence.iter().find(lost), None);
}

#[test]
fn a_file_that_is_damaged_is_not_called_cut_off() {
    let mut damaged = sample_recording();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let notes = case_from(&damaged).unwrap().notes.join("\n");
    assert!(notes.contains("damaged at byte"), "{notes}");
    assert!(notes.contains("wrong checksum"), "{notes}");
    let whole = sample_recording();
    let notes = case_from(&whole[..last]).unwrap().notes.join("\n");
    assert!(notes.contains("cut off at byte"), "{notes}");
    let error = case_from(&[]).err().unwrap().to_string();
    assert!(error.ends_with(": the file is empty"), "{error}");
}

/// The verdicts on a recording are those of its trace: what the trace had not lost of a set does not
/// make the set uncertain, and what it had does.
#[test]
fn what_the_trace_lacked_is_lacking_in_its_recording() {
    let ended_with = |losses: Value| {
        let balance = serde_json::json!({"deficits": ["2 runs were skipped"], "losses": losses});
        let case = case_from(&recording_that_ends_with(&balance)).unwrap();
        assert!(case.incomplete && case.notes.iter().any(|it| it.contains("2 runs")));
        case_verdicts(&case)
    };
    let losses = |count: u64, until: u64| {
        serde_json::to_value(BookLosses {
            live: Losses {
                count,
                until: Some(BootTime(until * SECOND)),
                ..Losses::default()
            },
            ..BookLosses::default()
        })
        .unwrap()
    };
    for harmless in [losses(0, 0), losses(3, 1)] {
        let judged = ended_with(harmless);
        assert!(
            matches!(judged[..], [(Class::Leaked(_), Confidence::Observed)]),
            "{judged:?}"
        );
    }
    // Lost while the set was there; and what an older trace did not write down.
    for unsure in [losses(3, 50), Value::Null] {
        let judged = ended_with(unsure);
        assert!(matches!(judged[..], [(Class::Unknown(_), _)]), "{judged:?}");
    }
}
