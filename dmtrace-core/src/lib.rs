//! The pure core of dmtrace: events and facts in, the life of every cookie and its verdict out.
//!
//! No clock, no I/O, no aya.

pub mod backend;
pub mod cleanup;
pub mod duration;
pub mod event;
pub mod facts;
pub mod ids;
pub mod ledger;
pub mod parallel;
pub mod verdict;
pub mod wording;
