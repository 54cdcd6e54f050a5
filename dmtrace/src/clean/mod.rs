//! Removing leaked cookies. [`plan`] decides and is pure.

pub mod plan;
