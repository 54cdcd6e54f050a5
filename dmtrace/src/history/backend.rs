//! The file below the store, with an upper limit for its size.

use std::{
    fs::File,
    io,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

/// How long a lock is waited for that somebody else holds. A reader keeps it while it copies the
/// file; a child of any thread of a former owner until it has called exec. Neither is a reason to
/// go on without the file.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Tries to lock until it succeeds or [`LOCK_TIMEOUT`] is over; `false` then.
pub(super) fn retry_lock<E>(mut lock: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        if lock()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
}

/// A file that never grows beyond a limit: an attempt fails like a full disk.
#[derive(Debug)]
pub(super) struct CappedFile {
    file: FileBackend,
    size: Arc<FileSize>,
}

/// Size of the file, and how large it may become.
#[derive(Debug, Default)]
pub(super) struct FileSize {
    pub(super) now: AtomicU64,
    pub(super) limit: AtomicU64,
}

impl CappedFile {
    /// Around an open file, whose size is noted in `size`.
    pub(super) fn new(file: File, size: Arc<FileSize>) -> io::Result<Self> {
        size.now.store(file.metadata()?.len(), Ordering::Relaxed);
        Ok(Self {
            file: FileBackend::new(file).map_err(io::Error::other)?,
            size,
        })
    }
}

impl StorageBackend for CappedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let larger = len > self.size.now.load(Ordering::Relaxed);
        if larger && len > self.size.limit.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.set_len(len)?;
        self.size.now.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        retry_lock(|| self.file.try_lock_range(start, end))
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        retry_lock(|| self.file.try_lock_shared_range(start, end))
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
