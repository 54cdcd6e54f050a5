//! A machine with a cookie of each kind.

mod plays;

use std::cell::RefCell;

use dmtrace_core::{
    event::{
        Actor, Ancestor, BuildId, CallFrame, CallSite, ChainEnd, DmCommand, DmIoctl, Event,
        EventKind, ExitStatus, FrameSource, Module, Operation, ProcessImage, Quality, Symbol,
    },
    facts::{HostFacts, LiveProcess, NsSnapshot, SemState, SetSnapshot, Snapshot},
    ids::{BootTime, DevNum, IpcNs, Key, ProcId, SemId, UnixTime},
    ledger::Ledger,
    verdict::{Completeness, Context, Judged, Thresholds, survey_closed, survey_cookies},
    wall_clock::{ClockHistory, ClockOffset},
};

use plays::{in_use, left_behind, older_than_the_trace, over};

use crate::{
    output::time::Clock,
    render::{row::Row, timeline::StoryContext},
    stack::Symbolizer,
};

const SECOND: u64 = 1_000_000_000;
/// Seconds since boot.
const NOW: u64 = 10_000;
const WALL: i64 = 1_800_000_000;
const OTHER_NS: IpcNs = IpcNs(4_026_532_999);
const CONTAINER: &str = "/docker/4f3a1c2b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";

/// The machine, as it is found.
pub(crate) struct Scene {
    pub(crate) ledger: Ledger,
    pub(crate) snapshot: Snapshot,
    pub(crate) facts: HostFacts,
    completeness: Completeness,
    thresholds: Thresholds,
    names: RefCell<Symbolizer>,
}

/// A process that does something.
#[derive(Clone, Copy)]
struct Player {
    name: &'static str,
    tgid: u32,
    cgroup: &'static str,
    ns: IpcNs,
}

impl Player {
    const fn new(name: &'static str, tgid: u32) -> Self {
        Self {
            name,
            tgid,
            cgroup: "/system.slice/lvm2-monitor.service",
            ns: IpcNs::HOST,
        }
    }

    const fn id(self) -> ProcId {
        ProcId {
            tgid: self.tgid,
            start: BootTime(SECOND * self.tgid as u64),
        }
    }
}

struct Stage {
    ledger: Ledger,
    snapshot: Snapshot,
    facts: HostFacts,
    at: u64,
}

const fn op(op: i16) -> Operation {
    Operation {
        num: 0,
        op,
        flg: if op < 0 { libc::IPC_NOWAIT as i16 } else { 0 },
    }
}

const fn sem(ns: IpcNs, semid: i32) -> SemId {
    SemId { ns, semid }
}

const fn key(semid: i32) -> Key {
    Key(0x0d4d_1000 + semid as u32)
}

impl Stage {
    fn say(&mut self, who: Player, what: EventKind) {
        self.say_with(who, what, Quality::default());
    }

    fn say_with(&mut self, who: Player, what: EventKind, quality: Quality) {
        self.at += 1_000_000;
        self.ledger.apply(&Event {
            at: BootTime(self.at),
            began: None,
            actor: Actor {
                id: who.id(),
                exec: 0,
                tid: who.tgid,
                comm: who.name.to_owned(),
            },
            quality,
            what,
        });
    }

    fn enters(&mut self, who: Player) {
        let image = ProcessImage {
            id: who.id(),
            seen: BootTime(self.at),
            comm: who.name.to_owned(),
            exe: Some(format!("/usr/sbin/{}", who.name)),
            cmdline: Some(vec![
                who.name.to_owned(),
                "-a".to_owned(),
                "vg/lv 0".to_owned(),
            ]),
            uid: 1000,
            gid: 100,
            ns_pid: 7,
            pid_ns: 4_026_531_836,
            ipc_ns: who.ns,
            mnt_ns: 4_026_531_841,
            cgroup_id: 77,
            cgroup: who.cgroup.to_owned(),
            parents: vec![Ancestor {
                id: ProcId {
                    tgid: 1,
                    start: BootTime(1),
                },
                comm: "systemd".to_owned(),
            }],
            ..ProcessImage::default()
        };
        self.say(who, EventKind::Process(Box::new(image)));
    }

    fn exits(&mut self, who: Player, status: ExitStatus) {
        self.say(who, EventKind::Exit { status });
    }

