//! A small kernel: semaphores, processes, and what the eBPF side would say of them. It knows the
//! truth that verdicts are checked against.

use std::collections::BTreeMap;

use dmtrace_common::{ProcRecord, SEM_ANNOUNCED, SEM_COOKIE, SemRecord};

use super::host::record_of;
use crate::{
    event::{Actor, Ancestor, Event, EventKind, ExitStatus, ProcessImage, Quality},
    ids::{BootTime, IpcNs, Key, ProcId, SemId},
    ledger::ImageId,
};

/// Wall clock at boot.
pub(super) const WALL0: i64 = 1_800_000_000;

#[derive(Clone, Debug)]
pub(super) struct Sem {
    pub key: Key,
    pub value: i32,
    pub pid: u32,
    pub otime: i64,
    pub ctime: i64,
    /// Threads in `{0,0,0}`.
    pub waiters: Vec<usize>,
    /// Last call that reached it.
    pub touched: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Proc {
    pub id: ProcId,
    pub name: &'static str,
    pub args: Vec<String>,
    pub parents: Vec<Ancestor>,
    pub alive: bool,
    /// The cookie in its command line.
    pub carries: Option<Key>,
    pub ns: IpcNs,
    /// The kernel side has captured it.
    known: bool,
}

/// Result of a call on a set.
pub(super) type Outcome = Result<(), i32>;

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub now: u64,
    pub sems: BTreeMap<SemId, Sem>,
    pub procs: Vec<Proc>,
    /// Messages that reached the ring, in order.
    pub ring: Vec<Event>,
    /// Messages that did not.
    pub lost: u64,
    /// Whether the tracer runs.
    pub traced: bool,
    /// Which messages are lost: consumed in a circle.
    pub losses: Vec<bool>,
    next_loss: usize,
    next_semid: BTreeMap<IpcNs, i32>,
    next_pid: u32,
    /// The kernel side's maps.
    pub records: BTreeMap<SemId, SemRecord>,
    pub proc_records: BTreeMap<ImageId, ProcRecord>,
    /// Sets created and removed while the tracer ran.
    pub created: u64,
    pub removed: u64,
    pub enospc_failures: u64,
}

impl World {
    pub(super) fn new(losses: Vec<bool>) -> Self {
        Self {
            now: 1_000_000_000_000,
            traced: true,
            losses,
            next_pid: 100,
            ..Self::default()
        }
    }

    pub(super) fn wall(&self) -> i64 {
        WALL0 + (self.now / 1_000_000_000) as i64
    }

    pub(super) fn advance_clock(&mut self, ns: u64) {
        self.now += ns.max(1);
    }

