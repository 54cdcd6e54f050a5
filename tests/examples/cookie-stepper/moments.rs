//! Whether a search finds whoever needs a cookie, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use dmtrace::{
    host::{self, NsSession, Roots, Scope, semaphores},
    search::{self, FileSearch, SearchOptions},
};
use dmtrace_core::{
    facts::{SetSnapshot, Snapshot},
    ids::{BootTime, IpcNs, Key, SemId, UnixTime},
    search::{
        Needles, Place, Search,
        orphan::{Mark, OrphanRules, OrphanStage, judge},
    },
};
use serde_json::{Value, json};

/// No time has to pass: what is left are the rules that say who needs a cookie.
const NO_AGES: OrphanRules = OrphanRules {
    between: Duration::ZERO,
    waited_for: Duration::ZERO,
    pending: Duration::ZERO,
    fresh: Duration::MAX,
};

/// What came of all moments.
#[derive(Default)]
pub(crate) struct Moments {
    /// A cookie at a stop, each.
    pub looked_at: u64,
    /// By where a process had the number.
    held: BTreeMap<String, u64>,
    /// By the rule that keeps it where no process had it.
    covered: BTreeMap<String, u64>,
    /// Where nothing kept it.
    missed: Vec<String>,
    /// Cookies that somebody outside of the tree removed.
    vanished: u64,
    cookies: u64,
}

impl Moments {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "moments": self.looked_at,
            "cookies": self.cookies,
            "held": self.held,
            "covered": self.covered,
            "missed": self.missed.len(),
            "misses": self.missed.iter().take(20).collect::<Vec<_>>(),
            "vanished": self.vanished,
        })
    }
}

/// The cookies of a tree, and what was found out about them.
pub(crate) struct Watch {
    live: BTreeMap<SemId, Key>,
    sessions: BTreeMap<IpcNs, NsSession>,
    /// Where the programs may write numbers.
    files: PathBuf,
    /// One moment of so many is looked at.
    every: u64,
    seen: u64,
    pub moments: Moments,
}

impl Watch {
    pub(crate) fn new(files: PathBuf, every: u64) -> Self {
        Self {
            live: BTreeMap::new(),
            sessions: BTreeMap::new(),
            files,
            every: every.max(1),
            seen: 0,
            moments: Moments::default(),
        }
    }

    /// A thread has made a set.
    pub(crate) fn note_made(&mut self, task: i32, key: Key, semid: i32) -> Result<()> {
        if !key.has_cookie_magic() {
            return Ok(());
        }
        let ns = ipc_ns(task)?;
        if let Entry::Vacant(place) = self.sessions.entry(ns) {
            place.insert(NsSession::find(&Roots::host(), ns)?);
        }
        self.live.insert(SemId { ns, semid }, key);
        self.moments.cookies += 1;
        Ok(())
    }

    /// A thread has removed a set.
    pub(crate) fn note_removed(&mut self, task: i32, semid: i32) -> Result<()> {
        let ns = ipc_ns(task)?;
        self.live.remove(&SemId { ns, semid });
        Ok(())
    }

    /// Cookies that are there.
    pub(crate) fn live_count(&self) -> usize {
        self.live.len()
    }

    /// Looks at all cookies. `moment` says when this is.
    pub(crate) fn look(&mut self, processes: &BTreeSet<u32>, moment: &str) -> Result<()> {
        if self.live.is_empty() {
            return Ok(());
        }
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut sets = Vec::new();
        for sem in self.live.keys().copied().collect::<Vec<_>>() {
            match self.read_set(sem)? {
                Some(set) => sets.push((sem, set)),
                None => {
                    self.live.remove(&sem);
                    self.moments.vanished += 1;
                }
            }
        }
        let first = search_tree(processes, &sets, None);
        for (sem, set) in &sets {
            self.moments.looked_at += 1;
            match holder_place(&first, set.key) {
                Some(place) => count(&mut self.moments.held, &place),
                None => self.judge_unheld(processes, *sem, set, &first, moment),
            }
        }
        Ok(())
    }

    /// Nobody was found: a removal would search once more, and in files.
    fn judge_unheld(
        &mut self,
        processes: &BTreeSet<u32>,
        sem: SemId,
        set: &SetSnapshot,
        first: &Search,
        moment: &str,
    ) {
        let files = FileSearch {
            below: vec![self.files.clone()],
            ..FileSearch::since(UnixTime(set.ctime.0.saturating_sub(1)))
        };
        let sets = [(sem, set.clone())];
        let second = search_tree(processes, &sets, Some(files));
        if let Some(place) = holder_place(&second, set.key) {
            return count(&mut self.moments.held, &format!("{place} (second)"));
        }
        let mut facts = host::read_facts(&Scope::default(), &Snapshot::default());
        // What passes by itself covers nobody, and what is hidden here is not of the tree.
        facts.udev.queue_busy = false;
        facts.dm.suspended.clear();
        facts.processes_complete = true;
        let mark = |search: &Search, began: u64| Mark {
            search: Search {
                began: BootTime(began),
                ended: BootTime(began),
                hidden: None,
                ..search.clone()
            },
            sets: sets.to_vec(),
            udev_idle: true,
            suspended: Vec::new(),
        };
        let marks = [mark(first, facts.now.0), mark(&second, facts.now.0)];
        let judged = judge(
            sem,
            [Some(&marks[0]), Some(&marks[1])],
            Some(set),
            &facts,
            &NO_AGES,
        );
        let stage = set.first.map(|state| OrphanStage::of(set, state));
        match judged {
            Err(obstacles) => {
                let name = serde_json::to_value(obstacles.first()).unwrap_or_default();
                let name = name["obstacle"].as_str().unwrap_or("unnamed").to_owned();
                count(&mut self.moments.covered, &name);
            }
            // Nobody has it but a register of its maker: these ten minutes are never short ones.
            Ok(_) if stage == Some(OrphanStage::Unused) => {
                count(&mut self.moments.covered, "never_used");
            }
            Ok(_) => self
                .moments
                .missed
                .push(format!("{moment}; {:?}", set.first)),
        }
    }

    fn read_set(&self, sem: SemId) -> Result<Option<SetSnapshot>> {
        let session = self.sessions.get(&sem.ns).context("no session")?;
        let read = session.run(move |inside| semaphores::read_one(inside, sem.semid))?;
        Ok(read?)
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    *counts.entry(name.to_owned()).or_default() += 1;
}

/// The product's own search, of the tree alone: that somebody else has the number helps nobody.
fn search_tree(
    processes: &BTreeSet<u32>,
    sets: &[(SemId, SetSnapshot)],
    files: Option<FileSearch>,
) -> Search {
    let options = SearchOptions {
        workers: 1,
        only: processes.clone(),
        files,
        ..SearchOptions::default()
    };
    let needles = Needles::new(sets.iter().map(|(_, set)| set.key));
    search::run(&needles, &options, &mut |_| {})
}

/// Where a process has a number that counts: memory comes first.
fn holder_place(search: &Search, key: Key) -> Option<String> {
    let places: BTreeSet<Place> = search
        .holders(key)
        .flat_map(|(_, spots)| spots.iter().map(|spot| spot.place))
        .collect();
    places.first().map(ToString::to_string)
}

fn ipc_ns(task: i32) -> Result<IpcNs> {
    let path = format!("/proc/{task}/ns/ipc");
    let link = fs::read_link(&path).context(path)?;
    let link = link.to_string_lossy();
    let digits: String = link.chars().filter(char::is_ascii_digit).collect();
    Ok(IpcNs(digits.parse()?))
}
