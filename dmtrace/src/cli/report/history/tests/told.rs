//! What the history says, as people and programs read it.

use std::{
    cell::RefCell,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    rc::Rc,
};

use clap::Parser as _;
use dmtrace_core::{
    ids::{BootTime, IpcNs},
    ledger::Ledger,
    verdict::{Completeness, Context, Judged, Thresholds, survey_cookies},
};
use serde_json::Value;

use super::{
    kernel::FakeKernel,
    months::{open_book, stamp_at},
};
use crate::{
    cli::{
        Cli, Verb, explain,
        report::{self, history_text::ending_lines},
    },
    finding::Story,
    history::{FindingEnd, HistoryNote, HistoryQuery, HistoryRecord, HowGone, Tallies, read_file},
    output::{Out, time::Clock},
    render::{row::Row, stored, timeline::StoryContext},
    service::chronicle::stored_finding,
};

#[derive(Clone, Default)]
struct Page(Rc<RefCell<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Page {
    fn out(&self) -> Out {
        Out::with_writer(Box::new(self.clone()), "").with_width(80)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

/// Runs a verb as from the command line.
pub(super) fn run(words: &[&str], json: bool) -> (String, ExitCode) {
    let cli = Cli::try_parse_from([&["dmtrace"], words].concat()).unwrap();
    let page = Page::default();
    let mut out = page.out();
    let code = match cli.verb {
        Verb::Report(args) => report::run(&args, json, &mut out).unwrap(),
        Verb::Explain(args) => explain::run(&args, json, &mut out).unwrap(),
        other => panic!("{other:?}"),
    };
    out.flush().unwrap();
    (page.text(), code)
}

/// Leaks of two programs in a minute, and one that is gone, in a file.
fn written(path: &Path) -> Vec<(Story, String)> {
    let mut kernel = FakeKernel::new();
    let mut ledger = Ledger::new();
    ledger.reconcile(&kernel.snapshot());
    let now = stamp_at(BootTime(kernel.now));
    let mut book = open_book(path, now);
    book.add_note(
        now,
        HistoryNote::Began {
            backend: "fentry".to_owned(),
            kernel: "6.12".to_owned(),
            continuous: false,
        },
    );
    for _ in 0..3 {
        kernel.never_waited();
    }
    kernel.play_killed();
    kernel.now += 60_000_000_000;
    for event in kernel.take_events() {
        ledger.apply(&event);
    }
    let (snapshot, facts) = (kernel.snapshot(), kernel.facts());
    ledger.reconcile(&snapshot);
    let context = Context {
        facts: &facts,
        completeness: &Completeness::default(),
        thresholds: &Thresholds::default(),
    };
    let names = RefCell::default();
    let now = stamp_at(facts.now);
    let mut told = Vec::new();
    for judged in survey_cookies(&ledger, Some(&snapshot), &context) {
        assert_eq!(judged.verdict.class.label(), "leaked");
        let kept = stored_finding(&judged, &ledger, &facts, &names, now);
        let (sem, key) = (kept.sem, kept.key);
        book.add_note(now, HistoryNote::Found(Box::new(kept)));
        if told.is_empty() {
            let by = Some("dmtrace[77]".to_owned());
            let how = HowGone::Removed;
            book.add_note(
                now.at_boot(BootTime(now.boot.0 + 60_000_000_000)),
                HistoryNote::Gone {
                    sem,
                    key: Some(key),
                    state: None,
                    how,
                    by,
                },
            );
        }
        told.push(live(&judged, &ledger, &facts));
    }
    let mut tallies = Tallies::default();
    tallies.count_enospc(IpcNs::HOST, "/usr/sbin/mysqld", now);
    tallies.count_lost("messages were dropped and made good from the maps", 9, now);
    tallies.count_lives(
        "/usr/sbin/dockerd",
        &crate::history::ProgramCounts {
            created: 500,
            completed: 497,
            leaked: 0,
        },
    );
    book.add_note(now, HistoryNote::Tallies(tallies));
    book.commit_pending(now.at_boot(BootTime(now.boot.0 + 3_600_000_000_000)));
    drop(book);
    // Killed, and started a day later.
    let later = now.at_boot(BootTime(now.boot.0 + 86_400_000_000_000));
    let mut book = open_book(path, later);
    book.add_note(
        later,
        HistoryNote::Began {
            backend: "fentry".to_owned(),
            kernel: "6.12".to_owned(),
            continuous: false,
        },
    );
    book.commit_pending(later);
    told
}

/// A finding as it is told while it is there.
fn live(
    judged: &Judged<'_>,
    ledger: &Ledger,
    facts: &dmtrace_core::facts::HostFacts,
) -> (Story, String) {
    let names = RefCell::default();
    let mut row =
        Row::from_books(ledger, judged.semaphore, judged.set, facts.now).with_names(&names);
    row.set_judged(judged.clone());
    let telling = StoryContext {
        ledger,
        facts,
        completeness: &Completeness::default(),
        clock: Clock::now(),
        here: true,
        source: String::new(),
    };
    (telling.build_story(&row), judged.semaphore.key.to_string())
}

#[test]
fn a_cookie_that_was_looked_for_in_vain_is_not_to_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let _live = written(&path);
    let mut unwritten = 0;
    for entry in read_file(&path, &HistoryQuery::default()).unwrap().1 {
        let HistoryRecord::Finding(kept) = entry.record else {
            continue;
        };
        let told = stored::story_from_stored(&kept, true).unwrap();
        let first = &told.remedies[0];
        assert!(first.starts_with("nothing"), "{told:?}");
        assert!(!format!("{told:?}").contains("dmtrace clean"), "{told:?}");
        let value = stored::story_json(&kept, true);
        assert_eq!(value["remedies"], serde_json::json!(told.remedies));
        let ending = ending_lines(&kept, true).join(" ");
        assert!(!ending.contains("still there"), "{ending}");
        if kept.gone.is_none() {
            unwritten += 1;
            assert!(
                ending.ends_with("gone; how it ended is not written yet"),
                "{ending}"
            );
            // Who has not looked does not know.
            assert!(ending_lines(&kept, false)[0].contains("still there"));
        }
    }
    assert!(unwritten > 0);
}

#[test]
fn a_kept_finding_is_told_as_a_live_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let live = written(&path);
    let mut kept = Vec::new();
    for entry in read_file(&path, &HistoryQuery::default()).unwrap().1 {
        if let HistoryRecord::Finding(it) = entry.record {
            kept.push(*it);
        }
    }
    assert_eq!(kept.len(), live.len());
    for ((live, _), kept) in live.iter().zip(&kept) {
        let mut told = stored::story_from_stored(kept, false).unwrap();
        assert!(told.title.ends_with(" old when found"), "{told:?}");
        let last = told.life.last().unwrap();
        assert!(
            last.what.starts_with("nothing more until it was found, "),
            "{last:?}"
        );
        if kept.gone.is_some() {
            assert_eq!(
                told.remedies[0],
                "nothing with the cookie: it has been removed"
            );
            assert!(!format!("{told:?}").contains("dmtrace clean"), "{told:?}");
        } else {
            assert_eq!(told.remedies, live.remedies);
        }
        // The rest is what was told then.
        told.title.clone_from(&live.title);
        told.life
            .last_mut()
            .unwrap()
            .what
            .clone_from(&live.life.last().unwrap().what);
        told.remedies.clone_from(&live.remedies);
        told.avoid.clone_from(&live.avoid);
        // The clock that relates boot time to the wall was read twice.
        let lines = |story: &Story| -> Vec<String> {
            let life = story.life.iter();
            let life = life.map(|it| format!("{} {:?} {} {:?}", it.who, it.tid, it.what, it.value));
            life.chain(story.fault.clone())
                .chain(story.evidence.clone())
                .chain(story.remedies.clone())
                .chain(story.avoid.clone())
                .chain(story.victims.iter().map(|it| it.text.clone()))
                .chain(story.missing.iter().map(|it| it.text.clone()))
                .chain([
                    story.title.clone(),
                    story.headline.clone(),
                    story.confidence.clone(),
                ])
                .collect()
        };
        assert_eq!(lines(&told), lines(live));
        assert!(
            told.life
                .iter()
                .all(|it| it.shown.len() == 12 || it.time.is_none())
        );
        let value = stored::story_json(kept, false);
        let verdict = serde_json::to_value(&live.cookie.verdict).unwrap();
        assert_eq!(value["cookie"]["verdict"], verdict);
        assert!(value["found"]["time"].is_string());
    }
    assert!(matches!(
        kept[0].gone,
        Some(FindingEnd {
            how: HowGone::Removed,
            ..
        })
    ));
}

#[test]
fn a_report_on_a_time_ranks_who_leaks_and_says_what_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    written(&path);
    let file = path.to_str().unwrap();
    let time = ["--since", "2027-01-01", "--until", "2027-02-01"];
    let words = [&["report", "--history", file], &time[..]].concat();
    let (text, code) = run(&words, false);
    println!("{text}");
    assert_eq!(code, ExitCode::from(1));
    for wanted in [
        "4 cookies leaked: 1 removed, 3 still there",
        "WHO LEAKS\n       3  /usr/sbin/dockerd",
        "REMOVED LEAKS\n       1  by dmtrace[77]",
        "One of them: dmtrace explain COOKIE --history",
        "owner moved on and never waited",
        "VICTIMS",
        "/usr/sbin/mysqld",
        "      500        497        3",
        "TIMES WITHOUT A TRACE",
        "23h00m at most  service killed",
        "LOST MESSAGES",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(
        text.lines()
            .filter(|line| !line.contains(file))
            .all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let (text, _) = run(&words, true);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["type"], "history_report");
    assert_eq!(value["leaked"].as_array().unwrap().len(), 4);
    assert_eq!(value["by_executable"][0]["leaked"], 3);
    let removed = |group: &Value| group["removed"].as_u64().unwrap();
    let groups = value["by_executable"].as_array().unwrap();
    assert_eq!(groups.iter().map(removed).sum::<u64>(), 1);
    assert_eq!(value["culprits"][0]["executable"], "/usr/sbin/dockerd");
    let (text, _) = run(&[&words[..], &["--by", "executable"]].concat(), false);
    let by = "LEAKED COOKIES BY EXECUTABLE\n       3  /usr/sbin/dockerd";
    assert!(text.contains(by), "{text}");
    assert_eq!(value["gaps"][0]["why"], "killed");
    assert_eq!(value["complete"], false);
    let (text, _) = run(&[&words[..], &["--comm", "lvm", "--json"]].concat(), false);
    assert!(!text.contains("dockerd["), "{text}");
    // Failed creations are kept by namespace, and not by user.
    let filtered = |option: &str| run(&[&words[..], &[option]].concat(), false).0;
    let here = filtered("--ipc-ns=host");
    assert!(here.contains("/usr/sbin/mysqld"), "{here}");
    let elsewhere = filtered("--ipc-ns=4026530001");
    assert!(!elsewhere.contains("mysqld"), "{elsewhere}");
    assert!(elsewhere.contains("matching the filters"), "{elsewhere}");
    let of_user = filtered("--uid=12345");
    assert!(!of_user.contains("mysqld"), "{of_user}");
    assert!(of_user.contains("Left out: failed creations"), "{of_user}");
    // A time in which nothing was kept is no clean one.
    let (text, code) = run(
        &[
            "report",
            "--history",
            file,
            "--since",
            "2026-12-01",
            "--until",
            "2026-12-02",
        ],
        false,
    );
    assert_eq!(code, ExitCode::from(4));
    assert!(text.contains("not certain"), "{text}");
}

#[test]
fn a_past_cookie_is_explained_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let live = written(&path);
    let file = path.to_str().unwrap();
    let (text, code) = run(&["explain", &live[0].1, "--history", file], false);
    println!("{text}");
    assert_eq!(code, ExitCode::from(1));
    for wanted in [
        "COOKIE 0x",
        "WHAT HAPPENED",
        "WHOSE FAULT",
        "removed by dmtrace[77]",
        "nothing with the cookie: it has been removed",
        " old when found",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    // Never with what the filters leave out.
    for option in ["--ipc-ns=4026530001", "--uid=12345", "--state=stuck"] {
        let words = ["dmtrace", "explain", &live[0].1, "--history", file, option];
        let Verb::Explain(args) = Cli::try_parse_from(words).unwrap().verb else {
            panic!();
        };
        let error = explain::run(&args, false, &mut Page::default().out()).unwrap_err();
        assert!(
            error.to_string().contains("matching the filters"),
            "{error}"
        );
    }
    let (text, _) = run(&["explain", &live[0].1, "--history", file], true);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["explanations"][0]["gone"]["how"], "removed");
    let cli = Cli::try_parse_from(["dmtrace", "explain", "4711", "--history", file]).unwrap();
    let Verb::Explain(args) = cli.verb else {
        panic!();
    };
    let error = explain::run(&args, false, &mut Page::default().out()).unwrap_err();
    assert!(error.to_string().contains("does not know"), "{error}");
}

