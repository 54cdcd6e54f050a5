//! A running trace: the session, what observes it, and the recording that it writes.

pub(crate) mod ended;
mod ending;
pub(crate) mod observer;
pub(crate) mod recorder;
pub(crate) mod run;
pub(crate) mod session;
