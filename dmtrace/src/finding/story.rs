//! One cookie's story.

use dmtrace_core::verdict::{Avoid, MissingStep, Remedy};
use serde::{Deserialize, Serialize};

use super::{
    SetReport,
    lenient::{lenient, lenient_list},
};

/// What `explain` says of a cookie: text and JSON are made of the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Story {
    /// The cookie as `list` and `report` have it, verdict included.
    #[serde(deserialize_with = "lenient")]
    pub cookie: SetReport,
    /// Which cookie, in a line.
    #[serde(deserialize_with = "lenient")]
    pub title: String,
    /// The verdict in words.
    #[serde(deserialize_with = "lenient")]
    pub headline: String,
    /// How sure it is.
    #[serde(rename = "sure", deserialize_with = "lenient")]
    pub confidence: String,
    /// Step by step.
    #[serde(deserialize_with = "lenient_list")]
    pub life: Vec<StoryMoment>,
    /// The step that did not happen.
    #[serde(deserialize_with = "lenient")]
    pub missing: Option<MissingStepText>,
    /// Whose fault it is, line by line.
    #[serde(deserialize_with = "lenient_list")]
    pub fault: Vec<String>,
    /// Who only suffers.
    #[serde(deserialize_with = "lenient_list")]
    pub victims: Vec<AffectedProcess>,
    /// What the verdict rests on.
    #[serde(deserialize_with = "lenient_list")]
    pub evidence: Vec<String>,
    /// What to do, in this order.
    #[serde(deserialize_with = "lenient_list")]
    pub remedies: Vec<String>,
    /// What not to do, and why.
    #[serde(deserialize_with = "lenient_list")]
    pub avoid: Vec<String>,
    /// What to do, as words of the program.
    #[serde(deserialize_with = "lenient_list")]
    pub remedy_codes: Vec<Remedy>,
    /// What not to do, likewise.
    #[serde(deserialize_with = "lenient_list")]
    pub avoid_codes: Vec<Avoid>,
}

/// The step that did not happen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MissingStepText {
    /// As a word of the program.
    #[serde(flatten)]
    pub step: Option<MissingStep>,
    /// In words.
    #[serde(deserialize_with = "lenient")]
    pub text: String,
}

/// Somebody who suffers and is not to blame.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AffectedProcess {
    /// Number of the process.
    #[serde(deserialize_with = "lenient")]
    pub pid: u32,
    /// Thread, for a waiter.
    #[serde(deserialize_with = "lenient")]
    pub tid: Option<u32>,
    /// Its name.
    #[serde(deserialize_with = "lenient")]
    pub comm: String,
    /// For so long, if that is known.
    #[serde(deserialize_with = "lenient")]
    pub seconds: Option<u64>,
    /// All of that in words.
    #[serde(deserialize_with = "lenient")]
    pub text: String,
}

/// One line of the story.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoryMoment {
    /// RFC 3339; `None` where only the order is known.
    #[serde(deserialize_with = "lenient")]
    pub time: Option<String>,
    /// Time of day, for people.
    #[serde(skip)]
    pub shown: String,
    /// `name[pid]`, or `kernel`.
    #[serde(deserialize_with = "lenient")]
    pub who: String,
    /// Thread, where it is not the first one of its process.
    #[serde(deserialize_with = "lenient")]
    pub tid: Option<u32>,
    /// What happened, in words.
    #[serde(deserialize_with = "lenient")]
    pub what: String,
    /// Value after it.
    #[serde(deserialize_with = "lenient")]
    pub value: Option<i32>,
}

impl StoryMoment {
    /// What happened, and the value after it where the words do not say it.
    pub(crate) fn text(&self) -> String {
        match self.value {
            Some(0) if self.what.ends_with("the value is 0") => self.what.clone(),
            Some(value) => format!("{} (value {value})", self.what),
            None => self.what.clone(),
        }
    }
}
