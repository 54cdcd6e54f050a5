//! A process that has a number in one place.

use std::{
    hint::black_box,
    io::{self, Read as _, Write as _},
};

use dmtrace_core::{ids::Key, search::Needles, search::Search};

use crate::search::{SearchOptions, run};

/// A number that is nowhere else.
#[derive(Clone, Copy)]
pub(super) struct Secret(u32);

impl Secret {
    pub(super) fn new(base: u16) -> Self {
        Self(!(0x0d4d_0000 | u32::from(base)))
    }

    #[inline(never)]
    pub(super) fn reveal(self) -> u32 {
        !black_box(self.0)
    }

    pub(super) fn key(self) -> Key {
        Key(self.reveal())
    }
}

/// A child that ends with its test.
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) secret: Secret,
}

impl Holder {
    /// Does something in a child of this process, which then waits.
    pub(super) fn start(base: u16, hold: impl FnOnce(Secret)) -> Self {
        let secret = Secret::new(base);
        let (mut reader, mut writer) = io::pipe().unwrap();
        // SAFETY: the child calls what it is given, and waits; glibc puts its locks in order.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            drop(reader);
            // SAFETY: numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            hold(secret);
            let _told = writer.write_all(b"r");
            drop(writer);
            wait_for_ever();
        }
        drop(writer);
        let holder = Self {
            pid: pid.cast_unsigned(),
            secret,
        };
        reader.read_exact(&mut [0]).unwrap();
        holder
    }

    /// The same in a second thread of the child, whose first one has ended.
    pub(super) fn start_thread(base: u16, hold: impl FnOnce(Secret) + Send + 'static) -> Self {
        let holder = Self::start(base, move |secret| {
            let (mut reader, writer) = io::pipe().unwrap();
            std::thread::spawn(move || {
                hold(secret);
                drop(writer);
                wait_for_ever();
            });
            let _ended = reader.read(&mut [0]);
            // SAFETY: sets what a signal does: it ends the thread that gets it, and no other.
            unsafe {
                let end = end_thread as extern "C" fn(i32);
                libc::signal(libc::SIGUSR1, end as *const () as libc::sighandler_t);
            }
        });
        let pid = holder.pid.cast_signed();
        // SAFETY: numbers; the thread of our own child.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1) };
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|it| it.contains(") Z "))
        };
        while !ended() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        holder
    }

    pub(super) fn search_with(&self, change: impl FnOnce(&mut SearchOptions)) -> Search {
        let mut options = SearchOptions {
            only: [self.pid].into(),
            ..SearchOptions::default()
        };
        change(&mut options);
        run(&Needles::new([self.secret.key()]), &options, &mut |_| ())
    }

    pub(super) fn search(&self) -> Search {
        self.search_with(|_| ())
    }

    /// A number of `/proc/PID/status`.
    pub(super) fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        let value = value.unwrap().trim_start_matches(':').trim();
        value.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let pid = self.pid.cast_signed();
        // SAFETY: our own child, which nobody has waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: no status is wanted.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
}

extern "C" fn end_thread(_signal: i32) {
    // SAFETY: ends this thread, and nothing of it is used again.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

pub(super) fn wait_for_ever() -> ! {
    loop {
        // SAFETY: it only waits.
        unsafe { libc::pause() };
    }
}

/// New memory; a null pointer where there is none.
pub(super) fn map(length: usize, flags: i32, fd: i32) -> *mut u8 {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

pub(super) const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Writes a number somewhere.
pub(super) fn put(at: *mut u8, offset: usize, bytes: &[u8]) {
    for (number, byte) in bytes.iter().enumerate() {
        // SAFETY: the callers' mappings are longer.
        unsafe { at.wrapping_add(offset + number).write_volatile(*byte) };
    }
}
