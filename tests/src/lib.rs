//! Shared by the test tiers: the actor that plays users of udev cookies, and the harness that
//! starts it, cleans up after it and runs the tests.

pub mod actor;
pub mod dm;
pub mod harness;
pub mod hiding;
pub mod load;
pub mod storm;
pub mod sysv;
