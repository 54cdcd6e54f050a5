//! The history of a service that does not run, read by others.

use std::{
    fs::{File, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _},
    ops::ControlFlow,
    path::Path,
};

use redb::{Database, ReadableDatabase as _, StorageBackend as _, backends::InMemoryBackend};

use super::{
    backend::retry_lock,
    layout::{META, StoreError, StoreMeta, catch_damage, open_checked, scan_tables, store_error},
    record::{AnswerHead, HistoryEntry, HistoryQuery},
};
use crate::host::regular_file::open_regular;

/// What a file of redb begins with.
const MAGIC: &[u8; 4] = b"redb";
/// Much more than a service keeps.
const MAX_READ_BYTES: u64 = 1 << 30;

/// Why there is no history to read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no history")]
    None,
    /// A service has it open: ask that.
    #[error("a service has it open")]
    Busy,
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Reads what a query wants from a file that no service has open: findings, then the rest, each
/// from the oldest on. The file is not
/// changed, also where a service was killed while it wrote.
///
/// # Errors
/// There is no such file, it is in use, or it cannot be read.
pub fn read_file(
    path: &Path,
    query: &HistoryQuery,
) -> Result<(AnswerHead, Vec<HistoryEntry>), ReadError> {
    let read = || -> Result<(AnswerHead, Vec<HistoryEntry>), StoreError> {
        let db = copy_file(path)?;
        let mut entries = Vec::new();
        let meta = catch_damage(|| {
            let txn = db.begin_read().map_err(store_error)?;
            let meta = StoreMeta::read_table(&txn.open_table(META).map_err(store_error)?)?;
            let mut keep = |entry| {
                entries.push(entry);
                ControlFlow::Continue(())
            };
            scan_tables(&txn, query, &mut keep).map(|_to_the_end| meta)
        })?;
        Ok((answer_head(&meta), entries))
    };
    read().map_err(|trouble| match trouble {
        StoreError::Busy => ReadError::Busy,
        StoreError::System(error) if error.kind() == ErrorKind::NotFound => ReadError::None,
        other => ReadError::Unreadable(other.to_string()),
    })
}

/// What an answer begins with.
pub(super) fn answer_head(meta: &StoreMeta) -> AnswerHead {
    AnswerHead {
        dropped_for_space: meta.dropped_for_space,
        dropped_for_age: meta.dropped_for_age,
        complete_since_ms: i64::try_from(meta.dropped_until)
            .ok()
            .filter(|&until| until > 0),
        alive_ms: i64::try_from(meta.alive.0).unwrap_or_default(),
        notes: Vec::new(),
    }
}

/// A copy in memory: it can be repaired, which what a killed service has left needs.
fn copy_file(path: &Path) -> Result<Database, StoreError> {
    let mut file = open_regular(path).map_err(StoreError::System)?;
    // redb locks the file of a database like this, too; held while it is read.
    let locked = retry_lock(|| match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StoreError::System(error)),
    })?;
    if !locked {
        return Err(StoreError::Busy);
    }
    check_size(&mut file)?;
    let backend = InMemoryBackend::new();
    let length = fill_backend(&mut file, &backend).map_err(StoreError::System)?;
    if length == 0 {
        return Err(StoreError::System(ErrorKind::NotFound.into()));
    }
    drop(file);
    open_checked(backend)
}

/// What is read goes into memory, so that nobody can make it do that with just any file.
fn check_size(file: &mut File) -> Result<(), StoreError> {
    let length = file.metadata().map_err(StoreError::System)?.len();
    let mut magic = [0; MAGIC.len()];
    if length == 0 {
        return Ok(());
    }
    if file.read_exact(&mut magic).is_err() || &magic != MAGIC {
        return Err(StoreError::Damaged("not a history of dmtrace".to_owned()));
    }
    if length > MAX_READ_BYTES {
        return Err(StoreError::Damaged(format!(
            "{length} bytes, and a history of dmtrace has {MAX_READ_BYTES} at most"
        )));
    }
    file.rewind().map_err(StoreError::System)
}

fn fill_backend(file: &mut File, backend: &InMemoryBackend) -> io::Result<u64> {
    let length = file.metadata()?.len();
    backend.set_len(length)?;
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(usize::MAX);
        let part = chunk.len().min(left);
        file.read_exact(&mut chunk[..part])?;
        backend.write(at, &chunk[..part])?;
        at += part as u64;
    }
    Ok(length)
}
