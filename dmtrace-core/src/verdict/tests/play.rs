//! Programs that use cookies, well and badly, run step by step in any order.

use std::collections::BTreeMap;

use super::world::{Proc, World};
use crate::{
    event::ExitStatus,
    ids::{IpcNs, Key, SemId},
};

pub(super) const OTHER: IpcNs = IpcNs(4_026_532_000);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Habit {
    /// As libdm: waits always, again after EINTR.
    Libdm,
    /// moby before its fix: does not wait after an error of the ioctl.
    Moby,
    /// devicemapper-rs: does not wait again after EINTR.
    Eintr,
    /// `dmsetup udevcreatecookie`.
    Create,
    /// `dmsetup --udevcookie`.
    Add,
    /// `dmsetup udevreleasecookie`.
    Release,
    /// As libdm; forks after the first operation, the child goes on.
    Fork,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum At {
    Start,
    Made,
    Ready,
    Ioctl,
    Leave,
    Enter,
    Blocked,
    Woken,
    /// Its child has the cookie; it ends, sooner or later.
    Forked,
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    pub proc: usize,
    pub tid: u32,
    pub habit: Habit,
    pub at: At,
    pub cookie: Option<(SemId, Key)>,
    pub tasks: u8,
    pub cycles: u8,
    /// Creation of its last cookie that it completed.
    pub last_cycle: u64,
    pub made: u64,
}

/// A script with a cookie in a variable: `dmsetup udevcreatecookie`, some dmsetup,
/// `dmsetup udevreleasecookie`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shell {
    pub proc: usize,
    pub cookie: Option<(SemId, Key)>,
    pub child: Option<usize>,
    pub adds: u8,
    pub stage: u8,
}

/// A uevent that udev has to complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub ns: IpcNs,
    pub key: Key,
}

#[derive(Clone, Debug)]
pub(super) struct Play {
    pub world: World,
    pub threads: Vec<Thread>,
    pub shells: Vec<Shell>,
    pub jobs: Vec<Job>,
    pub noise: Vec<(usize, SemId)>,
    /// Cookies that a living thread has left for good: when, and by which thread.
    pub left: BTreeMap<SemId, (u64, usize)>,
    /// Cookies that were removed under their users.
    pub accidents: Vec<SemId>,
}

impl Play {
    pub(super) fn new(losses: Vec<bool>) -> Self {
        Self {
            world: World::new(losses),
            threads: Vec::new(),
            shells: Vec::new(),
            jobs: Vec::new(),
            noise: Vec::new(),
            left: BTreeMap::new(),
            accidents: Vec::new(),
        }
    }

    /// One step, chosen by a number.
    pub(super) fn play_step(&mut self, choice: u32) {
        let (what, detail) = (choice & 0xff, choice >> 8);
        self.world.advance_clock(u64::from(detail % 97) * 10_000);
        match what {
            0..40 => self.start_process(detail),
            40..165 => self.run_thread(detail),
            165..205 => self.run_udev(detail),
            205..215 => self.run_shell(detail),
            215..221 => self.kill_process(detail),
            221..227 => self.interrupt_thread(detail),
            227..239 => self.make_noise(detail),
            239..241 => self.complete_all(detail),
            241..243 => self.complete_foreign(detail),
            243..251 => self.pass_time(u64::from(detail % 50) * 100_000_000),
            _ => self.pass_time(u64::from(detail % 20) * 60_000_000_000),
        }
    }

    /// Time passes. A process with one thread may be stopped anywhere; of one with several, no
    /// single thread stands still, except in its ioctl or in a wait.
    pub(super) fn pass_time(&mut self, ns: u64) {
        for index in 0..self.threads.len() {
            for _ in 0..16 {
                let thread = &self.threads[index];
                let alone = !self
                    .threads
                    .iter()
                    .any(|other| other.proc == thread.proc && other.tid != thread.tid);
                let stands = matches!(
                    thread.at,
                    At::Start | At::Ioctl | At::Blocked | At::Forked | At::End
                );
                if alone || stands || !self.is_alive(thread) {
                    break;
                }
                self.advance_thread(index, 0);
            }
        }
        self.world.advance_clock(ns);
    }

