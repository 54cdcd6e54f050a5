//! Whether a cookie is still what it was when the plan was made.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::plan::{CookieIdentity, Plan, PlanEntry};
use crate::{
    duration::Span,
    facts::{HostFacts, SemState, SetSnapshot},
    search::orphan::{OrphanObstacle, OrphanProof, OrphanRules},
    verdict::{Completion, LossProof, Unfinished, Vouched, possible_forks},
    wall_clock::ClockOffset,
};

/// A cookie is no longer what it was when the plan was made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{what} was {was}, is {is}")]
pub struct IdentityMismatch {
    /// In what it differs.
    pub what: MismatchedField,
    /// Then.
    pub was: String,
    /// Now.
    pub is: String,
}

/// In what a cookie may differ from the plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MismatchedField {
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
    /// The processes that those which used it may have forked.
    Forks,
    /// The suspended devices.
    Suspended,
    /// The nodes that udev makes and removes.
    Nodes,
    /// Whether udevd runs, and has nothing to do.
    Udev,
    /// The completions in the plan.
    Completion,
    /// The process list.
    Processes,
    /// The search that found no holder.
    Search,
    /// The action in the plan.
    Action,
    /// The wall clock, in whose seconds the kernel stamps cookies.
    Clock,
}

impl fmt::Display for MismatchedField {
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
            Self::Forks => "possible forks of its users",
            Self::Suspended => "suspended devices",
            Self::Nodes => "nodes",
            Self::Udev => "udev",
            Self::Completion => "completion",
            Self::Processes => "process list",
            Self::Search => "search for holders",
            Self::Action => "action",
            Self::Clock => "wall clock",
        })
    }
}

/// Compares a cookie right before its removal or completion with the plan: every field of its
/// identity, its waiters, its carriers, the processes that used it, udev and its work.
///
/// # Errors
/// The first difference.
pub fn recheck_entry(
    entry: &PlanEntry,
    set: &SetSnapshot,
    facts: &HostFacts,
) -> Result<(), IdentityMismatch> {
    if !entry.action.changes_cookie() {
        return Err(new_mismatch(MismatchedField::Action, "keep", "act"));
    }
    let was = &entry.identity;
    let is = CookieIdentity::from(set);
    ensure_equal(MismatchedField::Semid, entry.sem.semid, set.semid)?;
    ensure_equal(MismatchedField::Key, was.key, is.key)?;
    ensure_equal(MismatchedField::Ctime, was.ctime.0, is.ctime.0)?;
    ensure_equal(MismatchedField::Otime, was.otime.0, is.otime.0)?;
    ensure_equal(MismatchedField::Nsems, was.nsems, is.nsems)?;
    ensure_equal(MismatchedField::Mode, was.mode, is.mode)?;
    for (was, is) in [
        (was.uid, is.uid),
        (was.gid, is.gid),
        (was.cuid, is.cuid),
        (was.cgid, is.cgid),
    ] {
        ensure_equal(MismatchedField::Owner, was, is)?;
    }
    let (Some(was), Some(is)) = (was.state, is.state) else {
        return Err(new_mismatch(
            MismatchedField::Readable,
            "readable",
            "unreadable",
        ));
    };
    ensure_equal(MismatchedField::Value, was.value, is.value)?;
    ensure_equal(MismatchedField::Operator, was.pid, is.pid)?;
    ensure_equal(MismatchedField::Waiters, was.zcnt, is.zcnt)?;
    ensure_equal(MismatchedField::Waiters, was.ncnt, is.ncnt)?;
    if let Some(completion) = entry.action.completion() {
        recheck_completion(entry, completion, was.value, facts)?;
    } else {
        recheck_removal(entry, is, facts)?;
    }
    if let Some(id) = entry.gone.iter().find(|id| facts.is_alive(**id)) {
        return Err(new_mismatch(
            MismatchedField::Users,
            "gone",
            &format!("process {} alive", id.tgid),
        ));
    }
    Ok(())
}

/// Whether stamps of the kernel still tell what has happened since the plan was made. A clock that was
/// set back stamps the same seconds once more.
///
/// # Errors
/// The clock was set back since.
pub fn recheck_clock(plan: &Plan, facts: &HostFacts) -> Result<(), IdentityMismatch> {
    // The plan has seconds: the least that its offset can have been.
    let was = ClockOffset::between(plan.made_boot, plan.made, 0);
    let is = ClockOffset::between(facts.now, facts.wall, facts.wall_nanos);
    let back = was.0.saturating_sub(is.0);
    if back <= MAX_READING_TIME {
        return Ok(());
    }
    let by = Span(Duration::from_nanos(back.unsigned_abs()));
    Err(new_mismatch(
        MismatchedField::Clock,
        "that of the plan",
        &format!("set back by {by}"),
    ))
}

/// The two clocks of a plan, or of facts, are read within this time, nanoseconds.
const MAX_READING_TIME: i64 = 100_000_000;

