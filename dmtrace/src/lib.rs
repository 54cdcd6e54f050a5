//! dmtrace: who leaks device-mapper udev cookies, why, is it safe to clean, how to stop it.
//!
//! The library is usable without root and without eBPF: [`event`] and [`facts`] are plain data,
//! the [`ledger`] and the [`verdict`]s are pure functions of them.

pub mod clean;
pub mod cli;
pub mod event;
pub mod facts;
pub mod history;
pub mod host;
pub mod ids;
pub mod ledger;
pub mod metrics;
pub mod output;
pub mod probe;
#[cfg(feature = "live")]
pub mod service;
#[cfg(feature = "live")]
pub mod session;
pub mod stack;
pub mod together;
pub mod verdict;
pub mod wording;
