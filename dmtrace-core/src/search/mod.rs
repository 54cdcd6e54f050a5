//! Who still holds the number of a cookie: the mark phase of a garbage collector, as rules and data.
//!
//! Whoever will wait on a cookie or complete it must have its number. A cookie that no trace saw being
//! made is an orphan if its number is in the memory of nobody who could act on it. What is here has no
//! clock and reads nothing:
//!
//! * [`Needles`] finds numbers in bytes, in all forms that programs keep them in;
//! * [`classify_holder`] says what a process could do with a number, [`counts_as_holder`] whether what
//!   was found in it is more than a mention or chance;
//! * [`Search`] is what one search found, and what it could not look at;
//! * [`orphan`] judges one cookie by two searches.
//!
//! The reading itself is done elsewhere.

mod holder;
mod matcher;
mod needles;
pub mod orphan;
mod outcome;

pub use holder::{
    HolderClass, HolderTrait, ProgramKind, classify_holder, counts_as_holder, identify_program,
};
pub use needles::{Form, Match, Needles, Window};
pub use outcome::{
    Coverage, HolderProcess, Holding, NotSearched, Place, Search, Spot, UnsearchedReason,
};
