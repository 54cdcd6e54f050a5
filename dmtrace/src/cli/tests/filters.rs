//! Verb by filter: one filter means the same in every verb that has it, and no verb takes one that
//! it does not heed. A verb or a filter without a row here fails.

use std::collections::{BTreeMap, BTreeSet};

use clap::error::ErrorKind;
use dmtrace_core::{
    event::{Actor, DmCommand, DmIoctl, Event, EventKind, ExitStatus, ProcessImage, Quality},
    facts::{HostFacts, LiveProcess, NsSnapshot, SemLimits, SemState, SetSnapshot, Snapshot},
    ids::{BootTime, DevNum, IpcNs, Key, ProcId, SemId, UnixTime},
    ledger::{Change, Ledger},
};

use super::{TestPage, least_args, parse_args, parse_error, verb_commands};
use crate::{
    case::Case,
    cli::{
        Verb, clean, exec, explain,
        filter::{Filters, HEADING},
        list, report,
        watch::{
            self,
            printer::{PrintStyle, Printer},
        },
    },
    trace::observer::{BooksView, Observer as _},
};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 10_000;
const OTHER_NS: u32 = 4_026_532_999;

/// Who makes what.
struct Cast {
    name: &'static str,
    tgid: u32,
    uid: u32,
    cgroup: &'static str,
    sem: SemId,
    key: u32,
    /// Seconds since boot.
    made: u64,
    device: &'static str,
    killed: bool,
}

const CAST: [Cast; 3] = [
    Cast {
        name: "alpha",
        tgid: 100,
        uid: 0,
        cgroup: "/docker/4f3a1c2b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708",
        sem: SemId {
            ns: IpcNs::HOST,
            semid: 1,
        },
        key: 0x0d4d_000a,
        made: 1000,
        device: "vg-a",
        killed: true,
    },
    Cast {
        name: "beta",
        tgid: 200,
        uid: 1000,
        cgroup: "/system.slice/beta.service",
        sem: SemId {
            ns: IpcNs(OTHER_NS),
            semid: 2,
        },
        key: 0x0d4d_000b,
        made: 9000,
        device: "vg-b",
        killed: true,
    },
    // The same semid as the first, in another namespace.
    Cast {
        name: "gamma",
        tgid: 300,
        uid: 1000,
        cgroup: "/system.slice/gamma.service",
        sem: SemId {
            ns: IpcNs(OTHER_NS),
            semid: 1,
        },
        key: 0x0d4d_000c,
        made: 9500,
        device: "vg-c",
        killed: false,
    },
];

/// A filter, the names of those whose cookies pass, and of those who pass as victims: all three
/// got ENOSPC as well.
type FilterCase = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const FILTERS: &[FilterCase] = &[
    ("pid", "100", &["alpha"], &["alpha"]),
    ("comm", "beta", &["beta"], &["beta"]),
    ("uid", "root", &["alpha"], &["alpha"]),
    ("uid", "1000", &["beta", "gamma"], &["beta", "gamma"]),
    ("container", "4f3a1c", &["alpha"], &["alpha"]),
    ("container", "gamma.service", &["gamma"], &["gamma"]),
    ("ipc-ns", "host", &["alpha"], &["alpha"]),
    (
        "ipc-ns",
        "4026532999",
        &["beta", "gamma"],
        &["beta", "gamma"],
    ),
    // A victim has no set.
    ("device", "vg-b", &["beta"], &[]),
    ("key", "0x0d4d000c", &["gamma"], &[]),
    ("semid", "1", &["alpha", "gamma"], &[]),
    ("state", "leaked", &["alpha", "beta"], &[]),
    ("state", "stuck", &[], &[]),
    ("min-age", "5000", &["alpha"], &[]),
];

/// What a verb does with filters.
enum FilterRule {
    /// It tells of these cookies.
    Chooses(fn(&FilterScene, &Filters) -> Vec<Key>),
    /// It is about the whole host, and refuses them.
    Refuses,
}

