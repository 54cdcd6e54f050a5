//! Whether nobody can need a cookie any more that no trace saw being made.
//!
//! Two searches, some time apart, and the state of the kernel at three moments. Every rule must hold;
//! each that does not is named, with what would lift it.

mod marks;
mod obstacle;
mod text;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

pub use marks::Marks;
pub use obstacle::{Holder, OrphanObstacle, TouchedField};

use super::{HolderClass, HolderProcess, Search};
use crate::{
    facts::{HostFacts, SemState, SetSnapshot, Snapshot},
    ids::{BootTime, Key, SemId, UnixTime},
};

/// Times that must have passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct OrphanRules {
    /// Between the end of the first search and the beginning of the second.
    pub between: Duration,
    /// Since the last touch of one whose owner had begun its wait.
    pub waited_for: Duration,
    /// Since the last touch of any other: a script may be between two commands, a program may have the
    /// number in a register.
    pub pending: Duration,
    /// A second search that ended longer ago proves nothing.
    pub fresh: Duration,
}

impl Default for OrphanRules {
    fn default() -> Self {
        const FRESH: Duration = Duration::from_secs(300);
        // A storm without a trace lasts minutes, and leaks all the time.
        if cfg!(feature = "short-ages") {
            return Self {
                between: Duration::from_secs(1),
                waited_for: Duration::from_secs(2),
                pending: Duration::from_secs(4),
                fresh: FRESH,
            };
        }
        Self {
            between: Duration::from_secs(30),
            waited_for: Duration::from_secs(60),
            pending: Duration::from_secs(600),
            fresh: FRESH,
        }
    }
}

/// A search with the state of the kernel that it was made in.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The search.
    pub search: Search,
    /// Cookies as they were right before it, in the order of their ids. As pairs, for JSON.
    pub sets: Vec<(SemId, SetSnapshot)>,
    /// Whether udev had nothing to do, before and after.
    pub udev_idle: bool,
    /// Devices that were suspended.
    pub suspended: Vec<String>,
}

impl Mark {
    /// From a search, the snapshot before it, and what the host said before and after it.
    pub fn new(search: Search, before: &Snapshot, facts: [&HostFacts; 2]) -> Self {
        let cookies = before.sets().filter(|(_, set)| set.key.has_cookie_magic());
        let mut sets: Vec<_> = cookies.map(|(sem, set)| (sem, set.clone())).collect();
        sets.sort_by_key(|it| it.0);
        let mut suspended: Vec<String> = facts
            .iter()
            .flat_map(|facts| &facts.dm.suspended)
            .map(|device| device.name.clone())
            .collect();
        suspended.sort();
        suspended.dedup();
        Self {
            search,
            sets,
            udev_idle: facts.iter().all(|facts| !facts.udev.queue_busy),
            suspended,
        }
    }

    fn set(&self, sem: SemId) -> Option<&SetSnapshot> {
        let place = self.sets.binary_search_by_key(&sem, |it| it.0).ok()?;
        self.sets.get(place).map(|it| &it.1)
    }
}

/// How far its owner had come.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanStage {
    /// Value 0 after an operation: its owner had begun to wait, or udev had completed everything.
    WaitedFor,
    /// Value 1 or more: operations that nobody completes, or a cookie that was never used.
    Pending,
    /// Value 0 and never operated on: its maker ended right after it was made.
    Unused,
}

impl OrphanStage {
    /// By what the kernel has of it.
    pub const fn of(set: &SetSnapshot, state: SemState) -> Self {
        match (state.value, set.otime.0) {
            (0, 1..) => Self::WaitedFor,
            (0, _) => Self::Unused,
            _ => Self::Pending,
        }
    }
}

/// What one of the two searches was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct MarkSummary {
    /// When it began.
    pub began: BootTime,
    /// When it ended.
    pub ended: BootTime,
    /// How often the list of processes was gone through.
    pub rounds: u32,
    /// Processes that were searched.
    pub searched: u64,
    /// Memory that was read.
    pub bytes: u64,
}

impl From<&Search> for MarkSummary {
    fn from(search: &Search) -> Self {
        Self {
            began: search.began,
            ended: search.ended,
            rounds: search.rounds,
            searched: search.searched,
            bytes: search.bytes,
        }
    }
}

/// No process holds the number, by all rules.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct OrphanProof {
    /// The set.
    pub sem: SemId,
    /// The cookie.
    pub key: Key,
    /// How far its owner had come.
    pub stage: OrphanStage,
    /// Its state, the same at both searches and now.
    pub set: SetSnapshot,
    /// The last touch was no later than this.
    pub touched: BootTime,
    /// Both searches.
    pub marks: [MarkSummary; 2],
    /// Processes that have the number and mean nothing by it.
    pub mentions: Vec<HolderProcess>,
}

