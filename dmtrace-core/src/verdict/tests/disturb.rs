//! What disturbs the programs: signals, strangers, the administrator.

use super::play::{At, Habit, Play};
use crate::{
    event::ExitStatus,
    ids::{Key, SemId},
};

impl Play {
    pub(super) fn kill_process(&mut self, detail: u32) {
        let alive: Vec<usize> = (0..self.world.procs.len())
            .filter(|&index| self.world.procs[index].alive)
            .collect();
        let Some(&proc) = alive.get(detail as usize % alive.len().max(1)) else {
            return;
        };
        for index in 0..self.threads.len() {
            let thread = self.threads[index];
            if thread.proc == proc && thread.at == At::Blocked {
                self.stop_waiting(index);
                if let Some((sem, _)) = thread.cookie {
                    self.world.end_wait(proc, thread.tid, sem, libc::EINTR);
                }
            }
        }
        self.world.exit(proc, ExitStatus::Signal(9));
    }

    pub(super) fn stop_waiting(&mut self, index: usize) {
        for set in self.world.sems.values_mut() {
            set.waiters.retain(|&waiter| waiter != index);
        }
    }

    /// A signal handler, or SIGSTOP and much later SIGCONT.
    pub(super) fn interrupt_thread(&mut self, detail: u32) {
        let blocked: Vec<usize> = (0..self.threads.len())
            .filter(|&index| {
                self.threads[index].at == At::Blocked && self.is_alive(&self.threads[index])
            })
            .collect();
        let Some(&index) = blocked.get(detail as usize % blocked.len().max(1)) else {
            return;
        };
        let mut thread = self.threads[index];
        let Some((sem, _)) = thread.cookie else {
            return;
        };
        self.stop_waiting(index);
        self.world
            .end_wait(thread.proc, thread.tid, sem, libc::EINTR);
        if thread.habit == Habit::Eintr {
            self.left.insert(sem, (self.world.now, index));
            thread.at = self.next_cycle(&mut thread);
            if thread.at == At::End {
                // Goes on with other things.
                thread.at = At::Start;
                thread.cycles = 1;
            }
        } else {
            thread.at = At::Enter;
        }
        self.threads[index] = thread;
    }

    /// Programs that have nothing to do with cookies.
    pub(super) fn make_noise(&mut self, detail: u32) {
        if detail.is_multiple_of(3) && !self.noise.is_empty() {
            let (proc, sem) = self.noise.remove(detail as usize % self.noise.len());
            let alive = self.world.procs[proc].alive;
            let proc = if alive {
                proc
            } else {
                self.world.spawn("ipcrm", &["ipcrm"], None, sem.ns)
            };
            let removed = self.world.remove_set(proc, 1, sem);
            assert!(removed.is_ok());
            return;
        }
        let proc = self
            .world
            .spawn("postgres", &["postgres"], None, Self::ns(detail));
        if detail % 11 == 10 {
            self.world.create_fails(proc, 1, Key(7));
        } else {
            let sem = self.world.create_set(proc, 1, Key(detail % 5));
            self.noise.push((proc, sem));
        }
        if detail.is_multiple_of(2) {
            self.world.exit(proc, ExitStatus::Code(0));
        }
    }

    /// `dmsetup udevcomplete_all`.
    pub(super) fn complete_all(&mut self, detail: u32) {
        let ns = Self::ns(detail);
        let proc = self
            .world
            .spawn("dmsetup", &["dmsetup", "udevcomplete_all"], None, ns);
        let all: Vec<SemId> = self
            .world
            .sems
            .iter()
            .filter(|(sem, set)| sem.ns == ns && set.key.has_cookie_magic())
            .map(|(&sem, _)| sem)
            .collect();
        for sem in all {
            if let Ok(woken) = self.world.remove_set(proc, 1, sem) {
                self.removed_under(woken, sem);
            }
        }
        self.world.exit(proc, ExitStatus::Code(0));
    }

    /// `dmsetup udevcomplete` of somebody's cookie.
    pub(super) fn complete_foreign(&mut self, detail: u32) {
        let all: Vec<SemId> = self
            .world
            .sems
            .iter()
            .filter(|(_, set)| set.key.has_cookie_magic())
            .map(|(&sem, _)| sem)
            .collect();
        let Some(&sem) = all.get(detail as usize % all.len().max(1)) else {
            return;
        };
        let proc = self
            .world
            .spawn("dmsetup", &["dmsetup", "udevcomplete", "1"], None, sem.ns);
        if let Ok(woken) = self.world.semop_add(proc, 1, sem, -1) {
            self.wake_waiters(woken, sem);
        }
        self.world.exit(proc, ExitStatus::Code(0));
    }
}
