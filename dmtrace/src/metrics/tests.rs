//! What is exposed, from books and verdicts to text.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use dmtrace_core::{
    backend::Backend,
    event::{Actor, Event, EventKind, ExitStatus, Operation, ProcessImage, Quality},
    facts::{HostFacts, NsSnapshot, SemLimits, SetSnapshot, Snapshot},
    ids::{BootTime, IpcNs, Key, ProcId, SemId, UnixTime},
    ledger::Ledger,
    verdict::{Completeness, Context, State, Thresholds, survey_cookies},
};

use super::*;

const KEY: Key = Key(0x0d4d_1234);
const SECOND: u64 = 1_000_000_000;
const DOCKER: &str = "/docker/4f3a1c2b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";

/// Books that are followed.
#[derive(Default)]
struct MetricsScene {
    ledger: Ledger,
    counting: MetricsCounter,
}

fn proc_id(tgid: u32) -> ProcId {
    ProcId {
        tgid,
        start: BootTime(SECOND),
    }
}

fn sem_id(semid: i32) -> SemId {
    SemId {
        ns: IpcNs::HOST,
        semid,
    }
}

impl MetricsScene {
    fn apply_event(&mut self, at: u64, tgid: u32, what: EventKind) {
        let event = Event {
            at: BootTime(at),
            began: None,
            actor: Actor {
                id: proc_id(tgid),
                exec: 0,
                tid: tgid,
                comm: "lvm".to_owned(),
            },
            quality: Quality::default(),
            what,
        };
        let changes = self.ledger.apply(&event);
        self.counting.count_changes(&changes, &self.ledger);
    }

    fn enter_process(&mut self, tgid: u32, cgroup: &str) {
        let image = ProcessImage {
            id: proc_id(tgid),
            comm: "lvm".to_owned(),
            cgroup: cgroup.to_owned(),
            ..ProcessImage::default()
        };
        self.apply_event(SECOND, tgid, EventKind::Process(Box::new(image)));
    }

    fn create_cookie(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::Created {
            sem: sem_id(semid),
            key: KEY,
            nsems: 1,
            semflg: 0o600,
        };
        self.apply_event(at, tgid, what);
        let what = EventKind::SetVal {
            sem: sem_id(semid),
            key: KEY,
            value: 1,
            errno: 0,
        };
        self.apply_event(at + 1, tgid, what);
    }

    fn semop(&mut self, at: u64, tgid: u32, semid: i32, op: i16, errno: i32) {
        let what = EventKind::Op {
            sem: sem_id(semid),
            key: KEY,
            ops: vec![Operation { num: 0, op, flg: 0 }],
            errno,
        };
        self.apply_event(at, tgid, what);
    }

    fn wait_begins(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::WaitBegin {
            sem: sem_id(semid),
            key: KEY,
            ops: vec![Operation {
                num: 0,
                op: 0,
                flg: 0,
            }],
        };
        self.apply_event(at, tgid, what);
    }

    fn remove_set(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::Destroyed {
            sem: sem_id(semid),
            key: KEY,
        };
        self.apply_event(at, tgid, what);
    }

    /// A cookie whose owner waits for udev from second 10 for this long, in two parts.
    fn run_cycle(&mut self, tgid: u32, semid: i32, wait: Duration) {
        let end = 10 * SECOND + u64::try_from(wait.as_nanos()).unwrap();
        self.create_cookie(9 * SECOND, tgid, semid);
        self.semop(9 * SECOND + 2, tgid, semid, 1, 0);
        self.semop(9 * SECOND + 3, tgid, semid, -1, 0);
        self.wait_begins(10 * SECOND, tgid, semid);
        self.semop(10 * SECOND + 1, tgid, semid, 0, libc::EINTR);
        self.wait_begins(10 * SECOND + 2, tgid, semid);
        self.semop(end - 1, tgid + 1000, semid, -1, 0);
        self.semop(end, tgid, semid, 0, 0);
        self.remove_set(end + 1, tgid, semid);
    }

    /// Looks as an observer does, at this second.
    fn survey_at(&mut self, second: u64) -> LiveCookies {
        let facts = HostFacts {
            now: BootTime(second * SECOND),
            processes_complete: true,
            carriers_complete: true,
            ..HostFacts::default()
        };
        let (completeness, thresholds) = (Completeness::default(), Thresholds::default());
        let context = Context {
            facts: &facts,
            completeness: &completeness,
            thresholds: &thresholds,
        };
        let judged = survey_cookies(&self.ledger, None, &context);
        for one in &judged {
            self.counting.count_finding(one, &self.ledger);
        }
        LiveCookies::from_judged(&judged, facts.now, facts.wall)
    }
}

