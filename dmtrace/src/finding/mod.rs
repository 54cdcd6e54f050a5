//! A finding as data: one type, which list, report, explain, the hook, the history and the status of
//! a service all show.
//!
//! It is made of a row (`render::row`) and serialised here alone. Names of fields are what JSON has,
//! and what histories of years have: they change with a version only.
//!
//! What is read back comes from a file, or from another process. A field that is not there, or that
//! is not what it should be, is as one that is not known; the rest of the finding is read all the
//! same. What a newer dmtrace has added is ignored.

mod lenient;
mod set;
mod story;
#[cfg(test)]
mod tests;

pub(crate) use lenient::{lenient, lenient_list};
pub(crate) use set::owner_mark;
pub use set::{
    CookieUsage, IoctlCounts, Known, Maker, SetFields, SetOwner, SetReport, VerdictReport,
};
pub use story::{AffectedProcess, MissingStepText, Story, StoryMoment};
