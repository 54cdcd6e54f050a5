//! What the table of probes consists of. Loader, `doctor` and the documentation read the table,
//! by `catalog` and nothing else.

use std::fmt;

use dmtrace_common::Counter;
use serde::Serialize;

/// Where a program goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ProbeHook {
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

impl fmt::Display for ProbeHook {
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
pub(crate) enum SkipCost {
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
pub(crate) struct Attachment {
    /// Name of the program in the object.
    pub program: &'static str,
    pub hook: ProbeHook,
    /// What a skipped run costs.
    pub skip: SkipCost,
}

/// Which programs: whether for a kernel that preempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProgramPlan {
    /// One program for each thing to see.
    Plain,
    /// The kernel skips a program where another task has been preempted in it. These stand where
    /// the kernel holds a spinlock, or in pairs.
    Preempted,
}

/// Whether a backend is of use without a subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SubjectWeight {
    Required,
    /// Yes; something is then unseen.
    Optional,
}

/// What a group of programs lets dmtrace see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProbeSubject {
    /// Short name, as in `doctor`.
    pub name: &'static str,
    pub provides: &'static str,
    /// Whether the backend needs it.
    pub weight: SubjectWeight,
    /// Ways to see it, best first; all programs of a way go together.
    pub ways: &'static [&'static [Attachment]],
}
