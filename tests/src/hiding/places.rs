//! Memory of odd kinds.

use std::{hint::black_box, io, thread, time::Duration};

use super::{Inverted, wait_quietly};
use crate::sysv::check_result;

const PAGE: usize = 4096;

/// Writes a number of which no register and no stack ever has the whole.
pub(super) fn write_number(at: *mut u8, number: Inverted) {
    for (place, byte) in number.0.to_ne_bytes().into_iter().enumerate() {
        // SAFETY: every place of this module and of its neighbour is a page of ours.
        unsafe { at.wrapping_add(64 + place).write_volatile(!black_box(byte)) };
    }
}

/// New memory.
pub(super) fn map_memory(length: usize, flags: i32, fd: i32) -> io::Result<*mut u8> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at.cast())
    }
}

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// A page that no other mapping is merged with: what is around it cannot be accessed.
pub(super) fn new_page() -> io::Result<*mut u8> {
    let at = map_memory(3 * PAGE, ANONYMOUS, -1)?;
    for border in [at, at.wrapping_add(2 * PAGE)] {
        forbid_page(border)?;
    }
    Ok(at.wrapping_add(PAGE))
}

/// Takes all rights to a page of ours.
pub(super) fn forbid_page(page: *mut u8) -> io::Result<()> {
    // SAFETY: a page of a mapping of ours, in which nothing of Rust's is.
    check_result(unsafe { libc::mprotect(page.cast(), PAGE, libc::PROT_NONE) }).map(drop)
}

/// Memory that is never touched, but for one page near its end.
pub(super) fn lazy_page() -> io::Result<*mut u8> {
    const LENGTH: u64 = 64 << 30;
    let length = usize::try_from(LENGTH).map_err(io::Error::other)?;
    let at = map_memory(length, ANONYMOUS | libc::MAP_NORESERVE, -1)?;
    // One page is one page.
    // SAFETY: our mapping.
    check_result(unsafe { libc::madvise(at.cast(), length, libc::MADV_NOHUGEPAGE) })?;
    Ok(at.wrapping_add(length - 2 * PAGE))
}

/// Memory that nobody else can read, not even the kernel.
pub(super) fn secret_page() -> io::Result<*mut u8> {
    const MEMFD_SECRET: libc::c_long = 447;
    // SAFETY: a number.
    let fd = unsafe { libc::syscall(MEMFD_SECRET, 0) };
    let fd = check_result(i32::try_from(fd).unwrap_or(-1))?;
    // SAFETY: our descriptor.
    check_result(unsafe { libc::ftruncate(fd, PAGE as libc::off_t) })?;
    map_memory(PAGE, libc::MAP_SHARED, fd)
}

/// A page that is there, in a range whose other pages somebody else is to deliver, who never does.
/// A thread waits for one of them.
pub(super) fn serve_nothing() -> io::Result<*mut u8> {
    #[repr(C)]
    struct Api([u64; 3]);
    #[repr(C)]
    struct Register([u64; 4]);
    const UFFDIO_API: libc::Ioctl = libc::_IOWR::<Api>(0xaa, 0x3f);
    const UFFDIO_REGISTER: libc::Ioctl = libc::_IOWR::<Register>(0xaa, 0);
    const LENGTH: usize = 1 << 20;
    let at = map_memory(LENGTH, ANONYMOUS, -1)?;
    // SAFETY: our mapping.
    check_result(unsafe { libc::madvise(at.cast(), LENGTH, libc::MADV_NOHUGEPAGE) })?;
    // SAFETY: inside the mapping.
    unsafe { at.write_volatile(1) };
    // SAFETY: a number.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let fd = check_result(i32::try_from(fd).unwrap_or(-1))?;
    let mut api = Api([0xaa, 0, 0]);
    // SAFETY: the structure is as the kernel has it.
    check_result(unsafe { libc::ioctl(fd, UFFDIO_API, &raw mut api) })?;
    let mut register = Register([at.addr() as u64, LENGTH as u64, 1, 0]);
    // SAFETY: as before.
    check_result(unsafe { libc::ioctl(fd, UFFDIO_REGISTER, &raw mut register) })?;
    let missing = at.addr() + LENGTH / 2;
    thread::spawn(move || {
        // SAFETY: inside the mapping. It never returns.
        unsafe { std::ptr::with_exposed_provenance::<u8>(missing).read_volatile() }
    });
    at.expose_provenance();
    // It may begin to wait a little later, which changes nothing.
    thread::sleep(Duration::from_millis(50));
    Ok(at)
}

/// Ends the first thread; another one stays and says so.
pub(super) fn end_leader() -> io::Result<()> {
    let leader = std::process::id();
    thread::Builder::new().spawn(move || {
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{leader}/task/{leader}/stat"));
            stat.is_ok_and(|it| it.contains(") Z "))
        };
        while !ended() {
            thread::sleep(Duration::from_millis(1));
        }
        crate::actor::print_step("hidden", None, &[]);
        wait_quietly();
    })?;
    // SAFETY: ends this thread only, and nothing of it is used again.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Ok(())
}
