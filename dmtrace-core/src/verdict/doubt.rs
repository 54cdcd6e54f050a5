//! Cookies of which nobody can tell whether they are leaked: no answer is a clean bill while there is
//! one.

use super::{Class, Confidence, Healthy, Verdict};
use crate::ledger::{Creator, Semaphore, WhyUnknown};

/// Why it is left open whether a cookie that is there is leaked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Doubt {
    /// It is older than any trace, and nothing is proven of it.
    OlderThanTrace,
    /// It is not decided, for another reason.
    NotDecided,
}

impl Doubt {
    /// What is in doubt of a set; `None` of one that is gone, and where the verdict says what it is.
    pub const fn of_verdict(semaphore: &Semaphore, verdict: &Verdict) -> Option<Self> {
        if !semaphore.is_live() {
            return None;
        }
        let older = matches!(
            semaphore.creator,
            Creator::Unknown(WhyUnknown::BeforeTracer)
        );
        match verdict.class {
            Class::Unknown(_) if older => Some(Self::OlderThanTrace),
            Class::Unknown(_) => Some(Self::NotDecided),
            // In use by all signs: its last user is alive. A daemon that has left it lives, too.
            Class::Healthy(Healthy::Open)
                if older && matches!(verdict.confidence, Confidence::Inferred) =>
            {
                Some(Self::OlderThanTrace)
            }
            _ => None,
        }
    }
}
