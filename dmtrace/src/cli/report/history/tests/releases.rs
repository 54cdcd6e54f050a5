//! What a history of a former release is shown as: the same as by that release. Whoever renames a
//! key of what is stored fails here.

use std::{path::Path, process::Command};

use clap::Parser as _;
use dmtrace_core::ids::{BootTime, IpcNs, Key, SemId};
use serde_json::{Value, json};

use super::{
    months::{open_book, stamp_at},
    told::run,
};
use crate::{
    cli::{Cli, Verb, explain, tests::TestPage},
    finding::Story,
    history::{HistoryNote, StoredFinding},
    render::tests::golden::assert_golden,
};

const RELEASES: &str = "src/history/tests/releases";

/// Times are those of UTC: in a process of its own, as the zone is read once.
#[test]
fn that_of_0_1_0_is_reported_and_explained_as_it_was() {
    if std::env::var("TZ").as_deref() != Ok("UTC0") {
        let name = std::thread::current().name().unwrap().to_owned();
        let tests = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env("TZ", "UTC0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tests.stdout);
        let why = String::from_utf8_lossy(&tests.stderr);
        assert!(tests.status.success(), "{said}{why}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The name of the file is in what is told, and is the same on every machine.
    std::env::set_current_dir(dir.path()).unwrap();
    let file = "kept.redb";
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(RELEASES);
    std::fs::copy(kept.join("0.1.0"), file).unwrap();
    let time = ["--since", "2026-01-01", "--until", "2028-01-01"];
    let report = [&["report", "--history", file], &time[..]].concat();
    let mut told = String::new();
    let mut show = |words: &[&str]| {
        for json in [false, true] {
            // The objects of each part are the same in all reports.
            if json && words.len() > 7 {
                continue;
            }
            let (text, _) = run(words, json);
            let shown: Vec<&str> = words.iter().copied().filter(|word| *word != file).collect();
            let json = if json { " --json" } else { "" };
            told.push_str(&format!("$ {}{json}\n{text}\n", shown.join(" ")));
        }
    };
    show(&report);
    for by in ["process", "executable", "container", "stack"] {
        show(&[&report[..], &["--by", by, "--all"]].concat());
    }
    for filter in [
        "--pid=195",
        "--comm=cookie-actor",
        "--uid=0",
        "--container=init.scope",
        "--device=253:0",
        "--state=stuck",
        "--min-age=1",
    ] {
        show(&[&report[..], &[filter]].concat());
    }
    for cookie in ["0x0d4d08e7", "1", "3", "4", "5"] {
        show(&["explain", cookie, "--history", file]);
    }
    let told = told.replace(
        &format!("dmtrace {} report", env!("CARGO_PKG_VERSION")),
        "dmtrace VERSION report",
    );
    assert_golden("history/tests/releases/0.1.0.told", &told);
}

#[test]
fn what_a_newer_program_has_kept_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let now = stamp_at(BootTime(1_000_000_000));
    let mut book = open_book(&path, now);
    for (semid, version) in [(1, 1), (2, StoredFinding::VERSION + 1)] {
        book.add_note(
            now,
            HistoryNote::Found(Box::new(StoredFinding {
                version,
                sem: SemId {
                    ns: IpcNs::HOST,
                    semid,
                },
                key: Key(0x0d4d_0000 + semid as u32),
                state: "leaked".to_owned(),
                program: String::new(),
                found: now,
                gone: None,
                calls: None,
                story: Story {
                    title: format!("COOKIE {semid}"),
                    ..Story::default()
                },
            })),
        );
    }
    book.commit_pending(now);
    drop(book);
    let file = path.to_str().unwrap();
    let time = ["--since", "2027-01-01", "--until", "2027-02-01"];
    let words = [&["report", "--history", file], &time[..]].concat();
    let (text, _) = run(&words, true);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["leaked"].as_array().unwrap().len(), 1);
    assert_eq!(report["complete"], false);
    let note = "1 finding was kept by a newer dmtrace, which alone can show it";
    assert_eq!(report["notes"], json!([note]));
    // One that can be read is explained; of the other it is said why not.
    let (text, _) = run(&["explain", "1", "--history", file], false);
    assert!(text.contains("COOKIE 1"), "{text}");
    let words = ["dmtrace", "explain", "2", "--history", file];
    let Verb::Explain(args) = Cli::try_parse_from(words).unwrap().verb else {
        panic!();
    };
    let mut out = TestPage::default().out();
    let error = explain::run(&args, false, &mut out).unwrap_err();
    assert!(error.to_string().contains(note), "{error}");
}
