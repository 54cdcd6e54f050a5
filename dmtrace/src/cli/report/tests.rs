//! A recording in which leaks were removed, read by every verb that reads one.

use std::{collections::BTreeSet, io::Write as _, process::ExitCode};

use clap::Parser as _;
use dmtrace_common::{ABI, Header, Kind, ProcKey, SemBuf, SemEvent};
use dmtrace_core::{
    event::as_bytes,
    facts::{HostFacts, NsSnapshot, SemLimits, SemState, SetSnapshot, Snapshot},
    ids::{BootTime, IpcNs, Key},
};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::{
    cli::{Cli, Verb, explain, report, tests::TestPage},
    recording::{RecordingStart, RecordingWriter},
};

const SECOND: u64 = 1_000_000_000;
/// Who removes.
const CLEANER: u32 = 77;

/// One message of process `pid`, on the set of the same number.
fn message(kind: Kind, pid: u32, number: u32, at: u64, arg: i32, op: i16) -> SemEvent {
    let mut comm = [0; 16];
    let name: &[u8] = if pid == CLEANER { b"dmtrace" } else { b"lvm" };
    comm[..name.len()].copy_from_slice(name);
    SemEvent {
        header: Header {
            kind: kind as u16,
            flags: 0,
            tid: pid,
            ts: at * SECOND,
            actor: ProcKey {
                start: 50,
                tgid: pid,
                exec: 0,
            },
        },
        ns: IpcNs::HOST.0,
        semid: number as i32,
        key: 0x0d4d_1000 + number,
        ret: 0,
        arg,
        extra: if kind == Kind::Created { 0o600 } else { 1 },
        ops: [SemBuf { num: 0, op, flg: 0 }; 4],
        comm,
        began: 0,
    }
}

