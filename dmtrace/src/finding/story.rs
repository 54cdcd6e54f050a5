//! One cookie's story.

use dmtrace_core::verdict::{Avoid, MissingStep, Remedy};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Story {
    /// The cookie as `list` and `report` have it, verdict included.
    pub(crate) cookie: Value,
    /// Which cookie, in a line.
    pub(crate) title: String,
    pub(crate) headline: String,
    /// How sure it is.
    pub(crate) sure: String,
    /// Step by step.
    pub(crate) life: Vec<Moment>,
    /// The step that did not happen.
    pub(crate) missing: Option<Missing>,
    /// Whose fault it is, line by line.
    pub(crate) fault: Vec<String>,
    /// Who only suffers.
    pub(crate) victims: Vec<Victim>,
    /// What the verdict rests on.
    pub(crate) evidence: Vec<String>,
    /// What to do, in this order.
    pub(crate) remedies: Vec<String>,
    /// What not to do, and why.
    pub(crate) avoid: Vec<String>,
    /// What to do, as words of the program.
    pub(crate) remedy_codes: Vec<Remedy>,
    /// What not to do, likewise.
    pub(crate) avoid_codes: Vec<Avoid>,
}

/// The step that did not happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// As a word of the program.
    #[serde(flatten)]
    pub(crate) step: MissingStep,
    pub(crate) text: String,
}

/// Somebody who suffers and is not to blame.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Victim {
    pub(crate) pid: u32,
    /// Thread, for a waiter.
    pub(crate) tid: Option<u32>,
    pub(crate) comm: String,
    /// For so long, if that is known.
    pub(crate) seconds: Option<u64>,
    pub(crate) text: String,
}

/// One line of the story.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// RFC 3339; `None` where only the order is known.
    pub(crate) time: Option<String>,
    /// Time of day, for people.
    #[serde(skip)]
    pub(crate) shown: String,
    /// `name[pid]`, or `kernel`.
    pub(crate) who: String,
    /// Thread, where it is not the first one of its process.
    pub(crate) tid: Option<u32>,
    pub(crate) what: String,
    /// Value after it.
    pub(crate) value: Option<i32>,
}