    // Processes.

    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        args: &[&str],
        parent: Option<usize>,
        ns: IpcNs,
    ) -> usize {
        self.advance_clock(10_000_000);
        self.next_pid += 1;
        // Few numbers, so that they are used again.
        let busy: Vec<u32> = self
            .procs
            .iter()
            .filter(|proc| proc.alive)
            .map(|proc| proc.id.tgid)
            .collect();
        let mut tgid = 2 + self.next_pid % 40;
        while busy.contains(&tgid) {
            tgid += 1;
        }
        let mut parents = Vec::new();
        if let Some(proc) = parent.and_then(|parent| self.procs.get(parent)) {
            parents.push(Ancestor {
                id: proc.id,
                comm: proc.name.to_owned(),
            });
        }
        parents.push(Ancestor {
            id: ProcId {
                tgid: 1,
                start: BootTime(1),
            },
            comm: "systemd".to_owned(),
        });
        self.procs.push(Proc {
            id: ProcId {
                tgid,
                start: BootTime(self.now),
            },
            name,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            parents,
            alive: true,
            carries: None,
            ns,
            known: false,
        });
        self.procs.len() - 1
    }

    pub(super) fn image(&self, proc: usize) -> ProcessImage {
        let proc = &self.procs[proc];
        ProcessImage {
            id: proc.id,
            seen: BootTime(self.now),
            comm: proc.name.to_owned(),
            exe: Some(format!("/usr/sbin/{}", proc.name)),
            cmdline: Some(proc.args.clone()),
            ipc_ns: proc.ns,
            parents: proc.parents.clone(),
            ..ProcessImage::default()
        }
    }

    pub(super) fn intern_image(&mut self, proc: usize) {
        if !self.traced || self.procs[proc].known {
            return;
        }
        self.procs[proc].known = true;
        let image = self.image(proc);
        let id = ImageId {
            id: image.id,
            exec: 0,
        };
        self.proc_records.insert(id, record_of(&image, self.now));
        self.send_message(
            proc,
            0,
            EventKind::Process(Box::new(image)),
            Quality::default(),
        );
    }

    pub(super) fn exit(&mut self, proc: usize, status: ExitStatus) {
        self.advance_clock(1000);
        self.procs[proc].alive = false;
        if self.traced && self.procs[proc].known {
            let id = ImageId {
                id: self.procs[proc].id,
                exec: 0,
            };
            if let Some(record) = self.proc_records.get_mut(&id) {
                record.exited = self.now;
                record.exit_code = match status {
                    ExitStatus::Code(code) => i32::from(code) << 8,
                    ExitStatus::Signal(signal) => i32::from(signal),
                };
            }
            self.send_message(proc, 0, EventKind::Exit { status }, Quality::default());
        }
    }

    /// Puts a message into the ring, or loses it.
    pub(super) fn send_message(
        &mut self,
        proc: usize,
        tid: u32,
        what: EventKind,
        quality: Quality,
    ) -> bool {
        if !self.traced {
            return true;
        }
        self.next_loss += 1;
        let lost = !self.losses.is_empty() && self.losses[self.next_loss % self.losses.len()];
        if lost {
            self.lost += 1;
            return false;
        }
        let proc = &self.procs[proc];
        self.ring.push(Event {
            at: BootTime(self.now),
            began: None,
            actor: Actor {
                id: proc.id,
                exec: 0,
                tid,
                comm: proc.name.to_owned(),
            },
            quality,
            what,
        });
        true
    }

    // Semaphores.

    pub(super) fn find_set(&self, ns: IpcNs, key: Key) -> Option<SemId> {
        self.sems
            .iter()
            .find(|(sem, set)| sem.ns == ns && set.key == key)
            .map(|(&sem, _)| sem)
    }

    pub(super) fn create_set(&mut self, proc: usize, tid: u32, key: Key) -> SemId {
        self.advance_clock(1000);
        self.intern_image(proc);
        self.advance_clock(1000);
        let ns = self.procs[proc].ns;
        let next = self.next_semid.entry(ns).or_insert(0);
        *next += 1;
        let sem = SemId { ns, semid: *next };
        self.sems.insert(
            sem,
            Sem {
                key,
                value: 0,
                pid: 0,
                otime: 0,
                ctime: self.wall(),
                waiters: Vec::new(),
                touched: self.now,
            },
        );
        if !self.traced {
            return sem;
        }
        self.created += 1;
        let sent = self.send_message(
            proc,
            tid,
            EventKind::Created {
                sem,
                key,
                nsems: 1,
                semflg: 0o3600,
            },
            Quality::default(),
        );
        let id = self.procs[proc].id;
        self.records.insert(
            sem,
            SemRecord {
                created: self.now,
                creator: dmtrace_common::ProcKey {
                    start: id.start.0,
                    tgid: id.tgid,
                    exec: 0,
                },
                key: key.0,
                nsems: 1,
                semflg: 0o3600,
                state: if sent { SEM_ANNOUNCED } else { 0 }
                    | if key.has_cookie_magic() {
                        SEM_COOKIE
                    } else {
                        0
                    },
                tid,
                ..SemRecord::default()
            },
        );
        sem
    }

    pub(super) fn create_fails(&mut self, proc: usize, tid: u32, key: Key) {
        self.advance_clock(1000);
        self.intern_image(proc);
        self.enospc_failures += u64::from(self.traced);
        let ns = self.procs[proc].ns;
        let what = EventKind::CreateFailed {
            ns,
            key,
            errno: libc::ENOSPC,
        };
        self.send_message(proc, tid, what, Quality::default());
    }
}
