//! A scene: the small kernel and the books that follow it.

use std::time::Duration;

use super::world::World;
use crate::{
    event::{DmCommand, DmIoctl, Event, EventKind, ExitStatus, Quality},
    facts::{HostFacts, Snapshot},
    ids::{BootTime, DevNum, IpcNs, Key, SemId},
    ledger::Ledger,
    verdict::{
        Class, Completeness, Context, LeakKind, Subject, Thresholds, Verdict, judge_set, next_due,
        survey_cookies,
    },
};

pub(super) const KEY: Key = Key(0x0d4d_1234);

/// A kernel and the books that follow it.
pub(super) struct Scene {
    pub world: World,
    pub ledger: Ledger,
    pub completeness: Completeness,
    read: usize,
}

impl Scene {
    pub(super) fn new() -> Self {
        let mut scene = Self {
            world: World::new(Vec::new()),
            ledger: Ledger::new(),
            completeness: Completeness::default(),
            read: 0,
        };
        scene.ledger.reconcile(&scene.world.snapshot());
        scene
    }

    pub(super) fn spawn_lvm(&mut self) -> usize {
        self.world
            .spawn("lvm", &["lvm", "lvcreate"], None, IpcNs::HOST)
    }

    pub(super) fn tid(&self, proc: usize) -> u32 {
        self.world.procs[proc].id.tgid
    }

    pub(super) fn create_cookie(&mut self, proc: usize) -> SemId {
        self.world.create_set(proc, self.tid(proc), KEY)
    }

    pub(super) fn setval(&mut self, proc: usize, sem: SemId) {
        self.world.setval(proc, self.tid(proc), sem).unwrap();
    }

    pub(super) fn semop_add(&mut self, proc: usize, sem: SemId, delta: i16) {
        self.world
            .semop_add(proc, self.tid(proc), sem, delta)
            .unwrap();
    }

    pub(super) fn begin_wait(&mut self, proc: usize, sem: SemId) {
        self.world.begin_wait(0, proc, self.tid(proc), sem).unwrap();
    }

    /// The kernel ends the sleep of the only waiter.
    pub(super) fn end_wait(&mut self, proc: usize, sem: SemId, errno: i32) {
        if let Some(set) = self.world.sems.get_mut(&sem) {
            set.waiters.clear();
        }
        self.world.end_wait(proc, self.tid(proc), sem, errno);
    }

    pub(super) fn remove_set(&mut self, proc: usize, sem: SemId) {
        self.world.remove_set(proc, self.tid(proc), sem).unwrap();
    }

    /// A cookie with one operation.
    pub(super) fn armed_cookie(&mut self) -> (usize, SemId) {
        let proc = self.spawn_lvm();
        let sem = self.create_cookie(proc);
        self.setval(proc, sem);
        self.semop_add(proc, sem, 1);
        (proc, sem)
    }

    /// A cookie that its owner waits for.
    pub(super) fn blocked_cookie(&mut self) -> (usize, SemId) {
        let (proc, sem) = self.armed_cookie();
        self.semop_add(proc, sem, -1);
        self.begin_wait(proc, sem);
        (proc, sem)
    }

    pub(super) fn spawn_udev(&mut self, sem: SemId) -> usize {
        let proc = self
            .world
            .spawn("dmsetup", &["dmsetup", "udevcomplete", "1"], None, sem.ns);
        self.semop_add(proc, sem, -1);
        self.world.exit(proc, ExitStatus::Code(0));
        proc
    }

    /// An ioctl with the cookie returned.
    pub(super) fn return_ioctl(&mut self, proc: usize, sem: SemId, errno: i32, uevent: bool) {
        let tid = self.tid(proc);
        let what = EventKind::Ioctl(Box::new(DmIoctl {
            sem,
            key: KEY,
            command: DmCommand::Resume,
            errno,
            began: BootTime(self.world.now),
            name: "vg-lv".to_owned(),
            new_name: None,
            uuid: None,
            device: DevNum::from_kernel(253, 3),
            uevent,
            deferred: false,
            udev_flags: 0,
        }));
        self.world.advance_clock(1000);
        self.world.send_message(proc, tid, what, Quality::default());
    }

    /// A complete cycle of another cookie.
    pub(super) fn run_cycle(&mut self, proc: usize, tid: u32) {
        let sem = self.world.create_set(proc, tid, Key(0x0d4d_7777));
        self.world.setval(proc, tid, sem).unwrap();
        for delta in [1, -1, -1] {
            self.world.semop_add(proc, tid, sem, delta).unwrap();
        }
        self.world.begin_wait(0, proc, tid, sem).unwrap();
        self.world.remove_set(proc, tid, sem).unwrap();
    }

    pub(super) fn kill_owner(&mut self, proc: usize) {
        self.world.exit(proc, ExitStatus::Signal(9));
    }

    pub(super) fn facts_after(&mut self, seconds: u64) -> (Snapshot, HostFacts) {
        self.world.advance_clock(seconds * 1_000_000_000);
        let events: Vec<Event> = self.world.ring[self.read..].to_vec();
        self.read = self.world.ring.len();
        for event in &events {
            self.ledger.apply(event);
        }
        let proc = self.world.procs.first().map_or(1, |proc| proc.id.tgid);
        (self.world.snapshot(), self.world.facts(|_| (proc, proc)))
    }

    pub(super) fn judge_after(&mut self, seconds: u64, change: impl Fn(&mut HostFacts)) -> Verdict {
        self.judged_until(seconds, change).0
    }

    /// The verdict, and for how long time alone does not change it.
    pub(super) fn judged_until(
        &mut self,
        seconds: u64,
        change: impl Fn(&mut HostFacts),
    ) -> (Verdict, Option<Duration>) {
        let (snapshot, mut facts) = self.facts_after(seconds);
        change(&mut facts);
        self.ledger.reconcile(&snapshot);
        let context = Context {
            facts: &facts,
            completeness: &self.completeness,
            thresholds: &Thresholds::default(),
        };
        let mut judged = survey_cookies(&self.ledger, Some(&snapshot), &context);
        assert_eq!(judged.len(), 1, "one live cookie");
        let judged = judged.remove(0);
        let due = next_due(&judged, &context);
        (judged.verdict, due)
    }

    pub(super) fn verdict(&mut self, seconds: u64) -> Verdict {
        self.judge_after(seconds, |_| {})
    }

    pub(super) fn closed(&mut self, sem: SemId) -> Verdict {
        self.closed_with(sem, |_| {})
    }

    pub(super) fn closed_with(&mut self, sem: SemId, change: impl Fn(&mut HostFacts)) -> Verdict {
        let (_, mut facts) = self.facts_after(0);
        change(&mut facts);
        let context = Context {
            facts: &facts,
            completeness: &self.completeness,
            thresholds: &Thresholds::default(),
        };
        let subject = Subject {
            ledger: &self.ledger,
            semaphore: self.ledger.closed_cookie(sem).unwrap(),
            set: None,
            taken: facts.now,
        };
        judge_set(&subject, &context)
    }
}

pub(super) fn leaked(verdict: &Verdict) -> LeakKind {
    match verdict.class {
        Class::Leaked(how) => how,
        _ => panic!("not leaked: {verdict:#?}"),
    }
}