const VERBS: &[(&str, FilterRule)] = &[
    ("watch", FilterRule::Chooses(watched_keys)),
    ("list", FilterRule::Chooses(listed_keys)),
    ("report", FilterRule::Chooses(reported_keys)),
    ("explain", FilterRule::Chooses(explained_keys)),
    ("exec", FilterRule::Chooses(left_keys)),
    ("record", FilterRule::Refuses),
    ("serve", FilterRule::Refuses),
    ("clean", FilterRule::Chooses(cleaned_keys)),
    ("doctor", FilterRule::Refuses),
];

struct FilterScene {
    case: Case,
    changes: Vec<Change>,
}

fn proc_id(tgid: u32) -> ProcId {
    ProcId {
        tgid,
        start: BootTime(SECOND),
    }
}

fn new_scene() -> FilterScene {
    let mut ledger = Ledger::new();
    let mut case = Case::empty();
    let mut changes = Vec::new();
    let spaces = [IpcNs::HOST, IpcNs(OTHER_NS)];
    let mut snapshot = Snapshot {
        began: BootTime(SECOND),
        ended: BootTime(SECOND),
        namespaces: spaces
            .map(|ns| NsSnapshot {
                ns,
                limits: SemLimits {
                    semmni: 128,
                    ..SemLimits::default()
                },
                ..NsSnapshot::default()
            })
            .to_vec(),
        ..Snapshot::default()
    };
    ledger.reconcile(&snapshot);
    let mut facts = HostFacts {
        now: BootTime(NOW * SECOND),
        wall: UnixTime(1_800_000_000),
        processes_complete: true,
        carriers_complete: true,
        ..HostFacts::default()
    };
    for it in &CAST {
        let mut at = it.made * SECOND;
        let mut say = |what: EventKind| {
            at += 1000;
            let event = Event {
                at: BootTime(at),
                began: None,
                actor: Actor {
                    id: proc_id(it.tgid),
                    exec: 0,
                    tid: it.tgid,
                    comm: it.name.to_owned(),
                },
                quality: Quality::default(),
                what,
            };
            changes.extend(ledger.apply(&event));
        };
        let (sem, key) = (it.sem, Key(it.key));
        say(EventKind::Process(Box::new(ProcessImage {
            id: proc_id(it.tgid),
            comm: it.name.to_owned(),
            exe: Some(format!("/usr/bin/{}", it.name)),
            uid: it.uid,
            ipc_ns: sem.ns,
            cgroup: it.cgroup.to_owned(),
            ..ProcessImage::default()
        })));
        say(EventKind::Created {
            sem,
            key,
            nsems: 1,
            semflg: 0o600,
        });
        say(EventKind::SetVal {
            sem,
            key,
            value: 1,
            errno: 0,
        });
        say(EventKind::Ioctl(Box::new(DmIoctl {
            sem,
            key,
            command: DmCommand::Resume,
            errno: 0,
            began: BootTime(it.made * SECOND),
            name: it.device.to_owned(),
            new_name: None,
            uuid: None,
            device: DevNum::from_kernel(253, it.tgid),
            uevent: false,
            deferred: false,
            udev_flags: 0,
        })));
        say(EventKind::CreateFailed {
            ns: sem.ns,
            key: Key(0x0d4d_7777),
            errno: libc::ENOSPC,
        });
        if it.killed {
            say(EventKind::Exit {
                status: ExitStatus::Signal(9),
            });
        } else {
            let live = LiveProcess {
                start_ticks: proc_id(it.tgid).start_ticks(),
                comm: it.name.to_owned(),
                ..LiveProcess::default()
            };
            facts.processes.insert(it.tgid, live);
        }
        let spaces = &mut snapshot.namespaces;
        let space = spaces.iter_mut().find(|space| space.ns == sem.ns);
        space.unwrap().sets.push(SetSnapshot {
            semid: sem.semid,
            key,
            mode: 0o600,
            nsems: 1,
            first: Some(SemState {
                value: 1,
                pid: it.tgid,
                ..SemState::default()
            }),
            ..SetSnapshot::default()
        });
    }
    snapshot.began = BootTime(NOW * SECOND);
    snapshot.ended = snapshot.began;
    ledger.reconcile(&snapshot);
    ledger.observe_exits(&facts);
    case.ledger = ledger;
    case.snapshot = snapshot;
    case.facts = facts;
    case.since = Some(BootTime(SECOND));
    FilterScene { case, changes }
}

