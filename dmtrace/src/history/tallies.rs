//! What happens too often to be told one by one: counted, and taken over now and then.

use std::collections::BTreeMap;

use dmtrace_core::ids::IpcNs;

use super::record::{Lives, OTHERS, PROGRAMS, Stamp};

/// IPC namespaces in which failed creations are told apart.
const NAMESPACES: usize = 64;

/// Counts since they were taken over last. Bounded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tallies {
    pub(super) lives: BTreeMap<String, Lives>,
    pub(super) starved: BTreeMap<IpcNs, Failures>,
    pub(super) lost: BTreeMap<&'static str, Failures>,
}

/// Things that went wrong, from the first to the last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Failures {
    pub(super) from: Stamp,
    pub(super) to: Stamp,
    pub(super) count: u64,
    pub(super) programs: BTreeMap<String, u64>,
}

impl Failures {
    fn new(at: Stamp) -> Self {
        Self {
            from: at,
            to: at,
            count: 0,
            programs: BTreeMap::new(),
        }
    }
}

impl Tallies {
    /// Cookies of a program.
    pub fn lives(&mut self, program: &str, more: &Lives) {
        slot(&mut self.lives, program).add(more);
    }

    /// A creation failed because the limits were reached. Where there are more namespaces than
    /// are told apart, it is counted with the last one.
    pub fn starved(&mut self, ns: IpcNs, program: &str, at: Stamp) {
        let known = self.starved.contains_key(&ns) || self.starved.len() < NAMESPACES;
        let last = self.starved.keys().next_back().copied();
        let ns = if known { ns } else { last.unwrap_or(ns) };
        let failures = self.starved.entry(ns).or_insert_with(|| Failures::new(at));
        failures.to = failures.to.max(at);
        failures.count += 1;
        *slot(&mut failures.programs, program) += 1;
    }

    /// Messages were lost; `what` says what that means.
    pub fn lost(&mut self, what: &'static str, count: u64, at: Stamp) {
        let failures = self.lost.entry(what).or_insert_with(|| Failures::new(at));
        failures.to = failures.to.max(at);
        failures.count += count;
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is something in it that an administrator waits for.
    pub(super) fn is_urgent(&self) -> bool {
        !self.starved.is_empty() || !self.lost.is_empty()
    }
}

/// The entry of a program, or that of all others when there are too many.
pub(super) fn slot<'a, T: Default>(map: &'a mut BTreeMap<String, T>, program: &str) -> &'a mut T {
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
        let one = Lives {
            created: 1,
            ..Lives::default()
        };
        for n in 0..1000 {
            tallies.lives(&format!("/bin/{n}"), &one);
            tallies.starved(IpcNs(n), &format!("/bin/{n}"), Stamp::default());
        }
        assert!(tallies.lives.len() <= PROGRAMS + 1);
        assert!(tallies.starved.len() <= NAMESPACES);
        let created: u64 = tallies.lives.values().map(|lives| lives.created).sum();
        let starved: u64 = tallies.starved.values().map(|it| it.count).sum();
        assert_eq!((created, starved), (1000, 1000));
    }
}