#[test]
fn a_bug_report_is_made_of_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    written(&path);
    let file = path.to_str().unwrap();
    let words = ["report", "--history", file, "--since", "2027-01-01"];
    let words = [&words[..], &["--until", "2027-02-01"]].concat();
    let (text, code) = run(&[&words[..], &["--bug"]].concat(), false);
    assert_eq!(code, ExitCode::from(1));
    for wanted in [
        "/usr/sbin/dockerd leaves device-mapper udev cookies behind",
        "package      unknown: the history does not say",
        "kernel       6.12",
        "leaked       3 cookies\n",
        "by dmtrace[77]",
        "3 x owner moved on and never waited",
        "call site    ",
        "One of them, COOKIE 0x",
        "makes it",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(text.lines().all(|it| it.chars().count() <= 80), "{text}");
    let value: Value = serde_json::from_str(&run(&words, true).0).unwrap();
    let bugs = value["bugs"].as_array().unwrap();
    let total: u64 = bugs.iter().map(|bug| bug["total"].as_u64().unwrap()).sum();
    assert_eq!((bugs.len(), total), (2, 4));
    let (folded, _) = run(&[&words[..], &["--folded"]].concat(), false);
    let counts = folded.lines().filter_map(|it| it.rsplit_once(' '));
    let sum: u64 = counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 4, "{folded}");
}

#[test]
fn the_filters_choose_removed_leaks_of_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    written(&path);
    let file = path.to_str().unwrap();
    let leaked = |state: &str| {
        let words = ["report", "--history", file, "--since", "2027-01-01"];
        let words = [&words[..], &["--until", "2027-02-01", "--state", state]].concat();
        let value: Value = serde_json::from_str(&run(&words, true).0).unwrap();
        value["leaked"].as_array().unwrap().len()
    };
    assert_eq!(leaked("cleaned-up"), 1);
    // As they were found.
    assert_eq!(leaked("leaked"), 4);
}
