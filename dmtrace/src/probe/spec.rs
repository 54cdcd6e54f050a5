//! What the table of probes consists of. Loader, `doctor` and the documentation read the table
//! ([`table`]) and nothing else.

use std::fmt;

use dmtrace_common::Counter;
use dmtrace_core::backend::Backend;
use serde::Serialize;

use super::table;

/// Where a program goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// Entry of a kernel function, by trampoline.
    Fentry(&'static str),
    /// Return of a kernel function, by trampoline.
    Fexit(&'static str),
    /// Entry of a kernel function, by breakpoint.
    Kprobe(&'static str),
    /// Return of a kernel function, by breakpoint.
    Kretprobe(&'static str),
    /// A tracepoint: category and name.
    Tracepoint(&'static str, &'static str),
    /// A tracepoint by its arguments.
    RawTracepoint(&'static str),
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fentry(function) => write!(f, "fentry:{function}"),
            Self::Fexit(function) => write!(f, "fexit:{function}"),
            Self::Kprobe(function) => write!(f, "kprobe:{function}"),
            Self::Kretprobe(function) => write!(f, "kretprobe:{function}"),
            Self::Tracepoint(category, name) => write!(f, "{category}:{name}"),
            Self::RawTracepoint(name) => write!(f, "raw_tp:{name}"),
        }
    }
}

/// What it costs when the kernel skips a run of a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Skip {
    /// What happened then is not seen.
    Lost,
    /// Nothing, unless all these programs were skipped as well.
    MadeGoodBy(&'static [&'static str]),
    /// Nothing, unless a later program of the same call was skipped as well: of calls in which it
    /// was not, it has noticed that this one was, and has counted them.
    NoticedBy(&'static str, Counter),
    /// Nothing: it is the second of two, or the programs themselves find out and count it, or
    /// what they see has changed nothing.
    Harmless,
}

/// One program in its place.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where it goes.
    pub hook: Hook,
    /// What a skipped run costs.
    pub skip: Skip,
}

/// Which programs: whether for a kernel that preempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// One program for each thing to see.
    Plain,
    /// The kernel skips a program where another task has been preempted in it. These stand where
    /// the kernel holds a spinlock, or in pairs.
    Preempted,
}

/// Whether a backend is of use without a subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Weight {
    /// No.
    Required,
    /// Yes; something is then unseen.
    Optional,
}

/// What a group of programs lets dmtrace see.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Short name, as in `doctor`.
    pub name: &'static str,
    /// In words.
    pub provides: &'static str,
    /// Whether the backend needs it.
    pub weight: Weight,
    /// Ways to see it, best first; all programs of a way go together.
    pub ways: &'static [&'static [Attachment]],
}

/// Subjects of device-mapper.
pub const fn device_mapper(plan: Plan) -> &'static [Subject] {
    match plan {
        Plan::Plain => table::DEVICE_MAPPER,
        Plan::Preempted => table::DEVICE_MAPPER_PREEMPTED,
    }
}

/// Subjects of a backend; `end` is the plan for the end of processes.
pub fn subjects(backend: Backend, plan: Plan, end: Plan) -> impl Iterator<Item = &'static Subject> {
    let own = match (backend, plan) {
        (Backend::Trampoline, Plan::Plain) => table::TRAMPOLINE,
        (Backend::Trampoline, Plan::Preempted) => table::TRAMPOLINE_PREEMPTED,
        (Backend::Kprobe, _) => table::KPROBE,
        (Backend::Tracepoint, _) => table::TRACEPOINT,
    };
    let end = match end {
        Plan::Plain => &table::END,
        Plan::Preempted => &table::END_PREEMPTED,
    };
    own.iter().chain(std::iter::once(end))
}

/// What a program lets us see; the programs of all backends have different names.
#[cfg(feature = "live")]
pub fn subject_of(program: &str) -> &'static str {
    let plans = [Plan::Plain, Plan::Preempted].into_iter();
    let mut all = plans.flat_map(|plan| {
        let backends = Backend::ALL.into_iter();
        let own = backends.flat_map(move |backend| subjects(backend, plan, plan));
        own.chain(device_mapper(plan))
    });
    let found = all.find(|subject| {
        let mut programs = subject.ways.iter().copied().flatten();
        programs.any(|attachment| attachment.program == program)
    });
    found.map_or("other", |subject| subject.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> impl Iterator<Item = &'static [Attachment]> {
        let plans = [Plan::Plain, Plan::Preempted].into_iter();
        let subjects = plans.flat_map(|plan| {
            let backends = Backend::ALL.into_iter();
            let all = backends.flat_map(move |backend| subjects(backend, plan, plan));
            all.chain(device_mapper(plan))
        });
        subjects.flat_map(|subject| subject.ways).copied()
    }

    #[test]
    fn names_survive_the_kernels_cut_at_15_bytes() {
        for attachment in ways().flatten() {
            assert!(attachment.program.len() <= 15, "{}", attachment.program);
        }
    }

    #[test]
    fn who_makes_good_is_attached_as_well() {
        for way in ways() {
            for attachment in way {
                let Skip::MadeGoodBy(others) = attachment.skip else {
                    continue;
                };
                for other in others {
                    let there = way.iter().any(|it| it.program == *other);
                    assert!(there, "{}: {other} is not there", attachment.program);
                }
            }
        }
    }
}
