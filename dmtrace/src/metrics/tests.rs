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
struct Scene {
    ledger: Ledger,
    counting: Counting,
}

fn id(tgid: u32) -> ProcId {
    ProcId {
        tgid,
        start: BootTime(SECOND),
    }
}

fn sem(semid: i32) -> SemId {
    SemId {
        ns: IpcNs::HOST,
        semid,
    }
}

impl Scene {
    fn event(&mut self, at: u64, tgid: u32, what: EventKind) {
        let event = Event {
            at: BootTime(at),
            began: None,
            actor: Actor {
                id: id(tgid),
                exec: 0,
                tid: tgid,
                comm: "lvm".to_owned(),
            },
            quality: Quality::default(),
            what,
        };
        let changes = self.ledger.apply(&event);
        self.counting.changes(&changes, &self.ledger);
    }

    fn process(&mut self, tgid: u32, cgroup: &str) {
        let image = ProcessImage {
            id: id(tgid),
            comm: "lvm".to_owned(),
            cgroup: cgroup.to_owned(),
            ..ProcessImage::default()
        };
        self.event(SECOND, tgid, EventKind::Process(Box::new(image)));
    }

    fn create(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::Created {
            sem: sem(semid),
            key: KEY,
            nsems: 1,
            semflg: 0o600,
        };
        self.event(at, tgid, what);
        let what = EventKind::SetVal {
            sem: sem(semid),
            key: KEY,
            value: 1,
            errno: 0,
        };
        self.event(at + 1, tgid, what);
    }

    fn op(&mut self, at: u64, tgid: u32, semid: i32, op: i16, errno: i32) {
        let what = EventKind::Op {
            sem: sem(semid),
            key: KEY,
            ops: vec![Operation { num: 0, op, flg: 0 }],
            errno,
        };
        self.event(at, tgid, what);
    }

    fn wait_begins(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::WaitBegin {
            sem: sem(semid),
            key: KEY,
            ops: vec![Operation {
                num: 0,
                op: 0,
                flg: 0,
            }],
        };
        self.event(at, tgid, what);
    }

    fn remove(&mut self, at: u64, tgid: u32, semid: i32) {
        let what = EventKind::Destroyed {
            sem: sem(semid),
            key: KEY,
        };
        self.event(at, tgid, what);
    }

    /// A cookie whose owner waits for udev from second 10 for this long, in two parts.
    fn cycle(&mut self, tgid: u32, semid: i32, wait: Duration) {
        let end = 10 * SECOND + u64::try_from(wait.as_nanos()).unwrap();
        self.create(9 * SECOND, tgid, semid);
        self.op(9 * SECOND + 2, tgid, semid, 1, 0);
        self.op(9 * SECOND + 3, tgid, semid, -1, 0);
        self.wait_begins(10 * SECOND, tgid, semid);
        self.op(10 * SECOND + 1, tgid, semid, 0, libc::EINTR);
        self.wait_begins(10 * SECOND + 2, tgid, semid);
        self.op(end - 1, tgid + 1000, semid, -1, 0);
        self.op(end, tgid, semid, 0, 0);
        self.remove(end + 1, tgid, semid);
    }

    /// Looks as an observer does, at this second.
    fn look(&mut self, second: u64) -> Standing {
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
            self.counting.finding(one, &self.ledger);
        }
        Standing::of(&judged, facts.now, facts.wall)
    }
}

#[test]
fn lives_are_counted_by_where_their_maker_ran() {
    let mut scene = Scene::default();
    scene.process(10, "/system.slice/lvm2-monitor.service");
    scene.process(11, DOCKER);
    scene.cycle(10, 1, Duration::from_millis(20));
    scene.cycle(11, 2, Duration::from_millis(700));
    // Its process was never captured.
    scene.create(11 * SECOND, 12, 3);
    let tally = scene.counting.tally();
    let lives = |created, completed| Lives {
        created,
        completed,
        leaked: 0,
    };
    assert_eq!(tally.lives, [lives(1, 1), lives(1, 1), lives(1, 0)]);
}

#[test]
fn an_interrupted_wait_counts_once_and_in_full() {
    let mut scene = Scene::default();
    scene.cycle(10, 1, Duration::from_millis(20));
    let waits = &scene.counting.tally().waits;
    assert_eq!(waits.count(), 1);
    assert!((waits.seconds() - 0.02).abs() < 1e-9, "{waits:?}");
}