fn listed_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    let rows = list::matching_rows(&scene.case, false, filters);
    rows.iter().map(|row| row.semaphore.key).collect()
}

fn explained_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    let rows = explain::matching_rows(&scene.case, filters);
    rows.iter().map(|row| row.semaphore.key).collect()
}

/// Every section of it, by name; the sum is what `explain` may tell.
fn reported_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    let rows = explain::matching_rows(&scene.case, filters);
    let told = report::find_findings(&scene.case, &rows, filters);
    let listed: BTreeSet<Key> = [&told.leaked, &told.stuck, &told.accidents, &told.ended]
        .into_iter()
        .flatten()
        .map(|row| row.semaphore.key)
        .collect();
    // One that is in good order is in no section.
    let rest = rows.iter().map(|row| row.semaphore.key);
    let open = rest.filter(|key| *key == Key(CAST[2].key));
    for space in &told.exhaustion {
        assert!(filters.wants_ns(space.ipc_ns), "{filters:?}");
        let here = told.leaked.iter();
        let here = here.filter(|row| row.semaphore.id.ns == space.ipc_ns);
        assert_eq!(space.leaked, here.count(), "{filters:?}");
    }
    listed.into_iter().chain(open).collect()
}

fn left_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    let mut rows = list::all_rows(&scene.case, false);
    exec::keep_matching(&mut rows, filters);
    rows.iter().map(|row| row.semaphore.key).collect()
}

fn cleaned_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    let mut args = match parse_args(&["clean"]).verb {
        Verb::Clean(args) => args,
        other => panic!("{other:?}"),
    };
    args.filters = filters.clone();
    let chosen = clean::chosen_cookies(&scene.case, &args);
    chosen.iter().map(|it| it.semaphore.key).collect()
}

/// The lines of `watch` that name a cookie. What a step had no age or state for does not pass, so
/// findings, which have them, are printed, too.
fn watched_keys(scene: &FilterScene, filters: &Filters) -> Vec<Key> {
    if watch::check_filters(filters).is_err() {
        return Vec::new();
    }
    let page = TestPage::default();
    let mut out = page.out();
    let style = PrintStyle {
        json: true,
        all: false,
    };
    let mut printer = Printer::new(&mut out, style, filters, None, None);
    let view = BooksView {
        ledger: &scene.case.ledger,
        context: None,
    };
    printer.on_changes(&scene.changes, &view).unwrap();
    for judged in scene.case.judge_all() {
        if judged.verdict.class.is_finding() {
            printer.on_finding(&judged, &view).unwrap();
        }
    }
    printer.on_idle().unwrap();
    let text = page.text();
    CAST.iter()
        .filter(|it| text.contains(&format!("{:#010x}", it.key)))
        .map(|it| Key(it.key))
        .collect()
}

fn filters_of(verb: &str, words: &[&str]) -> Filters {
    match parse_args(&[&[verb], words, least_args(verb)].concat()).verb {
        Verb::Watch(args) => args.filters,
        Verb::List(args) => args.filters,
        Verb::Report(args) => args.filters,
        Verb::Explain(args) => args.filters,
        Verb::Exec(args) => args.filters,
        Verb::Clean(args) => args.filters,
        Verb::Record(_) | Verb::Serve(_) | Verb::Doctor(_) => panic!("{verb} has none"),
    }
}

