//! Removing leaked cookies. [`plan`](dmtrace_core::cleanup::plan) decides and is pure; [`apply`]
//! carries out, and [`act`] in it is the only line of the program that destroys anything.

mod act;
pub mod apply;
pub mod audit;
pub mod file;
pub mod result;
pub mod witness;
