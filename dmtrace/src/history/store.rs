//! The file: a redb database of bounded size.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable,
    ReadableTableMetadata as _, StorageBackend, Table, TableDefinition, backends::InMemoryBackend,
};

use super::{
    backend::{Capped, Size},
    record::{Entry, Gone, Query, Record},
};

/// Layout of the file. Another one is set aside.
const SCHEMA: u64 = 1;
/// Memory for pages of the file.
const CACHE: usize = 1 << 20;
/// What one transaction writes at most; the pages that it replaces are free only after it.
const BATCH: usize = 128 << 10;
/// Records looked at for their age in one commit.
const LOOKED_AT: usize = 256;

/// From when to when (milliseconds since 1970), and the record as JSON.
type Row = (i64, i64, &'static [u8]);
const RECORDS: TableDefinition<'_, u64, Row> = TableDefinition::new("records");
/// Ends of findings, as JSON: the finding itself is larger, and is not written again.
const ENDINGS: TableDefinition<'_, u64, (i64, &'static [u8])> = TableDefinition::new("endings");
const META: TableDefinition<'_, &'static str, u64> = TableDefinition::new("meta");

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Another process has it open.
    #[error("another process has it open")]
    Busy,
    /// It is no history, or a damaged one, or one of another version.
    #[error("{0}")]
    Damaged(String),
    /// The system refuses: no space, no permission, read-only.
    #[error("{0}")]
    System(io::Error),
}

/// Something to write: its number, from when to when it lasts, the record as JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) json: Vec<u8>,
}

impl Stored {
    pub(super) fn of(entry: &Entry) -> Self {
        let (from, to) = entry.record.span();
        Self {
            from,
            to,
            // The types have no maps with keys that are no strings, the only cause.
            json: serde_json::to_vec(entry).unwrap_or_default(),
        }
    }

    /// Bytes that it takes, about.
    pub(super) const fn cost(&self) -> usize {
        cost(self.json.len())
    }
}

const fn cost(json: usize) -> usize {
    json + 32
}

/// What was dropped so far, and what the file remembers of its writer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Meta {
    /// The next number.
    pub(super) next: u64,
    /// Records that made room for newer ones.
    pub(super) dropped_for_space: u64,
    /// End of the latest of them, milliseconds since 1970; 0 if there is none.
    pub(super) dropped_until: u64,
    /// Records that were too old.
    pub(super) dropped_for_age: u64,
    /// Sum of the costs of all records.
    bytes: u64,
    /// Number of the record of the last run, plus one.
    pub(super) last_run: u64,
    /// The last commit, milliseconds since 1970 and nanoseconds since boot.
    pub(super) alive: (u64, u64),
}

/// The file, open for writing.
pub(super) struct Store {
    db: Database,
    size: Arc<Size>,
    limit: u64,
    pub(super) meta: Meta,
    /// Bytes of the file for each byte of cost, in percent; measured now and then.
    percent: u64,
    /// Cost written since that was measured.
    unmeasured: u64,
    /// Everything before this number was looked at for its age.
    aged: u64,
}