    pub(super) fn ns(detail: u32) -> IpcNs {
        if detail.is_multiple_of(7) {
            OTHER
        } else {
            IpcNs::HOST
        }
    }

    pub(super) fn start_process(&mut self, detail: u32) {
        if self.threads.len() > 24 {
            return;
        }
        let ns = Self::ns(detail >> 3);
        let habit = match detail % 8 {
            0..3 => Habit::Libdm,
            3..5 => Habit::Moby,
            5 => Habit::Eintr,
            6 => Habit::Fork,
            _ => {
                let proc = self.world.spawn("sh", &["sh", "script"], None, ns);
                self.shells.push(Shell {
                    proc,
                    cookie: None,
                    child: None,
                    adds: (detail >> 6 & 3) as u8,
                    stage: 0,
                });
                return;
            }
        };
        let daemon = matches!(habit, Habit::Moby | Habit::Eintr);
        let name = match habit {
            Habit::Moby => "dockerd",
            Habit::Eintr => "stratisd",
            _ => "lvm",
        };
        let proc = self.world.spawn(name, &[name, "run"], None, ns);
        let count = if daemon { 1 + (detail >> 8 & 1) } else { 1 };
        for thread in 0..count {
            let cycles = if daemon {
                1 + (detail >> 10 & 7) as u8
            } else {
                1
            };
            self.add_thread(proc, thread, habit, 1 + (detail >> 13 & 3) as u8, cycles);
        }
    }

    pub(super) fn add_thread(
        &mut self,
        proc: usize,
        n: u32,
        habit: Habit,
        tasks: u8,
        cycles: u8,
    ) -> usize {
        let tid = self.world.procs[proc].id.tgid + n * 1000;
        self.threads.push(Thread {
            proc,
            tid,
            habit,
            at: At::Start,
            cookie: None,
            tasks,
            cycles,
            last_cycle: 0,
            made: 0,
        });
        self.threads.len() - 1
    }

    pub(super) fn is_alive(&self, thread: &Thread) -> bool {
        self.world.procs[thread.proc].alive
    }

    pub(super) fn run_thread(&mut self, detail: u32) {
        let ready: Vec<usize> = (0..self.threads.len())
            .filter(|&index| {
                let thread = &self.threads[index];
                self.is_alive(thread) && thread.at != At::Blocked
            })
            .collect();
        if let Some(&index) = ready.get(detail as usize % ready.len().max(1)) {
            self.advance_thread(index, detail >> 5);
        }
    }

    pub(super) fn advance_thread(&mut self, index: usize, detail: u32) {
        let mut thread = self.threads[index];
        let next = self.one_step(index, &mut thread, detail);
        thread.at = match next {
            Ok(next) => next,
            // The cookie is gone.
            Err(_) => {
                if let Some((_, key)) = thread.cookie.take() {
                    self.world.lookup_failed(thread.proc, thread.tid, key);
                }
                self.next_cycle(&mut thread)
            }
        };
        self.threads[index] = thread;
        if thread.at == At::End {
            let last = self
                .threads
                .iter()
                .all(|other| other.proc != thread.proc || other.at == At::End);
            if last {
                self.world.exit(thread.proc, ExitStatus::Code(0));
            }
        }
    }

    pub(super) fn next_cycle(&mut self, thread: &mut Thread) -> At {
        thread.cookie = None;
        thread.cycles = thread.cycles.saturating_sub(1);
        if thread.cycles == 0 || !matches!(thread.habit, Habit::Moby | Habit::Eintr) {
            At::End
        } else {
            thread.tasks = 1;
            At::Start
        }
    }

