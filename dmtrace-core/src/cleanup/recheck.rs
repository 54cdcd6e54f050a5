//! Whether a cookie is still what it was when the plan was made.

use std::fmt;

use serde::Serialize;

use super::plan::{Action, Identity, PlanEntry};
use crate::facts::{HostFacts, SetSnapshot};

/// A cookie is no longer what it was when the plan was made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{what} was {was}, is {is}")]
pub struct Moved {
    /// In what it differs.
    pub what: What,
    /// Then.
    pub was: String,
    /// Now.
    pub is: String,
}

/// In what a cookie may differ from the plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The semid.
    Semid,
    /// The key.
    Key,
    /// The time of creation.
    Ctime,
    /// The time of the last operation.
    Otime,
    /// The number of semaphores.
    Nsems,
    /// The permission bits.
    Mode,
    /// Owner or creator.
    Owner,
    /// The value.
    Value,
    /// The last operator.
    Operator,
    /// The number of waiting threads.
    Waiters,
    /// Whether its semaphore can be read.
    Readable,
    /// The processes that carry it.
    Carriers,
    /// The processes that used it.
    Users,
    /// The suspended devices.
    Suspended,
    /// The process list.
    Processes,
    /// The action in the plan.
    Action,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Semid => "semid",
            Self::Key => "key",
            Self::Ctime => "time of creation",
            Self::Otime => "time of the last operation",
            Self::Nsems => "number of semaphores",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Value => "value",
            Self::Operator => "last operator",
            Self::Waiters => "number of waiters",
            Self::Readable => "state",
            Self::Carriers => "carriers",
            Self::Users => "users",
            Self::Suspended => "suspended devices",
            Self::Processes => "process list",
            Self::Action => "action",
        })
    }
}

/// Compares a cookie right before its removal with the plan: every field of its identity, its
/// waiters, its carriers, the processes that used it.
///
/// # Errors
/// The first difference.
pub fn recheck(entry: &PlanEntry, set: &SetSnapshot, facts: &HostFacts) -> Result<(), Moved> {
    if !entry.action.acts() {
        return Err(moved(What::Action, "keep", "act"));
    }
    let was = &entry.identity;
    let is = Identity::from(set);
    same(What::Semid, entry.sem.semid, set.semid)?;
    same(What::Key, was.key, is.key)?;
    same(What::Ctime, was.ctime.0, is.ctime.0)?;
    same(What::Otime, was.otime.0, is.otime.0)?;
    same(What::Nsems, was.nsems, is.nsems)?;
    same(What::Mode, was.mode, is.mode)?;
    for (was, is) in [
        (was.uid, is.uid),
        (was.gid, is.gid),
        (was.cuid, is.cuid),
        (was.cgid, is.cgid),
    ] {
        same(What::Owner, was, is)?;
    }
    let (Some(was), Some(is)) = (was.state, is.state) else {
        return Err(moved(What::Readable, "readable", "unreadable"));
    };
    same(What::Value, was.value, is.value)?;
    same(What::Operator, was.pid, is.pid)?;
    same(What::Waiters, was.zcnt, is.zcnt)?;
    same(What::Waiters, was.ncnt, is.ncnt)?;
    if matches!(entry.action, Action::Complete(_)) {
        return Ok(());
    }
    same(What::Waiters, 0, is.zcnt)?;
    same(What::Waiters, 0, is.ncnt)?;
    let waiting = facts.waiters.get(&entry.sem).map_or(0, Vec::len);
    same(What::Waiters, 0, waiting)?;
    if let Some(name) = entry.touched.suspended(&facts.dm).next() {
        return Err(moved(What::Suspended, "none", name));
    }
    if !facts.processes_complete || !facts.carriers_complete {
        return Err(moved(What::Processes, "complete", "incomplete"));
    }
    let carriers = facts.carriers.get(&entry.identity.key);
    let reaches = |pid: &&u32| {
        let process = facts.processes.get(pid);
        process
            .and_then(|process| process.ipc_ns)
            .is_none_or(|ns| ns == entry.sem.ns)
    };
    if let Some(pid) = carriers.into_iter().flatten().find(reaches) {
        return Err(moved(What::Carriers, "none", &format!("process {pid}")));
    }
    if let Some(id) = entry.gone.iter().find(|id| facts.is_alive(**id)) {
        return Err(moved(
            What::Users,
            "gone",
            &format!("process {} alive", id.tgid),
        ));
    }
    Ok(())
}

fn same<T: Copy + PartialEq + fmt::Display>(what: What, was: T, is: T) -> Result<(), Moved> {
    if was == is {
        Ok(())
    } else {
        Err(moved(what, &was.to_string(), &is.to_string()))
    }
}

fn moved(what: What, was: &str, is: &str) -> Moved {
    Moved {
        what,
        was: was.to_owned(),
        is: is.to_owned(),
    }
}
