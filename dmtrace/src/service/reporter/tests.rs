//! Ended cookies of each kind, and both who are told of them: the log, and the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use dmtrace_core::{
    event::{Actor, Event, EventKind, Quality},
    ids::{BootTime, IpcNs, Key, SemId},
    verdict::survey_closed,
};

use crate::{
    history::{self, HistoryQuery, HistoryRecord, HowGone, read_file},
    render::tests::scene::Scene,
    service::{ExportOptions, chronicle::Chronicle, export::Exports, log::Log, reporter::Reporter},
    trace::{
        ended::{EndedCookies, ended_at},
        run::{BooksView, Observer as _},
    },
};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The scene, and what it lacks: a leaked cookie that somebody has removed, and one that is gone
/// without anybody having seen how.
fn scene() -> Scene {
    let mut scene = Scene::new();
    let sem = SemId {
        ns: IpcNs::HOST,
        semid: 1,
    };
    let key = scene.ledger.semaphore(sem).unwrap().key;
    scene.ledger.apply(&Event {
        at: BootTime(scene.facts.now.0 - 1_000_000_000),
        began: None,
        actor: Actor::default(),
        quality: Quality::default(),
        what: EventKind::Destroyed { sem, key },
    });
    for space in &mut scene.snapshot.namespaces {
        space.sets.retain(|set| set.semid != 1 && set.semid != 4);
    }
    scene.snapshot.began = BootTime(scene.facts.now.0 + 1);
    scene.snapshot.ended = scene.snapshot.began;
    scene.ledger.reconcile(&scene.snapshot);
    scene
}

/// EventKind a service says and keeps of the cookies that have ended, by key.
fn tell(scene: &Scene, began: BootTime) -> (BTreeSet<Key>, BTreeSet<Key>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let options = history::HistoryOptions {
        path: path.clone(),
        limit: 4 << 20,
        retention: Duration::from_secs(86_400),
        boot_id: "boot".to_owned(),
    };
    let lines = Lines::default();
    let chronicle = Chronicle::open(options, |warning| panic!("{warning}"));
    chronicle.trace_started("fentry", "6.12", false);
    let exports = Exports::open(&ExportOptions::default(), None).unwrap();
    let log = Log::to(Box::new(lines.clone()));
    let mut reporter = Reporter::new(log, exports, Some(chronicle));
    let mut ended = EndedCookies::default();
    reporter.began_at(began);
    let context = scene.context();
    let view = BooksView {
        ledger: &scene.ledger,
        context: Some(&context),
    };
    for _ in 0..3 {
        for judged in ended.take_findings(&scene.ledger, &context) {
            reporter.on_ended_finding(&judged, &view).unwrap();
        }
    }
    let (_, _, chronicle) = reporter.into_parts();
    assert!(chronicle.unwrap().finish(Duration::from_secs(60)));
    let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let mut told = BTreeSet::new();
    for line in said.lines() {
        let (_, key) = line.split_once("see: dmtrace explain 0x").unwrap();
        let key = Key(u32::from_str_radix(key, 16).unwrap());
        assert!(told.insert(key), "twice: {said}");
    }
    let mut kept = BTreeSet::new();
    for entry in read_file(&path, &HistoryQuery::default()).unwrap().1 {
        if let HistoryRecord::Finding(finding) = entry.record {
            let how = finding.gone.as_ref().map(|gone| gone.how);
            let wanted = match finding.state.as_str() {
                // The scene has one that was removed.
                "leaked" => HowGone::Removed,
                _ => HowGone::AlreadyGone,
            };
            assert_eq!(how, Some(wanted), "{finding:?}");
            assert!(kept.insert(finding.key), "twice: {finding:?}");
        }
    }
    (told, kept)
}

#[test]
fn what_cannot_be_read_is_said_once_and_so_is_its_end() {
    let lines = Lines::default();
    let exports = Exports::open(&ExportOptions::default(), None).unwrap();
    let mut reporter = Reporter::new(Log::to(Box::new(lines.clone())), exports, None);
    let blind = "not everything could be read: /proc: No such file or directory";
    for unread in [None, Some(blind), Some(blind), None] {
        reporter.report_unread(unread);
    }
    let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let all = format!("dmtrace: warning: {blind}\ndmtrace: info: everything can be read now\n");
    assert_eq!(said, all);
}

#[test]
fn each_ended_cookie_is_told_and_kept_by_one_judgement() {
    let scene = scene();
    let context = scene.context();
    let mut kinds: BTreeMap<&str, Vec<(Key, BootTime, bool)>> = BTreeMap::new();
    for judged in survey_closed(&scene.ledger, &context) {
        let class = judged.verdict.class;
        let at = ended_at(&judged).unwrap();
        let kind = kinds.entry(class.label()).or_default();
        kind.push((judged.semaphore.key, at, class.is_finding()));
    }
    for wanted in ["accident", "over-completed", "finished", "unknown"] {
        assert!(kinds.contains_key(wanted), "{kinds:?}");
    }
    let all: Vec<_> = kinds.values().flatten().copied().collect();
    assert!(all.len() > 5, "{kinds:?}");
    let (told, kept) = tell(&scene, BootTime(0));
    for (key, _, is_finding) in &all {
        assert_eq!(told.contains(key), *is_finding, "told: {key}: {kinds:?}");
        // A leak that was removed is kept, and was told while it was there, if anybody looked.
        let removed = &kinds["cleaned-up"];
        let is_kept = *is_finding || removed.iter().any(|it| it.0 == *key);
        assert_eq!(kept.contains(key), is_kept, "kept: {key}: {kinds:?}");
    }
    // EventKind ended before this run is kept, and was told by the run before.
    let findings = all.iter().filter(|(_, _, is_finding)| *is_finding);
    let first = findings.clone().map(|(_, at, _)| *at).min().unwrap();
    let (told, kept) = tell(&scene, first);
    for (key, at, _) in findings {
        assert_eq!(told.contains(key), *at > first, "{key}");
        assert!(kept.contains(key), "{key}");
    }
}

#[test]
fn a_finding_that_becomes_another_one_stays_in_the_list() {
    let scene = Scene::new();
    let context = scene.context();
    let view = BooksView {
        ledger: &scene.ledger,
        context: Some(&context),
    };
    let lines = Lines::default();
    let exports = Exports::open(&ExportOptions::default(), None).unwrap();
    let mut reporter = Reporter::new(Log::to(Box::new(lines)), exports, None);
    let judged = scene.judged();
    let leaked = judged
        .iter()
        .find(|it| it.verdict.class.label() == "leaked");
    let leaked = leaked.unwrap();
    let sem = leaked.semaphore.id;
    // It was stuck before: that is cleared after the leak has been told.
    for _ in 0..3 {
        reporter.on_finding(leaked, &view).unwrap();
        reporter.on_cleared(sem, "stuck", &view).unwrap();
    }
    assert_eq!(reporter.list_findings().len(), 1);
    let told = reporter.count_findings(1).told;
    assert_eq!(told, BTreeMap::from([("leaked", 1)]));
    reporter.on_cleared(sem, "leaked", &view).unwrap();
    assert!(reporter.list_findings().is_empty());
}
