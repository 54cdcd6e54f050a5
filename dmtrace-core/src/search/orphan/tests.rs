mod clock;

use std::collections::BTreeSet;

use super::*;
use crate::{
    facts::{LiveProcess, SemState, SuspendedDevice, UdevFacts},
    ids::{IpcNs, ProcId},
    search::{Coverage, Form, HolderTrait, NotSearched, Place, Spot, UnsearchedReason},
    wall_clock::{ClockHistory, ClockOffset},
};

const SECOND: u64 = 1_000_000_000;
const BOOT: i64 = 1_700_000_000;
const KEY: Key = Key(0x0d4d_beef);
const SEM: SemId = SemId {
    ns: IpcNs::HOST,
    semid: 7,
};

/// An orphan by all rules, made 1000 s after boot; the searches were at 4000 and 4040, now is 4050.
#[derive(Clone)]
struct Scene {
    marks: [Option<Mark>; 2],
    set: Option<SetSnapshot>,
    facts: HostFacts,
}

impl Scene {
    fn orphan() -> Self {
        let set = SetSnapshot {
            semid: SEM.semid,
            key: KEY,
            mode: 0o600,
            nsems: 1,
            otime: UnixTime(BOOT + 1000),
            ctime: UnixTime(BOOT + 1000),
            first: Some(SemState {
                value: 1,
                pid: 77,
                ..SemState::default()
            }),
            ..SetSnapshot::default()
        };
        let mark = |began: u64| Mark {
            search: Search {
                began: BootTime(began * SECOND),
                ended: BootTime((began + 5) * SECOND),
                needles: [KEY].into(),
                coverage: Coverage {
                    descriptors: true,
                    files_since: Some(UnixTime(BOOT)),
                    files_failed: None,
                },
                rounds: 2,
                stable: true,
                searched: 100,
                ..Search::default()
            },
            sets: vec![(SEM, set.clone())],
            udev_idle: true,
            suspended: Vec::new(),
        };
        let mut scene = Self {
            marks: [Some(mark(4000)), Some(mark(4040))],
            set: Some(set),
            facts: HostFacts {
                now: BootTime(4050 * SECOND),
                wall: UnixTime(BOOT + 4050),
                clock: ClockHistory::steady(
                    BootTime(4049 * SECOND),
                    ClockOffset(BOOT * SECOND.cast_signed()),
                ),
                processes_complete: true,
                udev: UdevFacts::new_working(),
                ..HostFacts::default()
            },
        };
        scene.add_process(1, 0);
        scene
    }

    fn add_process(&mut self, pid: u32, start: u64) {
        let live = LiveProcess {
            start_ticks: start * 100,
            comm: "dmsetup".to_owned(),
            ..LiveProcess::default()
        };
        self.facts.processes.insert(pid, live);
    }

    fn judge(&self) -> Result<OrphanProof, Vec<OrphanObstacle>> {
        let marks = [self.marks[0].as_ref(), self.marks[1].as_ref()];
        let rules = OrphanRules::default();
        judge(SEM, marks, self.set.as_ref(), &self.facts, &rules)
    }

    fn mark(&mut self, number: usize) -> &mut Mark {
        self.marks[number].as_mut().unwrap()
    }

    fn set(&mut self) -> &mut SetSnapshot {
        self.set.as_mut().unwrap()
    }

    /// The same change at both searches and now.
    fn always(&mut self, change: impl Fn(&mut SetSnapshot)) {
        change(self.set());
        for number in 0..2 {
            change(&mut self.mark(number).sets[0].1);
        }
    }
}

fn state(set: &mut SetSnapshot) -> &mut SemState {
    set.first.as_mut().unwrap()
}

/// What one change makes of an orphan.
fn after(change: impl Fn(&mut Scene)) -> Vec<OrphanObstacle> {
    let mut scene = Scene::orphan();
    change(&mut scene);
    scene.judge().expect_err("it is kept")
}

fn holder(class: HolderClass) -> HolderProcess {
    HolderProcess {
        id: ProcId {
            tgid: 1843,
            start: BootTime(3),
        },
        comm: "dockerd".to_owned(),
        exe: "/usr/bin/dockerd".to_owned(),
        class,
        traits: BTreeSet::from([HolderTrait::Root]),
    }
}

fn spot(form: Form) -> (Key, Spot) {
    let place = Place::Heap;
    let spot = Spot {
        form,
        place,
        count: 1,
    };
    (KEY, spot)
}

