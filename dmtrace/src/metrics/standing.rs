//! What is there now: cookies by their verdicts, and how full the kernel's tables are.

use std::{collections::BTreeMap, time::Duration};

use dmtrace_core::{
    facts::Snapshot,
    ids::{BootTime, IpcNs, UnixTime},
    verdict::{Judged, State},
};

/// What a cookie that is there can be: the values of the label `state`.
pub(crate) const STATES: [State; 7] = [
    State::Open,
    State::Waiting,
    State::SlowUdev,
    State::Stuck,
    State::Leaked,
    State::OverCompleted,
    State::Unknown,
];

/// Cookies that are there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct LiveCookies {
    by_state: BTreeMap<State, (u64, Duration)>,
}

impl LiveCookies {
    /// Counts judged cookies. `now` and `wall`: when they were judged.
    pub(crate) fn from_judged<'a>(
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
            let state = judged.verdict.class.state();
            if !STATES.contains(&state) {
                continue;
            }
            // The kernel keeps seconds only, for sets whose creation was not seen.
            let by_wall = || {
                let seconds = wall.0.saturating_sub(judged.set?.ctime.0);
                u64::try_from(seconds).ok().map(Duration::from_secs)
            };
            let age = semaphore.created.map(|created| now.duration_since(created));
            standing.add_cookie(state, age.or_else(by_wall).unwrap_or_default());
        }
        standing
    }

    pub(crate) fn add_cookie(&mut self, state: State, age: Duration) {
        let (count, oldest) = self.by_state.entry(state).or_default();
        *count += 1;
        *oldest = age.max(*oldest);
    }

    /// How many, and the age of the oldest; zero if there is none.
    pub(crate) fn get(&self, state: State) -> (u64, Duration) {
        self.by_state.get(&state).copied().unwrap_or_default()
    }
}

/// What the search for holders of older cookies has found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SearchReading {
    /// Cookies that no process holds; `None` before the first search, where there is something to
    /// search for.
    pub orphaned: Option<u64>,
    /// Since the end of the last search; `None` before the first.
    pub age: Option<Duration>,
}

/// Where a set is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum SetPlace {
    /// In the host's IPC namespace.
    Host,
    /// In any other one.
    Other,
}

impl SetPlace {
    pub(crate) const ALL: [Self; 2] = [Self::Host, Self::Other];

    /// Value of the label `ipc_ns`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Other => "other",
        }
    }
}

/// How full the tables of a place are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TableUse {
    /// Sets in its namespaces.
    pub sets: u64,
    /// Sets that they can hold (SEMMNI).
    pub limit: u64,
    /// Share in use of the fullest of them, 0 to 1: each has a limit of its own.
    pub fullest: f64,
}

/// How full the kernel's tables are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TableSizes {
    places: BTreeMap<SetPlace, TableUse>,
}

impl TableSizes {
    /// Of the namespaces that could be read.
    pub(crate) fn from_snapshot(snapshot: &Snapshot) -> Self {
        let mut sets = Self::default();
        for ns in &snapshot.namespaces {
            let place = if ns.ns == IpcNs::HOST {
                SetPlace::Host
            } else {
                SetPlace::Other
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
    pub(crate) fn get(&self, place: SetPlace) -> Option<TableUse> {
        self.places.get(&place).copied()
    }
}
