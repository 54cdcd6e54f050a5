//! Why tracing cannot start.

use super::environment::UnreadFact;

/// Why tracing cannot start: one line that names the cause and the fix.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("not permitted to trace: {missing} missing; run as root (sudo dmtrace ...)")]
    Privilege {
        /// Names of the capabilities.
        missing: String,
    },
    #[error(
        "kernel lockdown is in mode confidentiality, which forbids programs to read kernel \
         memory; boot without lockdown=confidentiality, or use: dmtrace list"
    )]
    Lockdown,
    /// The types of the kernel are not found.
    #[error("{}; {}, or use: dmtrace list", .0.cause, .0.fix)]
    NoBtf(UnreadFact),
    /// The kernel lacks fields that the programs need.
    #[error("this kernel's BTF lacks {0}; please report the kernel version; use: dmtrace list")]
    UnknownKernel(String),
    /// No backend could be attached.
    #[error("no way to attach: {0}")]
    NoBackend(String),
    #[error("{0}")]
    Other(String),
}
