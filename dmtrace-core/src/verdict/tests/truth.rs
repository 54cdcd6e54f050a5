//! What is true of a set, for those who see everything.

use super::play::{At, Habit, Play, Thread};
use crate::ids::{Key, SemId};

impl Play {
    /// Whether somebody alive will still use or remove the set.
    pub(super) fn is_needed(&self, sem: SemId) -> bool {
        let by_thread = self.threads.iter().any(|thread| {
            self.is_alive(thread)
                && thread.at != At::End
                && thread.cookie.is_some_and(|(cookie, _)| cookie == sem)
                && (thread.habit != Habit::Create || self.shell_of(thread))
        });
        let by_shell = self.shells.iter().any(|shell| {
            self.world.procs[shell.proc].alive
                && shell.stage < 2
                && (shell.cookie.is_some_and(|(cookie, _)| cookie == sem)
                    || shell.child.is_some_and(|child| {
                        let child = &self.threads[child];
                        (child.at == At::End || self.is_alive(child))
                            && child.cookie.is_some_and(|(cookie, _)| cookie == sem)
                    }))
        });
        by_thread || by_shell
    }

    pub(super) fn shell_of(&self, thread: &Thread) -> bool {
        self.shells.iter().any(|shell| {
            self.world.procs[shell.proc].alive
                && shell
                    .child
                    .is_some_and(|child| self.threads[child].tid == thread.tid)
        })
    }

    /// Whether nobody who ever used the set is alive, the script included.
    pub(super) fn is_deserted(&self, sem: SemId) -> bool {
        let touches = |cookie: Option<(SemId, Key)>| cookie.is_some_and(|(own, _)| own == sem);
        let users = self
            .threads
            .iter()
            .any(|thread| touches(thread.cookie) && self.is_alive(thread));
        let scripts = self.shells.iter().any(|shell| {
            let child = shell.child.and_then(|child| self.threads[child].cookie);
            self.world.procs[shell.proc].alive && (touches(shell.cookie) || touches(child))
        });
        let leaver = self
            .left
            .get(&sem)
            .is_some_and(|&(_, thread)| self.is_alive(&self.threads[thread]));
        !users && !scripts && !leaver
    }

    /// Whether a living thread has left the set and completed a later one since.
    pub(super) fn left_behind(&self, sem: SemId) -> bool {
        self.left.get(&sem).is_some_and(|&(at, thread)| {
            let thread = &self.threads[thread];
            self.is_alive(thread) && thread.last_cycle > at
        })
    }
}
