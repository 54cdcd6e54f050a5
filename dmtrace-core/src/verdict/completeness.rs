//! What may be missing in the books.

use serde::{Deserialize, Serialize};

use super::{Culprit, Evidence, LeakKind, MissingStep};
use crate::{
    backend::BlindSpot,
    ids::{BootTime, Key, SemId},
    ledger::Semaphore,
    search::orphan::Marks,
};

/// What may be missing in the books as a whole. What is missing for one cookie is in its
/// [`Gaps`](crate::ledger::Gaps).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Completeness {
    /// Messages on live sets that were lost, and not yet made good by adopting the kernel maps.
    pub lost: Losses,
    /// The same on what has ended since: the story of a cookie that is gone may lack something.
    pub ended: Losses,
    /// What the backend cannot see.
    pub blind: Vec<BlindSpot>,
    /// What an earlier trace has found, by set: it makes up for what this one did not see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierFinding>,
    /// What searches of the memory of all processes found.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks,
}

/// A leak that an earlier trace of this boot has found, and of which no end is known.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct EarlierFinding {
    /// The set.
    pub sem: SemId,
    /// Its key.
    pub key: Key,
    /// When it was found.
    pub found: BootTime,
    /// How it leaked.
    pub how: LeakKind,
    /// Who left it.
    pub culprit: Option<Culprit>,
    /// What did not happen.
    pub missing: Option<MissingStep>,
}

/// Messages that were lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// How many.
    pub count: u64,
    /// A recording ends before its trace did: whatever came after that is not in it, with no
    /// event known to be lost.
    #[serde(default)]
    pub end_missing: bool,
    /// The last one was lost before this moment; `None` if that is not known.
    pub until: Option<BootTime>,
}

/// What the books of a trace lack for good.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct BookLosses {
    /// On sets that are there.
    pub live: Losses,
    /// On what has ended.
    pub ended: Losses,
}

impl Losses {
    /// One was lost, at whatever time.
    pub const fn add(&mut self, count: u64) {
        if count > 0 {
            self.count += count;
            self.until = None;
        }
    }

    /// How many a set made at that moment may lack: none if all were lost before.
    fn count_since(self, created: Option<BootTime>) -> u64 {
        match (created, self.until) {
            (Some(created), Some(until)) if created > until => 0,
            _ => self.count,
        }
    }
}

impl Completeness {
    /// What says that this set may lack messages. A trace runs for months: what was lost before the
    /// set was made does not matter to it.
    pub(super) fn loss_evidence(&self, set: &Semaphore) -> Option<Evidence> {
        let ended = match set.ending {
            Some(_) => self.ended.count_since(set.created),
            None => 0,
        };
        match self.lost.count_since(set.created) + ended {
            0 => self.lost.end_missing.then_some(Evidence::RecordingUnclosed),
            count => Some(Evidence::EventsLost { count }),
        }
    }
}
