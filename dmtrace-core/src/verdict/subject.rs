//! What is judged, and by what.

use super::{Completeness, Thresholds};
use crate::{
    facts::{HostFacts, SetSnapshot},
    ids::BootTime,
    ledger::{Ledger, Semaphore},
};

/// One set to judge.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The books, for processes.
    pub ledger: &'a Ledger,
    /// The set in the books, live or closed.
    pub semaphore: &'a Semaphore,
    /// The set in a snapshot, if there is one.
    pub set: Option<&'a SetSnapshot>,
    /// When that snapshot began. Events after it make it stale.
    pub taken: BootTime,
}

/// What is the same for all sets.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the host says.
    pub facts: &'a HostFacts,
    /// What may be missing in the books.
    pub completeness: &'a Completeness,
    /// Limits of time.
    pub thresholds: &'a Thresholds,
}
