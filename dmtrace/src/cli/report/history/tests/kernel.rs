//! Months of cookies as the kernel side would tell them, in constant memory: processes and sets
//! are forgotten when they have gone.

mod host;

use std::collections::{BTreeMap, VecDeque};

use dmtrace_core::{
    event::{
        Actor, DmCommand, DmIoctl, Event, EventKind, ExitStatus, Operation, ProcessImage, Quality,
    },
    ids::{BootTime, DevNum, IpcNs, Key, ProcId, SemId},
};

/// Wall clock at boot.
pub(super) const WALL0: i64 = 1_800_000_000;
/// Sets that the namespace may have.
const SEMMNI: usize = 32_000;

/// A set that is there.
struct Set {
    key: Key,
    value: i32,
    last: u32,
    touched: u64,
    waits: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Proc {
    id: ProcId,
    name: &'static str,
    ns: IpcNs,
}

/// What is true, to compare with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Truth {
    pub created: u64,
    pub completed: u64,
    pub left: u64,
    pub with_namespace: u64,
    pub starved: u64,
}

pub(super) struct Kernel {
    pub now: u64,
    pub truth: Truth,
    tell: Vec<Event>,
    sets: BTreeMap<SemId, Set>,
    alive: BTreeMap<u32, Proc>,
    /// Daemons, which live on.
    daemons: Vec<Proc>,
    /// Cookies that were left behind, oldest first.
    left: VecDeque<SemId>,
    random: u64,
    next_semid: i32,
    next_pid: u32,
    next_ns: u32,
}

impl Kernel {
    pub(super) fn new() -> Self {
        let mut kernel = Self {
            now: 100_000_000_000,
            truth: Truth::default(),
            tell: Vec::new(),
            sets: BTreeMap::new(),
            alive: BTreeMap::new(),
            daemons: Vec::new(),
            left: VecDeque::new(),
            random: 0x2545_f491_4f6c_dd1d,
            next_semid: 0,
            next_pid: 1000,
            next_ns: 0,
        };
        for name in ["dockerd", "multipathd", "stratisd"] {
            let daemon = kernel.spawn(name, IpcNs::HOST);
            kernel.daemons.push(daemon);
        }
        kernel
    }

