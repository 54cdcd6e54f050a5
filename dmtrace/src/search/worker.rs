//! Processes that read.
//!
//! A reader may stand still and not even end when it is killed: in a page fault that only a file system
//! in user space can answer. As a thread it would keep the whole program from ending. So it is a process
//! of its own, made by `fork(2)`: it has the memory of its parent at that moment and one thread, no
//! descriptor but its socket, and takes no signal but SIGKILL. It prints nothing, logs nothing, and takes
//! no lock that another thread of the parent may have held. (The allocators of glibc and musl put their
//! own locks in order at a fork.)

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    thread,
    time::{Duration, Instant},
};

use dmtrace_core::search::{HolderClass, Needles, Window};

use super::{
    files::search_files,
    mounts::MountTables,
    options::SearchOptions,
    pages::page_size,
    process::search_process,
    report::{Report, receive_report, send_report},
    shelf::{PIECE, ProgramCache, Shelf, Slot},
};
use crate::host::{Roots, stuck_reads};

/// Memory that a worker shares with its parent.
struct SharedSlot {
    at: NonNull<Slot>,
}

impl SharedSlot {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Slot>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(at.cast::<Slot>()) {
            Some(slot) if at != libc::MAP_FAILED => Ok(Self { at: slot }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    const fn get(&self) -> &Slot {
        // SAFETY: the mapping lives as long as this, is aligned to a page, zeros are a valid slot, and
        // all access is atomic.
        unsafe { self.at.as_ref() }
    }
}

impl Drop for SharedSlot {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference any more; a worker has its own mapping.
        unsafe { libc::munmap(self.at.as_ptr().cast(), size_of::<Slot>()) };
    }
}

/// What a worker is to do: the number of a process, or 0 for the files.
pub(super) type Job = u32;

pub(super) const FILES: Job = 0;

/// A worker at work.
struct Busy {
    job: Job,
    since: Instant,
    /// When it was last seen to go on, and how far it was then.
    moved: Instant,
    bytes: u64,
}

/// A worker, as its parent sees it.
pub(super) struct Worker {
    pid: i32,
    socket: UnixStream,
    slot: SharedSlot,
    busy: Option<Busy>,
}

impl Worker {
    pub(super) fn start(needles: &Needles, options: &SearchOptions) -> io::Result<Self> {
        let slot = SharedSlot::new()?;
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(options.stall_limit.max(Duration::from_secs(1))))?;
        let parent = std::process::id();
        // SAFETY: the child runs `serve` only, which keeps to what is said above.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => serve(&theirs, needles, options, slot.get(), parent),
            pid => Ok(Self {
                pid,
                socket,
                slot,
                busy: None,
            }),
        }
    }

    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.slot.get().bytes()
    }

    pub(super) fn job(&self) -> Option<Job> {
        self.busy.as_ref().map(|it| it.job)
    }

    /// What the process at hand could do, if the worker has come so far.
    pub(super) fn class(&self) -> Option<HolderClass> {
        self.slot.get().class()
    }

    pub(super) fn give(&mut self, job: Job) -> io::Result<()> {
        self.socket.write_all(&job.to_le_bytes())?;
        let now = Instant::now();
        self.busy = Some(Busy {
            job,
            since: now,
            moved: now,
            bytes: self.bytes(),
        });
        Ok(())
    }

    pub(super) fn take(&mut self) -> io::Result<Report> {
        let report = receive_report(&mut self.socket)?;
        self.busy = None;
        Ok(report)
    }

    /// Whether it stands still, or has taken too long.
    pub(super) fn is_late(&mut self, options: &SearchOptions) -> bool {
        let bytes = self.bytes();
        let Some(busy) = &mut self.busy else {
            return false;
        };
        let now = Instant::now();
        if bytes != busy.bytes {
            (busy.bytes, busy.moved) = (bytes, now);
        }
        let files = options.files.as_ref().map(|it| it.limit);
        let limit = match files {
            // It ends by itself; that may take as long as one file.
            Some(limit) if busy.job == FILES => limit + options.stall_limit,
            _ => options.process_limit,
        };
        now - busy.moved > options.stall_limit || now - busy.since > limit
    }

    /// Ends it. Returns its number if it does not end.
    pub(super) fn end(self) -> Option<i32> {
        const PATIENCE: u32 = 200;
        // SAFETY: numbers. It is our child and not yet waited for, so the number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        for _ in 0..PATIENCE {
            if is_reaped(self.pid) {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Some(self.pid)
    }
}

/// Whether a child has ended; it is waited for then.
pub(super) fn is_reaped(pid: i32) -> bool {
    // SAFETY: numbers, and no status is wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) != 0 }
}

/// The life of a worker.
fn serve(
    socket: &UnixStream,
    needles: &Needles,
    options: &SearchOptions,
    slot: &Slot,
    parent: u32,
) -> ! {
    let work = || {
        keep_apart(socket.as_raw_fd(), parent);
        stuck_reads::wait_without_limit();
        let roots = Roots::host();
        let mut shelf = Shelf {
            mounts: MountTables::new(&roots),
            roots,
            needles,
            options,
            programs: ProgramCache::new(),
            own_program: own_program(),
            page: page_size(),
            window: Window::new(PIECE),
            slot,
        };
        let mut socket = socket;
        let mut job = [0; 4];
        while socket.read_exact(&mut job).is_ok() {
            shelf.set_class(None);
            let report = match (Job::from_le_bytes(job), &options.files) {
                (FILES, Some(files)) => search_files(&mut shelf, files),
                (pid, _) => search_process(&mut shelf, pid),
            };
            if send_report(&mut socket, &report).is_err() {
                break;
            }
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(work));
    // SAFETY: ends this process at once: nothing of the parent's is flushed, run or removed.
    unsafe { libc::_exit(i32::from(ended.is_err())) }
}

/// Whoever runs the tests is no dmtrace.
fn own_program() -> Option<(u64, u64)> {
    let meta = fs::metadata("/proc/self/exe").ok();
    meta.filter(|_| !cfg!(test)).map(|it| (it.dev(), it.ino()))
}

/// Lets go of everything that is the parent's, and ends with it.
fn keep_apart(keep: RawFd, parent: u32) {
    let keep = u32::try_from(keep).unwrap_or(0);
    // SAFETY: a set of signals is a number of bits, of which zeros are one.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: a set of ours.
    unsafe { libc::sigfillset(&raw mut set) };
    // SAFETY: the same; what was before is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: it always succeeds.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        // SAFETY: the parent ended before it could take this process with it.
        unsafe { libc::_exit(0) };
    }
    let close = |from: u32, to: u32| {
        // SAFETY: numbers. The descriptors are the parent's copies, which nothing here uses.
        from > to || unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } == 0
    };
    let closed = keep.checked_sub(1).is_none_or(|last| close(0, last)) && close(keep + 1, u32::MAX);
    if !closed {
        // Before Linux 5.9.
        for fd in (0..65536_u32).filter(|fd| *fd != keep) {
            // SAFETY: as before.
            unsafe { libc::close(fd.cast_signed()) };
        }
    }
    // The first three are not to become something that a message is written to.
    for _ in 0..3 {
        // SAFETY: a C string; the descriptor stays open for ever.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        if fd > 2 {
            // SAFETY: it was opened just now.
            unsafe { libc::close(fd) };
            break;
        }
    }
}
