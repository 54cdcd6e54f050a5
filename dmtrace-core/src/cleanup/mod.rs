//! The plan of a clean-up, and whether a cookie is still what it was when the plan was made.

pub mod plan;
pub mod prospect;
pub mod recheck;
