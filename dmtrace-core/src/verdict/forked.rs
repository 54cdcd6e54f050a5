//! Processes that may have got a cookie by `fork`. A child that calls `execve` has another name or
//! command line, and shows the cookie in its environment or command line if it has it; one that does
//! not has those of its parent, and shows nothing until it uses the cookie.

use serde::{Deserialize, Serialize};

use super::{Subject, life};
use crate::{
    event::CommandPrint,
    facts::{HostFacts, LiveProcess},
    ids::{BootTime, IpcNs, ProcId},
    ledger::User,
};

/// A user of a cookie that has ended, and may have left it to a child.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PossibleParent {
    /// Its name, and that of a child that has not called `execve`; empty if it is not known.
    pub name: String,
    /// Its command line, likewise; `None` if it is not known.
    #[serde(default)]
    pub command: Option<CommandPrint>,
    /// When it started. A child may be older than the cookie and have it all the same: memory can be
    /// shared (`CLONE_VM`), and a pipe leads from the one to the other.
    pub since: BootTime,
    /// When it ended; when it was looked for, if that is not known.
    pub ended: BootTime,
}

impl PossibleParent {
    /// All users of a cookie that are not alive.
    pub(crate) fn of_cookie(subject: &Subject<'_>, facts: &HostFacts) -> Vec<Self> {
        let semaphore = subject.semaphore;
        let listed = life::listed_until(subject.taken, facts);
        let users = semaphore.cookie.iter().flat_map(|cookie| &cookie.users);
        let gone = |user: &&User| life::user_life(user, facts, listed) != life::ProcessState::Alive;
        users
            .filter(gone)
            .map(|user| Self {
                name: user.who.name.to_string(),
                command: subject
                    .ledger
                    .process(user.who.image)
                    .and_then(|process| process.image.as_deref()?.command_print()),
                since: user.who.image.id.start,
                ended: user.exit.map_or(facts.now, |exit| exit.at),
            })
            .collect()
    }

    fn may_have_forked(&self, process: &LiveProcess) -> bool {
        let ticks = |at: BootTime| ProcId { tgid: 0, start: at }.start_ticks();
        let same_command =
            self.command.is_none() || process.command.is_none() || self.command == process.command;
        (ticks(self.since)..=ticks(self.ended)).contains(&process.start_ticks)
            && (self.name.is_empty() || self.name == process.comm)
            && same_command
    }
}

/// Living processes that one of these may have forked, and that can reach the namespace.
pub(crate) fn possible_forks<'a>(
    parents: &'a [PossibleParent],
    ns: IpcNs,
    facts: &'a HostFacts,
) -> impl Iterator<Item = (u32, &'a str)> {
    // Most cookies have no such user, and a host has many processes.
    let processes = (!parents.is_empty()).then_some(&facts.processes);
    processes
        .into_iter()
        .flatten()
        .filter(move |(_, process)| {
            !process.ending
                && process.ipc_ns.is_none_or(|own| own == ns)
                && parents.iter().any(|parent| parent.may_have_forked(process))
        })
        .map(|(&pid, process)| (pid, process.comm.as_str()))
}
