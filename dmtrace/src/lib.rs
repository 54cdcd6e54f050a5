//! dmtrace: who leaks device-mapper udev cookies, why, is it safe to clean, how to stop it.
//!
//! The library is usable without root and without eBPF. Events, the ledger and the verdicts are in
//! [`dmtrace_core`].

mod case;
pub mod cleanup;
pub mod cli;
pub mod history;
pub mod host;
pub mod metrics;
pub mod output;
pub mod probe;
pub mod recording;
mod render;
#[cfg(feature = "live")]
pub mod service;
pub mod stack;
#[cfg(feature = "live")]
pub mod trace;
pub mod wording;
