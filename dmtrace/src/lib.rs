//! dmtrace: who leaks device-mapper udev cookies, why, is it safe to clean, how to stop it.
//!
//! The library is usable without root and without eBPF. Events, the ledger and the verdicts are in
//! [`dmtrace_core`].

pub mod clean;
pub mod cli;
pub mod history;
pub mod host;
pub mod metrics;
pub mod output;
pub mod probe;
pub mod recording;
#[cfg(feature = "live")]
pub mod service;
#[cfg(feature = "live")]
pub mod session;
pub mod stack;
pub mod wording;
