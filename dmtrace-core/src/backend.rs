//! How the kernel is observed, and what that way cannot see.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a set of probes is attached, in order of preference.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// fentry and fexit.
    #[serde(rename = "fentry")]
    Trampoline,
    /// kprobes and kretprobes.
    Kprobe,
    /// `syscalls:*` tracepoints.
    Tracepoint,
}

impl Backend {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Trampoline, Self::Kprobe, Self::Tracepoint];

    /// Name on the command line and in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trampoline => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }

    /// What this backend cannot see, as verdicts take it into account.
    pub const fn blind_spots(self) -> &'static [BlindSpot] {
        match self {
            Self::Trampoline => &[],
            Self::Kprobe => &[BlindSpot::Results],
            Self::Tracepoint => &[BlindSpot::Compat, BlindSpot::NamespaceTeardown],
        }
    }

    /// What this backend cannot see, in words; empty for the best one.
    pub const fn blind_spot_texts(self) -> &'static [&'static str] {
        match self {
            Self::Trampoline => &[],
            Self::Kprobe => &[
                "why a wait on a cookie ended early (EINTR, EIDRM)",
                "failed look-ups of cookies",
            ],
            Self::Tracepoint => &[
                "removal of semaphores with their IPC namespace (found by comparing)",
                "32-bit callers (found by comparing, creator unknown)",
            ],
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that a backend cannot see.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlindSpot {
    /// System calls of 32-bit programs (syscall tracepoints).
    Compat,
    /// Removal with an IPC namespace (syscall tracepoints).
    NamespaceTeardown,
    /// Results of calls that sleep (kretprobe).
    Results,
    /// Ends of processes.
    Exits,
}
