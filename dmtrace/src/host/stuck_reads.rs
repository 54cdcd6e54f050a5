//! Files of a process that may never be readable.
//!
//! Whoever reads the arguments or the environment of a process waits for the lock of its memory. It is
//! held for ever where somebody else waits for a page of that memory from a file system that does not
//! answer, and a thread of the process wants to map something: `ps` stands still on such a host. So
//! another thread reads, and is left behind if it stands still. The wait can be killed: it keeps no
//! program from ending.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

/// So long one file may take,
const PATIENCE: Duration = Duration::from_secs(1);

/// and so long when that many have taken too long already.
const LITTLE_PATIENCE: Duration = Duration::from_millis(10);
const MANY_STUCK: usize = 8;

/// With so many nothing more is tried.
const MOST_STUCK: usize = 256;

type Reading = fn(&File) -> io::Result<Vec<u8>>;

/// A thread that reads.
struct Reader {
    wanted: Sender<(PathBuf, Reading)>,
    read: Receiver<io::Result<Vec<u8>>>,
    /// Whether it has ended: it does so when nobody wants anything any more.
    ended: Arc<AtomicBool>,
}

thread_local! {
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
    static IS_EXPENDABLE: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread waits itself: it is that of a process which is given up when it stands
/// still. After a fork it has no other thread to read for it.
pub(crate) fn wait_without_limit() {
    IS_EXPENDABLE.set(true);
}

/// Directories of processes whose files stand still, with the readers that wait there.
static STUCK: Mutex<BTreeMap<PathBuf, Arc<AtomicBool>>> = Mutex::new(BTreeMap::new());

/// Reads a file below the directory of a process.
///
/// # Errors
/// Those of opening and reading; `TimedOut` if it takes too long, or did so and still does.
pub(super) fn read_patiently(path: PathBuf, how: Reading) -> io::Result<Vec<u8>> {
    if IS_EXPENDABLE.get() {
        return how(&File::open(path)?);
    }
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    let stuck = count_stuck(&folder)?;
    let patience = if stuck < MANY_STUCK {
        PATIENCE
    } else {
        LITTLE_PATIENCE
    };
    READER.with_borrow_mut(|slot| {
        let reader = match slot {
            Some(reader) => reader,
            None => slot.insert(Reader::start()?),
        };
        let answer = match reader.wanted.send((path, how)) {
            Ok(()) => reader.read.recv_timeout(patience).ok(),
            Err(_) => None,
        };
        answer.unwrap_or_else(|| {
            if let Some(reader) = slot.take() {
                lock_stuck().insert(folder, reader.ended);
            }
            Err(too_long())
        })
    })
}

/// How many stand still now; an error if this one does.
fn count_stuck(folder: &Path) -> io::Result<usize> {
    let mut stuck = lock_stuck();
    stuck.retain(|_, ended| !ended.load(Ordering::Acquire));
    if stuck.contains_key(folder) || stuck.len() >= MOST_STUCK {
        return Err(too_long());
    }
    Ok(stuck.len())
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "reading its memory takes too long; somebody waits for a page of it",
    )
}

fn lock_stuck() -> std::sync::MutexGuard<'static, BTreeMap<PathBuf, Arc<AtomicBool>>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    fn start() -> io::Result<Self> {
        const STACK: usize = 64 << 10;
        let (wanted, asked) = channel::<(PathBuf, Reading)>();
        let (answer, read) = channel();
        let ended = Arc::new(AtomicBool::new(false));
        let tell_end = Arc::clone(&ended);
        let work = move || {
            for (path, how) in asked {
                let bytes = File::open(path).and_then(|file| how(&file));
                if answer.send(bytes).is_err() {
                    break;
                }
            }
            tell_end.store(true, Ordering::Release);
        };
        let builder = thread::Builder::new().name("reader".to_owned());
        builder.stack_size(STACK).spawn(work)?;
        Ok(Self {
            wanted,
            read,
            ended,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn read_one(mut file: &File) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1];
        io::Read::read_exact(&mut file, &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn one_that_stands_still_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (stuck, other) = (dir.path().join("7"), dir.path().join("8"));
        for folder in [&stuck, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        let fifo = stuck.join("cmdline");
        crate::host::regular_file::make_fifo(&fifo);
        std::fs::write(stuck.join("environ"), "x").unwrap();
        std::fs::write(other.join("cmdline"), "y").unwrap();
        let read = |folder: &Path, name: &str| read_patiently(folder.join(name), read_one);
        let is_late = |it: io::Result<Vec<u8>>| it.unwrap_err().kind() == io::ErrorKind::TimedOut;
        assert!(is_late(read(&stuck, "cmdline")));
        // Nothing of it is waited for again, and others are read.
        let begin = Instant::now();
        assert!(is_late(read(&stuck, "environ")));
        assert!(begin.elapsed() < PATIENCE / 2);
        assert_eq!(read(&other, "cmdline").unwrap(), b"y");
        assert!(read(&other, "none").is_err());
        // When it has come to an end, it is read again.
        std::fs::write(&fifo, "z").unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while read(&stuck, "environ").is_err() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }
}
