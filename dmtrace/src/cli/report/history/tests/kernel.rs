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
struct LiveSet {
    key: Key,
    value: i32,
    last: u32,
    touched: u64,
    waits: bool,
}

#[derive(Clone, Debug)]
pub(super) struct FakeProcess {
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
    pub enospc_failures: u64,
}

pub(super) struct FakeKernel {
    pub now: u64,
    pub truth: Truth,
    tell: Vec<Event>,
    sets: BTreeMap<SemId, LiveSet>,
    alive: BTreeMap<u32, FakeProcess>,
    /// Daemons, which live on.
    daemons: Vec<FakeProcess>,
    /// Cookies that were left behind, oldest first.
    left: VecDeque<SemId>,
    random: u64,
    next_semid: i32,
    next_pid: u32,
    next_ns: u32,
}

impl FakeKernel {
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
            let daemon = kernel.spawn_process(name, IpcNs::HOST);
            kernel.daemons.push(daemon);
        }
        kernel
    }

    /// What was told since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.tell)
    }

    fn random_below(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// One life of a cookie: good, mostly.
    pub(super) fn play_life(&mut self, pause: u64) {
        self.now += pause / 2 + self.random_below(pause.max(1));
        match self.random_below(100_000) {
            0..100 => self.play_killed(),
            100..160 => self.never_waited(),
            160..190 => self.play_interrupted(),
            190..210 => self.play_namespace(),
            210..240 => self.play_enospc(),
            240..250 => self.play_accident(),
            250..20_000 => self.of_daemon(),
            _ => self.of_command(),
        }
    }

    /// `lvcreate` and its like: a process for each cookie.
    fn of_command(&mut self) {
        let name =
            ["lvm", "lvm", "lvm", "dmsetup", "cryptsetup", "kpartx"][self.random_below(6) as usize];
        let proc = self.spawn_process(name, IpcNs::HOST);
        let tid = proc.id.tgid;
        self.play_good(&proc, tid);
        // Some ends are not seen; the list of processes tells them.
        if self.random_below(1000) == 0 {
            self.alive.remove(&proc.id.tgid);
        } else {
            self.exit_process(&proc, ExitStatus::Code(0));
        }
    }

    /// A daemon with many threads.
    fn of_daemon(&mut self) {
        let daemon = self.random_below(3) as usize;
        let proc = self.daemons[daemon].clone();
        let tid = proc.id.tgid + self.random_below(400) as u32;
        self.play_good(&proc, tid);
    }

    fn play_good(&mut self, proc: &FakeProcess, tid: u32) {
        let sem = self.create_cookie(proc, tid);
        let tasks = 1 + self.random_below(3);
        for _ in 0..tasks {
            self.semop_add(proc, tid, sem, 1);
            self.return_ioctl(proc, tid, sem, 0);
        }
        self.semop_add(proc, tid, sem, -1);
        self.begin_wait(proc, tid, sem);
        for _ in 0..tasks {
            self.complete_cookie(sem);
        }
        self.end_wait(proc, tid, sem, 0);
        self.remove_set(proc, tid, sem);
        self.truth.completed += 1;
    }

    /// The owner is killed at some step.
    pub(super) fn play_killed(&mut self) {
        let name = ["lvm", "cryptsetup"][self.random_below(2) as usize];
        let proc = self.spawn_process(name, IpcNs::HOST);
        let tid = proc.id.tgid;
        let sem = self.create_cookie(&proc, tid);
        if self.random_below(2) == 0 {
            self.semop_add(&proc, tid, sem, 1);
            self.return_ioctl(&proc, tid, sem, 0);
            self.complete_cookie(sem);
        }
        self.exit_process(&proc, ExitStatus::Signal(9));
        self.leave_cookie(sem);
    }

    /// moby: the ioctl fails, and nobody waits.
    pub(super) fn never_waited(&mut self) {
        let proc = self.daemons[0].clone();
        let tid = proc.id.tgid + self.random_below(400) as u32;
        let sem = self.create_cookie(&proc, tid);
        self.semop_add(&proc, tid, sem, 1);
        self.return_ioctl(&proc, tid, sem, libc::EBUSY);
        self.semop_add(&proc, tid, sem, -1);
        self.leave_cookie(sem);
        self.play_good(&proc, tid);
    }

    /// devicemapper-rs: the wait is interrupted, and nobody waits again.
    fn play_interrupted(&mut self) {
        let proc = self.daemons[2].clone();
        let tid = proc.id.tgid + self.random_below(400) as u32;
        let sem = self.create_cookie(&proc, tid);
        self.semop_add(&proc, tid, sem, 1);
        self.return_ioctl(&proc, tid, sem, 0);
        self.semop_add(&proc, tid, sem, -1);
        self.begin_wait(&proc, tid, sem);
        self.end_wait(&proc, tid, sem, libc::EINTR);
        self.complete_cookie(sem);
        self.leave_cookie(sem);
        self.play_good(&proc, tid);
    }

    /// A container leaves cookies, and ends with its namespace.
    fn play_namespace(&mut self) {
        self.next_ns += 1;
        let ns = IpcNs(4_026_540_000 + self.next_ns);
        let mut sems = Vec::new();
        for _ in 0..3 {
            let proc = self.spawn_process("lvm", ns);
            sems.push(self.create_cookie(&proc, proc.id.tgid));
            self.exit_process(&proc, ExitStatus::Signal(15));
        }
        self.now += 1_000_000_000;
        for sem in sems {
            let set = self.sets.remove(&sem).unwrap();
            let quality = Quality {
                ns_teardown: true,
                ..Quality::default()
            };
            let worker = FakeProcess {
                id: ProcId::default(),
                name: "kworker",
                ns: IpcNs::HOST,
            };
            self.send_message(
                &worker,
                0,
                EventKind::Destroyed { sem, key: set.key },
                quality,
            );
            self.truth.with_namespace += 1;
        }
    }

    /// The limit is reached for a moment.
    fn play_enospc(&mut self) {
        let proc = self.spawn_process("mysqld", IpcNs::HOST);
        for _ in 0..=self.random_below(20) {
            self.now += 1_000_000;
            let what = EventKind::CreateFailed {
                ns: IpcNs::HOST,
                key: Key(0x1234),
                errno: libc::ENOSPC,
            };
            self.send_message(&proc, proc.id.tgid, what, Quality::default());
            self.truth.enospc_failures += 1;
        }
        self.exit_process(&proc, ExitStatus::Code(1));
    }

    /// Somebody removes a cookie that is being waited for.
    fn play_accident(&mut self) {
        let proc = self.spawn_process("lvm", IpcNs::HOST);
        let tid = proc.id.tgid;
        let sem = self.create_cookie(&proc, tid);
        self.semop_add(&proc, tid, sem, 1);
        self.semop_add(&proc, tid, sem, -1);
        self.begin_wait(&proc, tid, sem);
        let admin = self.spawn_process("ipcrm", IpcNs::HOST);
        self.remove_set(&admin, admin.id.tgid, sem);
        self.exit_process(&admin, ExitStatus::Code(0));
        let what = EventKind::Op {
            sem,
            key: Key(0),
            ops: vec![semop_element(0)],
            errno: libc::EIDRM,
        };
        let quality = Quality {
            untracked: true,
            ..Quality::default()
        };
        self.send_message(&proc, tid, what, quality);
        self.exit_process(&proc, ExitStatus::Code(0));
    }

    /// The administrator removes what was left behind, the newest excepted.
    pub(super) fn remove_leaks(&mut self, keep: usize) {
        let admin = self.spawn_process("dmtrace", IpcNs::HOST);
        while self.left.len() > keep {
            let sem = self.left.pop_front().unwrap();
            self.remove_set(&admin, admin.id.tgid, sem);
        }
        self.exit_process(&admin, ExitStatus::Code(0));
    }

    fn leave_cookie(&mut self, sem: SemId) {
        self.truth.left += 1;
        self.left.push_back(sem);
        // Nobody has so many without doing something about it.
        if self.left.len() > 300 {
            self.remove_leaks(100);
        }
    }

    fn spawn_process(&mut self, name: &'static str, ns: IpcNs) -> FakeProcess {
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
        let proc = FakeProcess { id, name, ns };
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
        self.send_message(
            &proc,
            id.tgid,
            EventKind::Process(Box::new(image)),
            Quality::default(),
        );
        proc
    }

    fn exit_process(&mut self, proc: &FakeProcess, status: ExitStatus) {
        self.alive.remove(&proc.id.tgid);
        self.send_message(
            proc,
            proc.id.tgid,
            EventKind::Exit { status },
            Quality::default(),
        );
    }

    fn create_cookie(&mut self, proc: &FakeProcess, tid: u32) -> SemId {
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
        let key = Key(0x0d4d_0001 + self.random_below(0xfffe) as u32);
        self.sets.insert(
            sem,
            LiveSet {
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
        self.send_message(proc, tid, what, Quality::default());
        let what = EventKind::SetVal {
            sem,
            key,
            value: 1,
            errno: 0,
        };
        self.send_message(proc, tid, what, Quality::default());
        self.sets.get_mut(&sem).unwrap().value = 1;
        sem
    }

    fn semop_add(&mut self, proc: &FakeProcess, tid: u32, sem: SemId, by: i16) {
        let now = self.now;
        let set = self.sets.get_mut(&sem).unwrap();
        set.value += i32::from(by);
        set.last = proc.id.tgid;
        set.touched = now;
        let key = set.key;
        let what = EventKind::Op {
            sem,
            key,
            ops: vec![semop_element(by)],
            errno: 0,
        };
        self.send_message(proc, tid, what, Quality::default());
    }

    fn begin_wait(&mut self, proc: &FakeProcess, tid: u32, sem: SemId) {
        let set = self.sets.get_mut(&sem).unwrap();
        set.waits = true;
        let key = set.key;
        let ops = vec![semop_element(0)];
        self.send_message(
            proc,
            tid,
            EventKind::WaitBegin { sem, key, ops },
            Quality::default(),
        );
    }

    fn end_wait(&mut self, proc: &FakeProcess, tid: u32, sem: SemId, errno: i32) {
        let set = self.sets.get_mut(&sem).unwrap();
        set.waits = false;
        let what = EventKind::Op {
            sem,
            key: set.key,
            ops: vec![semop_element(0)],
            errno,
        };
        self.send_message(proc, tid, what, Quality::default());
    }

    /// udev runs `dmsetup udevcomplete`.
    fn complete_cookie(&mut self, sem: SemId) {
        let proc = self.spawn_process("dmsetup", IpcNs::HOST);
        self.semop_add(&proc, proc.id.tgid, sem, -1);
        self.exit_process(&proc, ExitStatus::Code(0));
    }

    fn remove_set(&mut self, proc: &FakeProcess, tid: u32, sem: SemId) {
        let set = self.sets.remove(&sem).unwrap();
        let what = EventKind::Destroyed { sem, key: set.key };
        self.send_message(proc, tid, what, Quality::default());
    }

    fn return_ioctl(&mut self, proc: &FakeProcess, tid: u32, sem: SemId, errno: i32) {
        let key = self.sets[&sem].key;
        let minor = self.random_below(2000) as u32;
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
        self.send_message(proc, tid, what, Quality::default());
    }

    fn send_message(&mut self, proc: &FakeProcess, tid: u32, what: EventKind, quality: Quality) {
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

const fn semop_element(op: i16) -> Operation {
    Operation {
        num: 0,
        op,
        flg: if op < 0 { libc::IPC_NOWAIT as i16 } else { 0 },
    }
}