#[test]
fn the_table_has_every_verb_and_every_filter() {
    let rows: BTreeSet<&str> = FILTERS.iter().map(|(name, ..)| *name).collect();
    let mut named: Vec<String> = Vec::new();
    for verb in verb_commands() {
        let options = verb.get_arguments();
        let has: BTreeSet<&str> = options
            .filter(|it| it.get_help_heading() == Some(HEADING))
            .filter_map(|it| it.get_long())
            .collect();
        let rule = VERBS.iter().find(|(name, _)| *name == verb.get_name());
        match rule {
            Some((_, FilterRule::Chooses(_))) => assert_eq!(has, rows, "{}", verb.get_name()),
            Some((_, FilterRule::Refuses)) => {
                assert!(has.is_empty(), "{}: {has:?}", verb.get_name());
            }
            None => panic!("{} has no row", verb.get_name()),
        }
        named.push(verb.get_name().to_owned());
    }
    assert_eq!(named.len(), VERBS.len(), "{named:?}");
    for name in &rows {
        let of_it = || FILTERS.iter().filter(|(row, ..)| row == name);
        assert!(of_it().any(|(_, _, pass, _)| !pass.is_empty()), "{name}");
        assert!(
            of_it().all(|(_, _, pass, _)| pass.len() < CAST.len()),
            "{name}"
        );
    }
}

#[test]
fn a_filter_means_the_same_in_every_verb() {
    let scene = new_scene();
    let names: BTreeMap<Key, &str> = CAST.iter().map(|it| (Key(it.key), it.name)).collect();
    for (verb, rule) in VERBS {
        for (filter, value, expected, _) in FILTERS {
            let option = format!("--{filter}={value}");
            let FilterRule::Chooses(choose) = rule else {
                let error = parse_error(&[&[*verb, &option], least_args(verb)].concat());
                assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{verb} {option}");
                continue;
            };
            let filters = filters_of(verb, &[&option]);
            let told: BTreeSet<&str> = choose(&scene, &filters)
                .iter()
                .map(|key| names[key])
                .collect();
            // What watch tells while it traces happens now: nothing of it is old.
            let expected: BTreeSet<&str> = match (*verb, *filter) {
                ("watch", "min-age") => told.clone(),
                _ => expected.iter().copied().collect(),
            };
            assert_eq!(told, expected, "{verb} {option}");
        }
        if let FilterRule::Chooses(choose) = rule {
            assert_eq!(
                choose(&scene, &Filters::default()).len(),
                CAST.len(),
                "{verb}"
            );
        }
    }
}

#[test]
fn victims_obey_the_filters() {
    let scene = new_scene();
    for (filter, value, _, expected) in FILTERS {
        let option = format!("--{filter}={value}");
        let filters = filters_of("report", &[&option]);
        let rows = explain::matching_rows(&scene.case, &filters);
        let told = report::find_findings(&scene.case, &rows, &filters);
        let told: BTreeSet<&str> = told.victims.iter().map(|it| it.comm.as_str()).collect();
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        assert_eq!(told, expected, "{option}");
    }
}

#[test]
fn watch_refuses_a_state_that_it_never_tells() {
    for (state, fine) in [("leaked", true), ("stuck,accident", true), ("open", false)] {
        let filters = filters_of("watch", &["--state", state]);
        assert_eq!(watch::check_filters(&filters).is_ok(), fine, "{state}");
    }
}

#[test]
fn a_set_that_is_no_cookie_is_ordinary_and_nothing_else() {
    let mut scene = new_scene();
    let general = SemId {
        ns: IpcNs::HOST,
        semid: 9,
    };
    scene.case.snapshot.namespaces[0].sets.push(SetSnapshot {
        semid: general.semid,
        nsems: 3,
        ..SetSnapshot::default()
    });
    scene.case.snapshot.began = BootTime((NOW + 1) * SECOND);
    scene.case.snapshot.ended = scene.case.snapshot.began;
    scene.case.ledger.reconcile(&scene.case.snapshot);
    let shown = |words: &[&str]| {
        let rows = list::matching_rows(&scene.case, true, &filters_of("list", words));
        rows.iter().any(|row| row.semaphore.id == general)
    };
    assert!(shown(&["--all"]));
    assert!(!shown(&["--all", "--state", "leaked"]));
    assert!(!shown(&["--all", "--state", "unknown"]));
    assert!(shown(&["--all", "--state", "leaked,ordinary"]));
}