    fn lives(&mut self, who: Player) {
        let live = LiveProcess {
            ending: false,
            start_ticks: who.id().start_ticks(),
            comm: who.name.to_owned(),
            ppid: 1,
            session: who.tgid,
            ipc_ns: Some(who.ns),
            command: None,
        };
        self.facts.processes.insert(who.tgid, live);
    }

    fn makes(&mut self, who: Player, semid: i32) {
        let (sem, key) = (sem(who.ns, semid), key(semid));
        let semflg = 0o3600;
        let nsems = 1;
        self.say(
            who,
            EventKind::Created {
                sem,
                key,
                nsems,
                semflg,
            },
        );
        let (value, errno) = (1, 0);
        self.say(
            who,
            EventKind::SetVal {
                sem,
                key,
                value,
                errno,
            },
        );
    }

    fn adds(&mut self, who: Player, semid: i32, by: i16) {
        let what = EventKind::Op {
            sem: sem(who.ns, semid),
            key: key(semid),
            ops: vec![op(by)],
            errno: 0,
        };
        self.say(who, what);
    }

    fn waits(&mut self, who: Player, semid: i32) {
        let what = EventKind::WaitBegin {
            sem: sem(who.ns, semid),
            key: key(semid),
            ops: vec![op(0)],
        };
        self.say(who, what);
    }

    fn resumes(&mut self, who: Player, semid: i32, errno: i32) {
        let what = EventKind::Ioctl(Box::new(DmIoctl {
            sem: sem(who.ns, semid),
            key: key(semid),
            command: DmCommand::Resume,
            errno,
            began: BootTime(self.at),
            name: format!("vg-lv{semid}"),
            new_name: None,
            uuid: Some(format!("LVM-{semid:032x}")),
            device: DevNum::from_kernel(253, semid as u32),
            uevent: errno == 0,
            deferred: false,
            udev_flags: 0,
        }));
        self.say(who, what);
    }

    fn removes(&mut self, who: Player, semid: i32) {
        let (sem, key) = (sem(who.ns, semid), key(semid));
        self.say(who, EventKind::Destroyed { sem, key });
    }

    /// A set as the kernel has it.
    fn is_there(&mut self, ns: IpcNs, semid: i32, value: i32, change: impl Fn(&mut SetSnapshot)) {
        let mut set = SetSnapshot {
            semid,
            key: key(semid),
            mode: 0o600,
            nsems: 1,
            otime: UnixTime(WALL - 9940),
            ctime: UnixTime(WALL - 9950),
            first: Some(SemState {
                value,
                pid: 1,
                ..SemState::default()
            }),
            ..SetSnapshot::default()
        };
        change(&mut set);
        let mut spaces = self.snapshot.namespaces.iter_mut();
        let space = spaces.find(|space| space.ns == ns).unwrap();
        space.sets.push(set);
    }
}