    pub(super) fn one_step(
        &mut self,
        index: usize,
        thread: &mut Thread,
        detail: u32,
    ) -> Result<At, i32> {
        let (proc, tid) = (thread.proc, thread.tid);
        let sem = thread.cookie.map(|(sem, _)| sem).ok_or(libc::EINVAL);
        match thread.at {
            At::Start => match thread.habit {
                Habit::Add => Ok(At::Ready),
                Habit::Release => Ok(At::Leave),
                _ => {
                    let ns = self.world.procs[proc].ns;
                    // Few keys, so that they are used again.
                    let free = (0..64)
                        .map(|n| Key(0x0d4d_0001 + (detail + n) % 64))
                        .find(|&key| self.world.find_set(ns, key).is_none());
                    let Some(key) = free else {
                        self.world.create_fails(proc, tid, Key(0x0d4d_0001));
                        return Ok(self.next_cycle(thread));
                    };
                    let sem = self.world.create_set(proc, tid, key);
                    thread.made = self.world.now;
                    thread.cookie = Some((sem, key));
                    Ok(At::Made)
                }
            },
            At::Made => {
                self.world.setval(proc, tid, sem?)?;
                Ok(if thread.habit == Habit::Create {
                    At::End
                } else {
                    At::Ready
                })
            }
            At::Ready => {
                self.world.semop_add(proc, tid, sem?, 1)?;
                if thread.habit == Habit::Fork {
                    let &Proc { name, ns, .. } = &self.world.procs[proc];
                    let child = self.world.spawn(name, &[name, "run"], Some(proc), ns);
                    let child = self.add_thread(child, 0, Habit::Libdm, thread.tasks, 1);
                    self.threads[child].cookie = thread.cookie;
                    self.threads[child].at = At::Ready;
                    // The first operation is the child's to wait for.
                    self.complete_cookie(thread, detail);
                    return Ok(At::Forked);
                }
                Ok(At::Ioctl)
            }
            At::Ioctl => {
                if detail % 8 < 3 {
                    // Failed, or no uevent: libdm completes it itself.
                    let woken = self.world.semop_add(proc, tid, sem?, -1)?;
                    self.wake_waiters(woken, sem?);
                    if thread.habit == Habit::Moby {
                        self.left.insert(sem?, (self.world.now, index));
                        return Ok(self.next_cycle(thread));
                    }
                } else {
                    self.complete_cookie(thread, detail);
                }
                thread.tasks = thread.tasks.saturating_sub(1);
                Ok(match (thread.tasks, thread.habit) {
                    (0, Habit::Add) => At::End,
                    (0, _) => At::Leave,
                    _ => At::Ready,
                })
            }
            At::Leave => match self.world.semop_add(proc, tid, sem?, -1) {
                Ok(woken) => {
                    self.wake_waiters(woken, sem?);
                    Ok(At::Enter)
                }
                Err(libc::EAGAIN) => {
                    let woken = self.world.remove_set(proc, tid, sem?)?;
                    self.removed_under(woken, sem?);
                    Ok(self.next_cycle(thread))
                }
                Err(errno) => Err(errno),
            },
            At::Enter => {
                let sleeps = self.world.begin_wait(index, proc, tid, sem?)?;
                Ok(if sleeps { At::Blocked } else { At::Woken })
            }
            At::Woken => {
                let woken = self.world.remove_set(proc, tid, sem?)?;
                self.removed_under(woken, sem?);
                thread.last_cycle = thread.made;
                Ok(self.next_cycle(thread))
            }
            At::Forked => Ok(At::End),
            At::Blocked | At::End => Ok(thread.at),
        }
    }

    /// The kernel sends the uevent, or it gets lost.
    pub(super) fn complete_cookie(&mut self, thread: &Thread, detail: u32) {
        let lost = detail % 13 == 12;
        if let (Some((sem, key)), false) = (thread.cookie, lost) {
            // Host udev completes in its own namespace; some containers have their own.
            let ns = if detail.is_multiple_of(5) {
                IpcNs::HOST
            } else {
                sem.ns
            };
            self.jobs.push(Job { ns, key });
        }
    }