/// Judges a set by one search or two, by its state now (`set`, `None` if it is gone), and by what the
/// host says now.
///
/// # Errors
/// The rules that do not hold.
pub fn judge(
    sem: SemId,
    [first, second]: [Option<&Mark>; 2],
    set: Option<&SetSnapshot>,
    facts: &HostFacts,
    rules: &OrphanRules,
) -> Result<OrphanProof, Vec<OrphanObstacle>> {
    let Some(set) = set else {
        return Err(vec![OrphanObstacle::Gone]);
    };
    if !set.looks_like_cookie() {
        return Err(vec![OrphanObstacle::NotACookieForm]);
    }
    let Some(state) = set.first else {
        return Err(vec![OrphanObstacle::Unreadable]);
    };
    let mut obstacles = Vec::new();
    let count = state.ncnt.saturating_add(state.zcnt);
    if count > 0 {
        obstacles.push(OrphanObstacle::WaitedOn { count });
    }
    for mark in [first, second].into_iter().flatten() {
        judge_mark(mark, sem, set, &mut obstacles);
    }
    judge_times(first, second, facts.now, rules, &mut obstacles);
    if !facts.processes_complete {
        let unsaid = || "the list of processes is not complete".to_owned();
        let why = facts.incomplete.first().cloned().unwrap_or_else(unsaid);
        obstacles.push(OrphanObstacle::Hidden { why });
    }
    // Unchanged since the first search, it was touched before that, whatever the clock says.
    let stamp = facts.locate_last_touch(set).latest;
    let unchanged = first
        .filter(|mark| difference(mark.set(sem), set).is_none())
        .map(|mark| mark.search.began);
    let touched = unchanged.map_or(stamp, |began| began.min(stamp));
    obstacles.extend(host_obstacles(state.pid, touched, facts));
    let stage = OrphanStage::of(set, state);
    let needed = match stage {
        OrphanStage::WaitedFor => rules.waited_for,
        OrphanStage::Unused | OrphanStage::Pending => rules.pending,
    };
    if facts.now.duration_since(touched) < needed {
        let needed = u64::try_from(needed.as_nanos()).unwrap_or(u64::MAX);
        let ready_at = BootTime(touched.0.saturating_add(needed));
        obstacles.push(OrphanObstacle::TooYoung { ready_at });
    }
    if stage == OrphanStage::Pending {
        judge_files([first, second], set, facts, &mut obstacles);
    }
    let mut distinct: Vec<OrphanObstacle> = Vec::new();
    for obstacle in obstacles {
        if !distinct.contains(&obstacle) {
            distinct.push(obstacle);
        }
    }
    match (first, second) {
        (Some(first), Some(second)) if distinct.is_empty() => Ok(OrphanProof {
            sem,
            key: set.key,
            stage,
            set: set.clone(),
            touched,
            marks: [&first.search, &second.search].map(MarkSummary::from),
            mentions: mentions([first, second], set.key),
        }),
        _ => Err(distinct),
    }
}

/// What the host says now against an orphan, at its judgement and again right before its removal.
/// `operator`: its last one, at `touched` or before.
fn host_obstacles(operator: u32, touched: BootTime, facts: &HostFacts) -> Vec<OrphanObstacle> {
    let devices = facts.dm.suspended.iter().map(|device| &device.name);
    let mut obstacles: Vec<OrphanObstacle> = devices
        .cloned()
        .map(|name| OrphanObstacle::DeviceSuspended { name })
        .collect();
    if facts.udev.queue_busy {
        obstacles.push(OrphanObstacle::UdevBusy);
    }
    if let Some(live) = facts.processes.get(&operator)
        && live.may_have_acted_by(touched)
    {
        obstacles.push(OrphanObstacle::OperatorAlive {
            pid: operator,
            comm: live.comm.clone(),
        });
    }
    obstacles
}

