//! dmtrace: who leaks device-mapper udev cookies, why, is it safe to clean, how to stop it.
//!
//! The library is usable without root and without eBPF. Events, the ledger and the verdicts are in
//! [`dmtrace_core`].

#![cfg_attr(
    not(feature = "live"),
    expect(dead_code, unused_imports, reason = "a live trace alone uses it")
)]

mod case;
pub mod cleanup;
pub mod cli;
pub mod finding;
pub mod history;
pub mod host;
mod metrics;
mod output;
mod probe;
pub mod recording;
mod render;
pub mod search;
#[cfg(feature = "live")]
mod service;
mod stack;
#[cfg(feature = "live")]
mod trace;
pub mod witness;
mod wording;