impl Store {
    /// Opens or makes it. What cannot be read is set aside, and told by the second value.
    pub(super) fn open(path: &Path, limit: u64) -> Result<(Self, Option<String>), Trouble> {
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(Trouble::System)?;
        }
        match Self::attempt(path, limit) {
            Err(Trouble::Damaged(why)) => {
                let aside = aside(path);
                fs::rename(path, &aside).map_err(Trouble::System)?;
                let told = format!(
                    "{}: not a history that can be read ({why}); it is {} now, and a new one is \
                     begun",
                    path.display(),
                    aside.display()
                );
                Ok((Self::attempt(path, limit)?, Some(told)))
            }
            other => Ok((other?, None)),
        }
    }

    fn attempt(path: &Path, limit: u64) -> Result<Self, Trouble> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Trouble::System)?;
        let size = Arc::new(Size::default());
        let backend = Capped::new(file, Arc::clone(&size)).map_err(Trouble::System)?;
        // One that is too large, because the limit was another one, needs room to become smaller.
        let before = size.now.load(Ordering::Relaxed);
        let room = if before > limit { before * 2 } else { limit };
        size.limit.store(room, Ordering::Relaxed);
        let db = open_checked(backend)?;
        let mut store = Self {
            db,
            size,
            limit,
            meta: Meta::default(),
            percent: 160,
            unmeasured: 0,
            aged: 0,
        };
        guarded(|| store.begin())?;
        Ok(store)
    }

    /// Makes the tables, or reads what is in them.
    fn begin(&mut self) -> Result<(), Trouble> {
        let txn = self.db.begin_write().map_err(trouble)?;
        {
            let mut meta = txn.open_table(META).map_err(trouble)?;
            match get(&meta, "schema")? {
                None if meta.is_empty().map_err(trouble)? => {
                    meta.insert("schema", SCHEMA).map_err(trouble)?;
                }
                Some(SCHEMA) => {}
                other => {
                    let text = format!("layout {}, not {SCHEMA}", other.unwrap_or_default());
                    return Err(Trouble::Damaged(text));
                }
            }
            self.meta = Meta::read(&meta)?;
            txn.open_table(RECORDS).map_err(trouble)?;
            txn.open_table(ENDINGS).map_err(trouble)?;
        }
        txn.commit().map_err(trouble)?;
        self.measure()?;
        while self.make_room(0)? {}
        if self.length() > self.limit {
            // The limit was another one.
            self.db.compact().map_err(trouble)?;
        }
        self.size.limit.store(self.limit, Ordering::Relaxed);
        Ok(())
    }

    /// Size of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.size.now.load(Ordering::Relaxed)
    }

    /// Writes records and ends of findings, and drops what is too old or too much. After an error
    /// the store must be opened again.
    ///
    /// `now`: wall clock and boot time. `old`: records that ended before this are dropped.
    pub(super) fn write(
        &mut self,
        records: &[(u64, &Stored)],
        endings: &[(u64, i64, &[u8])],
        now: (u64, u64),
        old: i64,
    ) -> Result<(), Trouble> {
        guarded(|| {
            self.meta.alive = now;
            let mut rest = records;
            let mut first = true;
            while first || !rest.is_empty() {
                let mut size = 0;
                let fit = |(_, stored): &&(u64, &Stored)| {
                    size += stored.cost();
                    size <= BATCH
                };
                let count = rest.iter().take_while(fit).count();
                let (batch, after) = rest.split_at(count.max(1).min(rest.len()));
                rest = after;
                let endings = if first { endings } else { &[] };
                first = false;
                while self.make_room(size.min(BATCH) as u64)? {}
                self.transaction(batch, endings, old)?;
                if self.unmeasured > self.limit / 32 {
                    self.measure()?;
                }
            }
            Ok(())
        })
    }

    fn transaction(
        &mut self,
        records: &[(u64, &Stored)],
        endings: &[(u64, i64, &[u8])],
        old: i64,
    ) -> Result<(), Trouble> {
        let txn = self.db.begin_write().map_err(trouble)?;
        {
            let mut table = txn.open_table(RECORDS).map_err(trouble)?;
            let mut ends = txn.open_table(ENDINGS).map_err(trouble)?;
            for (id, stored) in records {
                let row = (stored.from, stored.to, stored.json.as_slice());
                let before = table.insert(id, row).map_err(trouble)?;
                let before = before.map_or(0, |row| cost(row.value().2.len()));
                self.meta.bytes += stored.cost() as u64;
                self.meta.bytes = self.meta.bytes.saturating_sub(before as u64);
                self.unmeasured += stored.cost() as u64;
                self.meta.next = self.meta.next.max(id + 1);
            }
            for (id, at, json) in endings {
                // Of a finding that had to make room nothing is kept.
                if table.get(id).map_err(trouble)?.is_some() {
                    ends.insert(id, (*at, *json)).map_err(trouble)?;
                }
            }
            self.expire(&mut table, &mut ends, old)?;
            let mut meta = txn.open_table(META).map_err(trouble)?;
            self.meta.write(&mut meta)?;
        }
        txn.commit().map_err(trouble)
    }

    /// Drops what ended before `old`, a bounded number of records at a time.
    fn expire(
        &mut self,
        table: &mut Table<'_, u64, Row>,
        ends: &mut Table<'_, u64, (i64, &'static [u8])>,
        old: i64,
    ) -> Result<(), Trouble> {
        let mut gone = Vec::new();
        let mut looked = 0;
        let from_here = self.aged;
        for row in table.range(from_here..).map_err(trouble)?.take(LOOKED_AT) {
            let (id, row) = row.map_err(trouble)?;
            let id = id.value();
            let (from, to, json) = row.value();
            // Nothing behind it can be old, except where the clock was set.
            if from >= old {
                break;
            }
            looked += 1;
            self.aged = id + 1;
            let end = match to {
                i64::MAX => ends.get(id).map_err(trouble)?.map(|end| end.value().0),
                to => Some(to),
            };
            if end.is_some_and(|end| end < old) {
                gone.push((id, cost(json.len())));
            }
        }
        if looked < LOOKED_AT {
            // Once around: what stood then may have ended.
            self.aged = 0;
        }
        for (id, cost) in gone {
            table.remove(id).map_err(trouble)?;
            ends.remove(id).map_err(trouble)?;
            self.meta.bytes = self.meta.bytes.saturating_sub(cost as u64);
            self.meta.dropped_for_age += 1;
        }
        Ok(())
    }

    /// What records may take at most. The file doubles when it grows, and is cut behind its last
    /// page when it is closed: below half of the limit it can double, above that so much of it is
    /// free that nothing has to grow.
    const fn budget(&self) -> u64 {
        self.limit / 100 * 35
    }

    fn used(&self, more: u64) -> u64 {
        self.meta.bytes.saturating_add(more) * self.percent / 100
    }

    /// Drops the oldest records, a batch at a time, while `more` does not fit. Returns whether it
    /// must be called again.
    fn make_room(&mut self, more: u64) -> Result<bool, Trouble> {
        let budget = self.budget();
        if self.used(more) <= budget {
            return Ok(false);
        }
        let txn = self.db.begin_write().map_err(trouble)?;
        let mut freed = 0;
        {
            let mut table = txn.open_table(RECORDS).map_err(trouble)?;
            let mut ends = txn.open_table(ENDINGS).map_err(trouble)?;
            // More than is needed, so that not every commit has to.
            let goal = budget / 64;
            while freed < BATCH as u64
                && (self.used(more) > budget || freed * self.percent / 100 < goal)
            {
                let Some((id, row)) = table.pop_first().map_err(trouble)? else {
                    break;
                };
                let (from, to, json) = row.value();
                let id = id.value();
                let end = match ends.remove(id).map_err(trouble)? {
                    Some(end) => end.value().0,
                    None if to == i64::MAX => from,
                    None => to,
                };
                let cost = cost(json.len()) as u64;
                freed += cost;
                self.meta.bytes = self.meta.bytes.saturating_sub(cost);
                self.meta.dropped_for_space += 1;
                let end = u64::try_from(end).unwrap_or_default();
                self.meta.dropped_until = self.meta.dropped_until.max(end);
            }
            let mut meta = txn.open_table(META).map_err(trouble)?;
            self.meta.write(&mut meta)?;
        }
        txn.commit().map_err(trouble)?;
        Ok(freed > 0 && self.used(more) > self.budget())
    }

    /// Compares what records cost with what they take.
    fn measure(&mut self) -> Result<(), Trouble> {
        let txn = self.db.begin_read().map_err(trouble)?;
        let mut taken = 0;
        let mut count = |stats: redb::TableStats| {
            taken += stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes();
        };
        count(
            txn.open_table(RECORDS)
                .map_err(trouble)?
                .stats()
                .map_err(trouble)?,
        );
        count(
            txn.open_table(ENDINGS)
                .map_err(trouble)?
                .stats()
                .map_err(trouble)?,
        );
        self.unmeasured = 0;
        // Of a few records the tables themselves are the greater part.
        if self.meta.bytes > 256 << 10 {
            self.percent = (taken * 100 / self.meta.bytes).clamp(100, 400);
        }
        Ok(())
    }

    /// One record.
    pub(super) fn get(&self, id: u64) -> Result<Option<Entry>, Trouble> {
        guarded(|| {
            let txn = self.db.begin_read().map_err(trouble)?;
            let records = txn.open_table(RECORDS).map_err(trouble)?;
            let row = records.get(id).map_err(trouble)?;
            Ok(row.and_then(|row| serde_json::from_slice(row.value().2).ok()))
        })
    }

    /// Every record that a query wants, oldest first, until the callback breaks.
    pub(super) fn read(
        &self,
        query: &Query,
        tell: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Trouble> {
        guarded(|| scan(&self.db.begin_read().map_err(trouble)?, query, tell))
    }
}