#[test]
fn a_wait_that_did_not_end_well_is_not_in_the_histogram() {
    let mut scene = Scene::default();
    scene.create(9 * SECOND, 10, 1);
    scene.op(9 * SECOND + 2, 10, 1, 1, 0);
    scene.op(9 * SECOND + 3, 10, 1, -1, 0);
    scene.wait_begins(10 * SECOND, 10, 1);
    scene.remove(20 * SECOND, 77, 1);
    scene.op(20 * SECOND + 1, 10, 1, 0, libc::EIDRM);
    let tally = scene.counting.tally();
    assert_eq!(tally.waits.count(), 0);
    assert_eq!(tally.lives[Origin::Unknown as usize].completed, 0);
}

#[test]
fn a_leak_counts_once_however_often_it_is_seen() {
    let mut scene = Scene::default();
    scene.process(10, DOCKER);
    scene.create(9 * SECOND, 10, 1);
    scene.op(9 * SECOND + 2, 10, 1, 1, 0);
    let status = ExitStatus::Signal(9);
    scene.event(10 * SECOND, 10, EventKind::Exit { status });
    for second in [400, 401] {
        let standing = scene.look(second);
        let age = Duration::from_secs(second - 9);
        assert_eq!(standing.get(State::Leaked), (1, age), "{standing:?}");
        assert_eq!(standing.get(State::Open), (0, Duration::ZERO));
    }
    let leaked = scene.counting.tally().lives.map(|lives| lives.leaked);
    assert_eq!(leaked, [0, 1, 0]);
    // The next set with the same number is another one.
    scene.remove(500 * SECOND, 99, 1);
    scene.create(501 * SECOND, 10, 1);
    assert_eq!(scene.look(502).get(State::Leaked).0, 0);
}

#[test]
fn creations_that_failed_are_told_apart() {
    let mut scene = Scene::default();
    for (key, errno) in [
        (KEY, libc::ENOSPC),
        (Key(7), libc::ENOSPC),
        (KEY, libc::ENOMEM),
    ] {
        let ns = IpcNs::HOST;
        scene.event(SECOND, 10, EventKind::CreateFailed { ns, key, errno });
    }
    let tally = scene.counting.tally();
    assert_eq!((tally.refused_by_limit, tally.refused_otherwise), (2, 1));
}

fn namespace(ns: IpcNs, sets: usize, semmni: u32) -> NsSnapshot {
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
            namespace(IpcNs::HOST, 3, 32_000),
            namespace(IpcNs(1), 0, 1000),
            namespace(IpcNs(2), 9, 10),
        ],
        ..Snapshot::default()
    };
    let used = Sets::of(&snapshot).get(Place::Other).unwrap();
    assert_eq!((used.sets, used.limit), (9, 1010));
    assert!((used.fullest - 0.9).abs() < 1e-9);
}

/// Every metric has a value.
fn full() -> Readings {
    let mut readings = Readings::default();
    readings.standing.add(State::Stuck, Duration::from_secs(90));
    readings.standing.add(State::Stuck, Duration::from_secs(30));
    readings.sets = Sets::of(&Snapshot {
        namespaces: vec![namespace(IpcNs::HOST, 3, 32_000), namespace(IpcNs(1), 1, 8)],
        ..Snapshot::default()
    });
    let tally = &mut readings.tally;
    tally.lives[Origin::Host as usize].created = 23;
    tally.lives[Origin::Container as usize].leaked = 5;
    tally.waits.observe(Duration::from_millis(3));
    tally.waits.observe(Duration::from_secs(40));
    tally.cleanup[Cleanup::Kept as usize] = 2;
    tally.hook[HookRun::Dropped as usize] = 1;
    let health = &mut readings.health;
    health.backend = Some(Backend::Trampoline);
    let messages = Messages {
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
        Missed {
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
    let text = expose(&full(), Format::Prometheus);
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
        let text = expose(&full(), format);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // The old format writes bounds without a fraction.
        let mut lines: Vec<_> = lines.map(|line| line.replace(".0\"}", "\"}")).collect();
        lines.sort();
        lines
    };
    let open = expose(&full(), Format::OpenMetrics);
    assert!(open.ends_with("# EOF\n"));
    assert!(open.contains("# UNIT dmtrace_cookie_udev_wait_seconds seconds\n"));
    assert_eq!(samples(Format::Prometheus), samples(Format::OpenMetrics));
}

#[test]
fn labels_never_name_anybody() {
    let text = expose(&full(), Format::Prometheus);
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
