//! Numbers that are in no memory of a process, but in what it has open: pipes, files without a name.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use dmtrace_core::search::{Place, UnsearchedReason};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{
    mounts::{FsKind, fdinfo_field, mount_of_own},
    shelf::Shelf,
    target::Target,
};
use crate::{host::processes, wording::cause_text};

/// Larger files without a name are left out: a number is found in them by chance.
const FILE_MAX: u64 = 1 << 20;

/// Larger pipes are not copied whole.
const PIPE_MAX: usize = 64 << 20;

/// Searches the pipes that a process reads, and the unlinked files and memfds that it has open.
pub(super) fn search_descriptors(shelf: &mut Shelf<'_>, target: &mut Target) -> io::Result<()> {
    let folder = shelf.roots.proc_path(target.path("fd"));
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Err(error) = search_descriptor(shelf, target, &path) {
            note_failure(target, &error);
        }
        shelf.count_bytes(1);
    }
    Ok(())
}

fn search_descriptor(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path) -> io::Result<()> {
    let link = fs::read_link(path)?;
    let link = link.as_os_str().as_encoded_bytes();
    if link.starts_with(b"pipe:") {
        search_pipe(shelf, target, path)
    } else if link.starts_with(b"/memfd:") {
        search_file(shelf, target, path, Place::Memfd)
    } else if link.starts_with(b"/secretmem") {
        note_secret(target, path)
    } else if link.ends_with(b" (deleted)") {
        search_file(shelf, target, path, Place::UnlinkedFile)
    } else if link.starts_with(b"/") && !link.starts_with(b"/dev/") {
        search_fifo(shelf, target, path)
    } else {
        Ok(())
    }
}

/// What was closed meanwhile holds nothing; what could not be read may.
fn note_failure(target: &mut Target, error: &io::Error) {
    if !processes::is_gone(error) {
        let cause = format!("a pipe or a file that it has open: {}", cause_text(error));
        target.problem(UnsearchedReason::Failed { cause });
    }
}

/// A `memfd_secret` cannot be read, mapped or not.
fn note_secret(target: &mut Target, path: &Path) -> io::Result<()> {
    let is_known = |it: &UnsearchedReason| matches!(it, UnsearchedReason::Opaque { .. });
    // The kernel's own: no other file system is asked.
    let bytes = fs::metadata(path)?.len();
    if bytes > 0 && !target.problems.iter().any(is_known) {
        target.problem(UnsearchedReason::Opaque { bytes });
    }
    Ok(())
}

/// Of the access mode and the mount of a descriptor, without touching what it leads to.
fn read_info(path: &Path) -> io::Result<(i32, u64)> {
    let parse = |text: &str| {
        let flags = i32::from_str_radix(&fdinfo_field(text, "flags:")?, 8).ok()?;
        let mount = fdinfo_field(text, "mnt_id:")?.parse().ok()?;
        Some((flags, mount))
    };
    let place = path.parent().and_then(Path::parent).zip(path.file_name());
    let (process, number) = place.ok_or(io::ErrorKind::InvalidInput)?;
    let text = fs::read_to_string(process.join("fdinfo").join(number))?;
    parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Copies what is in a pipe with `tee(2)`, which takes nothing out.
///
/// Opening a descriptor of a pipe makes another reader of it, for microseconds. So only descriptors
/// that read are opened: while the process has one, a writer gets no `EPIPE` anyway. If the process
/// ends within these microseconds, the writer gets it when this reader closes, as if the process had
/// ended then; what it wrote meanwhile is lost as what was in the pipe is. Nobody waits in `open(2)` for
/// a reader of a FIFO that has one. `O_NONBLOCK` belongs to the new open file only, and `tee` does not
/// wait either. The bytes in the pipe, its readers' positions and its times stay as they are.
fn search_pipe(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path) -> io::Result<()> {
    if read_info(path)?.0 & libc::O_ACCMODE == libc::O_WRONLY {
        return Ok(());
    }
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let pipe = options.open(path)?;
    // Its number may be that of something else by now.
    if !pipe.metadata()?.file_type().is_fifo() {
        return Ok(());
    }
    // SAFETY: a descriptor that is open.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) };
    let bytes = copy_pipe(&pipe, size)?;
    shelf.count_bytes(bytes.len());
    shelf
        .needles
        .find_all(&bytes, 0, |it| target.note(it, Place::Pipe));
    Ok(())
}

/// A pipe with a name: it must not be opened before it is known to be one.
fn search_fifo(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path) -> io::Result<()> {
    let (_, mount) = read_info(path)?;
    let kind = shelf.mounts.kind_of_mount(&target.task, mount);
    // Of others not even the type is asked: all that a process has open there would be waited for.
    if matches!(kind, Some(FsKind::Local | FsKind::Memory))
        && fs::metadata(path)?.file_type().is_fifo()
    {
        return search_pipe(shelf, target, path);
    }
    Ok(())
}

/// `size`: that of the pipe.
pub(super) fn copy_pipe(pipe: &File, size: i32) -> io::Result<Vec<u8>> {
    // Whoever reads and writes it meanwhile makes another try necessary.
    const TRIES: usize = 4;
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    let mut reader = File::from(unsafe { OwnedFd::from_raw_fd(ends[0]) });
    // SAFETY: as before.
    let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    let from = pipe.as_raw_fd();
    // SAFETY: a descriptor that is open, and a number. Where it is refused, what is left out shows.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    let most = usize::try_from(size).unwrap_or(0).clamp(1 << 20, PIPE_MAX);
    for _ in 0..TRIES {
        let before = bytes_in(pipe)?;
        // SAFETY: descriptors that are open, and numbers.
        let copied = unsafe { libc::tee(from, writer.as_raw_fd(), most, libc::SPLICE_F_NONBLOCK) };
        let copied = match usize::try_from(copied) {
            Ok(copied) => copied,
            Err(_) => match io::Error::last_os_error() {
                // There is nothing in it.
                error if error.kind() == io::ErrorKind::WouldBlock => 0,
                error => return Err(error),
            },
        };
        let mut bytes = vec![0; copied];
        reader.read_exact(&mut bytes)?;
        if copied >= before.min(bytes_in(pipe)?) {
            return Ok(bytes);
        }
    }
    Err(io::Error::other("more is in a pipe than could be copied"))
}

/// So much is in a pipe.
fn bytes_in(pipe: &File) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: a descriptor that is open; the number outlives the call.
    if unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Opens a descriptor of somebody without opening what it leads to.
fn open_path(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_PATH).open(path)
}

