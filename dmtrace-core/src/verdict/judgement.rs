//! The judgement on one set.

use serde::Serialize;

use super::{
    Advice, Class, Confidence, Culprit, Evidence, MissingStep, Undecided, advice::advice_for,
};
use crate::ledger::UserStage;

/// The judgement on one set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What it is.
    pub class: Class,
    /// How sure that is.
    pub confidence: Confidence,
    /// What it rests on, most important first.
    pub evidence: Vec<Evidence>,
    /// The step of the protocol that did not happen.
    pub missing: Option<MissingStep>,
    /// What to do and what not to do.
    pub advice: Advice,
    /// Who is responsible, if that is established.
    pub culprit: Option<Culprit>,
    /// How far the owner had come when it ended.
    pub died_at: Option<UserStage>,
}

impl Verdict {
    pub(super) fn new(class: Class, confidence: Confidence) -> Self {
        Self {
            class,
            confidence,
            evidence: Vec::new(),
            missing: None,
            advice: advice_for(class),
            culprit: None,
            died_at: None,
        }
    }

    pub(super) fn unknown(reason: Undecided) -> Self {
        Self::new(Class::Unknown(reason), Confidence::Unknown(reason))
    }

    pub(super) fn with_evidence(mut self, evidence: impl IntoIterator<Item = Evidence>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    pub(super) fn with_missing_step(mut self, step: Option<MissingStep>) -> Self {
        self.missing = step;
        self
    }
}
