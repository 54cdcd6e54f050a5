//! The system calls of the small kernel, and what the kernel side notes of them.

use dmtrace_common::{
    ProcKey, SEM_ANNOUNCED, SEM_COOKIE, SEM_OPS_DROPPED, SEM_PREEXISTING, SEM_TOMBSTONE, SemRecord,
};

use super::world::{Outcome, World};
use crate::{
    event::{EventKind, Operation, Quality},
    ids::{Key, SemId},
};

impl World {
    pub(super) fn setval(&mut self, proc: usize, tid: u32, sem: SemId) -> Outcome {
        self.advance_clock(1000);
        let now = self.now;
        let wall = self.wall();
        let pid = self.procs[proc].id.tgid;
        let set = self.sems.get_mut(&sem).ok_or(libc::EINVAL)?;
        set.value = 1;
        set.pid = pid;
        set.ctime = wall;
        set.touched = now;
        let key = set.key;
        let actor = self.proc_key(proc);
        self.with_record(sem, |record| {
            record.value = 1;
            record.last_actor = actor;
            record.setvals += 1;
        });
        let what = EventKind::SetVal {
            sem,
            key,
            value: 1,
            errno: 0,
        };
        self.report_operation(proc, tid, sem, what);
        Ok(())
    }

    pub(super) fn proc_key(&self, proc: usize) -> ProcKey {
        let id = self.procs[proc].id;
        ProcKey {
            start: id.start.0,
            tgid: id.tgid,
            exec: 0,
        }
    }

    pub(super) fn with_record(&mut self, sem: SemId, change: impl FnOnce(&mut SemRecord)) {
        if let Some(record) = self.records.get_mut(&sem)
            && self.traced
        {
            change(record);
        }
    }

    /// A message on an operation; the map remembers if it was lost.
    pub(super) fn report_operation(&mut self, proc: usize, tid: u32, sem: SemId, what: EventKind) {
        if !self.traced || !self.records.contains_key(&sem) {
            return;
        }
        self.intern_image(proc);
        if !self.send_message(proc, tid, what, Quality::default()) {
            self.with_record(sem, |record| record.state |= SEM_OPS_DROPPED);
        }
    }

    /// `semop {0, delta, IPC_NOWAIT}`. Returns the threads that it wakes.
    pub(super) fn semop_add(
        &mut self,
        proc: usize,
        tid: u32,
        sem: SemId,
        delta: i16,
    ) -> Result<Vec<usize>, i32> {
        self.advance_clock(1000);
        let (now, wall) = (self.now, self.wall());
        let actor = self.proc_key(proc);
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
                record.failed_decrements += 1;
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
        let what = EventKind::Op {
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
        self.report_operation(proc, tid, sem, what);
        if fits { Ok(woken) } else { Err(libc::EAGAIN) }
    }

    /// `semop {0,0,0}` begins. Returns whether the thread sleeps.
    pub(super) fn begin_wait(
        &mut self,
        thread: usize,
        proc: usize,
        tid: u32,
        sem: SemId,
    ) -> Result<bool, i32> {
        self.advance_clock(1000);
        let now = self.now;
        let set = self.sems.get_mut(&sem).ok_or(libc::EINVAL)?;
        let key = set.key;
        let sleeps = set.value != 0;
        set.touched = now;
        if sleeps {
            set.waiters.push(thread);
        }
        let actor = self.proc_key(proc);
        self.with_record(sem, |record| {
            record.waits += 1;
            record.waiter = actor;
            record.wait_since = now;
        });
        let what = EventKind::WaitBegin {
            sem,
            key,
            ops: vec![WAIT],
        };
        self.report_operation(proc, tid, sem, what);
        if !sleeps {
            self.end_wait(proc, tid, sem, 0);
        }
        Ok(sleeps)
    }

    /// `semop {0,0,0}` returns.
    pub(super) fn end_wait(&mut self, proc: usize, tid: u32, sem: SemId, errno: i32) {
        self.advance_clock(1000);
        let (now, wall) = (self.now, self.wall());
        let actor = self.proc_key(proc);
        let Some(set) = self.sems.get_mut(&sem) else {
            // The map has forgotten the set: neither key nor record.
            if self.traced {
                let what = EventKind::Op {
                    sem,
                    key: Key(0),
                    ops: vec![WAIT],
                    errno,
                };
                let quality = Quality {
                    untracked: true,
                    ..Quality::default()
                };
                self.intern_image(proc);
                self.send_message(proc, tid, what, quality);
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
            // As the kernel side: the end of a wait has a time, whatever its result.
            record.last_op = now;
            if errno == 0 {
                record.last_actor = actor;
            } else {
                record.last_error = -errno;
            }
        });
        let what = EventKind::Op {
            sem,
            key,
            ops: vec![WAIT],
            errno,
        };
        self.report_operation(proc, tid, sem, what);
    }

    /// `semctl(IPC_RMID)`. Returns the threads that get EIDRM.
    pub(super) fn remove_set(
        &mut self,
        proc: usize,
        tid: u32,
        sem: SemId,
    ) -> Result<Vec<usize>, i32> {
        self.advance_clock(1000);
        let set = self.sems.remove(&sem).ok_or(libc::EINVAL)?;
        if !self.traced {
            return Ok(set.waiters);
        }
        self.intern_image(proc);
        self.advance_clock(1000);
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
        let sent = self.send_message(proc, tid, EventKind::Destroyed { sem, key }, quality);
        let now = self.now;
        let closer = self.proc_key(proc);
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

    pub(super) fn lookup_failed(&mut self, proc: usize, tid: u32, key: Key) {
        self.advance_clock(1000);
        if !self.traced {
            return;
        }
        self.intern_image(proc);
        let what = EventKind::LookupFailed {
            ns: self.procs[proc].ns,
            key,
            errno: libc::ENOENT,
        };
        self.send_message(proc, tid, what, Quality::default());
    }

    /// What userspace enters into the map when the tracer starts.
    pub(super) fn seed_map(&mut self) {
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
}

const WAIT: Operation = Operation {
    num: 0,
    op: 0,
    flg: 0,
};