#[test]
fn all_rules_together_make_an_orphan() {
    let mut scene = Scene::orphan();
    let mention = holder(HolderClass::MentionOnly);
    scene.mark(1).search.add(mention.clone(), [spot(Form::Hex)]);
    let chance = holder(HolderClass::Capable);
    scene.mark(0).search.add(chance, [spot(Form::Unaligned)]);
    let proof = scene.judge().unwrap();
    assert_eq!((proof.key, proof.stage), (KEY, OrphanStage::Pending));
    assert_eq!(proof.mentions.len(), 1);
    assert_eq!(proof.marks[1].began, BootTime(4040 * SECOND));
    let text = serde_json::to_string(&(&proof, &scene.marks)).unwrap();
    let back: (OrphanProof, [Option<Mark>; 2]) = serde_json::from_str(&text).unwrap();
    assert_eq!(back, (proof, scene.marks));
}

#[test]
fn rule_1_everything_was_searched() {
    let missed = |class| NotSearched {
        pid: 9,
        comm: "x".to_owned(),
        class,
        reason: UnsearchedReason::TimedOut,
    };
    for number in 0..2 {
        let kept = after(|it| it.mark(number).search.not_searched.push(missed(None)));
        assert!(
            matches!(kept[..], [OrphanObstacle::NotSearched { pid: 9, .. }]),
            "{kept:?}"
        );
        assert_eq!(kept[0].lifted_by_end_of(), Some(9));
        let kept = after(|it| it.mark(number).search.stable = false);
        assert_eq!(kept, [OrphanObstacle::Unstable { rounds: 2 }]);
        let kept = after(|it| it.mark(number).search.hidden = Some("w".to_owned()));
        assert!(
            matches!(kept[..], [OrphanObstacle::Hidden { .. }]),
            "{kept:?}"
        );
        let kept = after(|it| it.mark(number).search.cancelled = true);
        assert_eq!(kept, [OrphanObstacle::Cancelled]);
    }
    let kept = after(|it| {
        it.facts.processes_complete = false;
        it.facts.incomplete = vec!["hidepid".to_owned()];
    });
    assert!(
        matches!(kept[..], [OrphanObstacle::Hidden { .. }]),
        "{kept:?}"
    );
    let mut scene = Scene::orphan();
    let harmless = missed(Some(HolderClass::MentionOnly));
    scene.mark(0).search.not_searched.push(harmless);
    scene
        .judge()
        .expect("whoever cannot act need not be searched");
}

#[test]
fn an_incomplete_list_without_a_reason_is_incomplete_all_the_same() {
    let kept = after(|it| it.facts.processes_complete = false);
    assert!(
        matches!(kept[..], [OrphanObstacle::Hidden { .. }]),
        "{kept:?}"
    );
}

#[test]
fn rule_2_it_is_a_cookie_and_nobody_waits() {
    let change: [fn(&mut SetSnapshot); 5] = [
        |it| it.key = Key(0x1234),
        |it| it.nsems = 2,
        |it| it.mode = 0o666,
        |it| it.uid = 5,
        |it| it.cuid = 5,
    ];
    for change in change {
        let kept = after(|it| it.always(change));
        assert_eq!(kept, [OrphanObstacle::NotACookieForm]);
    }
    let kept = after(|it| it.always(|set| set.first = None));
    assert_eq!(kept, [OrphanObstacle::Unreadable]);
    assert_eq!(after(|it| it.set = None), [OrphanObstacle::Gone]);
    let kept = after(|it| it.always(|set| state(set).zcnt = 1));
    assert_eq!(kept, [OrphanObstacle::WaitedOn { count: 1 }]);
    let kept = after(|it| state(it.set()).ncnt = 1);
    assert_eq!(kept, [OrphanObstacle::WaitedOn { count: 1 }]);
}

#[test]
fn rule_3_nobody_touched_it() {
    type Change = fn(&mut SetSnapshot);
    let changes: [(Change, TouchedField); 6] = [
        (|it| state(it).value = 2, TouchedField::Value),
        (|it| state(it).pid = 78, TouchedField::Operator),
        (|it| it.otime.0 -= 1, TouchedField::Otime),
        (|it| it.ctime.0 -= 1, TouchedField::Ctime),
        (|it| it.semid = 9, TouchedField::Set),
        (|it| it.gid = 9, TouchedField::Form),
    ];
    for (change, field) in changes {
        for number in 0..2 {
            let kept = after(|it| change(&mut it.mark(number).sets[0].1));
            assert_eq!(kept, [OrphanObstacle::Touched { field }]);
        }
        let kept = after(|it| change(it.set()));
        assert!(
            kept.contains(&OrphanObstacle::Touched { field }),
            "{kept:?}"
        );
    }
    let field = TouchedField::Set;
    let kept = after(|it| it.mark(1).sets.clear());
    assert_eq!(kept, [OrphanObstacle::Touched { field }]);
}

