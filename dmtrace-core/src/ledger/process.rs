//! Processes that made semaphores or touched cookies, and what they did in sum.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    time::Duration,
};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::{ActorRef, ImageId, Name, ProcessExit, User};
use crate::{
    event::{Actor, ProcessImage},
    ids::{BootTime, Key, ProcId, SemId},
};

/// What a process, a program or everything did in sum. Sets are counted with their creator:
/// `created == destroyed + live`.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize,
)]
pub struct ProcessTally {
    /// Sets that it made.
    pub created: u64,
    /// Of these, gone (removed by anybody, or found missing).
    pub destroyed: u64,
    /// Of these, still there.
    pub live: u64,
    /// Of the created ones, with a cookie's key.
    pub cookies: u64,
    /// Of the live ones, with a cookie's key.
    pub cookies_live: u64,
    /// Creations that failed with ENOSPC: it is a victim of the limits.
    #[serde(rename = "starved")]
    pub enospc_failures: u64,
    /// Creations that failed otherwise.
    pub failed: u64,
}

impl ProcessTally {
    pub(super) fn count_created(&mut self, key: Key) {
        self.created += 1;
        self.live += 1;
        if key.has_cookie_magic() {
            self.cookies += 1;
            self.cookies_live += 1;
        }
    }

    pub(super) fn count_ended(&mut self, key: Key) {
        self.destroyed += 1;
        self.live = self.live.saturating_sub(1);
        if key.has_cookie_magic() {
            self.cookies_live = self.cookies_live.saturating_sub(1);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.created += other.created;
        self.destroyed += other.destroyed;
        self.live += other.live;
        self.cookies += other.cookies;
        self.cookies_live += other.cookies_live;
        self.enospc_failures += other.enospc_failures;
        self.failed += other.failed;
    }
}

/// A complete cookie cycle of one process: created and removed by itself.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct Cycle {
    /// The set.
    pub sem: SemId,
    /// Its key.
    pub key: Key,
    /// Creation.
    pub created: BootTime,
    /// Removal.
    pub closed: BootTime,
}

/// What one thread did last.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    PartialEq,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct ThreadTrail {
    /// Its last event.
    pub active: BootTime,
    /// The complete cookie cycle with the latest creation that this thread both began and ended.
    pub cycle: Option<Cycle>,
    /// When it made a cookie the last time; zero for never.
    #[serde(default)]
    pub made: BootTime,
    /// When it made the cookie before that one; zero for never.
    #[serde(default)]
    pub made_before: BootTime,
}

impl ThreadTrail {
    /// It made a cookie; told again, or late, it changes nothing that is newer.
    pub(super) fn cookie_made(&mut self, at: BootTime) {
        if at > self.made {
            self.made_before = self.made;
            self.made = at;
        } else if at < self.made {
            self.made_before = self.made_before.max(at);
        }
    }
}

/// Threads of one process whose trail is kept.
const MAX_TRAILS: usize = 256;

/// One process image.
#[derive(Clone, Debug, Default, Serialize, BorshSerialize, BorshDeserialize)]
pub struct Process {
    /// Which.
    pub image_id: ImageId,
    /// Name.
    pub name: Name,
    /// What the kernel side captured of it; `None` if that was lost.
    pub image: Option<Box<ProcessImage>>,
    /// Its end, once known.
    pub exit: Option<ProcessExit>,
    /// What it did.
    pub tally: ProcessTally,
    /// Its last event.
    pub active: BootTime,
    /// The last complete cookie cycle of the process, on whatever threads.
    pub cycle: Option<Cycle>,
    /// Live cookies that it uses (made, incremented, waited for; not merely completed).
    #[serde(skip)]
    pub(super) cookies: BTreeSet<SemId>,
    /// By thread, cookie users only.
    #[serde(skip)]
    pub(super) trails: BTreeMap<u32, ThreadTrail>,
    /// Semaphores that refer to it: live ones that it made, cookies in which it took part.
    #[serde(skip)]
    refs: u32,
    /// Whether it stands in the queue of idle processes.
    #[serde(skip)]
    queued: bool,
}

impl Process {
    /// What a thread of it did last, if that is kept.
    pub fn thread_trail(&self, tid: u32) -> Option<&ThreadTrail> {
        self.trails.get(&tid)
    }

    /// A complete cookie cycle that began after the last call of a user of another cookie, on
    /// the same thread.
    pub fn later_cycle_of_thread(&self, user: &User) -> Option<Cycle> {
        let cycle = self.thread_trail(user.who.tid)?.cycle?;
        (cycle.created > user.last).then_some(cycle)
    }

    /// As [`Process::later_cycle_of_thread`], on whatever thread, and ended so much later.
    pub fn later_cycle(&self, user: &User, after: Duration) -> Option<Cycle> {
        let cycle = self.cycle?;
        (cycle.created > user.last && cycle.closed.duration_since(user.last) >= after)
            .then_some(cycle)
    }

