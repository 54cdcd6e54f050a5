//! The file: a redb database of bounded size.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Read as _},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableStats,
    WriteTransaction,
};

use crate::host::regular_file::open_regular;

use super::{
    backend::{CappedFile, FileSize},
    layout::{
        ENDINGS, META, PackedRecord, StoreError, StoreMeta, TableKind, catch_damage, is_new,
        open_checked, read_summary, record_cost, scan_tables, store_error,
    },
    record::{HistoryEntry, HistoryQuery},
};

/// What one transaction writes at most; the pages that it replaces are free only after it.
const BATCH: usize = 128 << 10;
/// Records of a table looked at for their age in one commit.
const LOOKED_AT: usize = 256;

/// The file, open for writing.
pub(super) struct Store {
    db: Database,
    size: Arc<FileSize>,
    limit: u64,
    pub(super) meta: StoreMeta,
    /// Bytes of the file for each byte of cost, in percent; measured now and then.
    percent: u64,
    /// Cost written since that was measured.
    unmeasured: u64,
    /// By table: everything before this number was looked at for its age.
    aged: [u64; TableKind::ALL.len()],
}

impl Store {
    /// Opens or makes it. What cannot be read is set aside, and told by the second value.
    pub(super) fn open(path: &Path, limit: u64) -> Result<(Self, Option<String>), StoreError> {
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(StoreError::System)?;
        }
        match Self::try_open(path, limit) {
            Err(StoreError::Damaged(why)) => {
                let aside = set_aside_path(path);
                fs::rename(path, &aside).map_err(StoreError::System)?;
                let told = format!(
                    "{}: not a history that can be read ({why}); it is {} now, and a new one was \
                     started",
                    path.display(),
                    aside.display()
                );
                Ok((Self::try_open(path, limit)?, Some(told)))
            }
            other => Ok((other?, None)),
        }
    }

    fn try_open(path: &Path, limit: u64) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::System)?;
        let size = Arc::new(FileSize::default());
        let backend = CappedFile::new(file, Arc::clone(&size)).map_err(StoreError::System)?;
        // One that is too large, because the limit was another one, needs room to become smaller.
        let before = size.now.load(Ordering::Relaxed);
        size.limit.store(limit.max(before * 2), Ordering::Relaxed);
        let mut store = Self {
            db: open_checked(backend).map_err(no_reason)?,
            size,
            limit,
            meta: StoreMeta::default(),
            percent: 160,
            unmeasured: 0,
            aged: [0; TableKind::ALL.len()],
        };
        catch_damage(|| store.init_tables()).map_err(no_reason)?;
        Ok(store)
    }

    /// Makes the tables, or reads what is in them.
    fn init_tables(&mut self) -> Result<(), StoreError> {
        let txn = self.db.begin_write().map_err(store_error)?;
        if is_new(&txn)? {
            let mut meta = txn.open_table(META).map_err(store_error)?;
            self.meta.write_table(&mut meta)?;
        }
        self.meta = StoreMeta::read_table(&txn.open_table(META).map_err(store_error)?)?;
        txn.open_table(ENDINGS).map_err(store_error)?;
        for kind in TableKind::ALL {
            txn.open_table(kind.table_of()).map_err(store_error)?;
        }
        txn.commit().map_err(store_error)?;
        self.measure_overhead()?;
        while self.make_room(0)? {}
        if self.file_length() > self.limit {
            // The limit was another one.
            self.db.compact().map_err(store_error)?;
        }
        self.size.limit.store(self.limit, Ordering::Relaxed);
        Ok(())
    }

    /// Size of the file in bytes.
    pub(super) fn file_length(&self) -> u64 {
        self.size.now.load(Ordering::Relaxed)
    }

    /// Writes records and ends of findings, and drops what is too old or too much. After an error
    /// the store must be opened again.
    ///
    /// `now`: wall clock and boot time. `old`: records that ended before this are dropped.
    pub(super) fn write_records(
        &mut self,
        records: &[(u64, &PackedRecord)],
        endings: &[(u64, i64, &[u8])],
        now: (u64, u64),
        old: i64,
    ) -> Result<(), StoreError> {
        catch_damage(|| {
            self.meta.alive = now;
            let mut rest = records;
            let mut first = true;
            while first || !rest.is_empty() {
                let mut size = 0;
                let fit = |(_, stored): &&(u64, &PackedRecord)| {
                    size += stored.packed_cost();
                    size <= BATCH
                };
                let count = rest.iter().take_while(fit).count();
                let (batch, after) = rest.split_at(count.max(1).min(rest.len()));
                rest = after;
                let endings = if first { endings } else { &[] };
                first = false;
                while self.make_room(size.min(BATCH) as u64)? {}
                self.write_transaction(batch, endings, old)?;
                if self.unmeasured > self.limit / 32 {
                    self.measure_overhead()?;
                }
            }
            Ok(())
        })
    }

    fn write_transaction(
        &mut self,
        records: &[(u64, &PackedRecord)],
        endings: &[(u64, i64, &[u8])],
        old: i64,
    ) -> Result<(), StoreError> {
        let txn = self.db.begin_write().map_err(store_error)?;
        for kind in TableKind::ALL {
            let mut table = txn.open_table(kind.table_of()).map_err(store_error)?;
            for (id, stored) in records.iter().filter(|(_, it)| it.kind == kind) {
                let before = table.insert(id, stored.to_row()).map_err(store_error)?;
                let before = before.map_or(0, |row| record_cost(row.value().2.len()));
                let sum = self.meta.cost_mut(kind);
                *sum += stored.packed_cost() as u64;
                *sum = sum.saturating_sub(before as u64);
                self.unmeasured += stored.packed_cost() as u64;
                self.meta.next = self.meta.next.max(id + 1);
            }
        }
        if !endings.is_empty() {
            let table = txn
                .open_table(TableKind::Finding.table_of())
                .map_err(store_error)?;
            let mut ends = txn.open_table(ENDINGS).map_err(store_error)?;
            for (id, at, json) in endings {
                // Of a finding that had to make room nothing is kept.
                if table.get(id).map_err(store_error)?.is_some() {
                    ends.insert(id, (*at, *at, *json)).map_err(store_error)?;
                }
            }
        }
        for kind in TableKind::ALL {
            self.drop_expired(&txn, kind, old)?;
        }
        self.meta
            .write_table(&mut txn.open_table(META).map_err(store_error)?)?;
        txn.commit().map_err(store_error)
    }

    /// Drops what ended before `old`, a bounded number of records at a time.
    fn drop_expired(
        &mut self,
        txn: &WriteTransaction,
        kind: TableKind,
        old: i64,
    ) -> Result<(), StoreError> {
        let mut table = txn.open_table(kind.table_of()).map_err(store_error)?;
        let mut ends = txn.open_table(ENDINGS).map_err(store_error)?;
        let aged = &mut self.aged[kind as usize];
        let mut gone = Vec::new();
        let mut looked = 0;
        let from_here = *aged;
        for row in table
            .range(from_here..)
            .map_err(store_error)?
            .take(LOOKED_AT)
        {
            let (id, row) = row.map_err(store_error)?;
            let id = id.value();
            let (from, to, packed) = row.value();
            // Nothing behind it can be old, except where the clock was set.
            if from >= old {
                break;
            }
            looked += 1;
            *aged = id + 1;
            let end = match to {
                i64::MAX => ends.get(id).map_err(store_error)?.map(|end| end.value().0),
                to => Some(to),
            };
            if end.is_some_and(|end| end < old) {
                gone.push((id, record_cost(packed.len())));
            }
        }
        if looked < LOOKED_AT {
            // Once around: what stood then may have ended.
            *aged = 0;
        }
        for (id, cost) in gone {
            table.remove(id).map_err(store_error)?;
            ends.remove(id).map_err(store_error)?;
            let sum = self.meta.cost_mut(kind);
            *sum = sum.saturating_sub(cost as u64);
            self.meta.dropped_for_age += 1;
        }
        Ok(())
    }

    /// What records may take at most. The file doubles when it grows, and is cut behind its last
    /// page when it is closed: below half of the limit it can double, above that so much of it is
    /// free that nothing has to grow.
    const fn record_budget(&self) -> u64 {
        self.limit / 100 * 35
    }

    fn used_bytes(&self, cost: u64) -> u64 {
        cost.saturating_mul(self.percent) / 100
    }

    /// Drops the oldest records, a batch at a time, while `more` does not fit: findings first, as
    /// long as the rest has not taken more than its share. Returns whether it must be called
    /// again.
    fn make_room(&mut self, more: u64) -> Result<bool, StoreError> {
        let budget = self.record_budget();
        if self.used_bytes(self.meta.total_cost() + more) <= budget {
            return Ok(false);
        }
        let kind = if self.used_bytes(self.meta.summaries) > budget / 4 {
            TableKind::Summary
        } else {
            TableKind::Finding
        };
        let txn = self.db.begin_write().map_err(store_error)?;
        let mut freed = 0;
        {
            let mut table = txn.open_table(kind.table_of()).map_err(store_error)?;
            let mut ends = txn.open_table(ENDINGS).map_err(store_error)?;
            // More than is needed, so that not every commit has to.
            let goal = budget / 64;
            while freed < BATCH as u64
                && (self.used_bytes(self.meta.total_cost() + more) > budget
                    || self.used_bytes(freed) < goal)
            {
                let Some((id, row)) = table.pop_first().map_err(store_error)? else {
                    break;
                };
                let (from, to, packed) = row.value();
                let end = match ends.remove(id.value()).map_err(store_error)? {
                    Some(end) => end.value().0,
                    None if to == i64::MAX => from,
                    None => to,
                };
                let cost = record_cost(packed.len()) as u64;
                freed += cost;
                let sum = self.meta.cost_mut(kind);
                *sum = sum.saturating_sub(cost);
                self.meta.dropped_for_space += 1;
                let end = u64::try_from(end).unwrap_or_default();
                self.meta.dropped_until = self.meta.dropped_until.max(end);
            }
            if freed == 0 {
                // Nothing is there: the sum must be wrong.
                *self.meta.cost_mut(kind) = 0;
            }
            self.meta
                .write_table(&mut txn.open_table(META).map_err(store_error)?)?;
        }
        txn.commit().map_err(store_error)?;
        Ok(self.meta.total_cost() > 0 && self.used_bytes(self.meta.total_cost() + more) > budget)
    }

    /// Compares what records cost with what they take.
    fn measure_overhead(&mut self) -> Result<(), StoreError> {
        let txn = self.db.begin_read().map_err(store_error)?;
        let taken = |stats: TableStats| {
            stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes()
        };
        let ends = txn.open_table(ENDINGS).map_err(store_error)?;
        let mut sum = taken(ends.stats().map_err(store_error)?);
        for kind in TableKind::ALL {
            let table = txn.open_table(kind.table_of()).map_err(store_error)?;
            sum += taken(table.stats().map_err(store_error)?);
        }
        self.unmeasured = 0;
        // Of a few records the tables themselves are the greater part.
        if self.meta.total_cost() > 256 << 10 {
            self.percent = (sum * 100 / self.meta.total_cost()).clamp(100, 400);
        }
        Ok(())
    }

    /// One record that is no finding.
    pub(super) fn read_summary(&self, id: u64) -> Result<Option<HistoryEntry>, StoreError> {
        catch_damage(|| read_summary(&self.db.begin_read().map_err(store_error)?, id))
    }

    /// As [`scan_tables`].
    pub(super) fn read_entries(
        &self,
        query: &HistoryQuery,
        tell: &mut dyn FnMut(HistoryEntry) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        catch_damage(|| scan_tables(&self.db.begin_read().map_err(store_error)?, query, tell))
    }
}