#[test]
fn lives_are_counted_by_where_their_maker_ran() {
    let mut scene = MetricsScene::default();
    scene.enter_process(10, "/system.slice/lvm2-monitor.service");
    scene.enter_process(11, DOCKER);
    scene.run_cycle(10, 1, Duration::from_millis(20));
    scene.run_cycle(11, 2, Duration::from_millis(700));
    // Its process was never captured.
    scene.create_cookie(11 * SECOND, 12, 3);
    let tally = scene.counting.tally();
    let lives = |created, completed| CookieTally {
        created,
        completed,
        leaked: 0,
    };
    assert_eq!(tally.lives, [lives(1, 1), lives(1, 1), lives(1, 0)]);
}

#[test]
fn an_interrupted_wait_counts_once_and_in_full() {
    let mut scene = MetricsScene::default();
    scene.run_cycle(10, 1, Duration::from_millis(20));
    let waits = &scene.counting.tally().waits;
    assert_eq!(waits.count(), 1);
    assert!((waits.sum_seconds() - 0.02).abs() < 1e-9, "{waits:?}");
}

#[test]
fn a_wait_that_did_not_end_well_is_not_in_the_histogram() {
    let mut scene = MetricsScene::default();
    scene.create_cookie(9 * SECOND, 10, 1);
    scene.semop(9 * SECOND + 2, 10, 1, 1, 0);
    scene.semop(9 * SECOND + 3, 10, 1, -1, 0);
    scene.wait_begins(10 * SECOND, 10, 1);
    scene.remove_set(20 * SECOND, 77, 1);
    scene.semop(20 * SECOND + 1, 10, 1, 0, libc::EIDRM);
    let tally = scene.counting.tally();
    assert_eq!(tally.waits.count(), 0);
    assert_eq!(tally.lives[WorkloadOrigin::Unknown as usize].completed, 0);
}

#[test]
fn a_leak_counts_once_however_often_it_is_seen() {
    let mut scene = MetricsScene::default();
    scene.enter_process(10, DOCKER);
    scene.create_cookie(9 * SECOND, 10, 1);
    scene.semop(9 * SECOND + 2, 10, 1, 1, 0);
    let status = ExitStatus::Signal(9);
    scene.apply_event(10 * SECOND, 10, EventKind::Exit { status });
    for second in [400, 401] {
        let standing = scene.survey_at(second);
        let age = Duration::from_secs(second - 9);
        assert_eq!(standing.get(State::Leaked), (1, age), "{standing:?}");
        assert_eq!(standing.get(State::Open), (0, Duration::ZERO));
    }
    let leaked = scene.counting.tally().lives.map(|lives| lives.leaked);
    assert_eq!(leaked, [0, 1, 0]);
    // The next set with the same number is another one.
    scene.remove_set(500 * SECOND, 99, 1);
    scene.create_cookie(501 * SECOND, 10, 1);
    assert_eq!(scene.survey_at(502).get(State::Leaked).0, 0);
}

#[test]
fn creations_that_failed_are_told_apart() {
    let mut scene = MetricsScene::default();
    for (key, errno) in [
        (KEY, libc::ENOSPC),
        (Key(7), libc::ENOSPC),
        (KEY, libc::ENOMEM),
    ] {
        let ns = IpcNs::HOST;
        scene.apply_event(SECOND, 10, EventKind::CreateFailed { ns, key, errno });
    }
    let tally = scene.counting.tally();
    assert_eq!((tally.refused_by_limit, tally.refused_otherwise), (2, 1));
}

fn ns_snapshot(ns: IpcNs, sets: usize, semmni: u32) -> NsSnapshot {
    NsSnapshot {
        ns,
        limits: SemLimits {
            semmni,
            ..SemLimits::default()
        },
        sets: vec![SetSnapshot::default(); sets],
        ..NsSnapshot::default()
    }
}

#[test]
fn one_full_namespace_is_not_hidden_by_empty_ones() {
    let snapshot = Snapshot {
        wall: UnixTime(1),
        namespaces: vec![
            ns_snapshot(IpcNs::HOST, 3, 32_000),
            ns_snapshot(IpcNs(1), 0, 1000),
            ns_snapshot(IpcNs(2), 9, 10),
        ],
        ..Snapshot::default()
    };
    let used = TableSizes::from_snapshot(&snapshot)
        .get(SetPlace::Other)
        .unwrap();
    assert_eq!((used.sets, used.limit), (9, 1010));
    assert!((used.fullest - 0.9).abs() < 1e-9);
}