impl OrphanProof {
    /// Whether what does not show in the set's own fields still holds: the second search is fresh, and
    /// nobody is in the middle of something.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn recheck_host(
        &self,
        facts: &HostFacts,
        rules: &OrphanRules,
    ) -> Result<(), OrphanObstacle> {
        let ended = self.marks[1].ended;
        // A search of the future is none.
        if facts.now < ended || is_old(ended, facts.now, rules) {
            return Err(OrphanObstacle::SecondMarkOld { ended });
        }
        let operator = self.set.first.map_or(0, |state| state.pid);
        let obstacles = host_obstacles(operator, self.touched, facts);
        obstacles.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Whether a second search proves nothing any more.
fn is_old(ended: BootTime, now: BootTime, rules: &OrphanRules) -> bool {
    now.duration_since(ended) > rules.fresh
}

/// All that one search must be and must have found.
fn judge_mark(mark: &Mark, sem: SemId, set: &SetSnapshot, obstacles: &mut Vec<OrphanObstacle>) {
    let search = &mark.search;
    if !search.needles.contains(&set.key) {
        obstacles.push(OrphanObstacle::NotLookedFor);
    }
    if !search.coverage.descriptors {
        obstacles.push(OrphanObstacle::NotCovered);
    }
    if search.cancelled {
        obstacles.push(OrphanObstacle::Cancelled);
    } else if !search.stable {
        let rounds = search.rounds;
        obstacles.push(OrphanObstacle::Unstable { rounds });
    }
    if let Some(why) = search.hidden.clone() {
        obstacles.push(OrphanObstacle::Hidden { why });
    }
    let missed = search.not_searched.iter().filter(|it| it.matters());
    obstacles.extend(missed.map(|it| OrphanObstacle::NotSearched {
        pid: it.pid,
        comm: it.comm.clone(),
        reason: it.reason.clone(),
    }));
    obstacles.extend(search.holders(set.key).map(|(process, spots)| {
        let holder = Box::new(Holder {
            process: process.clone(),
            spots: spots.to_vec(),
        });
        OrphanObstacle::HeldBy { holder }
    }));
    if let Some(field) = difference(mark.set(sem), set) {
        obstacles.push(OrphanObstacle::Touched { field });
    }
    if !mark.udev_idle {
        obstacles.push(OrphanObstacle::UdevBusy);
    }
    for name in mark.suspended.iter().cloned() {
        obstacles.push(OrphanObstacle::DeviceSuspended { name });
    }
}

fn judge_times(
    first: Option<&Mark>,
    second: Option<&Mark>,
    now: BootTime,
    rules: &OrphanRules,
    obstacles: &mut Vec<OrphanObstacle>,
) {
    let after = |at: BootTime, time: Duration| {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        BootTime(at.0.saturating_add(nanos))
    };
    let due = first.map_or(now, |mark| after(mark.search.ended, rules.between));
    match second.filter(|mark| first.is_some() && mark.search.began >= due) {
        None => obstacles.push(OrphanObstacle::SecondMarkDue { at: due }),
        Some(mark) => {
            let ended = mark.search.ended;
            if is_old(ended, now, rules) {
                obstacles.push(OrphanObstacle::SecondMarkOld { ended });
            }
        }
    }
}

/// Files that were modified then or later may have the number of a cookie that was made at `made`. The
/// clock may have been set back since: files stamped before the cookie are then younger than it.
pub fn files_since(made: UnixTime, facts: &HostFacts) -> UnixTime {
    // A file may have been written in the second in which the cookie was made.
    let least = facts.least_wall_since(made);
    least.map_or(UnixTime(0), |least| UnixTime(least.0.saturating_sub(1)))
}

/// A number on disk only: the last search that looked at files decides.
fn judge_files(
    marks: [Option<&Mark>; 2],
    set: &SetSnapshot,
    facts: &HostFacts,
    obstacles: &mut Vec<OrphanObstacle>,
) {
    let since = files_since(set.ctime, facts);
    let covered = |mark: &&Mark| {
        let from = mark.search.coverage.files_since;
        from.is_some_and(|from| from <= since)
    };
    let Some(mark) = marks.into_iter().flatten().rfind(covered) else {
        let mut last_first = marks.into_iter().flatten().rev();
        let why = last_first.find_map(|mark| mark.search.coverage.files_failed.clone());
        obstacles.push(OrphanObstacle::FilesNotSearched { since, why });
        return;
    };
    let paths = mark.search.files.get(&set.key).into_iter().flatten();
    obstacles.extend(
        paths
            .cloned()
            .map(|path| OrphanObstacle::WrittenIn { path }),
    );
}

/// In what a set differs from what it was at a search.
fn difference(was: Option<&SetSnapshot>, is: &SetSnapshot) -> Option<TouchedField> {
    let Some(was) = was else {
        return Some(TouchedField::Set);
    };
    let form = |it: &SetSnapshot| (it.mode, it.nsems, it.uid, it.gid, it.cuid, it.cgid);
    let value = |it: &SetSnapshot| it.first.map(|state| state.value);
    let operator = |it: &SetSnapshot| it.first.map(|state| state.pid);
    let fields = [
        (
            (was.semid, was.key) != (is.semid, is.key),
            TouchedField::Set,
        ),
        (value(was) != value(is), TouchedField::Value),
        (operator(was) != operator(is), TouchedField::Operator),
        (was.otime != is.otime, TouchedField::Otime),
        (was.ctime != is.ctime, TouchedField::Ctime),
        (form(was) != form(is), TouchedField::Form),
    ];
    fields.iter().find(|it| it.0).map(|it| it.1)
}

fn mentions(marks: [&Mark; 2], key: Key) -> Vec<HolderProcess> {
    let mut known = BTreeMap::new();
    for (process, _) in marks.iter().flat_map(|mark| mark.search.mentions(key)) {
        if process.class != HolderClass::Powerless {
            known.insert(process.id, process.clone());
        }
    }
    known.into_values().collect()
}

#[cfg(test)]
mod tests;