#[test]
fn rule_4_its_last_operator_has_gone() {
    let kept = after(|it| it.add_process(77, 900));
    assert!(
        matches!(kept[..], [OrphanObstacle::OperatorAlive { pid: 77, .. }]),
        "{kept:?}"
    );
    let mut scene = Scene::orphan();
    scene.add_process(77, 1500);
    scene.judge().expect("another process got its number");
    // Stamps have whole seconds: it may have started in the second of its last operation.
    let stamp = scene.set.as_ref().unwrap().otime.0 - BOOT;
    let kept = after(|it| it.add_process(77, u64::try_from(stamp).unwrap() + 1));
    assert!(
        matches!(kept[..], [OrphanObstacle::OperatorAlive { pid: 77, .. }]),
        "{kept:?}"
    );
    // The clock was set: whether that one started after the touch is not known.
    let kept = after(|it| {
        it.add_process(77, 1500);
        it.facts.clock = ClockHistory::default();
    });
    let dubious = kept
        .iter()
        .any(|it| matches!(it, OrphanObstacle::OperatorAlive { .. }));
    assert!(dubious, "{kept:?}");
}

#[test]
fn rule_5_two_searches() {
    let kept = after(|it| it.marks[1] = None);
    let at = BootTime(4035 * SECOND);
    let due = OrphanObstacle::SecondMarkDue { at };
    assert!(kept.contains(&due), "{kept:?}");
    assert_eq!(due.lifted_at(), Some(at));
    let kept = after(|it| it.mark(1).search.began = BootTime(4034 * SECOND));
    assert_eq!(kept, [due]);
    let at = BootTime(4050 * SECOND);
    let kept = after(|it| it.marks[0] = None);
    assert!(
        kept.contains(&OrphanObstacle::SecondMarkDue { at }),
        "{kept:?}"
    );
    let kept = after(|it| it.marks = [None, None]);
    assert!(
        kept.contains(&OrphanObstacle::SecondMarkDue { at }),
        "{kept:?}"
    );
    let kept = after(|it| {
        it.facts.now = BootTime(5000 * SECOND);
        it.facts.wall = UnixTime(BOOT + 5000);
    });
    let ended = BootTime(4045 * SECOND);
    assert_eq!(kept, [OrphanObstacle::SecondMarkOld { ended }]);
    for number in 0..2 {
        let kept = after(|it| it.mark(number).search.needles.clear());
        assert_eq!(kept, [OrphanObstacle::NotLookedFor]);
        let kept = after(|it| it.mark(number).search.coverage.descriptors = false);
        assert_eq!(kept, [OrphanObstacle::NotCovered]);
    }
}

