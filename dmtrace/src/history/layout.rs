//! What is in the file, and what can be wrong with it.

use std::{
    io::{self, ErrorKind},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use redb::{
    Builder, Database, ReadTransaction, ReadableTable, StorageBackend, Table, TableDefinition,
    TableHandle as _,
};

use super::record::{FindingEnd, HistoryEntry, HistoryQuery, HistoryRecord, UnreadFinding};
use crate::wording::cause_text;

/// Layout of the file. Another one is set aside.
pub(super) const SCHEMA: u64 = 2;
/// Memory for pages of the file.
const CACHE: usize = 1 << 20;
/// Longest record, when it is unpacked.
const LONGEST: usize = 1 << 20;

/// From when to when (milliseconds since 1970), and the record as packed JSON.
pub(super) type TableRow = (i64, i64, &'static [u8]);
/// The number of a record, and the record.
pub(super) type TableRows<'a> = TableDefinition<'a, u64, TableRow>;

/// Findings: large, and many at times.
pub(super) const FINDINGS: TableRows<'_> = TableDefinition::new("findings");
/// Everything else: small, and worth more than old findings.
pub(super) const SUMMARIES: TableRows<'_> = TableDefinition::new("summaries");
/// Ends of findings, twice the same time and JSON: a finding is not written again for it. Rows as
/// in the other tables: redb's code is there once for each kind of row.
pub(super) const ENDINGS: TableRows<'_> = TableDefinition::new("endings");
pub(super) const META: TableDefinition<'_, &'static str, u64> = TableDefinition::new("meta");

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Another process has it open.
    #[error("another process has it open")]
    Busy,
    /// It is no history, or a damaged one, or one of another version.
    #[error("{0}")]
    Damaged(String),
    /// The system refuses: no space, no permission, read-only.
    #[error("{}", cause_text(.0))]
    System(io::Error),
}

/// Something to write: from when to when it lasts, and the record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PackedRecord {
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) kind: TableKind,
    packed: Vec<u8>,
}

/// In which of the tables it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TableKind {
    Finding,
    Summary,
}

impl TableKind {
    pub(super) const ALL: [Self; 2] = [Self::Finding, Self::Summary];

    pub(super) const fn table_of(self) -> TableRows<'static> {
        match self {
            Self::Finding => FINDINGS,
            Self::Summary => SUMMARIES,
        }
    }
}

impl PackedRecord {
    pub(super) fn from_entry(entry: &HistoryEntry) -> Self {
        let (from, to) = entry.record.time_span();
        // The types have no maps with keys that are no strings, the only cause.
        let json = serde_json::to_vec(entry).unwrap_or_default();
        Self {
            from,
            to,
            kind: match entry.record {
                HistoryRecord::Finding(_) => TableKind::Finding,
                _ => TableKind::Summary,
            },
            packed: lz4_flex::block::compress_prepend_size(&json),
        }
    }

    /// As it is in its table.
    pub(super) fn to_row(&self) -> (i64, i64, &[u8]) {
        (self.from, self.to, &self.packed)
    }

    /// Bytes that it takes, about.
    pub(super) const fn packed_cost(&self) -> usize {
        record_cost(self.packed.len())
    }

    /// The record; `None` for one that a newer dmtrace has written.
    pub(super) fn unpack_entry(&self, id: u64) -> Option<HistoryEntry> {
        unpack_entry(&self.packed, id)
    }
}

/// Bytes that a record of this length takes, about.
pub(super) const fn record_cost(packed: usize) -> usize {
    packed + 32
}

fn unpack_entry(packed: &[u8], id: u64) -> Option<HistoryEntry> {
    let json = unpack_bytes(packed)?;
    let mut entry = HistoryEntry::from_json(&json)?;
    entry.id = id;
    Some(entry)
}

fn unpack_bytes(packed: &[u8]) -> Option<Vec<u8>> {
    let (length, packed) = lz4_flex::block::uncompressed_size(packed).ok()?;
    if length > LONGEST {
        return None;
    }
    lz4_flex::block::decompress(packed, length).ok()
}

/// What was dropped so far, and what the file remembers of its writer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct StoreMeta {
    pub(super) next: u64,
    /// Records that made room for newer ones.
    pub(super) dropped_for_space: u64,
    /// End of the latest of them, milliseconds since 1970; 0 if there is none.
    pub(super) dropped_until: u64,
    /// Records that were too old.
    pub(super) dropped_for_age: u64,
    /// Sum of the costs of all findings.
    pub(super) findings: u64,
    /// Sum of the costs of all else.
    pub(super) summaries: u64,
    /// Number of the record of the last run, plus one.
    pub(super) last_run: u64,
    /// The last commit, milliseconds since 1970 and nanoseconds since boot.
    pub(super) alive: (u64, u64),
}

impl StoreMeta {
    /// The sum of the costs of a table.
    pub(super) const fn cost_mut(&mut self, kind: TableKind) -> &mut u64 {
        match kind {
            TableKind::Finding => &mut self.findings,
            TableKind::Summary => &mut self.summaries,
        }
    }

