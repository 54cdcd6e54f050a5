//! A process while it is searched.

use dmtrace_core::search::{HolderClass, Match, Place, UnsearchedReason};

use super::report::Found;

/// A process while it is searched.
pub(super) struct Target {
    /// Its directory below `/proc`, or that of a thread which lives.
    pub task: String,
    /// That thread.
    pub tid: u32,
    pub class: HolderClass,
    pub swapped: u64,
    pub found: Found,
    pub problems: Vec<UnsearchedReason>,
}

impl Target {
    /// A file of it, below `/proc`.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.task)
    }

    /// Notes a number.
    pub(super) fn note(&mut self, it: Match, place: Place) {
        self.found.add(it.key, it.form, place);
    }

    pub(super) fn problem(&mut self, reason: UnsearchedReason) {
        if !self.problems.contains(&reason) {
            self.problems.push(reason);
        }
    }

    pub(super) fn note_memory(&mut self, opaque: u64, beyond_budget: u64) {
        if opaque > 0 {
            self.problem(UnsearchedReason::Opaque { bytes: opaque });
        }
        if beyond_budget > 0 {
            let bytes = beyond_budget;
            self.problem(UnsearchedReason::Swapped { bytes });
        }
    }
}
