//! What happens too often to be told one by one: counted, and taken over now and then.

use std::collections::{BTreeMap, BTreeSet};

use dmtrace_core::ids::{IpcNs, Key, SemId};

use super::record::{OTHERS, PROGRAMS, ProgramCounts, Stamp};

/// IPC namespaces in which failed creations are told apart.
const NAMESPACES: usize = 64;
/// Cookies that are remembered as counted.
const COUNTED_LEAKS: usize = 65_536;

/// Counts since they were taken over last. Bounded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tallies {
    pub(super) lives: BTreeMap<String, ProgramCounts>,
    pub(super) enospc_failures: BTreeMap<IpcNs, FailureSpan>,
    pub(super) lost: BTreeMap<&'static str, FailureSpan>,
}

/// Things that went wrong, from the first to the last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FailureSpan {
    pub(super) from: Stamp,
    pub(super) to: Stamp,
    pub(super) count: u64,
    pub(super) programs: BTreeMap<String, u64>,
}

impl FailureSpan {
    fn new(at: Stamp) -> Self {
        Self {
            from: at,
            to: at,
            count: 0,
            programs: BTreeMap::new(),
        }
    }
}

/// Cookies whose leak is counted: one that is judged differently for a moment leaks once. Only the
/// newest are remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct CountedLeaks(BTreeSet<(SemId, Key)>);

impl CountedLeaks {
    /// Tells whether it is the first of this cookie.
    pub(super) fn add_leak(&mut self, cookie: (SemId, Key)) -> bool {
        if self.0.len() >= COUNTED_LEAKS {
            self.0.clear();
        }
        self.0.insert(cookie)
    }

    /// It was none after all. Tells whether it was counted.
    pub(super) fn withdraw_leak(&mut self, cookie: (SemId, Key)) -> bool {
        self.0.remove(&cookie)
    }
}

impl Tallies {
    /// One leak of a program.
    pub(super) fn of_leak(program: &str) -> Self {
        let mut one = Self::default();
        let counts = ProgramCounts {
            leaked: 1,
            ..ProgramCounts::default()
        };
        one.count_lives(program, &counts);
        one
    }

    /// Cookies of a program.
    pub fn count_lives(&mut self, program: &str, more: &ProgramCounts) {
        program_slot(&mut self.lives, program).add_counts(more);
    }

    /// A creation failed because the limits were reached. Where there are more namespaces than
    /// are told apart, it is counted with the last one.
    pub fn count_enospc(&mut self, ns: IpcNs, program: &str, at: Stamp) {
        let known =
            self.enospc_failures.contains_key(&ns) || self.enospc_failures.len() < NAMESPACES;
        let last = self.enospc_failures.keys().next_back().copied();
        let ns = if known { ns } else { last.unwrap_or(ns) };
        let failures = self
            .enospc_failures
            .entry(ns)
            .or_insert_with(|| FailureSpan::new(at));
        failures.to = failures.to.max(at);
        failures.count += 1;
        *program_slot(&mut failures.programs, program) += 1;
    }

    /// Messages were lost; `what` says what that means.
    pub fn count_lost(&mut self, what: &'static str, count: u64, at: Stamp) {
        let failures = self
            .lost
            .entry(what)
            .or_insert_with(|| FailureSpan::new(at));
        failures.to = failures.to.max(at);
        failures.count += count;
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is something in it that an administrator waits for.
    pub(super) fn is_urgent(&self) -> bool {
        !self.enospc_failures.is_empty() || !self.lost.is_empty()
    }
}

/// The entry of a program, or that of all others when there are too many.
pub(super) fn program_slot<'a, T: Default>(
    map: &'a mut BTreeMap<String, T>,
    program: &str,
) -> &'a mut T {
    let known = map.contains_key(program) || map.len() < PROGRAMS;
    map.entry(if known { program } else { OTHERS }.to_owned())
        .or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_programs_and_namespaces_stay_bounded_and_complete() {
        let mut tallies = Tallies::default();
        let one = ProgramCounts {
            created: 1,
            ..ProgramCounts::default()
        };
        for n in 0..1000 {
            tallies.count_lives(&format!("/bin/{n}"), &one);
            tallies.count_enospc(IpcNs(n), &format!("/bin/{n}"), Stamp::default());
        }
        assert!(tallies.lives.len() <= PROGRAMS + 1);
        assert!(tallies.enospc_failures.len() <= NAMESPACES);
        let created: u64 = tallies.lives.values().map(|lives| lives.created).sum();
        let starved: u64 = tallies.enospc_failures.values().map(|it| it.count).sum();
        assert_eq!((created, starved), (1000, 1000));
    }
}
