//! What a person or a program is shown of a case: rows, explanations, timelines, culprits.

pub(crate) mod candidate;
#[cfg(feature = "live")]
pub(crate) mod change;
pub(crate) mod culprits;
pub(crate) mod doubt;
pub(crate) mod explanation;
pub(crate) mod leak_end;
pub(crate) mod older_holders;
pub(crate) mod pending;
pub(crate) mod remedy;
pub(crate) mod removal;
pub(crate) mod row;
pub(crate) mod searched;
pub(crate) mod stored;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod timeline;
