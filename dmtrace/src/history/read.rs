//! The history of a service that does not run, read by others.

use std::{ops::ControlFlow, path::Path};

use super::{
    record::{Entry, Head, Query},
    store::{Copy, Meta, Trouble},
};

/// Why there is no history to read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("no history is there")]
    None,
    /// A service has it open: ask that.
    #[error("a service has it open")]
    Busy,
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Reads what a query wants from a file that no service has open, oldest first. The file is not
/// changed, also where a service was killed while it wrote.
///
/// # Errors
/// There is no such file, it is in use, or it cannot be read.
pub fn read_file(path: &Path, query: &Query) -> Result<(Head, Vec<Entry>), ReadError> {
    let read = || -> Result<(Head, Vec<Entry>), Trouble> {
        let copy = Copy::open(path)?;
        let mut entries = Vec::new();
        let _to_the_end = copy.read(query, &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        Ok((head(&copy.meta), entries))
    };
    read().map_err(|trouble| match trouble {
        Trouble::Busy => ReadError::Busy,
        Trouble::System(error) if error.kind() == std::io::ErrorKind::NotFound => ReadError::None,
        other => ReadError::Unreadable(other.to_string()),
    })
}

/// What an answer begins with.
pub(super) fn head(meta: &Meta) -> Head {
    Head {
        dropped_for_space: meta.dropped_for_space,
        dropped_for_age: meta.dropped_for_age,
        complete_since_ms: i64::try_from(meta.dropped_until)
            .ok()
            .filter(|&until| until > 0),
        alive_ms: i64::try_from(meta.alive.0).unwrap_or_default(),
        notes: Vec::new(),
    }
}
