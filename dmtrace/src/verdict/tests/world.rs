//! A small kernel: semaphores, processes, and what the eBPF side would say of them. It knows the
//! truth that verdicts are checked against.

use std::collections::BTreeMap;

use dmtrace_common::{
    ProcRecord, SEM_ANNOUNCED, SEM_COOKIE, SEM_OPS_DROPPED, SEM_PREEXISTING, SEM_TOMBSTONE,
    SemRecord,
};

use crate::{
    event::{Actor, Ancestor, Event, ExitStatus, Operation, ProcessImage, Quality, What},
    facts::{
        HostFacts, LiveProcess, NsSnapshot, SemState, SetSnapshot, Snapshot, UdevFacts, Waiter,
    },
    ids::{BootTime, IpcNs, Key, ProcId, SemId, UnixTime},
    ledger::ImageId,
};

/// Wall clock at boot.
const WALL0: i64 = 1_800_000_000;

/// A semaphore set.
#[derive(Clone, Debug)]
pub struct Sem {
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

/// A process.
#[derive(Clone, Debug)]
pub struct Proc {
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
pub type Outcome = Result<(), i32>;

/// The kernel.
#[derive(Clone, Debug, Default)]
pub struct World {
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
    pub starved: u64,
}

impl World {
    pub fn new(losses: Vec<bool>) -> Self {
        Self {
            now: 1_000_000_000_000,
            traced: true,
            losses,
            next_pid: 100,
            ..Self::default()
        }
    }

    fn wall(&self) -> i64 {
        WALL0 + (self.now / 1_000_000_000) as i64
    }

    pub fn tick(&mut self, ns: u64) {
        self.now += ns.max(1);
    }

    // Processes.

