//! A running trace: the session, what observes it, and the recording that it writes.

pub(crate) mod books;
pub(crate) mod ended;
mod ending;
pub(crate) mod observer;
mod readiness;
pub(crate) mod recorder;
pub(crate) mod run;
pub(crate) mod session;