/// No sample, which is no 0.
#[test]
fn before_the_first_search_no_number_of_orphans_is_told() {
    let text = |readings: &Readings| expose_readings(readings, ExpositionFormat::Prometheus);
    let mut readings = full_readings();
    assert!(text(&readings).contains("\ndmtrace_orphaned_cookies 116\n"));
    assert!(text(&readings).contains("\ndmtrace_search_age_seconds 40.0\n"));
    readings.search = SearchReading::default();
    assert!(!text(&readings).contains("dmtrace_orphaned_cookies"));
    assert!(!text(&readings).contains("dmtrace_search_age"));
}

/// Every metric has a value.
fn full_readings() -> Readings {
    let mut readings = Readings::default();
    readings
        .live_cookies
        .add_cookie(State::Stuck, Duration::from_secs(90));
    readings
        .live_cookies
        .add_cookie(State::Stuck, Duration::from_secs(30));
    readings.sets = TableSizes::from_snapshot(&Snapshot {
        namespaces: vec![
            ns_snapshot(IpcNs::HOST, 3, 32_000),
            ns_snapshot(IpcNs(1), 1, 8),
        ],
        ..Snapshot::default()
    });
    readings.search = SearchReading {
        orphaned: Some(116),
        age: Some(Duration::from_secs(40)),
    };
    let tally = &mut readings.tally;
    tally.lives[WorkloadOrigin::Host as usize].created = 23;
    tally.lives[WorkloadOrigin::Container as usize].leaked = 5;
    tally.waits.observe_wait(Duration::from_millis(3));
    tally.waits.observe_wait(Duration::from_secs(40));
    tally.cleanup[CleanupResult::Kept as usize] = 2;
    tally.hook[HookRun::Dropped as usize] = 1;
    let health = &mut readings.health;
    health.backend = Some(Backend::Trampoline);
    let messages = MessageCounts {
        seen: 9,
        submitted: 7,
        received: 6,
        dropped: 2,
    };
    health.messages.insert("create", messages);
    health.undecodable = 1;
    health.unmapped.sets = 4;
    health.attached.insert("create", true);
    health.attached.insert("dm", false);
    health.missed.insert(
        "operate",
        MissedRuns {
            lost: 1,
            made_good: 8,
        },
    );
    health.missing_create = 1;
    health.corrected = 3;
    health.gaps = 1;
    health.history_on_disk = Some(false);
    health.gap_time = Duration::from_millis(1500);
    readings
}

#[test]
fn golden_text() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/golden.prom");
    let text = expose_readings(&full_readings(), ExpositionFormat::Prometheus);
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    // To renew it after an intended change: DMTRACE_GOLDEN=write cargo test golden_text
    if std::env::var_os("DMTRACE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, golden);
}

#[test]
fn both_formats_say_the_same() {
    let samples = |format| {
        let text = expose_readings(&full_readings(), format);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // The old format writes bounds without a fraction.
        let mut lines: Vec<_> = lines.map(|line| line.replace(".0\"}", "\"}")).collect();
        lines.sort();
        lines
    };
    let open = expose_readings(&full_readings(), ExpositionFormat::OpenMetrics);
    assert!(open.ends_with("# EOF\n"));
    assert!(open.contains("# UNIT dmtrace_cookie_udev_wait_seconds seconds\n"));
    assert_eq!(
        samples(ExpositionFormat::Prometheus),
        samples(ExpositionFormat::OpenMetrics)
    );
}

#[test]
fn labels_never_name_anybody() {
    let text = expose_readings(&full_readings(), ExpositionFormat::Prometheus);
    let known = [
        "state", "ipc_ns", "origin", "le", "result", "reason", "probe", "effect", "kind",
        "version", "schema", "backend",
    ];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, rest)) = line.split_once('{') else {
            continue;
        };
        let (labels, _) = rest.split_once('}').unwrap();
        for label in labels.split(',') {
            let (name, _) = label.split_once('=').unwrap();
            assert!(known.contains(&name), "{line}");
        }
    }
}

#[test]
fn the_textfile_is_replaced_as_a_whole_and_readable_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dmtrace.prom");
    // A trap where the new text is prepared.
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join(".dmtrace.prom.new")).unwrap();
    for text in ["one\n", "two\n"] {
        write_textfile(dir.path(), text).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    // Nothing is left that node_exporter would read as well.
    let names = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(names.count(), 2);
    let missing = dir.path().join("no");
    let error = write_textfile(&missing, "").unwrap_err().to_string();
    assert!(error.contains("--collector.textfile.directory"), "{error}");
}