/// A copy in memory of a file that no service has open, for reading. Also reads what a killed
/// service has left, which redb repairs in the copy.
pub(super) struct Copy {
    db: Database,
    pub(super) meta: Meta,
}

impl Copy {
    /// Reads the file; never changes it.
    pub(super) fn open(path: &Path) -> Result<Self, Trouble> {
        let file = File::open(path).map_err(Trouble::System)?;
        // redb locks the file of a database like this, too; held while it is read.
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Trouble::Busy),
            Err(fs::TryLockError::Error(error)) => return Err(Trouble::System(error)),
        }
        if file.metadata().map_err(Trouble::System)?.len() == 0 {
            return Err(Trouble::System(ErrorKind::NotFound.into()));
        }
        let backend = InMemoryBackend::new();
        copy(&file, &backend).map_err(Trouble::System)?;
        drop(file);
        let db = open_checked(backend)?;
        let meta = guarded(|| {
            let txn = db.begin_read().map_err(trouble)?;
            let table = txn.open_table(META).map_err(trouble)?;
            match get(&table, "schema")? {
                Some(SCHEMA) => Meta::read(&table),
                other => Err(Trouble::Damaged(format!(
                    "layout {}, this dmtrace reads {SCHEMA}",
                    other.unwrap_or_default()
                ))),
            }
        })?;
        Ok(Self { db, meta })
    }

    /// As [`Store::read`].
    pub(super) fn read(
        &self,
        query: &Query,
        tell: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Trouble> {
        guarded(|| scan(&self.db.begin_read().map_err(trouble)?, query, tell))
    }
}