/// Of what type a file is, by what the kernel knows already: no file system is asked.
fn cached_type(seen: &File) -> Option<u32> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = statx(seen, c"", flags, StatxFlags::TYPE).ok()?;
    let known = about.stx_mask & StatxFlags::TYPE.bits() != 0;
    known.then_some(u32::from(about.stx_mode) & libc::S_IFMT)
}

/// Searches a file that has no name any more, or never had one.
fn search_file(
    shelf: &mut Shelf<'_>,
    target: &mut Target,
    path: &Path,
    place: Place,
) -> io::Result<()> {
    let seen = open_path(path)?;
    // Such as the console that the first process has from the initramfs: it keeps no number.
    let kind = cached_type(&seen);
    if kind.is_some_and(|kind| kind != libc::S_IFREG && kind != libc::S_IFIFO) {
        return Ok(());
    }
    let kind =
        mount_of_own(seen.as_raw_fd()).and_then(|id| shelf.mounts.kind_of_mount(&target.task, id));
    // The kernel's own memory is mounted nowhere.
    if place != Place::Memfd {
        match kind {
            Some(FsKind::Local | FsKind::Memory) => {}
            Some(FsKind::Remote) | None => {
                let cause = "an unlinked file is on a file system that may not answer".to_owned();
                target.problem(UnsearchedReason::Failed { cause });
                return Ok(());
            }
        }
    }
    let meta = seen.metadata()?;
    if meta.file_type().is_fifo() {
        return search_pipe(shelf, target, path);
    }
    if !meta.is_file() || meta.nlink() > 0 || meta.len() > FILE_MAX {
        return Ok(());
    }
    let file = File::open(format!("/proc/self/fd/{}", seen.as_raw_fd()))?;
    read_file(shelf, &file, meta.len(), |it| target.note(it, place))
}

/// Searches a file from its beginning.
pub(super) fn read_file(
    shelf: &mut Shelf<'_>,
    file: &File,
    length: u64,
    mut found: impl FnMut(dmtrace_core::search::Match),
) -> io::Result<()> {
    shelf.window.start(0);
    let mut at = 0;
    while at < length {
        match file.read_at(shelf.window.space(), at) {
            Ok(0) => break,
            Ok(read) => {
                shelf.count_bytes(read);
                shelf.window.advance(read, shelf.needles, &mut found);
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                shelf.window.finish(shelf.needles, found);
                return Err(error);
            }
        }
    }
    shelf.window.finish(shelf.needles, found);
    Ok(())
}