    /// Sum of all costs.
    pub(super) const fn total_cost(&self) -> u64 {
        self.findings.saturating_add(self.summaries)
    }

    /// What the table says, if its layout is known.
    pub(super) fn read_table(
        table: &impl ReadableTable<&'static str, u64>,
    ) -> Result<Self, StoreError> {
        let number = |name| -> Result<u64, StoreError> {
            let found = table.get(name).map_err(store_error)?;
            Ok(found.map_or(0, |number| number.value()))
        };
        match number("schema")? {
            SCHEMA => {}
            other => return Err(StoreError::Damaged(format!("layout {other}, not {SCHEMA}"))),
        }
        Ok(Self {
            next: number("next")?,
            dropped_for_space: number("dropped_for_space")?,
            dropped_until: number("dropped_until")?,
            dropped_for_age: number("dropped_for_age")?,
            findings: number("findings")?,
            summaries: number("summaries")?,
            last_run: number("last_run")?,
            alive: (number("alive_wall_ms")?, number("alive_boot_ns")?),
        })
    }

    pub(super) fn write_table(
        &self,
        table: &mut Table<'_, &'static str, u64>,
    ) -> Result<(), StoreError> {
        for (name, number) in [
            ("schema", SCHEMA),
            ("next", self.next),
            ("dropped_for_space", self.dropped_for_space),
            ("dropped_until", self.dropped_until),
            ("dropped_for_age", self.dropped_for_age),
            ("findings", self.findings),
            ("summaries", self.summaries),
            ("last_run", self.last_run),
            ("alive_wall_ms", self.alive.0),
            ("alive_boot_ns", self.alive.1),
        ] {
            table.insert(name, number).map_err(store_error)?;
        }
        Ok(())
    }
}

/// Opens a database after every page in use was checked.
pub(super) fn open_checked(backend: impl StorageBackend) -> Result<Database, StoreError> {
    catch_damage(|| {
        Builder::new()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(store_error)
    })
}

/// Every record that a query wants: findings, then the rest, each from the oldest on; until the
/// callback breaks.
pub(super) fn scan_tables(
    txn: &ReadTransaction,
    query: &HistoryQuery,
    tell: &mut dyn FnMut(HistoryEntry) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StoreError> {
    let endings = txn.open_table(ENDINGS).map_err(store_error)?;
    for kind in TableKind::ALL {
        let table = txn.open_table(kind.table_of()).map_err(store_error)?;
        for row in table.iter().map_err(store_error)? {
            let (id, row) = row.map_err(store_error)?;
            let (from, to, packed) = row.value();
            let ending = match to {
                i64::MAX => endings.get(id.value()).map_err(store_error)?,
                _ => None,
            };
            let to = ending.as_ref().map_or(to, |ending| ending.value().0);
            if !query.covers_time((from, to)) {
                continue;
            }
            let damaged = || HistoryEntry {
                id: id.value(),
                boot_id: String::new(),
                record: HistoryRecord::Unread(UnreadFinding::default()),
            };
            let read = unpack_entry(packed, id.value());
            let Some(mut entry) = read.or_else(|| (kind == TableKind::Finding).then(damaged))
            else {
                continue;
            };
            if let (HistoryRecord::Finding(finding), Some(ending)) = (&mut entry.record, ending) {
                finding.gone = serde_json::from_slice::<FindingEnd>(ending.value().2).ok();
            }
            if query.matches(&entry.record) && tell(entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// One record that is no finding.
pub(super) fn read_summary(
    txn: &ReadTransaction,
    id: u64,
) -> Result<Option<HistoryEntry>, StoreError> {
    let table = txn.open_table(SUMMARIES).map_err(store_error)?;
    let row = table.get(id).map_err(store_error)?;
    Ok(row.and_then(|row| unpack_entry(row.value().2, id)))
}

/// Whether the database has no tables: it was begun just now.
pub(super) fn is_new(txn: &redb::WriteTransaction) -> Result<bool, StoreError> {
    let mut tables = txn.list_tables().map_err(store_error)?;
    Ok(!tables.any(|table| table.name() == META.name()))
}

/// Damage that the checks at the opening do not find makes redb panic: that must not end a trace.
pub(super) fn catch_damage<T>(
    run: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(StoreError::Damaged("its structure is broken".to_owned())))
}

/// redb's errors are many types; each of them becomes a [`redb::Error`].
pub(super) fn store_error(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::Busy,
        redb::Error::Io(error) => match error.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => {
                StoreError::Damaged(cause_text(&error))
            }
            // What the system says has a number; the rest is what redb thinks of the file.
            _ if error.raw_os_error().is_some() => StoreError::System(error),
            ErrorKind::FileTooLarge => StoreError::System(error),
            _ => StoreError::Damaged(cause_text(&error)),
        },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            StoreError::System(io::Error::other("an earlier write failed"))
        }
        other => StoreError::Damaged(other.to_string()),
    }
}
