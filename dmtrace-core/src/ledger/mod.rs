//! The life of every semaphore set and cookie, from events, map records and snapshots.
//!
//! Pure: no clock, no I/O. Whatever arrives, in whatever order, the books stay balanced:
//! `created + found == destroyed + vanished + live`.

mod activity;
mod actor;
mod adopt;
mod apply;
mod books;
mod change;
mod close;
mod cookie;
mod create;
mod departure;
mod device;
mod history;
mod ioctl;
mod late;
mod operate;
mod operator_bytes;
mod process;
mod reconcile;
mod records;
mod semaphore;
mod site;
#[cfg(test)]
mod tests;
mod timeline;

pub use activity::Activity;
pub use actor::{ActorRef, ImageId, Name, ProcessExit};
pub use books::BooksError;
pub use change::{Change, ChangeKind, EndKind};
pub use cookie::{
    Cookie, CookieCounts, FailedLookup, Gaps, MAX_COMPLETERS, MAX_DEVICES, MAX_LOOKUPS, MAX_USERS,
    MAX_WAITERS, Phase, User, UserStage, WaitEnd, WaitingThread,
};
pub use departure::{Departure, DepartureLimits, DepartureProof};
pub use device::{Device, DeviceName};
pub use history::Retention;
pub use process::{Cycle, Process, ProcessTally, ThreadTrail};
pub use reconcile::{Drift, DriftKind, Reconciliation};
pub use records::{MapRecord, in_order};
pub use semaphore::{Creator, Ending, Origin, Semaphore, WhyUnknown};
pub use site::SitePlacement;
pub use timeline::{CookieCall, DecrementMeaning, HEAD_STEPS, TAIL_STEPS, Timeline, TimelineStep};

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::Serialize;

use crate::{
    facts::HostFacts,
    ids::{BootTime, IpcNs, Key, ProcId, SemId},
};
use history::{ClosedCookies, RemovalMarks};
use process::Processes;

/// The books.
#[derive(Clone, Debug, BorshSerialize, BorshDeserialize)]
pub struct Ledger {
    /// Boxed: the map moves its values when others come and go.
    live: BTreeMap<SemId, Box<Semaphore>>,
    /// Live sets with the cookie magic.
    by_key: BTreeSet<(Key, SemId)>,
    history: ClosedCookies,
    /// For late events: who reads the books of another process gets none.
    #[borsh(skip)]
    marks: RemovalMarks,
    processes: Processes,
    totals: Totals,
    /// The first and the last creation or removal that an event has told.
    observed_span: Option<(BootTime, BootTime)>,
    /// Whether a snapshot was compared before: what the first one finds is no drift.
    reconciled: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::with_retention(Retention::default())
    }
}

/// Sets in sum. `created + found == destroyed + vanished + live`, always.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize,
)]
pub struct SetCount {
    /// Creation seen (or in the kernel map).
    pub created: u64,
    /// Entered without a creation: pre-existing, or its creation was missed.
    pub found: u64,
    /// Removal seen.
    pub destroyed: u64,
    /// Found missing; removal not seen.
    pub vanished: u64,
    /// There now.
    pub live: u64,
}

impl SetCount {
    /// Whether the identity holds.
    pub const fn is_balanced(&self) -> bool {
        self.created + self.found == self.destroyed + self.vanished + self.live
    }
}

/// Everything in sum.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize,
)]
pub struct Totals {
    /// All sets.
    pub sets: SetCount,
    /// Of these, with a cookie's key.
    pub cookies: SetCount,
    /// Creations that failed with ENOSPC.
    #[serde(rename = "starved")]
    pub enospc_failures: u64,
    /// Creations that failed otherwise.
    pub failed: u64,
    /// Lookups of a cookie that failed.
    pub lookups_failed: u64,
    /// Events that came too late to be placed (their set was gone and forgotten).
    pub late: u64,
}

impl Totals {
    fn update_both(&mut self, key: Key, change: impl Fn(&mut SetCount)) {
        change(&mut self.sets);
        if key.has_cookie_magic() {
            change(&mut self.cookies);
        }
    }
}

impl Ledger {
    /// Empty books.
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty books that remember so much of what is gone.
    pub fn with_retention(remember: Retention) -> Self {
        Self {
            live: BTreeMap::new(),
            by_key: BTreeSet::new(),
            history: ClosedCookies::new(remember),
            marks: RemovalMarks::default(),
            processes: Processes::new(remember.idle),
            totals: Totals::default(),
            observed_span: None,
            reconciled: false,
        }
    }

    /// A live set.
    pub fn semaphore(&self, sem: SemId) -> Option<&Semaphore> {
        self.live.get(&sem).map(Box::as_ref)
    }

    /// The last incarnation of a cookie's semid that is gone, while it is remembered.
    pub fn closed_cookie(&self, sem: SemId) -> Option<&Semaphore> {
        self.history.latest(sem)
    }

