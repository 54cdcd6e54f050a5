//! What is there now: cookies by their verdicts, and how full the kernel's tables are.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    facts::Snapshot,
    ids::{BootTime, IpcNs, UnixTime},
    verdict::{Class, Healthy, Judged},
};

/// What a cookie is, in the words of the label `state`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// In use, nobody waits yet.
    Open,
    /// Its owner waits for udev, within udev's time.
    Waiting,
    /// Its owner waits for what does not come.
    Stuck,
    /// Leaked: nobody will remove it.
    Orphan,
    /// More was completed than there was to complete.
    OverCompleted,
    /// Not decided.
    Unknown,
}

impl State {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Open,
        Self::Waiting,
        Self::Stuck,
        Self::Orphan,
        Self::OverCompleted,
        Self::Unknown,
    ];

    /// Value of the label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Waiting => "waiting",
            Self::Stuck => "stuck",
            Self::Orphan => "orphan",
            Self::OverCompleted => "over_completed",
            Self::Unknown => "unknown",
        }
    }

    /// By a verdict; `None` for what is no live cookie.
    pub const fn of(class: Class) -> Option<Self> {
        Some(match class {
            Class::Healthy(Healthy::Open) => Self::Open,
            Class::Healthy(Healthy::Waiting | Healthy::SlowUdev) => Self::Waiting,
            Class::Stuck(_) => Self::Stuck,
            Class::Leaked(_) => Self::Orphan,
            Class::OverCompleted => Self::OverCompleted,
            Class::Unknown(_) => Self::Unknown,
            Class::Healthy(Healthy::Finished)
            | Class::Accident
            | Class::CleanedUp(_)
            | Class::Foreign(_)
            | Class::Ordinary => return None,
        })
    }
}

/// Cookies that are there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    by_state: [(u64, Duration); State::ALL.len()],
}

impl Standing {
    /// Counts judged cookies. `now` and `wall`: when they were judged.
    pub fn of<'a>(
        judged: impl IntoIterator<Item = &'a Judged<'a>>,
        now: BootTime,
        wall: UnixTime,
    ) -> Self {
        let mut standing = Self::default();
        for judged in judged {
            let semaphore = judged.semaphore;
            if !semaphore.is_live() {
                continue;
            }
            let Some(state) = State::of(judged.verdict.class) else {
                continue;
            };
            // The kernel keeps seconds only, for sets whose creation was not seen.
            let by_wall = || {
                let seconds = wall.0.saturating_sub(judged.set?.ctime.0);
                u64::try_from(seconds).ok().map(Duration::from_secs)
            };
            let age = semaphore.created.map(|created| now.since(created));
            standing.add(state, age.or_else(by_wall).unwrap_or_default());
        }
        standing
    }

    /// One more cookie.
    pub fn add(&mut self, state: State, age: Duration) {
        let (count, oldest) = &mut self.by_state[state as usize];
        *count += 1;
        *oldest = age.max(*oldest);
    }

    /// How many, and the age of the oldest; zero if there is none.
    pub const fn get(&self, state: State) -> (u64, Duration) {
        self.by_state[state as usize]
    }
}

/// Where a set is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// In the host's IPC namespace.
    Host,
    /// In any other one.
    Other,
}

impl Place {
    /// All.
    pub const ALL: [Self; 2] = [Self::Host, Self::Other];

    /// Value of the label `ipc_ns`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Other => "other",
        }
    }
}

/// How full the tables of a place are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Use {
    /// Sets in its namespaces.
    pub sets: u64,
    /// Sets that they can hold (SEMMNI).
    pub limit: u64,
    /// Share in use of the fullest of them, 0 to 1: each has a limit of its own.
    pub fullest: f64,
}

/// How full the kernel's tables are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sets {
    places: BTreeMap<Place, Use>,
}

impl Sets {
    /// Of the namespaces that could be read.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut sets = Self::default();
        for ns in &snapshot.namespaces {
            let place = if ns.ns == IpcNs::HOST {
                Place::Host
            } else {
                Place::Other
            };
            let count = ns.sets.len() as u64;
            let limit = u64::from(ns.limits.semmni);
            let used = sets.places.entry(place).or_default();
            used.sets += count;
            used.limit += limit;
            if limit > 0 {
                used.fullest = used.fullest.max(count as f64 / limit as f64);
            }
        }
        sets
    }

    /// Of one place; `None` if it has no namespace that could be read.
    pub fn get(&self, place: Place) -> Option<Use> {
        self.places.get(&place).copied()
    }
}