/// Nobody may need it.
fn recheck_removal(
    entry: &PlanEntry,
    is: SemState,
    facts: &HostFacts,
) -> Result<(), IdentityMismatch> {
    ensure_equal(MismatchedField::Waiters, 0, is.zcnt)?;
    ensure_equal(MismatchedField::Waiters, 0, is.ncnt)?;
    let waiting = facts.waiters.get(&entry.sem).map_or(0, Vec::len);
    ensure_equal(MismatchedField::Waiters, 0, waiting)?;
    if let Some(name) = entry.touched.suspended_names(&facts.dm).next() {
        return Err(new_mismatch(MismatchedField::Suspended, "none", name));
    }
    if !facts.processes_complete || !facts.carriers_complete {
        return Err(new_mismatch(
            MismatchedField::Processes,
            "complete",
            "incomplete",
        ));
    }
    if let Some(proof) = &entry.orphan {
        recheck_orphan(proof, facts)?;
    }
    let carriers = facts.carriers.get(&entry.identity.key);
    let reaches = |pid: &&u32| {
        let process = facts.processes.get(pid);
        process
            .and_then(|process| process.ipc_ns)
            .is_none_or(|ns| ns == entry.sem.ns)
    };
    if let Some(pid) = carriers.into_iter().flatten().find(reaches) {
        return Err(new_mismatch(
            MismatchedField::Carriers,
            "none",
            &format!("process {pid}"),
        ));
    }
    if let Some((pid, name)) = possible_forks(&entry.parents, entry.sem.ns, facts).next() {
        return Err(new_mismatch(
            MismatchedField::Forks,
            "none",
            &format!("process {pid} ({name})"),
        ));
    }
    Ok(())
}

/// What proves that nobody holds it must be fresh, and nobody in the middle of something.
fn recheck_orphan(proof: &OrphanProof, facts: &HostFacts) -> Result<(), IdentityMismatch> {
    let Err(why) = proof.recheck_host(facts, &OrphanRules::default()) else {
        return Ok(());
    };
    let (what, was, is) = match why {
        OrphanObstacle::SecondMarkOld { ended } => {
            let age = Span(facts.now.duration_since(ended));
            (MismatchedField::Search, "fresh", format!("{age} ago"))
        }
        OrphanObstacle::DeviceSuspended { name } => (MismatchedField::Suspended, "none", name),
        OrphanObstacle::UdevBusy => (
            MismatchedField::Udev,
            "idle",
            "processing events".to_owned(),
        ),
        OrphanObstacle::OperatorAlive { pid, .. } => (
            MismatchedField::Users,
            "gone",
            format!("process {pid} alive"),
        ),
        other => (MismatchedField::Search, "a proof", other.to_string()),
    };
    Err(new_mismatch(what, was, &is))
}

/// Its completions must still be lost, and udev's work done: a waiter that is let go too early
/// finds no node. Who else carries or uses it does not matter: nothing is taken from them.
fn recheck_completion(
    entry: &PlanEntry,
    completion: Completion,
    value: i32,
    facts: &HostFacts,
) -> Result<(), IdentityMismatch> {
    if !completion.fits_value(value) {
        return Err(new_mismatch(
            MismatchedField::Completion,
            &format!("{} of {}", completion.count, completion.value),
            &format!("1 to {value}"),
        ));
    }
    if completion.proof == LossProof::UdevGaveUp {
        let udev = &facts.udev;
        let is = match (udev.daemon, udev.queue_busy) {
            (None, _) => Some("not running"),
            (Some(_), true) => Some("processing events"),
            (Some(_), false) => None,
        };
        if let Some(is) = is {
            return Err(new_mismatch(MismatchedField::Udev, "idle", is));
        }
    }
    let (what, was, is) = match entry.touched.first_unfinished(&facts.dm) {
        None => return Ok(()),
        Some(Unfinished::Unknown) if completion.vouched == Vouched::Yes => return Ok(()),
        Some(Unfinished::Unknown) => (MismatchedField::Nodes, "known", "unknown".to_owned()),
        Some(Unfinished::Missing(name)) => (
            MismatchedField::Nodes,
            "there",
            format!("missing: /dev/mapper/{name}"),
        ),
        Some(Unfinished::Left(name)) => (
            MismatchedField::Nodes,
            "gone",
            format!("there: /dev/mapper/{name}"),
        ),
        Some(Unfinished::Suspended(name)) => (MismatchedField::Suspended, "none", name.to_owned()),
    };
    Err(new_mismatch(what, was, &is))
}

fn ensure_equal<T: Copy + PartialEq + fmt::Display>(
    what: MismatchedField,
    was: T,
    is: T,
) -> Result<(), IdentityMismatch> {
    if was == is {
        Ok(())
    } else {
        Err(new_mismatch(what, &was.to_string(), &is.to_string()))
    }
}

fn new_mismatch(what: MismatchedField, was: &str, is: &str) -> IdentityMismatch {
    IdentityMismatch {
        what,
        was: was.to_owned(),
        is: is.to_owned(),
    }
}