    /// Every live set, by namespace and semid.
    pub fn live_sets(&self) -> impl Iterator<Item = &Semaphore> {
        self.live.values().map(Box::as_ref)
    }

    /// Every live set of a namespace, by semid.
    pub fn live_in(&self, ns: IpcNs) -> impl Iterator<Item = &Semaphore> {
        self.live
            .range(all_of(ns))
            .map(|(_, semaphore)| &**semaphore)
    }

    /// Every live set with the cookie magic, by key.
    pub fn live_cookies(&self) -> impl Iterator<Item = &Semaphore> {
        self.by_key
            .iter()
            .filter_map(|&(_, sem)| self.semaphore(sem))
    }

    /// Live sets with this key, in whatever namespace; cookies only.
    pub fn with_key(&self, key: Key) -> impl Iterator<Item = &Semaphore> {
        self.ids_with_key(key).filter_map(|sem| self.semaphore(sem))
    }

    fn ids_with_key(&self, key: Key) -> impl Iterator<Item = SemId> + '_ {
        let first = SemId {
            ns: IpcNs(0),
            semid: i32::MIN,
        };
        let last = SemId {
            ns: IpcNs(u32::MAX),
            semid: i32::MAX,
        };
        self.by_key
            .range((key, first)..=(key, last))
            .map(|&(_, sem)| sem)
    }

    /// Cookies that are gone, in the order of their ends; a bounded number.
    pub fn closed_cookies(&self) -> impl DoubleEndedIterator<Item = &Semaphore> {
        self.history.iter()
    }

    /// How many removed cookies are remembered no longer, without those that came to a normal end.
    pub const fn forgotten_removals(&self) -> u64 {
        self.history.forgotten
    }

    /// A process image, while it is remembered.
    pub fn process(&self, image: ImageId) -> Option<&Process> {
        self.processes.get(image)
    }

    /// Every remembered image of a process.
    pub fn images_of(&self, id: ProcId) -> impl Iterator<Item = &Process> {
        self.processes.images_of(id)
    }

    /// Every remembered process image, by number and start.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter()
    }

    /// How many process images are remembered.
    pub fn processes_kept(&self) -> usize {
        self.processes.len()
    }

    /// Sums by program (path of the executable, or name), forgotten processes included.
    pub fn program_tallies(&self) -> BTreeMap<Name, ProcessTally> {
        self.processes.program_tallies()
    }

    /// Everything in sum.
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The books were made from the maps of a trace that has gone on: what the next snapshot has
    /// more was missed.
    pub const fn mark_reconciled(&mut self) {
        self.reconciled = true;
    }

    /// For a time nothing was seen: cookies may have been used.
    pub fn was_blind(&mut self) {
        for set in self.live.values_mut() {
            if let Some(cookie) = &mut set.cookie {
                cookie.gaps.operations = true;
                cookie.doubt = true;
            }
        }
    }

    /// Learns the ends of processes from the process list, for ends that were not seen. Does
    /// nothing if the list is not complete.
    pub fn observe_exits(&mut self, facts: &HostFacts) -> Vec<Change> {
        let mut changes = Vec::new();
        if !facts.processes_complete {
            return changes;
        }
        let gone: Vec<ImageId> = self
            .processes
            .iter()
            .filter(|process| {
                process.exit.is_none()
                    && process.active < facts.now
                    && process.image_id.id.start.0 != 0
                    && !facts.is_alive(process.image_id.id)
            })
            .map(|process| process.image_id)
            .collect();
        let exit = ProcessExit {
            at: facts.now,
            status: None,
        };
        for image in gone {
            self.image_exited(image, exit, &mut changes);
        }
        changes
    }

    /// Checks what must hold after every call; for tests.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        let totals = &self.totals;
        if !totals.sets.is_balanced() || !totals.cookies.is_balanced() {
            return Err(format!("out of balance: {totals:?}"));
        }
        let cookies = self.live_sets().filter(|set| set.is_cookie()).count();
        if totals.sets.live != self.live.len() as u64
            || totals.cookies.live != cookies as u64
            || self.by_key.len() != cookies
        {
            return Err(format!(
                "live sets miscounted: {totals:?}, cookies: {cookies}"
            ));
        }
        for process in self.processes() {
            let tally = process.tally;
            let live = self
                .live_sets()
                .filter(|set| set.creator.image() == Some(process.image_id))
                .count() as u64;
            if tally.created != tally.destroyed + tally.live || tally.live != live {
                return Err(format!("{:?}: {tally:?}, {live} live", process.image_id));
            }
        }
        Ok(())
    }
}

fn all_of(ns: IpcNs) -> std::ops::RangeInclusive<SemId> {
    SemId {
        ns,
        semid: i32::MIN,
    }..=SemId {
        ns,
        semid: i32::MAX,
    }
}

/// The later of a time and an optional one.
fn later_time(old: Option<BootTime>, new: BootTime) -> BootTime {
    old.map_or(new, |old| old.max(new))
}