fn copy(mut file: &File, backend: &InMemoryBackend) -> io::Result<()> {
    use io::Read as _;
    let length = file.metadata()?.len();
    backend.set_len(length)?;
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let part = chunk
            .len()
            .min(usize::try_from(length - at).unwrap_or(usize::MAX));
        file.read_exact(&mut chunk[..part])?;
        backend.write(at, &chunk[..part])?;
        at += part as u64;
    }
    Ok(())
}

/// Opens a database after every page in use was checked.
fn open_checked(backend: impl StorageBackend) -> Result<Database, Trouble> {
    guarded(|| {
        Builder::new()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(trouble)
    })
}

fn scan(
    txn: &ReadTransaction,
    query: &Query,
    tell: &mut dyn FnMut(Entry) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Trouble> {
    let records = txn.open_table(RECORDS).map_err(trouble)?;
    let endings = txn.open_table(ENDINGS).map_err(trouble)?;
    for row in records.iter().map_err(trouble)? {
        let (id, row) = row.map_err(trouble)?;
        let (from, to, json) = row.value();
        let ending = match to {
            i64::MAX => endings.get(id.value()).map_err(trouble)?,
            _ => None,
        };
        let to = ending.as_ref().map_or(to, |ending| ending.value().0);
        if !query.covers((from, to)) {
            continue;
        }
        // A newer dmtrace may have written kinds that this one does not know.
        let Ok(mut entry) = serde_json::from_slice::<Entry>(json) else {
            continue;
        };
        entry.id = id.value();
        if let (Record::Finding(finding), Some(ending)) = (&mut entry.record, ending) {
            finding.gone = serde_json::from_slice::<Gone>(ending.value().1).ok();
        }
        if query.wants(&entry.record) && tell(entry).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

impl Meta {
    fn read(table: &impl ReadableTable<&'static str, u64>) -> Result<Self, Trouble> {
        let number = |name| get(table, name).map(Option::unwrap_or_default);
        Ok(Self {
            next: number("next")?,
            dropped_for_space: number("dropped_for_space")?,
            dropped_until: number("dropped_until")?,
            dropped_for_age: number("dropped_for_age")?,
            bytes: number("bytes")?,
            last_run: number("last_run")?,
            alive: (number("alive_wall_ms")?, number("alive_boot_ns")?),
        })
    }

    fn write(&self, table: &mut Table<'_, &'static str, u64>) -> Result<(), Trouble> {
        for (name, number) in [
            ("next", self.next),
            ("dropped_for_space", self.dropped_for_space),
            ("dropped_until", self.dropped_until),
            ("dropped_for_age", self.dropped_for_age),
            ("bytes", self.bytes),
            ("last_run", self.last_run),
            ("alive_wall_ms", self.alive.0),
            ("alive_boot_ns", self.alive.1),
        ] {
            table.insert(name, number).map_err(trouble)?;
        }
        Ok(())
    }
}

fn get(
    table: &impl ReadableTable<&'static str, u64>,
    name: &'static str,
) -> Result<Option<u64>, Trouble> {
    Ok(table
        .get(name)
        .map_err(trouble)?
        .map(|number| number.value()))
}

/// Where a file that cannot be read goes. There is one place, so that these files do not pile up.
pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    PathBuf::from(name)
}

/// Damage that the checks at the opening do not find makes redb panic: that must not end a trace.
fn guarded<T>(run: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Trouble::Damaged("its structure is broken".to_owned())))
}

/// redb's errors are many types; each of them becomes a [`redb::Error`].
fn trouble(error: impl Into<redb::Error>) -> Trouble {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Trouble::Busy,
        redb::Error::Io(error) => match error.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => {
                Trouble::Damaged(error.to_string())
            }
            _ => Trouble::System(error),
        },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            Trouble::System(io::Error::other("an earlier write failed"))
        }
        other => Trouble::Damaged(other.to_string()),
    }
}