    /// What was told since the last call.
    pub(super) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.tell)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// One life of a cookie: good, mostly.
    pub(super) fn life(&mut self, pause: u64) {
        self.now += pause / 2 + self.random(pause.max(1));
        match self.random(100_000) {
            0..100 => self.killed(),
            100..160 => self.never_waited(),
            160..190 => self.interrupted(),
            190..210 => self.namespace(),
            210..240 => self.starve(),
            240..250 => self.accident(),
            250..20_000 => self.of_daemon(),
            _ => self.of_command(),
        }
    }

    /// `lvcreate` and its like: a process for each cookie.
    fn of_command(&mut self) {
        let name =
            ["lvm", "lvm", "lvm", "dmsetup", "cryptsetup", "kpartx"][self.random(6) as usize];
        let proc = self.spawn(name, IpcNs::HOST);
        let tid = proc.id.tgid;
        self.good(&proc, tid);
        // Some ends are not seen; the list of processes tells them.
        if self.random(1000) == 0 {
            self.alive.remove(&proc.id.tgid);
        } else {
            self.exit(&proc, ExitStatus::Code(0));
        }
    }

    /// A daemon with many threads.
    fn of_daemon(&mut self) {
        let daemon = self.random(3) as usize;
        let proc = self.daemons[daemon].clone();
        let tid = proc.id.tgid + self.random(400) as u32;
        self.good(&proc, tid);
    }

    fn good(&mut self, proc: &Proc, tid: u32) {
        let sem = self.create(proc, tid);
        let tasks = 1 + self.random(3);
        for _ in 0..tasks {
            self.add(proc, tid, sem, 1);
            self.ioctl(proc, tid, sem, 0);
        }
        self.add(proc, tid, sem, -1);
        self.wait(proc, tid, sem);
        for _ in 0..tasks {
            self.complete(sem);
        }
        self.waited(proc, tid, sem, 0);
        self.remove(proc, tid, sem);
        self.truth.completed += 1;
    }

    /// The owner is killed at some step.
    pub(super) fn killed(&mut self) {
        let name = ["lvm", "cryptsetup"][self.random(2) as usize];
        let proc = self.spawn(name, IpcNs::HOST);
        let tid = proc.id.tgid;
        let sem = self.create(&proc, tid);
        if self.random(2) == 0 {
            self.add(&proc, tid, sem, 1);
            self.ioctl(&proc, tid, sem, 0);
            self.complete(sem);
        }
        self.exit(&proc, ExitStatus::Signal(9));
        self.leave(sem);
    }

    /// moby: the ioctl fails, and nobody waits.
    pub(super) fn never_waited(&mut self) {
        let proc = self.daemons[0].clone();
        let tid = proc.id.tgid + self.random(400) as u32;
        let sem = self.create(&proc, tid);
        self.add(&proc, tid, sem, 1);
        self.ioctl(&proc, tid, sem, libc::EBUSY);
        self.add(&proc, tid, sem, -1);
        self.leave(sem);
        self.good(&proc, tid);
    }

    /// devicemapper-rs: the wait is interrupted, and nobody waits again.
    fn interrupted(&mut self) {
        let proc = self.daemons[2].clone();
        let tid = proc.id.tgid + self.random(400) as u32;
        let sem = self.create(&proc, tid);
        self.add(&proc, tid, sem, 1);
        self.ioctl(&proc, tid, sem, 0);
        self.add(&proc, tid, sem, -1);
        self.wait(&proc, tid, sem);
        self.waited(&proc, tid, sem, libc::EINTR);
        self.complete(sem);
        self.leave(sem);
        self.good(&proc, tid);
    }

    /// A container leaves cookies, and ends with its namespace.
    fn namespace(&mut self) {
        self.next_ns += 1;
        let ns = IpcNs(4_026_540_000 + self.next_ns);
        let mut sems = Vec::new();
        for _ in 0..3 {
            let proc = self.spawn("lvm", ns);
            sems.push(self.create(&proc, proc.id.tgid));
            self.exit(&proc, ExitStatus::Signal(15));
        }
        self.now += 1_000_000_000;
        for sem in sems {
            let set = self.sets.remove(&sem).unwrap();
            let quality = Quality {
                ns_teardown: true,
                ..Quality::default()
            };
            let worker = Proc {
                id: ProcId::default(),
                name: "kworker",
                ns: IpcNs::HOST,
            };
            self.say(
                &worker,
                0,
                EventKind::Destroyed { sem, key: set.key },
                quality,
            );
            self.truth.with_namespace += 1;
        }
    }

    /// The limit is reached for a moment.
    fn starve(&mut self) {
        let proc = self.spawn("mysqld", IpcNs::HOST);
        for _ in 0..=self.random(20) {
            self.now += 1_000_000;
            let what = EventKind::CreateFailed {
                ns: IpcNs::HOST,
                key: Key(0x1234),
                errno: libc::ENOSPC,
            };
            self.say(&proc, proc.id.tgid, what, Quality::default());
            self.truth.starved += 1;
        }
        self.exit(&proc, ExitStatus::Code(1));
    }

    /// Somebody removes a cookie that is being waited for.
    fn accident(&mut self) {
        let proc = self.spawn("lvm", IpcNs::HOST);
        let tid = proc.id.tgid;
        let sem = self.create(&proc, tid);
        self.add(&proc, tid, sem, 1);
        self.add(&proc, tid, sem, -1);
        self.wait(&proc, tid, sem);
        let admin = self.spawn("ipcrm", IpcNs::HOST);
        self.remove(&admin, admin.id.tgid, sem);
        self.exit(&admin, ExitStatus::Code(0));
        let what = EventKind::Op {
            sem,
            key: Key(0),
            ops: vec![op(0)],
            errno: libc::EIDRM,
        };
        let quality = Quality {
            untracked: true,
            ..Quality::default()
        };
        self.say(&proc, tid, what, quality);
        self.exit(&proc, ExitStatus::Code(0));
    }

    /// The administrator removes what was left behind, the newest excepted.
    pub(super) fn clean(&mut self, keep: usize) {
        let admin = self.spawn("dmtrace", IpcNs::HOST);
        while self.left.len() > keep {
            let sem = self.left.pop_front().unwrap();
            self.remove(&admin, admin.id.tgid, sem);
        }
        self.exit(&admin, ExitStatus::Code(0));
    }

    fn leave(&mut self, sem: SemId) {
        self.truth.left += 1;
        self.left.push_back(sem);
        // Nobody has so many without doing something about it.
        if self.left.len() > 300 {
            self.clean(100);
        }
    }

    fn spawn(&mut self, name: &'static str, ns: IpcNs) -> Proc {
        self.now += 2_000_000;
        self.next_pid = if self.next_pid >= 4_000_000 {
            1000
        } else {
            self.next_pid + 1
        };
        while self.alive.contains_key(&self.next_pid) {
            self.next_pid += 1;
        }
        let id = ProcId {
            tgid: self.next_pid,
            start: BootTime(self.now),
        };
        let proc = Proc { id, name, ns };
        self.alive.insert(id.tgid, proc.clone());
        let command = [name, "-a", "--verbose", "/dev/vg/lv"];
        let image = ProcessImage {
            id,
            seen: BootTime(self.now),
            comm: name.to_owned(),
            exe: Some(format!("/usr/sbin/{name}")),
            cmdline: Some(command.map(str::to_owned).to_vec()),
            ipc_ns: ns,
            cgroup: format!("/system.slice/{name}.service"),
            ..ProcessImage::default()
        };
        self.say(
            &proc,
            id.tgid,
            EventKind::Process(Box::new(image)),
            Quality::default(),
        );
        proc
    }

    fn exit(&mut self, proc: &Proc, status: ExitStatus) {
        self.alive.remove(&proc.id.tgid);
        self.say(
            proc,
            proc.id.tgid,
            EventKind::Exit { status },
            Quality::default(),
        );
    }

    fn create(&mut self, proc: &Proc, tid: u32) -> SemId {
        // As `ipc_addid`: a slot, and a sequence number above it.
        let mut sem = SemId {
            ns: proc.ns,
            semid: 0,
        };
        loop {
            self.next_semid = (self.next_semid + 1) & i32::MAX;
            sem.semid = self.next_semid;
            if !self.sets.contains_key(&sem) {
                break;
            }
        }
        assert!(self.sets.len() < SEMMNI);
        let key = Key(0x0d4d_0001 + self.random(0xfffe) as u32);
        self.sets.insert(
            sem,
            Set {
                key,
                value: 0,
                last: proc.id.tgid,
                touched: self.now,
                waits: false,
            },
        );
        self.truth.created += 1;
        let what = EventKind::Created {
            sem,
            key,
            nsems: 1,
            semflg: 0o3600,
        };
        self.say(proc, tid, what, Quality::default());
        let what = EventKind::SetVal {
            sem,
            key,
            value: 1,
            errno: 0,
        };
        self.say(proc, tid, what, Quality::default());
        self.sets.get_mut(&sem).unwrap().value = 1;
        sem
    }

    fn add(&mut self, proc: &Proc, tid: u32, sem: SemId, by: i16) {
        let now = self.now;
        let set = self.sets.get_mut(&sem).unwrap();
        set.value += i32::from(by);
        set.last = proc.id.tgid;
        set.touched = now;
        let key = set.key;
        let what = EventKind::Op {
            sem,
            key,
            ops: vec![op(by)],
            errno: 0,
        };
        self.say(proc, tid, what, Quality::default());
    }

    fn wait(&mut self, proc: &Proc, tid: u32, sem: SemId) {
        let set = self.sets.get_mut(&sem).unwrap();
        set.waits = true;
        let key = set.key;
        let ops = vec![op(0)];
        self.say(
            proc,
            tid,
            EventKind::WaitBegin { sem, key, ops },
            Quality::default(),
        );
    }

    fn waited(&mut self, proc: &Proc, tid: u32, sem: SemId, errno: i32) {
        let set = self.sets.get_mut(&sem).unwrap();
        set.waits = false;
        let what = EventKind::Op {
            sem,
            key: set.key,
            ops: vec![op(0)],
            errno,
        };
        self.say(proc, tid, what, Quality::default());
    }

    /// udev runs `dmsetup udevcomplete`.
    fn complete(&mut self, sem: SemId) {
        let proc = self.spawn("dmsetup", IpcNs::HOST);
        self.add(&proc, proc.id.tgid, sem, -1);
        self.exit(&proc, ExitStatus::Code(0));
    }

    fn remove(&mut self, proc: &Proc, tid: u32, sem: SemId) {
        let set = self.sets.remove(&sem).unwrap();
        let what = EventKind::Destroyed { sem, key: set.key };
        self.say(proc, tid, what, Quality::default());
    }

    fn ioctl(&mut self, proc: &Proc, tid: u32, sem: SemId, errno: i32) {
        let key = self.sets[&sem].key;
        let minor = self.random(2000) as u32;
        let what = EventKind::Ioctl(Box::new(DmIoctl {
            sem,
            key,
            command: DmCommand::Resume,
            errno,
            began: BootTime(self.now),
            name: format!("vg-lv{minor}"),
            new_name: None,
            uuid: Some(format!("LVM-{minor:032x}")),
            device: DevNum::from_kernel(253, minor),
            uevent: errno == 0,
            deferred: false,
            udev_flags: 0,
        }));
        self.say(proc, tid, what, Quality::default());
    }

    fn say(&mut self, proc: &Proc, tid: u32, what: EventKind, quality: Quality) {
        self.now += 20_000;
        self.tell.push(Event {
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
    }
}

const fn op(op: i16) -> Operation {
    Operation {
        num: 0,
        op,
        flg: if op < 0 { libc::IPC_NOWAIT as i16 } else { 0 },
    }
}
