//! A file system in user space that answers everything but what is in its file: its first page is
//! zeros, and whoever asks for another one waits until the server ends.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, IntoRawFd as _},
    thread,
    time::Duration,
};

use super::{places::map_memory, start_child, wait_quietly};
use crate::{actor::print_step, sysv::check_result};

const LENGTH: usize = 1 << 20;
const PAGE: usize = 4096;

/// Maps the file. The file system is mounted where nobody else sees it, and ends with this process.
pub(super) fn map_silent_file() -> io::Result<*mut u8> {
    // SAFETY: a number.
    check_result(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: C strings.
    check_result(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) })?;
    let server = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        server.as_raw_fd()
    );
    let options = CString::new(options)?;
    let name = c"silent".as_ptr();
    // SAFETY: C strings that outlive the call.
    check_result(unsafe {
        libc::mount(
            name,
            c"/mnt".as_ptr(),
            c"fuse".as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    })?;
    let fd = server.as_raw_fd();
    start_child(move || {
        let _ended = serve_requests(&server);
    })?;
    // The child has its own copy, and is the only one to keep it.
    // SAFETY: nobody uses this copy any more.
    unsafe { libc::close(fd) };
    let file = File::options().read(true).write(true).open("/mnt/file")?;
    map_memory(LENGTH, libc::MAP_SHARED, file.into_raw_fd())
}

/// Lets somebody read a page of this process that never comes, with the lock of its memory held.
pub(super) fn hold_lock(file: *mut u8) -> io::Result<()> {
    let us = std::process::id();
    let address = file.addr() + LENGTH / 2;
    // Says what this process will not be able to say.
    start_child(move || {
        wait_for_state(us, 'D');
        print_step("hidden", None, &[]);
        wait_quietly();
    })?;
    let reader = start_child(move || {
        use std::os::unix::fs::FileExt as _;
        let Ok(memory) = File::open(format!("/proc/{us}/mem")) else {
            return;
        };
        let _never = memory.read_at(&mut [0], address as u64);
    })?;
    // It can be interrupted at first. Whoever is killed is not, and stays.
    wait_for_state(reader.cast_unsigned(), 'S');
    // SAFETY: numbers; our own child, which nobody has waited for.
    unsafe { libc::kill(reader, libc::SIGKILL) };
    wait_for_state(reader.cast_unsigned(), 'D');
    Ok(())
}

/// Asks for the lock that [`hold_lock`] has taken, and does not come back. All who come later wait
/// behind this process.
pub(super) fn wait_for_lock() -> io::Result<()> {
    map_memory(PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    Err(io::Error::other("nobody holds the lock of the memory here"))
}

fn wait_for_state(pid: u32, state: char) {
    let wanted = format!(") {state} ");
    let is_there = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|it| it.contains(&wanted))
    };
    while !is_there() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Answers the kernel (`include/uapi/linux/fuse.h`).
fn serve_requests(server: &File) -> io::Result<()> {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const WRITE: u32 = 16;
    const INIT: u32 = 26;
    const OPENDIR: u32 = 27;
    const INTERRUPT: u32 = 36;
    const BATCH_FORGET: u32 = 42;
    let mut request = vec![0; LENGTH];
    loop {
        let mut from = server;
        let length = from.read(&mut request)?;
        let text = &request[..length];
        let number = |at: usize| word(text, at);
        let (opcode, unique, node) = (number(4) as u32, number(8), number(16));
        match opcode {
            INIT => answer(server, unique, 0, &init_body())?,
            LOOKUP if text.get(40..45) == Some(b"file\0") => {
                let mut body = vec![0; 40];
                body[..8].copy_from_slice(&2_u64.to_ne_bytes());
                body[16..24].copy_from_slice(&100_u64.to_ne_bytes());
                body[24..32].copy_from_slice(&100_u64.to_ne_bytes());
                body.extend(attributes(2));
                answer(server, unique, 0, &body)?;
            }
            LOOKUP => answer(server, unique, -libc::ENOENT, &[])?,
            GETATTR => {
                let mut body = vec![0; 16];
                body[..8].copy_from_slice(&100_u64.to_ne_bytes());
                body.extend(attributes(node));
                answer(server, unique, 0, &body)?;
            }
            // FOPEN_KEEP_CACHE.
            OPEN | OPENDIR => answer(
                server,
                unique,
                0,
                &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            )?,
            READ if number(48) == 0 => answer(server, unique, 0, &[0; PAGE])?,
            // Whoever ends with a page that is not written would wait for it, too.
            WRITE => answer(server, unique, 0, &number(56).to_ne_bytes())?,
            READ | FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => answer(server, unique, -libc::ENOSYS, &[])?,
        }
    }
}

/// Eight bytes of a request, of which a header has 40; zeros where it is shorter.
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|it| it.first_chunk());
    bytes.map_or(0, |it| u64::from_ne_bytes(*it))
}

fn answer(mut server: &File, unique: u64, error: i32, body: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    // One that was given up is not waited for.
    match server.write_all(&bytes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        written => written,
    }
}

/// `struct fuse_init_out`: version 7.31, and no page is read ahead.
fn init_body() -> [u8; 64] {
    let mut body = [0; 64];
    body[..4].copy_from_slice(&7_u32.to_ne_bytes());
    body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    body[16..18].copy_from_slice(&12_u16.to_ne_bytes());
    body[20..24].copy_from_slice(&(64_u32 << 10).to_ne_bytes());
    body
}

/// `struct fuse_attr`: a folder, or a file.
fn attributes(node: u64) -> [u8; 88] {
    let folder = node == 1;
    let (size, mode) = if folder {
        (0, libc::S_IFDIR | 0o755)
    } else {
        (LENGTH as u64, libc::S_IFREG | 0o600)
    };
    let mut bytes = [0; 88];
    bytes[..8].copy_from_slice(&node.to_ne_bytes());
    bytes[8..16].copy_from_slice(&size.to_ne_bytes());
    bytes[60..64].copy_from_slice(&mode.to_ne_bytes());
    bytes[64..68].copy_from_slice(&1_u32.to_ne_bytes());
    bytes[80..84].copy_from_slice(&4096_u32.to_ne_bytes());
    bytes
}