/// So many programs are killed and leave a cookie each; then the first of them are removed.
fn recording(leaks: u32, removed: u32) -> NamedTempFile {
    let start = RecordingStart {
        abi: ABI,
        began: BootTime(SECOND),
        backend: "fentry".to_owned(),
        ..RecordingStart::default()
    };
    let mut writer = RecordingWriter::begin(Vec::new(), &start).unwrap();
    let snapshot = |at: u64, sets| Snapshot {
        began: BootTime(at * SECOND),
        ended: BootTime(at * SECOND),
        namespaces: vec![NsSnapshot {
            ns: IpcNs::HOST,
            limits: SemLimits {
                semmni: 128,
                ..SemLimits::default()
            },
            sets,
            ..NsSnapshot::default()
        }],
        ..Snapshot::default()
    };
    writer.write_snapshot(&snapshot(1, Vec::new())).unwrap();
    let mut send = |kind, pid, number, at, arg, op| {
        let message = message(kind, pid, number, at, arg, op);
        writer.write_message(as_bytes(&message)).unwrap();
    };
    for number in 1..=leaks {
        let pid = 100 + number;
        send(Kind::Created, pid, number, 2, 1, 0);
        send(Kind::SetVal, pid, number, 3, 1, 0);
        send(Kind::Op, pid, number, 4, 0, 1);
        send(Kind::Exit, pid, number, 5, 9, 0);
    }
    // One of them is also refused a set.
    let mut refused = message(Kind::CreateFailed, 101, 90, 4, 0, 0);
    refused.ret = -libc::ENOSPC;
    // It comes after its process has made its own.
    for number in 1..=removed {
        send(Kind::Destroyed, CLEANER, number, 80, 0, 0);
    }
    writer.write_message(as_bytes(&refused)).unwrap();
    let left = (removed + 1..=leaks).map(|number| SetSnapshot {
        semid: number as i32,
        key: Key(0x0d4d_1000 + number),
        mode: 0o600,
        nsems: 1,
        first: Some(SemState {
            value: 2,
            pid: 100 + number,
            ..SemState::default()
        }),
        ..SetSnapshot::default()
    });
    writer
        .write_snapshot(&snapshot(100, left.collect()))
        .unwrap();
    let facts = HostFacts {
        now: BootTime(101 * SECOND),
        processes_complete: true,
        carriers_complete: true,
        ..HostFacts::default()
    };
    writer.write_facts(&facts).unwrap();
    let bytes = writer.finish(&serde_json::json!({"deficits": []})).unwrap();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// Runs a verb as from the command line.
fn run(words: &[&str], file: &NamedTempFile, json: bool) -> (String, ExitCode) {
    let path = file.path().to_str().unwrap();
    let cli = Cli::try_parse_from([&["dmtrace"], words, &[path]].concat()).unwrap();
    let page = TestPage::default();
    let mut out = page.out().with_width(80);
    let code = match cli.verb {
        Verb::Report(args) => report::run(&args, json, &mut out).unwrap(),
        Verb::Explain(args) => explain::run(&args, json, &mut out).unwrap(),
        other => panic!("{other:?}"),
    };
    out.flush().unwrap();
    let text = page.text();
    let mut lines = text.lines().filter(|line| !line.contains(path));
    assert!(json || lines.all(|it| it.chars().count() <= 80), "{text}");
    (text, code)
}

fn json_of(words: &[&str], file: &NamedTempFile) -> Value {
    serde_json::from_str(&run(words, file, true).0).unwrap()
}

#[test]
fn leaks_that_were_removed_are_all_reported_with_culprit_and_remover() {
    let file = recording(15, 12);
    let (text, code) = run(&["report"], &file, false);
    assert_eq!(code, ExitCode::from(1));
    for wanted in [
        "15 cookies leaked: 12 removed, 3 still there",
        "WHO LEAKS\n      15  lvm (path unknown)",
        "what      owner killed by SIGKILL",
        "removed   12 of 15 by dmtrace[77]",
        "REMOVED LEAKS\n      12  by dmtrace[77]",
        "0x0d4d1001, 0x0d4d1002, 0x0d4d1003 and 9 more",
        "One of them: dmtrace explain COOKIE ",
        "lvm[101]  (leaks as well, see above)",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let value = json_of(&["report"], &file);
    let count = |list: &str| value[list].as_array().unwrap().len();
    assert_eq!((count("leaked"), count("removed")), (3, 12));
    assert_eq!(value["removed"][0]["state"], "cleaned-up");
    assert_eq!(value["removed"][0]["gone"]["by"], "dmtrace[77]");
    assert_eq!(value["removed"][0]["gone"]["how"], "removed");
    assert!(value["removed"][0]["gone"]["time"].is_string());
    assert_eq!(value["removed_forgotten"], 0);
    for group in ["culprits", "by_executable"] {
        let first = &value[group][0];
        let counts = ["leaked", "observed", "removed", "total"].map(|it| first[it].as_u64());
        assert_eq!(counts, [3, 3, 12, 15].map(Some), "{group}: {first}");
        assert_eq!(first["removed_by"]["dmtrace[77]"], 12);
    }
    assert_eq!(value["victims"][0]["also_culprit"], true);
}

#[test]
fn the_evidence_survives_a_clean_up_of_everything() {
    let file = recording(12, 12);
    for by in [None, Some("process"), Some("executable"), Some("stack")] {
        let by: Vec<&str> = by.iter().flat_map(|by| ["--by", *by]).collect();
        let (text, code) = run(&[&["report"], &by[..]].concat(), &file, false);
        assert_eq!(code, ExitCode::from(1));
        let all = "12 cookies leaked: 12 removed, 0 still there";
        assert!(text.contains(all), "{text}");
        assert!(text.contains("lvm"), "{text}");
        assert!(!text.contains("No cookie"), "{text}");
    }
    let (bug, code) = run(&["report", "--bug"], &file, false);
    assert_eq!(code, ExitCode::from(1));
    for wanted in [
        "leaked       12 cookies\n",
        "removed      since then, all 12 by dmtrace[77]",
        "12 x owner killed by SIGKILL",
        "dmtrace[77]",
    ] {
        assert!(bug.contains(wanted), "{wanted}: {bug}");
    }
    let (folded, _) = run(&["report", "--folded"], &file, false);
    assert_eq!(folded, "lvm;[unknown] 12\n");
}

#[test]
fn a_removed_leak_is_explained_in_full() {
    let file = recording(12, 12);
    for words in [&["explain"][..], &["explain", "0x0d4d1003"]] {
        let (text, code) = run(words, &file, false);
        assert_eq!(code, ExitCode::from(1), "{text}");
        for wanted in [
            "gone\ncleaned up after a leak: owner killed by SIGKILL",
            "WHAT HAPPENED",
            "removes it",
            "lvm[10",
            "left it: killed by SIGKILL",
            "removed by dmtrace[77]",
            "nothing with the cookie: it was removed by dmtrace[77], 19",
            "find out who kills the owner",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("dmtrace clean"), "{text}");
    }
    let (worst, _) = run(&["explain"], &file, false);
    let more = "11 more leaks that were removed: dmtrace report ";
    assert!(worst.contains(more), "{worst}");
    let value = json_of(&["explain", "0x0d4d1003"], &file);
    assert_eq!(value["explanations"][0]["gone"]["by"], "dmtrace[77]");
    // Those that are there come first.
    let (worst, _) = run(&["explain"], &recording(12, 11), false);
    assert!(worst.contains("COOKIE 0x0d4d100c"), "{worst}");
    assert!(worst.contains("11 more leaks"), "{worst}");
}

#[test]
fn the_filters_choose_removed_leaks() {
    let file = recording(15, 12);
    let counts = |state: &str| {
        let value = json_of(&["report", "--state", state], &file);
        let count = |list: &str| value[list].as_array().unwrap().len();
        (count("leaked"), count("removed"))
    };
    assert_eq!(counts("cleaned-up"), (0, 12));
    assert_eq!(counts("leaked"), (3, 0));
    assert_eq!(counts("leaked,cleaned-up"), (3, 12));
    let (text, _) = run(&["explain", "--state", "cleaned-up"], &file, false);
    assert!(text.contains("removed by dmtrace[77]"), "{text}");
    let one = json_of(&["report", "--pid", "104"], &file);
    let keys: BTreeSet<&str> = one["removed"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["key"].as_str())
        .collect();
    assert_eq!(keys, BTreeSet::from(["0x0d4d1004"]));
}
