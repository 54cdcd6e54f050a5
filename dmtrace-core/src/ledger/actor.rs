//! Who acted, and how a process ended: what all books refer to.

use std::{fmt, sync::Arc};

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    event::{Actor, ExitStatus},
    ids::{BootTime, ProcId, ProcKey},
};

/// A process image: the process and how many `execve` calls led to it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    Serialize,
    Deserialize,
    BorshSerialize,
    BorshDeserialize,
)]
pub struct ImageId {
    /// The process.
    pub id: ProcId,
    /// Which of its images.
    pub exec: u32,
}

impl From<ProcKey> for ImageId {
    fn from(key: ProcKey) -> Self {
        Self {
            id: key.into(),
            exec: key.exec,
        }
    }
}

impl From<&Actor> for ImageId {
    fn from(actor: &Actor) -> Self {
        Self {
            id: actor.id,
            exec: actor.exec,
        }
    }
}

/// A name that many records share: cloning it does not allocate.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, BorshSerialize, BorshDeserialize)]
pub struct Name(Arc<str>);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::from("")
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(Arc::from(text))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str> as Deserialize>::deserialize(deserializer)?;
        Ok(Self::from(&*text))
    }
}

/// Who did something.
#[derive(
    Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct ActorRef {
    /// The process image; finds the [`Process`](super::Process) in the ledger while that is kept.
    #[serde(flatten)]
    pub image: ImageId,
    /// The thread, a hint: work moves between threads (Go, tokio).
    pub tid: u32,
    /// Name of the process.
    pub name: Name,
}

/// The end of a process.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct ProcessExit {
    /// When it ended; when its absence was noticed, if `status` is `None`.
    pub at: BootTime,
    /// How; `None` when only its absence from the process list is known.
    pub status: Option<ExitStatus>,
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}