    pub(super) fn run_udev(&mut self, detail: u32) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.remove(detail as usize % self.jobs.len());
        let proc = self
            .world
            .spawn("dmsetup", &["dmsetup", "udevcomplete", "1"], None, job.ns);
        let tid = self.world.procs[proc].id.tgid;
        match self.world.find_set(job.ns, job.key) {
            Some(sem) => {
                if let Ok(woken) = self.world.semop_add(proc, tid, sem, -1) {
                    self.wake_waiters(woken, sem);
                }
            }
            None => self.world.lookup_failed(proc, tid, job.key),
        }
        self.world.exit(proc, ExitStatus::Code(0));
    }

    /// Waiters whose value has become zero.
    pub(super) fn wake_waiters(&mut self, woken: Vec<usize>, sem: SemId) {
        for index in woken {
            let thread = self.threads[index];
            self.world.end_wait(thread.proc, thread.tid, sem, 0);
            self.threads[index].at = At::Woken;
        }
    }

    /// Waiters whose set was removed.
    pub(super) fn removed_under(&mut self, woken: Vec<usize>, sem: SemId) {
        for index in woken {
            self.accidents.push(sem);
            let mut thread = self.threads[index];
            self.world
                .end_wait(thread.proc, thread.tid, sem, libc::EIDRM);
            thread.at = self.next_cycle(&mut thread);
            self.threads[index] = thread;
            if thread.at == At::End {
                self.threads[index].at = At::Woken;
            }
        }
    }

    pub(super) fn run_shell(&mut self, detail: u32) {
        let alive: Vec<usize> = (0..self.shells.len())
            .filter(|&index| {
                let shell = &self.shells[index];
                self.world.procs[shell.proc].alive
                    && shell
                        .child
                        .is_none_or(|child| !self.is_alive(&self.threads[child]))
            })
            .collect();
        let Some(&index) = alive.get(detail as usize % alive.len().max(1)) else {
            return;
        };
        let mut shell = self.shells[index];
        if let Some(child) = shell.child.take()
            && shell.stage == 1
            && shell.cookie.is_none()
        {
            let child = &self.threads[child];
            if child.at != At::End || child.cookie.is_none() {
                // Killed before it could print the cookie: `set -e`.
                shell.stage = 2;
                self.shells[index] = shell;
                self.world.exit(shell.proc, ExitStatus::Code(1));
                return;
            }
            shell.cookie = child.cookie;
        }
        let ns = self.world.procs[shell.proc].ns;
        let parent = Some(shell.proc);
        let habit = match (shell.stage, shell.adds) {
            (0, _) => Habit::Create,
            (1, 0) => Habit::Release,
            (1, _) => Habit::Add,
            _ => {
                shell.cookie = None;
                self.shells[index] = shell;
                self.world.exit(shell.proc, ExitStatus::Code(0));
                return;
            }
        };
        let command = match habit {
            Habit::Create => "udevcreatecookie",
            Habit::Add => "--udevcookie",
            _ => "udevreleasecookie",
        };
        let proc = self
            .world
            .spawn("dmsetup", &["dmsetup", command, "x"], parent, ns);
        if habit != Habit::Create {
            self.world.procs[proc].carries = shell.cookie.map(|(_, key)| key);
        }
        let child = self.add_thread(proc, 0, habit, 1, 1);
        self.threads[child].cookie = if habit == Habit::Create {
            None
        } else {
            shell.cookie
        };
        shell.child = Some(child);
        match habit {
            Habit::Create => shell.stage = 1,
            Habit::Add => shell.adds -= 1,
            _ => shell.stage = 2,
        }
        self.shells[index] = shell;
    }
}
