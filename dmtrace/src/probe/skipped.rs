//! Runs of programs that the kernel has skipped.
//!
//! A program does not run on a processor on which it (a trampoline's or a raw tracepoint's), or
//! any other one (a kprobe's or a tracepoint's), is running already. Kernels that preempt, as
//! most since Linux 7.0, may put another task there meanwhile. What it does is then not seen by
//! that program, and only this counter tells.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use aya::Ebpf;
use dmtrace_common::Counter;

use super::spec::{Attachment, SkipCost};

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SkippedRuns {
    /// Of these nobody else saw what happened; an upper bound where one of two programs would
    /// have been enough.
    pub lost: u64,
    /// Another program saw it, or there was nothing to see.
    pub made_good: u64,
}

/// Skipped runs since the programs were loaded, by program.
#[derive(Default)]
pub(super) struct Misses(BTreeMap<String, u64>);

impl Misses {
    /// Those of the programs that aya has loaded. Kernels before 5.12 do not count them, and those
    /// before 6.7 not all.
    pub(super) fn from_ebpf(ebpf: &Ebpf) -> Self {
        let mut all = Self::default();
        for (name, program) in ebpf.programs() {
            if let Ok(fd) = program.fd() {
                all.add_program(name, fd.as_fd());
            }
        }
        all
    }

    /// Those of one more program.
    pub(super) fn add_program(&mut self, name: &str, program: BorrowedFd<'_>) {
        let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
        let info = fs::read_to_string(path).unwrap_or_default();
        if let Some(count) = parse_misses(&info) {
            *self.0.entry(name.to_owned()).or_default() += count;
        }
    }

    fn of_program(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What they cost, where the programs stand.
    pub(super) fn judge_attached<'a>(
        &self,
        attached: impl Iterator<Item = &'a Attachment>,
        noticed: impl Fn(Counter) -> u64,
    ) -> SkippedRuns {
        self.by_program(attached, noticed)
            .into_values()
            .fold(SkippedRuns::default(), SkippedRuns::saturating_sum)
    }

    /// The same, program by program.
    pub(super) fn by_program<'a>(
        &self,
        attached: impl Iterator<Item = &'a Attachment>,
        noticed: impl Fn(Counter) -> u64,
    ) -> BTreeMap<&'static str, SkippedRuns> {
        // One program can stand in several places; its counter is the same.
        let skips: BTreeMap<&'static str, SkipCost> =
            attached.map(|it| (it.program, it.skip)).collect();
        let judged = skips.into_iter().map(|(name, skip)| {
            let count = self.of_program(name);
            let lost = match skip {
                SkipCost::Lost => count,
                SkipCost::MadeGoodBy(others) => {
                    let others = others.iter().map(|other| self.of_program(other));
                    others.fold(count, u64::min)
                }
                // Both are upper bounds.
                SkipCost::NoticedBy(other, counter) => {
                    let unnoticed = count.saturating_sub(noticed(counter));
                    unnoticed.min(self.of_program(other))
                }
                SkipCost::Harmless => 0,
            };
            let runs = SkippedRuns {
                lost,
                made_good: count - lost,
            };
            (name, runs)
        });
        judged.collect()
    }
}

impl SkippedRuns {
    #[must_use]
    pub(crate) const fn saturating_sum(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            made_good: self.made_good + other.made_good,
        }
    }
}

fn parse_misses(info: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))
        .and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::spec::ProbeHook;

    #[test]
    fn fdinfo_of_a_program() {
        let info =
            "pos:\t0\nflags:\t02000002\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t35\n";
        assert_eq!(parse_misses(info), Some(35));
        assert_eq!(parse_misses("pos:\t0\nprog_type:\t26\n"), None);
    }

    fn judge_counts(first: u64, second: u64, alone: u64) -> SkippedRuns {
        let at = |program, skip| Attachment {
            program,
            hook: ProbeHook::Fexit("ipcget"),
            skip,
        };
        let counts = [("first", first), ("second", second), ("alone", alone)];
        let attached = [
            at("first", SkipCost::MadeGoodBy(&["second"])),
            at("second", SkipCost::Harmless),
            at("alone", SkipCost::Lost),
            at("alone", SkipCost::Lost),
        ];
        sample_misses(&counts).judge_attached(attached.iter(), |_| 0)
    }

    fn sample_misses(counts: &[(&str, u64)]) -> Misses {
        let counts = counts.iter().map(|&(name, count)| (name.to_owned(), count));
        Misses(counts.collect())
    }

    #[test]
    fn what_a_later_program_has_noticed_is_not_lost() {
        let attached = [
            Attachment {
                program: "first",
                hook: ProbeHook::Fexit("ipcget"),
                skip: SkipCost::NoticedBy("second", Counter::NOTICED_LOOKUP),
            },
            Attachment {
                program: "second",
                hook: ProbeHook::Fexit("ipcget"),
                skip: SkipCost::Harmless,
            },
        ];
        let judged = |first, second, noticed| {
            let misses = sample_misses(&[("first", first), ("second", second)]);
            let noticed = |counter| {
                assert_eq!(counter, Counter::NOTICED_LOOKUP);
                noticed
            };
            misses.judge_attached(attached.iter(), noticed).lost
        };
        // Each in its time.
        assert_eq!(judged(3, 5, 3), 0);
        // Once both in the same call.
        assert_eq!(judged(3, 5, 2), 1);
        // What the second cannot tell counts as lost, up to what it was skipped itself.
        assert_eq!(judged(3, 0, 0), 0);
        assert_eq!(judged(3, 2, 0), 2);
    }

    #[test]
    fn only_what_nobody_saw_is_lost() {
        let runs = |lost, made_good| SkippedRuns { lost, made_good };
        assert_eq!(judge_counts(7, 0, 0), runs(0, 7));
        // At most twice both were skipped at once.
        assert_eq!(judge_counts(7, 2, 0), runs(2, 7));
        assert_eq!(judge_counts(0, 3, 4), runs(4, 3));
    }
}