/// The calls that made a cookie.
fn sample_site() -> CallSite {
    CallSite {
        frames: vec![
            CallFrame {
                module: Some(0),
                address: 0x1234,
                how: FrameSource::Observed,
                symbols: vec![
                    Symbol {
                        function: "semget".to_owned(),
                        file: None,
                        line: None,
                    },
                    Symbol {
                        function: "create_lv".to_owned(),
                        file: Some("lv.c".to_owned()),
                        line: Some(77),
                    },
                ],
            },
            CallFrame {
                module: None,
                address: 0x7fff_0000,
                how: FrameSource::Inferred,
                symbols: Vec::new(),
            },
        ],
        modules: vec![Module {
            path: "/nowhere/liblvm2.so".to_owned(),
            build_id: BuildId::from_bytes(&[0xab; 20]),
        }],
        end: ChainEnd::Truncated("no frame pointer".to_owned()),
        mnt_ns: 0,
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        let space = |ns| NsSnapshot {
            ns,
            ..NsSnapshot::default()
        };
        let mut stage = Stage {
            ledger: Ledger::new(),
            snapshot: Snapshot {
                began: BootTime(500 * SECOND),
                ended: BootTime(500 * SECOND),
                wall: UnixTime(WALL - 9500),
                namespaces: vec![space(IpcNs::HOST), space(OTHER_NS)],
                ..Snapshot::default()
            },
            facts: HostFacts {
                now: BootTime(NOW * SECOND),
                wall: UnixTime(WALL),
                clock: ClockHistory::steady(
                    BootTime(NOW * SECOND),
                    ClockOffset::between(BootTime(NOW * SECOND), UnixTime(WALL), 0),
                ),
                processes_complete: true,
                carriers_complete: true,
                ..HostFacts::default()
            },
            at: 501 * SECOND,
        };
        older_than_the_trace(&mut stage);
        stage.ledger.reconcile(&stage.snapshot);
        left_behind(&mut stage);
        in_use(&mut stage);
        over(&mut stage);
        // EventKind the kernel has now, and the first look had not.
        for (semid, pid) in [(1, 101), (4, 300)] {
            stage.is_there(IpcNs::HOST, semid, 1, |set| {
                set.first = Some(SemState {
                    value: 1,
                    pid,
                    ..SemState::default()
                });
            });
        }
        stage.is_there(OTHER_NS, 2, 2, |set| {
            set.first = Some(SemState {
                value: 2,
                pid: 200,
                ncnt: 0,
                zcnt: 1,
            });
        });
        stage.is_there(IpcNs::HOST, 40, 0, |set| {
            set.key = Key(0x1234);
            set.nsems = 3;
            set.mode = 0o100_666;
            set.otime = UnixTime(0);
            set.first = None;
        });
        stage.snapshot.began = BootTime(NOW * SECOND);
        stage.snapshot.ended = stage.snapshot.began;
        stage.snapshot.wall = UnixTime(WALL);
        stage.ledger.reconcile(&stage.snapshot);
        stage.ledger.observe_exits(&stage.facts);
        Self {
            ledger: stage.ledger,
            snapshot: stage.snapshot,
            facts: stage.facts,
            completeness: Completeness::default(),
            thresholds: Thresholds::default(),
            names: RefCell::default(),
        }
    }

    pub(crate) const fn context(&self) -> Context<'_> {
        Context {
            facts: &self.facts,
            completeness: &self.completeness,
            thresholds: &self.thresholds,
        }
    }

    /// Every cookie, also those that are gone.
    pub(crate) fn judged(&self) -> Vec<Judged<'_>> {
        let context = self.context();
        let mut judged = survey_cookies(&self.ledger, Some(&self.snapshot), &context);
        judged.extend(survey_closed(&self.ledger, &context));
        judged
    }

    pub(crate) fn telling(&self) -> StoryContext<'_> {
        StoryContext {
            ledger: &self.ledger,
            facts: &self.facts,
            completeness: &self.completeness,
            clock: Clock::relating(BootTime(NOW * SECOND), UnixTime(WALL), 0),
            here: true,
            source: String::new(),
        }
    }

    /// The cookies, and the sets that are none.
    pub(crate) fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = self.judged().into_iter().map(|it| self.row(it)).collect();
        let ordinary = self.ledger.live_sets().filter(|set| !set.is_cookie());
        rows.extend(ordinary.map(|set| {
            let known = self.snapshot.sets().find(|(id, _)| *id == set.id);
            let known = known.map(|(_, set)| set);
            Row::from_books(&self.ledger, set, known, self.facts.now)
        }));
        rows
    }

    pub(crate) fn row<'a>(&'a self, judged: Judged<'a>) -> Row<'a> {
        let mut row = Row::from_books(&self.ledger, judged.semaphore, judged.set, self.facts.now)
            .with_names(&self.names);
        row.age = row.age.or_else(|| row.stamp_age(&self.facts));
        row.set_judged(judged);
        row
    }

    /// The findings, as a service keeps them. One of them is gone.
    #[cfg(feature = "live")]
    pub(crate) fn kept(&self) -> Vec<crate::history::StoredFinding> {
        use crate::{
            history::{FindingEnd, HowGone, Stamp},
            service::chronicle::finding_by_clock,
        };
        let now = Stamp {
            wall_ms: WALL * 1000,
            boot: self.facts.now,
        };
        let judged = self.judged().into_iter();
        let mut kept: Vec<_> = judged
            .filter(|it| it.verdict.class.is_finding())
            .map(|it| finding_by_clock(&it, &self.telling(), &self.names, now))
            .collect();
        kept[0].gone = Some(FindingEnd {
            at: now.at_boot(BootTime((NOW + 60) * SECOND)),
            how: HowGone::Removed,
            by: Some("dmtrace[77]".to_owned()),
        });
        kept
    }
}