/// A file that claims to be larger than it may be, however much room it has, is damaged.
fn no_reason(trouble: StoreError) -> StoreError {
    match trouble {
        StoreError::System(error) if error.kind() == ErrorKind::FileTooLarge => {
            StoreError::Damaged("it does not fit its own layout".to_owned())
        }
        other => other,
    }
}

/// What a file of redb begins with.
const MAGIC: [u8; 9] = *b"redb\x1a\n\xa9\r\n";

/// Refuses a file that was never a history: one that is damaged is set aside, somebody's notes are
/// not. Whatever cannot be read is left to the history, which says so.
///
/// # Errors
/// It is a file of another kind.
pub(crate) fn check_named_file(path: &Path) -> anyhow::Result<()> {
    let Ok(mut file) = open_regular(path) else {
        return Ok(());
    };
    let mut begin = [0; MAGIC.len()];
    let acceptable = match file.read_exact(&mut begin) {
        Ok(()) => {
            let same = begin.iter().zip(&MAGIC).filter(|(is, was)| is == was);
            same.count() > MAGIC.len() / 2 || begin == [0; MAGIC.len()]
        }
        // Too short for any, unless it is to become one.
        Err(_) => file.metadata().is_ok_and(|meta| meta.len() == 0),
    };
    anyhow::ensure!(
        acceptable,
        "{}: is no history; give another name",
        path.display()
    );
    Ok(())
}

/// Where a file that cannot be read goes. There is one place, so that these files do not pile up.
pub(super) fn set_aside_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    PathBuf::from(name)
}