#[test]
fn rule_6_nobody_holds_it() {
    for number in 0..2 {
        for (class, form) in [
            (HolderClass::Actor, Form::Unaligned),
            (HolderClass::Actor, Form::UeventVariable),
            (HolderClass::Capable, Form::Aligned4),
            (HolderClass::Capable, Form::Decimal),
        ] {
            let kept = after(|it| it.mark(number).search.add(holder(class), [spot(form)]));
            assert!(
                matches!(kept[..], [OrphanObstacle::HeldBy { .. }]),
                "{kept:?}"
            );
            assert_eq!(kept[0].lifted_by_end_of(), Some(1843));
        }
    }
    // Named once, if it holds the number at both.
    let kept = after(|it| {
        for number in 0..2 {
            let search = &mut it.mark(number).search;
            search.add(holder(HolderClass::Actor), [spot(Form::Hex)]);
        }
    });
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[test]
fn rule_7_udev_is_idle() {
    for number in 0..2 {
        let kept = after(|it| it.mark(number).udev_idle = false);
        assert_eq!(kept, [OrphanObstacle::UdevBusy]);
    }
    let kept = after(|it| it.facts.udev.queue_busy = true);
    assert_eq!(kept, [OrphanObstacle::UdevBusy]);
}

#[test]
fn rule_8_no_device_is_suspended() {
    let name = || "vg-root".to_owned();
    let obstacle = OrphanObstacle::DeviceSuspended { name: name() };
    for number in 0..2 {
        let kept = after(|it| it.mark(number).suspended.push(name()));
        assert_eq!(kept, std::slice::from_ref(&obstacle));
    }
    let kept = after(|it| {
        let (node, name) = ("dm-3".to_owned(), name());
        it.facts.dm.suspended.push(SuspendedDevice { node, name });
    });
    assert_eq!(kept, [obstacle]);
}

/// The obstacles to one of a value that was touched so many seconds after boot.
fn at_age(value: i32, otime: Option<i64>, ctime: i64) -> Result<OrphanStage, Vec<OrphanObstacle>> {
    let mut scene = Scene::orphan();
    scene.always(|set| {
        state(set).value = value;
        set.ctime = UnixTime(BOOT + ctime);
        set.otime = UnixTime(otime.map_or(0, |it| BOOT + it));
    });
    scene.judge().map(|proof| proof.stage)
}

#[test]
fn rule_9_it_is_old_enough() {
    assert_eq!(at_age(0, Some(3980), 3970), Ok(OrphanStage::WaitedFor));
    assert_eq!(at_age(1, Some(3400), 3400), Ok(OrphanStage::Pending));
    assert_eq!(at_age(0, None, 3400), Ok(OrphanStage::Unused));
    for (value, otime) in [(1, Some(3900)), (1, None), (0, None)] {
        let kept = at_age(value, otime, 3900).unwrap_err();
        let [OrphanObstacle::TooYoung { ready_at }] = kept[..] else {
            panic!("{kept:?}");
        };
        // A stamp is known to the second and a tick.
        assert!(
            ready_at.0.abs_diff(4500 * SECOND) <= 2 * SECOND,
            "{ready_at:?}"
        );
    }
    let kept = at_age(0, Some(3999), 3970).unwrap_err();
    assert!(
        matches!(kept[..], [OrphanObstacle::TooYoung { .. }]),
        "{kept:?}"
    );
}

#[test]
fn rule_9_a_pending_one_is_in_no_file() {
    let path = || "/run/cookie".to_owned();
    let kept = after(|it| {
        it.mark(1).search.files.insert(KEY, vec![path()]);
    });
    assert_eq!(kept, [OrphanObstacle::WrittenIn { path: path() }]);
    let since = UnixTime(BOOT + 999);
    let why = None;
    for from in [None, Some(UnixTime(BOOT + 1000))] {
        let kept = after(|it| {
            for number in 0..2 {
                it.mark(number).search.coverage.files_since = from;
            }
        });
        let why = why.clone();
        assert_eq!(kept, [OrphanObstacle::FilesNotSearched { since, why }]);
    }
    // What failed is told, and is nothing that the next command does by itself.
    let why = Some("/srv: Input/output error".to_owned());
    let kept = after(|it| {
        for number in 0..2 {
            it.mark(number).search.coverage.files_since = None;
        }
        it.mark(0).search.coverage.files_failed = why.clone();
    });
    assert_eq!(kept, [OrphanObstacle::FilesNotSearched { since, why }]);
    assert!(!kept[0].is_formality() && kept[0].is_unread());
    let older = r#"{"obstacle":"files_not_searched","since":5}"#;
    let older: OrphanObstacle = serde_json::from_str(older).unwrap();
    assert!(older.is_formality());
    let older: Coverage = serde_json::from_str(r#"{"descriptors":true,"files_since":7}"#).unwrap();
    assert_eq!(
        (older.files_since, older.files_failed),
        (Some(UnixTime(7)), None)
    );
    // One of the two is enough.
    let mut scene = Scene::orphan();
    scene.mark(0).search.coverage.files_since = None;
    scene.judge().unwrap();
    // And none is needed where a script cannot be in the middle of something.
    scene.mark(1).search.coverage.files_since = None;
    scene.always(|set| state(set).value = 0);
    scene.judge().unwrap();
}

#[test]
fn a_mark_is_made_of_a_snapshot_and_facts() {
    let scene = Scene::orphan();
    let foreign = SetSnapshot::default();
    let snapshot = Snapshot {
        namespaces: vec![crate::facts::NsSnapshot {
            ns: IpcNs::HOST,
            sets: vec![scene.set.clone().unwrap(), foreign],
            ..crate::facts::NsSnapshot::default()
        }],
        ..Snapshot::default()
    };
    let mut busy = scene.facts.clone();
    busy.udev.queue_busy = true;
    let mark = Mark::new(Search::default(), &snapshot, [&scene.facts, &busy]);
    assert_eq!((mark.sets.len(), mark.udev_idle), (1, false));
    let mark = Mark::new(Search::default(), &snapshot, [&scene.facts, &scene.facts]);
    assert!(mark.udev_idle);
}
