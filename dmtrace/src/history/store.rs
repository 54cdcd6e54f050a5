//! The file: a redb database of bounded size.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::ErrorKind,
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableStats,
    WriteTransaction,
};

use super::{
    backend::{Capped, Size},
    layout::{
        ENDINGS, Kind, META, Meta, Stored, Trouble, cost, guarded, is_new, open_checked, scan,
        summary, trouble,
    },
    record::{Entry, Query},
};

/// What one transaction writes at most; the pages that it replaces are free only after it.
const BATCH: usize = 128 << 10;
/// Records of a table looked at for their age in one commit.
const LOOKED_AT: usize = 256;

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
    /// By table: everything before this number was looked at for its age.
    aged: [u64; Kind::ALL.len()],
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
                    "{}: not a history that can be read ({why}); it is {} now, and a new one was \
                     started",
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
        size.limit.store(limit.max(before * 2), Ordering::Relaxed);
        let mut store = Self {
            db: open_checked(backend).map_err(no_reason)?,
            size,
            limit,
            meta: Meta::default(),
            percent: 160,
            unmeasured: 0,
            aged: [0; Kind::ALL.len()],
        };
        guarded(|| store.begin()).map_err(no_reason)?;
        Ok(store)
    }

    /// Makes the tables, or reads what is in them.
    fn begin(&mut self) -> Result<(), Trouble> {
        let txn = self.db.begin_write().map_err(trouble)?;
        if is_new(&txn)? {
            let mut meta = txn.open_table(META).map_err(trouble)?;
            self.meta.write(&mut meta)?;
        }
        self.meta = Meta::read(&txn.open_table(META).map_err(trouble)?)?;
        txn.open_table(ENDINGS).map_err(trouble)?;
        for kind in Kind::ALL {
            txn.open_table(kind.table()).map_err(trouble)?;
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
        for kind in Kind::ALL {
            let mut table = txn.open_table(kind.table()).map_err(trouble)?;
            for (id, stored) in records.iter().filter(|(_, it)| it.kind == kind) {
                let before = table.insert(id, stored.row()).map_err(trouble)?;
                let before = before.map_or(0, |row| cost(row.value().2.len()));
                let sum = self.meta.of(kind);
                *sum += stored.cost() as u64;
                *sum = sum.saturating_sub(before as u64);
                self.unmeasured += stored.cost() as u64;
                self.meta.next = self.meta.next.max(id + 1);
            }
        }
        if !endings.is_empty() {
            let table = txn.open_table(Kind::Finding.table()).map_err(trouble)?;
            let mut ends = txn.open_table(ENDINGS).map_err(trouble)?;
            for (id, at, json) in endings {
                // Of a finding that had to make room nothing is kept.
                if table.get(id).map_err(trouble)?.is_some() {
                    ends.insert(id, (*at, *at, *json)).map_err(trouble)?;
                }
            }
        }
        for kind in Kind::ALL {
            self.expire(&txn, kind, old)?;
        }
        self.meta
            .write(&mut txn.open_table(META).map_err(trouble)?)?;
        txn.commit().map_err(trouble)
    }

    /// Drops what ended before `old`, a bounded number of records at a time.
    fn expire(&mut self, txn: &WriteTransaction, kind: Kind, old: i64) -> Result<(), Trouble> {
        let mut table = txn.open_table(kind.table()).map_err(trouble)?;
        let mut ends = txn.open_table(ENDINGS).map_err(trouble)?;
        let aged = &mut self.aged[kind as usize];
        let mut gone = Vec::new();
        let mut looked = 0;
        let from_here = *aged;
        for row in table.range(from_here..).map_err(trouble)?.take(LOOKED_AT) {
            let (id, row) = row.map_err(trouble)?;
            let id = id.value();
            let (from, to, packed) = row.value();
            // Nothing behind it can be old, except where the clock was set.
            if from >= old {
                break;
            }
            looked += 1;
            *aged = id + 1;
            let end = match to {
                i64::MAX => ends.get(id).map_err(trouble)?.map(|end| end.value().0),
                to => Some(to),
            };
            if end.is_some_and(|end| end < old) {
                gone.push((id, cost(packed.len())));
            }
        }
        if looked < LOOKED_AT {
            // Once around: what stood then may have ended.
            *aged = 0;
        }
        for (id, cost) in gone {
            table.remove(id).map_err(trouble)?;
            ends.remove(id).map_err(trouble)?;
            let sum = self.meta.of(kind);
            *sum = sum.saturating_sub(cost as u64);
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

    fn used(&self, cost: u64) -> u64 {
        cost.saturating_mul(self.percent) / 100
    }

    /// Drops the oldest records, a batch at a time, while `more` does not fit: findings first, as
    /// long as the rest has not taken more than its share. Returns whether it must be called
    /// again.
    fn make_room(&mut self, more: u64) -> Result<bool, Trouble> {
        let budget = self.budget();
        if self.used(self.meta.bytes() + more) <= budget {
            return Ok(false);
        }
        let kind = if self.used(self.meta.summaries) > budget / 4 {
            Kind::Summary
        } else {
            Kind::Finding
        };
        let txn = self.db.begin_write().map_err(trouble)?;
        let mut freed = 0;
        {
            let mut table = txn.open_table(kind.table()).map_err(trouble)?;
            let mut ends = txn.open_table(ENDINGS).map_err(trouble)?;
            // More than is needed, so that not every commit has to.
            let goal = budget / 64;
            while freed < BATCH as u64
                && (self.used(self.meta.bytes() + more) > budget || self.used(freed) < goal)
            {
                let Some((id, row)) = table.pop_first().map_err(trouble)? else {
                    break;
                };
                let (from, to, packed) = row.value();
                let end = match ends.remove(id.value()).map_err(trouble)? {
                    Some(end) => end.value().0,
                    None if to == i64::MAX => from,
                    None => to,
                };
                let cost = cost(packed.len()) as u64;
                freed += cost;
                let sum = self.meta.of(kind);
                *sum = sum.saturating_sub(cost);
                self.meta.dropped_for_space += 1;
                let end = u64::try_from(end).unwrap_or_default();
                self.meta.dropped_until = self.meta.dropped_until.max(end);
            }
            if freed == 0 {
                // Nothing is there: the sum must be wrong.
                *self.meta.of(kind) = 0;
            }
            self.meta
                .write(&mut txn.open_table(META).map_err(trouble)?)?;
        }
        txn.commit().map_err(trouble)?;
        Ok(self.meta.bytes() > 0 && self.used(self.meta.bytes() + more) > budget)
    }

    /// Compares what records cost with what they take.
    fn measure(&mut self) -> Result<(), Trouble> {
        let txn = self.db.begin_read().map_err(trouble)?;
        let taken = |stats: TableStats| {
            stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes()
        };
        let ends = txn.open_table(ENDINGS).map_err(trouble)?;
        let mut sum = taken(ends.stats().map_err(trouble)?);
        for kind in Kind::ALL {
            let table = txn.open_table(kind.table()).map_err(trouble)?;
            sum += taken(table.stats().map_err(trouble)?);
        }
        self.unmeasured = 0;
        // Of a few records the tables themselves are the greater part.
        if self.meta.bytes() > 256 << 10 {
            self.percent = (sum * 100 / self.meta.bytes()).clamp(100, 400);
        }
        Ok(())
    }

    /// One record that is no finding.
    pub(super) fn get(&self, id: u64) -> Result<Option<Entry>, Trouble> {
        guarded(|| summary(&self.db.begin_read().map_err(trouble)?, id))
    }

    /// As [`scan`].
    pub(super) fn read(
        &self,
        query: &Query,
        tell: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Trouble> {
        guarded(|| scan(&self.db.begin_read().map_err(trouble)?, query, tell))
    }
}

/// A file that claims to be larger than it may be, however much room it has, is damaged.
fn no_reason(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::System(error) if error.kind() == ErrorKind::FileTooLarge => {
            Trouble::Damaged("it does not fit its own layout".to_owned())
        }
        other => other,
    }
}

/// Where a file that cannot be read goes. There is one place, so that these files do not pile up.
pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    PathBuf::from(name)
}