    /// Live cookies that it uses.
    pub fn live_cookies(&self) -> impl Iterator<Item = SemId> + '_ {
        self.cookies.iter().copied()
    }

    /// What stands for the program in aggregated tallies: path of the executable, or the name.
    pub fn program_name(&self) -> &str {
        match self.image.as_ref().and_then(|image| image.exe.as_deref()) {
            Some(exe) => exe,
            None => self.name.as_str(),
        }
    }

    /// The process as an actor.
    pub fn actor_ref(&self, tid: u32) -> ActorRef {
        ActorRef {
            image: self.image_id,
            tid,
            name: self.name.clone(),
        }
    }

    pub(super) fn learn_image(&mut self, image: &ProcessImage) {
        if self.name.as_str().is_empty() {
            self.name = Name::from(image.comm.as_str());
        }
        if self.image.is_none() {
            self.image = Some(Box::new(image.clone()));
        }
    }

    /// A thread that is followed already has done something else.
    pub(super) fn active_on(&mut self, tid: u32, at: BootTime) {
        if let Some(trail) = self.trails.get_mut(&tid) {
            trail.active = trail.active.max(at);
        }
    }

    pub(super) fn trail_mut(&mut self, tid: u32, at: BootTime) -> &mut ThreadTrail {
        if self.trails.len() >= MAX_TRAILS && !self.trails.contains_key(&tid) {
            // Forget the thread that was quiet longest: at worst a verdict becomes less certain.
            let oldest = self.trails.iter().min_by_key(|(_, trail)| trail.active);
            if let Some(tid) = oldest.map(|(&tid, _)| tid) {
                self.trails.remove(&tid);
            }
        }
        let trail = self.trails.entry(tid).or_default();
        trail.active = trail.active.max(at);
        trail
    }
}

/// Processes kept at most, idle ones included, when their ends are not seen.
const MAX_PROCESSES: usize = 65_536;
/// Names in the tallies of processes that are gone.
const MAX_PROGRAMS: usize = 4096;

#[derive(Clone, Debug, Default, BorshSerialize, BorshDeserialize)]
pub(super) struct Processes {
    map: BTreeMap<ImageId, Box<Process>>,
    /// Nothing refers to them; they are remembered for late events.
    idle: VecDeque<ImageId>,
    most_idle: usize,
    gone: BTreeMap<Name, ProcessTally>,
}

impl Processes {
    pub(super) fn new(most_idle: usize) -> Self {
        Self {
            most_idle,
            ..Self::default()
        }
    }

    pub(super) fn get(&self, id: ImageId) -> Option<&Process> {
        self.map.get(&id).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: ImageId) -> Option<&mut Process> {
        self.map.get_mut(&id).map(Box::as_mut)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.map.values().map(Box::as_ref)
    }

    pub(super) fn images_of(&self, id: ProcId) -> impl Iterator<Item = &Process> {
        let first = ImageId { id, exec: 0 };
        let last = ImageId { id, exec: u32::MAX };
        self.map.range(first..=last).map(|(_, process)| &**process)
    }

    pub(super) fn image_ids(&self, id: ProcId) -> Vec<ImageId> {
        self.images_of(id).map(|process| process.image_id).collect()
    }

    /// The acting process, entered if it is new; `None` for a kernel worker or an unknown actor.
    pub(super) fn touch_actor(&mut self, actor: &Actor, at: BootTime) -> Option<&mut Process> {
        self.enter_process(actor.into(), &actor.comm, at)
    }

    pub(super) fn enter_process(
        &mut self,
        id: ImageId,
        name: &str,
        at: BootTime,
    ) -> Option<&mut Process> {
        if !id.id.is_known() {
            return None;
        }
        if let Entry::Vacant(place) = self.map.entry(id) {
            place.insert(Box::new(Process {
                image_id: id,
                name: Name::from(name),
                queued: true,
                ..Process::default()
            }));
            self.idle.push_back(id);
            self.prune_idle(id);
        }
        let process = self.map.get_mut(&id)?;
        process.active = process.active.max(at);
        Some(process)
    }

    /// A semaphore refers to the process from now on.
    pub(super) fn hold_image(&mut self, id: ImageId) {
        if let Some(process) = self.map.get_mut(&id) {
            process.refs = process.refs.saturating_add(1);
        }
    }

    /// The opposite of [`Processes::hold_image`].
    pub(super) fn release_image(&mut self, id: ImageId) {
        let Some(process) = self.map.get_mut(&id) else {
            return;
        };
        process.refs = process.refs.saturating_sub(1);
        if process.refs == 0 && !process.queued {
            process.queued = true;
            self.idle.push_back(id);
            self.prune_idle(id);
        }
    }

    /// Forgets idle processes that have ended, oldest first; others only above the hard limit.
    fn prune_idle(&mut self, keep: ImageId) {
        let mut tries = 4;
        while self.idle.len() > self.most_idle && tries > 0 {
            tries -= 1;
            let Some(id) = self.idle.pop_front() else {
                return;
            };
            let crowded = self.map.len() > MAX_PROCESSES;
            let Some(process) = self.map.get_mut(&id) else {
                continue;
            };
            if process.refs > 0 {
                process.queued = false;
            } else if (process.exit.is_none() && !crowded) || id == keep {
                self.idle.push_back(id);
            } else if let Some(process) = self.map.remove(&id) {
                self.fold_into_program(&process);
            }
        }
    }

    fn fold_into_program(&mut self, process: &Process) {
        let known = self.gone.contains_key(process.program_name());
        let name = if known || self.gone.len() < MAX_PROGRAMS {
            Name::from(process.program_name())
        } else {
            Name::from("(others)")
        };
        self.gone.entry(name).or_default().merge(&process.tally);
    }

    /// Sums by program, processes that are forgotten included.
    pub(super) fn program_tallies(&self) -> BTreeMap<Name, ProcessTally> {
        let mut programs = self.gone.clone();
        for process in self.iter() {
            let tally = programs
                .entry(Name::from(process.program_name()))
                .or_default();
            tally.merge(&process.tally);
        }
        programs
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}
