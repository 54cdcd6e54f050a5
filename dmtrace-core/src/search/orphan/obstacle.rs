//! Why a cookie is kept, and what would change that.

use serde::{Deserialize, Serialize};

use super::super::{HolderProcess, Spot, UnsearchedReason};
use crate::ids::{BootTime, UnixTime};

/// A process that has the number.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// Which.
    pub process: HolderProcess,
    /// Where it has it.
    pub spots: Vec<Spot>,
}

/// What differs between two moments.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TouchedField {
    /// It is another set, or none.
    Set,
    /// The value.
    Value,
    /// The last operator.
    Operator,
    /// The time of the last operation.
    Otime,
    /// The time of creation or of the last SETVAL.
    Ctime,
    /// Owner, mode, or size.
    Form,
}

/// Why a cookie is not proven to be an orphan; with it, what would lift that.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "obstacle")]
pub enum OrphanObstacle {
    /// It has not the form of a cookie. Nothing lifts that.
    NotACookieForm,
    /// It is not there any more.
    Gone,
    /// Its state may not be read: run as root.
    Unreadable,
    /// Threads wait on it.
    WaitedOn {
        /// How many.
        count: u32,
    },
    /// A search did not look for it: search again.
    NotLookedFor,
    /// A search did not look into pipes and unlinked files: search again, wholly.
    NotCovered,
    /// Somebody stopped a search before its end: search again.
    Cancelled,
    /// Processes may have been out of sight.
    Hidden {
        /// Why, and what helps.
        why: String,
    },
    /// A process could not be searched: its end lifts it, or what its reason says.
    NotSearched {
        /// Its number.
        pid: u32,
        /// Its name.
        comm: String,
        /// Why.
        reason: UnsearchedReason,
    },
    /// Processes came and went faster than they could be searched: search again.
    Unstable {
        /// So often the list was gone through.
        rounds: u32,
    },
    /// It was touched since the first search: somebody uses it. Search anew.
    Touched {
        /// What differs.
        field: TouchedField,
    },
    /// The last operator lives, and may be its user. Its end lifts it.
    OperatorAlive {
        /// Its number.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// A second search must be made.
    SecondMarkDue {
        /// Not before this.
        at: BootTime,
    },
    /// The second search is too long ago: search again.
    SecondMarkOld {
        /// When it ended.
        ended: BootTime,
    },
    /// A process has its number. Its end lifts it.
    HeldBy {
        /// The process.
        holder: Box<Holder>,
    },
    /// udev was at work during a search: search again when it is idle.
    UdevBusy,
    /// A device is suspended: whoever suspended it is in the middle of something.
    DeviceSuspended {
        /// Its name.
        name: String,
    },
    /// It was touched too recently.
    TooYoung {
        /// It is old enough then.
        ready_at: BootTime,
    },
    /// A file has its number, and a script may read it from there.
    WrittenIn {
        /// Which.
        path: String,
    },
    /// Files were not searched, or not from its creation on.
    FilesNotSearched {
        /// Those modified since then matter.
        since: UnixTime,
        /// Why the last attempt failed; empty if there was none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
}

impl OrphanObstacle {
    /// When time alone lifts it.
    pub const fn lifted_at(&self) -> Option<BootTime> {
        match self {
            Self::TooYoung { ready_at } => Some(*ready_at),
            Self::SecondMarkDue { at } => Some(*at),
            _ => None,
        }
    }

    /// The process whose end lifts it.
    pub fn lifted_by_end_of(&self) -> Option<u32> {
        match self {
            Self::HeldBy { holder } => Some(holder.process.id.tgid),
            Self::OperatorAlive { pid, .. } | Self::NotSearched { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// Whether it says nothing of who holds the number: what is left to do before a removal.
    pub const fn is_formality(&self) -> bool {
        matches!(
            self,
            Self::SecondMarkDue { .. }
                | Self::SecondMarkOld { .. }
                | Self::FilesNotSearched { why: None, .. }
        )
    }

    /// Whether something could not be read that may have had the number.
    pub const fn is_unread(&self) -> bool {
        matches!(
            self,
            Self::Hidden { .. }
                | Self::NotSearched { .. }
                | Self::FilesNotSearched { why: Some(_), .. }
        )
    }

    /// Whether somebody was found who may still use it.
    pub const fn names_a_user(&self) -> bool {
        matches!(
            self,
            Self::HeldBy { .. }
                | Self::OperatorAlive { .. }
                | Self::WaitedOn { .. }
                | Self::Touched { .. }
                | Self::DeviceSuspended { .. }
        )
    }

    /// Whether another search may lift it.
    pub const fn lifted_by_search(&self) -> bool {
        matches!(
            self,
            Self::NotLookedFor
                | Self::NotCovered
                | Self::Cancelled
                | Self::Unstable { .. }
                | Self::Touched { .. }
                | Self::SecondMarkOld { .. }
                | Self::UdevBusy
                | Self::FilesNotSearched { .. }
                | Self::NotSearched { .. }
        )
    }
}
