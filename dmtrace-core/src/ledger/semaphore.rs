//! A semaphore set in the books.

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

use super::{ActorRef, Cookie, EndKind, ImageId, WaitingThread};
use crate::ids::{BootTime, Key, SemId};

/// A semaphore set.
#[derive(Clone, Debug, Serialize, BorshSerialize, BorshDeserialize)]
pub struct Semaphore {
    /// Namespace and semid.
    #[serde(flatten)]
    pub id: SemId,
    /// System V key.
    pub key: Key,
    /// Semaphores in it; 0 if not known.
    pub nsems: u32,
    /// `semflg` of its creation, permission bits included; `None` if not known.
    pub semflg: Option<u32>,
    /// How it entered the books.
    pub origin: Origin,
    /// Creation; `None` if that was not seen.
    pub created: Option<BootTime>,
    /// Oldest evidence of its existence.
    pub first_seen: BootTime,
    /// Newest evidence of its existence.
    pub last_seen: BootTime,
    /// Who made it.
    pub creator: Creator,
    /// Its end.
    pub ending: Option<Ending>,
    /// The life of a set with the cookie magic; `None` for all others.
    pub cookie: Option<Box<Cookie>>,
}

/// How a set entered the books.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Its creation was announced.
    Event,
    /// From the kernel map, after messages were lost or when a running tracer was joined.
    Map,
    /// From a snapshot.
    Snapshot,
    /// By an operation on it.
    Use,
}

/// Who made a set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
#[serde(rename_all = "snake_case")]
pub enum Creator {
    /// This process.
    Known {
        /// Its image.
        image: ImageId,
        /// The thread.
        tid: u32,
    },
    /// Not known.
    Unknown(WhyUnknown),
}

impl Creator {
    /// The creating image, if known.
    pub const fn image(self) -> Option<ImageId> {
        match self {
            Self::Known { image, .. } => Some(image),
            Self::Unknown(_) => None,
        }
    }

    /// The creating thread, if known.
    pub const fn tid(self) -> Option<u32> {
        match self {
            Self::Known { tid, .. } => Some(tid),
            Self::Unknown(_) => None,
        }
    }
}

/// Why the creator of a set is not known.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum WhyUnknown {
    /// It is older than the tracer.
    BeforeTracer,
    /// Its creation was not seen although the tracer ran (loss, or a blind spot of the backend).
    Missed,
    /// The `semget` that was seen may have found a set that existed already.
    MaybeFound,
}

/// The end of a set.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, BorshSerialize, BorshDeserialize)]
pub struct Ending {
    /// When; for an inferred end, when it was noticed.
    pub at: BootTime,
    /// In which way.
    pub kind: EndKind,
    /// Who removed it.
    pub by: Option<ActorRef>,
    /// Threads that waited at that moment, the remover's excepted.
    pub waiters: Vec<WaitingThread>,
}

impl Semaphore {
    /// Whether its key has the cookie magic.
    pub const fn is_cookie(&self) -> bool {
        self.key.has_cookie_magic()
    }

    /// Whether it is there, as far as the books know.
    pub const fn is_live(&self) -> bool {
        self.ending.is_none()
    }
}