    pub fn spawn(
        &mut self,
        name: &'static str,
        args: &[&str],
        parent: Option<usize>,
        ns: IpcNs,
    ) -> usize {
        self.tick(10_000_000);
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

    fn image(&self, proc: usize) -> ProcessImage {
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

    fn intern(&mut self, proc: usize) {
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
        self.say(proc, 0, What::Process(Box::new(image)), Quality::default());
    }

    pub fn exit(&mut self, proc: usize, status: ExitStatus) {
        self.tick(1000);
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
            self.say(proc, 0, What::Exit { status }, Quality::default());
        }
    }

    /// Puts a message into the ring, or loses it.
    fn say(&mut self, proc: usize, tid: u32, what: What, quality: Quality) -> bool {
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

    pub fn find(&self, ns: IpcNs, key: Key) -> Option<SemId> {
        self.sems
            .iter()
            .find(|(sem, set)| sem.ns == ns && set.key == key)
            .map(|(&sem, _)| sem)
    }

    pub fn create(&mut self, proc: usize, tid: u32, key: Key) -> SemId {
        self.tick(1000);
        self.intern(proc);
        self.tick(1000);
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
        let sent = self.say(
            proc,
            tid,
            What::Created {
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

    pub fn create_fails(&mut self, proc: usize, tid: u32, key: Key) {
        self.tick(1000);
        self.intern(proc);
        self.starved += u64::from(self.traced);
        let ns = self.procs[proc].ns;
        let what = What::CreateFailed {
            ns,
            key,
            errno: libc::ENOSPC,
        };
        self.say(proc, tid, what, Quality::default());
    }

    pub fn set(&mut self, proc: usize, tid: u32, sem: SemId) -> Outcome {
        self.tick(1000);
        let now = self.now;
        let wall = self.wall();
        let pid = self.procs[proc].id.tgid;
        let set = self.sems.get_mut(&sem).ok_or(libc::EINVAL)?;
        set.value = 1;
        set.pid = pid;
        set.ctime = wall;
        set.touched = now;
        let key = set.key;
        let actor = self.key(proc);
        self.with_record(sem, |record| {
            record.value = 1;
            record.last_actor = actor;
            record.setvals += 1;
        });
        let what = What::SetVal {
            sem,
            key,
            value: 1,
            errno: 0,
        };
        self.operated(proc, tid, sem, what);
        Ok(())
    }

    fn key(&self, proc: usize) -> dmtrace_common::ProcKey {
        let id = self.procs[proc].id;
        dmtrace_common::ProcKey {
            start: id.start.0,
            tgid: id.tgid,
            exec: 0,
        }
    }

    fn with_record(&mut self, sem: SemId, change: impl FnOnce(&mut SemRecord)) {
        if let Some(record) = self.records.get_mut(&sem)
            && self.traced
        {
            change(record);
        }
    }

    /// A message on an operation; the map remembers if it was lost.
    fn operated(&mut self, proc: usize, tid: u32, sem: SemId, what: What) {
        if !self.traced || !self.records.contains_key(&sem) {
            return;
        }
        self.intern(proc);
        if !self.say(proc, tid, what, Quality::default()) {
            self.with_record(sem, |record| record.state |= SEM_OPS_DROPPED);
        }
    }

    /// `semop {0, delta, IPC_NOWAIT}`. Returns the threads that it wakes.
    pub fn add(
        &mut self,
        proc: usize,
        tid: u32,
        sem: SemId,
        delta: i16,
    ) -> Result<Vec<usize>, i32> {
        self.tick(1000);
        let (now, wall) = (self.now, self.wall());
        let actor = self.key(proc);
        let set = self.sems.get_mut(&sem).ok_or(libc::EINVAL)?;
        let key = set.key;
        let fits = set.value + i32::from(delta) >= 0;
        set.touched = now;
        if fits {
            set.value += i32::from(delta);
            set.pid = actor.tgid;
            set.otime = wall;
        }
        let woken = if fits && set.value == 0 {
            std::mem::take(&mut set.waiters)
        } else {
            Vec::new()
        };
        self.with_record(sem, |record| {
            if !fits {
                record.starved += 1;
                return;
            }
            record.last_op = now;
            record.last_actor = actor;
            record.value += i32::from(delta);
            let owner = record.creator.tgid == actor.tgid && record.creator.start == actor.start;
            let count = match (owner, delta > 0) {
                (true, true) => &mut record.owner_inc,
                (true, false) => &mut record.owner_dec,
                (false, true) => &mut record.other_inc,
                (false, false) => &mut record.other_dec,
            };
            *count += 1;
        });
        let what = What::Op {
            sem,
            key,
            ops: vec![Operation {
                num: 0,
                op: delta,
                flg: if delta < 0 {
                    libc::IPC_NOWAIT as i16
                } else {
                    0
                },
            }],
            errno: if fits { 0 } else { libc::EAGAIN },
        };
        self.operated(proc, tid, sem, what);
        if fits { Ok(woken) } else { Err(libc::EAGAIN) }
    }

    /// `semop {0,0,0}` begins. Returns whether the thread sleeps.
    pub fn wait(&mut self, thread: usize, proc: usize, tid: u32, sem: SemId) -> Result<bool, i32> {
        self.tick(1000);
        let now = self.now;
        let set = self.sems.get_mut(&sem).ok_or(libc::EINVAL)?;
        let key = set.key;
        let sleeps = set.value != 0;
        set.touched = now;
        if sleeps {
            set.waiters.push(thread);
        }
        let actor = self.key(proc);
        self.with_record(sem, |record| {
            record.waits += 1;
            record.waiter = actor;
            record.wait_since = now;
        });
        let what = What::WaitBegin {
            sem,
            key,
            ops: vec![WAIT],
        };
        self.operated(proc, tid, sem, what);
        if !sleeps {
            self.waited(proc, tid, sem, 0);
        }
        Ok(sleeps)
    }

    /// `semop {0,0,0}` returns.
    pub fn waited(&mut self, proc: usize, tid: u32, sem: SemId, errno: i32) {
        self.tick(1000);
        let (now, wall) = (self.now, self.wall());
        let actor = self.key(proc);
        let Some(set) = self.sems.get_mut(&sem) else {
            // The map has forgotten the set: neither key nor record.
            if self.traced {
                let what = What::Op {
                    sem,
                    key: Key(0),
                    ops: vec![WAIT],
                    errno,
                };
                let quality = Quality {
                    untracked: true,
                    ..Quality::default()
                };
                self.intern(proc);
                self.say(proc, tid, what, quality);
            }
            return;
        };
        let key = set.key;
        set.touched = now;
        if errno == 0 {
            set.pid = actor.tgid;
            set.otime = wall;
        }
        self.with_record(sem, |record| {
            record.waits_done += 1;
            if record.waiter == actor {
                record.wait_since = 0;
            }
            if errno == 0 {
                record.last_op = now;
                record.last_actor = actor;
            } else {
                record.last_error = -errno;
            }
        });
        let what = What::Op {
            sem,
            key,
            ops: vec![WAIT],
            errno,
        };
        self.operated(proc, tid, sem, what);
    }

    /// `semctl(IPC_RMID)`. Returns the threads that get EIDRM.
    pub fn remove(&mut self, proc: usize, tid: u32, sem: SemId) -> Result<Vec<usize>, i32> {
        self.tick(1000);
        let set = self.sems.remove(&sem).ok_or(libc::EINVAL)?;
        if !self.traced {
            return Ok(set.waiters);
        }
        self.intern(proc);
        self.tick(1000);
        let tracked = self.records.contains_key(&sem);
        self.removed += u64::from(tracked);
        let (key, quality) = if tracked {
            (set.key, Quality::default())
        } else {
            let quality = Quality {
                untracked: true,
                ..Quality::default()
            };
            (set.key, quality)
        };
        let sent = self.say(proc, tid, What::Destroyed { sem, key }, quality);
        let now = self.now;
        let closer = self.key(proc);
        if let Some(record) = self.records.get_mut(&sem) {
            if sent && record.state & (SEM_ANNOUNCED | SEM_OPS_DROPPED) == SEM_ANNOUNCED {
                self.records.remove(&sem);
            } else {
                record.closed = now;
                record.closer = closer;
                record.state |= SEM_TOMBSTONE;
            }
        }
        Ok(set.waiters)
    }

    pub fn lookup_failed(&mut self, proc: usize, tid: u32, key: Key) {
        self.tick(1000);
        if !self.traced {
            return;
        }
        self.intern(proc);
        let what = What::LookupFailed {
            ns: self.procs[proc].ns,
            key,
            errno: libc::ENOENT,
        };
        self.say(proc, tid, what, Quality::default());
    }

    /// What userspace enters into the map when the tracer starts.
    pub fn seed(&mut self) {
        for (&sem, set) in &self.sems {
            self.records.entry(sem).or_insert(SemRecord {
                key: set.key.0,
                nsems: 1,
                value: set.value,
                state: SEM_PREEXISTING | SEM_ANNOUNCED | SEM_COOKIE,
                ..SemRecord::default()
            });
        }
    }

    // What the host says.

    pub fn snapshot(&self) -> Snapshot {
        let mut namespaces: BTreeMap<IpcNs, Vec<SetSnapshot>> = BTreeMap::new();
        namespaces.entry(IpcNs::HOST).or_default();
        for (sem, set) in &self.sems {
            namespaces.entry(sem.ns).or_default().push(SetSnapshot {
                semid: sem.semid,
                key: set.key,
                mode: 0o600,
                nsems: 1,
                otime: UnixTime(set.otime),
                ctime: UnixTime(set.ctime),
                first: set.key.has_cookie_magic().then_some(SemState {
                    value: set.value,
                    pid: set.pid,
                    ncnt: 0,
                    zcnt: set.waiters.len() as u32,
                }),
                ..SetSnapshot::default()
            });
        }
        Snapshot {
            began: BootTime(self.now),
            ended: BootTime(self.now + 1000),
            wall: UnixTime(self.wall()),
            namespaces: namespaces
                .into_iter()
                .map(|(ns, sets)| NsSnapshot {
                    ns,
                    sets,
                    ..NsSnapshot::default()
                })
                .collect(),
            unreadable: Vec::new(),
            incomplete: Vec::new(),
        }
    }

    /// `threads` gives process and tid of a waiting thread.
    pub fn facts(&self, threads: impl Fn(usize) -> (u32, u32)) -> HostFacts {
        let alive = || self.procs.iter().filter(|proc| proc.alive);
        let mut carriers: BTreeMap<Key, Vec<u32>> = BTreeMap::new();
        for proc in alive() {
            if let Some(key) = proc.carries {
                carriers.entry(key).or_default().push(proc.id.tgid);
            }
        }
        let mut waiters: BTreeMap<SemId, Vec<Waiter>> = BTreeMap::new();
        for (&sem, set) in &self.sems {
            for &thread in &set.waiters {
                let (tgid, tid) = threads(thread);
                waiters.entry(sem).or_default().push(Waiter { tgid, tid });
            }
        }
        HostFacts {
            now: BootTime(self.now + 2000),
            wall: UnixTime(self.wall()),
            processes_complete: true,
            processes: alive()
                .map(|proc| {
                    let live = LiveProcess {
                        start_ticks: proc.id.start_ticks(),
                        comm: proc.name.to_owned(),
                        ppid: 1,
                        session: proc.id.tgid,
                        ipc_ns: Some(proc.ns),
                    };
                    (proc.id.tgid, live)
                })
                .collect(),
            waiters,
            carriers,
            carriers_complete: true,
            udev: UdevFacts {
                control_socket: true,
                daemon: Some(1),
                notify_rule: Some("/usr/lib/udev/rules.d/95-dm-notify.rules".to_owned()),
                event_timeout: 180,
                ..UdevFacts::default()
            },
            ..HostFacts::default()
        }
    }
}

const WAIT: Operation = Operation {
    num: 0,
    op: 0,
    flg: 0,
};

/// As the kernel side would write it.
fn record_of(image: &ProcessImage, now: u64) -> ProcRecord {
    // SAFETY: a plain struct of integers; zeros are valid.
    let mut record: ProcRecord = unsafe { std::mem::zeroed() };
    record.header.actor = dmtrace_common::ProcKey {
        start: image.id.start.0,
        tgid: image.id.tgid,
        exec: 0,
    };
    record.header.ts = now;
    record.ipc_ns = image.ipc_ns.0;
    fill(&mut record.comm, image.comm.as_bytes());
    let line = image.cmdline.clone().unwrap_or_default().join("\0");
    record.cmdline_len = fill(&mut record.cmdline, line.as_bytes());
    for (slot, parent) in record.parents.iter_mut().zip(&image.parents) {
        slot.tgid = parent.id.tgid;
        slot.start = parent.id.start.0;
        fill(&mut slot.comm, parent.comm.as_bytes());
    }
    record
}

fn fill(place: &mut [u8], bytes: &[u8]) -> u32 {
    let len = bytes.len().min(place.len());
    place[..len].copy_from_slice(&bytes[..len]);
    len as u32
}
