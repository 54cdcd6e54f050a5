//! What a history of a former release is shown as: the same as by that release. Whoever renames a
//! key of what is stored fails here.

use std::{path::Path, process::Command};

use super::told::run;
use crate::render::tests::golden::assert_golden;

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
    let copy = dir.path().join("history");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(RELEASES);
    std::fs::copy(kept.join("0.1.0"), &copy).unwrap();
    let file = copy.to_str().unwrap();
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
