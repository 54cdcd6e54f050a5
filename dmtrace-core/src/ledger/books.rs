//! The books as bytes: for another process that is to judge by them.
//!
//! Nothing is left out that a verdict, a story or a plan rests on. The form is that of one build:
//! what keeps for years is a recording.

use std::{collections::BTreeMap, sync::Arc};

use borsh::{BorshDeserialize as _, BorshSerialize as _};
use thiserror::Error;

use super::{Ledger, Semaphore};
use crate::event::CallSite;

/// The books cannot be written down, or what was read is none.
#[derive(Debug, Error)]
pub enum BooksError {
    /// They were cut off, or are of another build.
    #[error("the books are damaged, or of another build: {0}")]
    Form(#[from] borsh::io::Error),
    /// Their call sites are.
    #[error("the call sites of the books are damaged: {0}")]
    CallSites(#[from] serde_json::Error),
    /// There are more or fewer cookies than call sites were written for.
    #[error("the books do not fit their call sites")]
    Mismatch,
}

impl Ledger {
    /// Appends the books.
    ///
    /// # Errors
    /// A call site cannot be written down.
    pub fn write_books(&self, bytes: &mut Vec<u8>) -> Result<(), BooksError> {
        self.serialize(bytes)?;
        // Thousands of cookies have the same few call sites.
        let mut sites: Vec<&Arc<CallSite>> = Vec::new();
        let mut numbers: BTreeMap<*const CallSite, u32> = BTreeMap::new();
        let mut places: Vec<u32> = Vec::new();
        for set in self.cookies_in_order() {
            let site = set
                .cookie
                .as_deref()
                .and_then(|cookie| cookie.call_site.as_ref());
            places.push(site.map_or(NO_SITE, |site| {
                *numbers.entry(Arc::as_ptr(site)).or_insert_with(|| {
                    sites.push(site);
                    sites.len() as u32 - 1
                })
            }));
        }
        let sites: Vec<&CallSite> = sites.into_iter().map(Arc::as_ref).collect();
        serde_json::to_vec(&sites)?.serialize(bytes)?;
        Ok(places.serialize(bytes)?)
    }

    /// Takes what [`Ledger::write_books`] wrote from the beginning of these bytes.
    ///
    /// # Errors
    /// It was cut off, or is of another build.
    pub fn read_books(bytes: &mut &[u8]) -> Result<Self, BooksError> {
        let mut ledger = Self::deserialize(bytes)?;
        let sites: Vec<CallSite> = serde_json::from_slice(&Vec::deserialize(bytes)?)?;
        let sites: Vec<Arc<CallSite>> = sites.into_iter().map(Arc::new).collect();
        let places: Vec<u32> = Vec::deserialize(bytes)?;
        if places.len() != ledger.cookies_in_order().count() {
            return Err(BooksError::Mismatch);
        }
        let cookies = ledger.live.values_mut().chain(ledger.history.iter_mut());
        let cookies = cookies.filter_map(|set| set.cookie.as_deref_mut());
        for (cookie, place) in cookies.zip(places) {
            cookie.call_site = sites.get(place as usize).cloned();
        }
        Ok(ledger)
    }

    fn cookies_in_order(&self) -> impl Iterator<Item = &Semaphore> {
        self.live_sets()
            .chain(self.history.iter())
            .filter(|set| set.cookie.is_some())
    }
}

/// In the place of the number of a call site: none is known.
const NO_SITE: u32 = u32::MAX;
