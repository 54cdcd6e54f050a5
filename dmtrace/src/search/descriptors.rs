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

/// Larger files without a name are left out: a number is found in them by chance.
const FILE_MAX: u64 = 1 << 20;

/// Searches the pipes that a process reads, and the unlinked files and memfds that it has open.
pub(super) fn search_descriptors(shelf: &mut Shelf<'_>, target: &mut Target) -> io::Result<()> {
    let folder = shelf.roots.proc_path(target.path("fd"));
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Ok(link) = fs::read_link(&path) else {
            continue;
        };
        let link = link.as_os_str().as_encoded_bytes();
        if link.starts_with(b"pipe:") {
            search_pipe(shelf, target, &path);
        } else if link.starts_with(b"/memfd:") {
            search_file(shelf, target, &path, Place::Memfd);
        } else if link.starts_with(b"/secretmem") {
            note_secret(target, &path);
        } else if link.ends_with(b" (deleted)") {
            search_file(shelf, target, &path, Place::UnlinkedFile);
        } else if link.starts_with(b"/") && !link.starts_with(b"/dev/") {
            search_fifo(shelf, target, &path);
        }
        shelf.count_bytes(1);
    }
    Ok(())
}

/// A `memfd_secret` cannot be read, mapped or not.
fn note_secret(target: &mut Target, path: &Path) {
    let is_known = |it: &UnsearchedReason| matches!(it, UnsearchedReason::Opaque { .. });
    // The kernel's own: no other file system is asked.
    let bytes = fs::metadata(path).map_or(0, |it| it.len());
    if bytes > 0 && !target.problems.iter().any(is_known) {
        target.problem(UnsearchedReason::Opaque { bytes });
    }
}

/// Of the access mode and the mount of a descriptor, without touching what it leads to.
fn read_info(path: &Path) -> Option<(i32, u64)> {
    let number = path.file_name()?.to_str()?;
    let info = path.parent()?.parent()?.join("fdinfo").join(number);
    let text = fs::read_to_string(info).ok()?;
    let flags = i32::from_str_radix(&fdinfo_field(&text, "flags:")?, 8).ok()?;
    let mount = fdinfo_field(&text, "mnt_id:")?.parse().ok()?;
    Some((flags, mount))
}

/// Copies what is in a pipe with `tee(2)`, which takes nothing out.
///
/// Opening a descriptor of a pipe makes another reader of it, for microseconds. So only descriptors
/// that read are opened: while the process has one, a writer gets no `EPIPE` anyway. If the process
/// ends within these microseconds, the writer gets it when this reader closes, as if the process had
/// ended then; what it wrote meanwhile is lost as what was in the pipe is. Nobody waits in `open(2)` for
/// a reader of a FIFO that has one. `O_NONBLOCK` belongs to the new open file only, and `tee` does not
/// wait either. The bytes in the pipe, its readers' positions and its times stay as they are.
fn search_pipe(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path) {
    let reads = read_info(path).is_some_and(|it| it.0 & libc::O_ACCMODE != libc::O_WRONLY);
    if !reads {
        return;
    }
    let mut options = File::options();
    let Ok(pipe) = options.read(true).custom_flags(libc::O_NONBLOCK).open(path) else {
        return;
    };
    if !pipe.metadata().is_ok_and(|it| it.file_type().is_fifo()) {
        return;
    }
    if let Ok(bytes) = copy_pipe(&pipe) {
        shelf.count_bytes(bytes.len());
        shelf
            .needles
            .find_all(&bytes, 0, |it| target.note(it, Place::Pipe));
    }
}

/// A pipe with a name: it must not be opened before it is known to be one.
fn search_fifo(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path) {
    let Some((_, mount)) = read_info(path) else {
        return;
    };
    let kind = shelf.mounts.kind_of_mount(&target.task, mount);
    if matches!(kind, Some(FsKind::Local | FsKind::Memory))
        && fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo())
    {
        search_pipe(shelf, target, path);
    }
}

fn copy_pipe(pipe: &File) -> io::Result<Vec<u8>> {
    const MOST: usize = 1 << 20;
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
    let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as before.
    let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    // SAFETY: a descriptor that is open.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) };
    // SAFETY: a descriptor that is open, and a number. What does not fit is left out.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    let (from, to) = (pipe.as_raw_fd(), writer.as_raw_fd());
    // SAFETY: descriptors that are open, and numbers.
    let copied = unsafe { libc::tee(from, to, MOST, libc::SPLICE_F_NONBLOCK) };
    let copied = usize::try_from(copied).map_err(|_| io::Error::last_os_error())?;
    let mut bytes = vec![0; copied];
    File::from(reader).read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Of what type a file is, by what the kernel knows already: no file system is asked.
fn cached_type(seen: &File) -> Option<u32> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = statx(seen, c"", flags, StatxFlags::TYPE).ok()?;
    let known = about.stx_mask & StatxFlags::TYPE.bits() != 0;
    known.then_some(u32::from(about.stx_mode) & libc::S_IFMT)
}

/// Searches a file that has no name any more, or never had one.
fn search_file(shelf: &mut Shelf<'_>, target: &mut Target, path: &Path, place: Place) {
    let mut options = File::options();
    let Ok(seen) = options.read(true).custom_flags(libc::O_PATH).open(path) else {
        return;
    };
    // Such as the console that the first process has from the initramfs: it keeps no number.
    if cached_type(&seen).is_some_and(|kind| kind != libc::S_IFREG && kind != libc::S_IFIFO) {
        return;
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
                return;
            }
        }
    }
    let unlinked = |it: &fs::Metadata| it.is_file() && it.nlink() == 0 && it.len() <= FILE_MAX;
    let Some(meta) = seen.metadata().ok().filter(unlinked) else {
        return;
    };
    let file = File::open(format!("/proc/self/fd/{}", seen.as_raw_fd()));
    let Ok(file) = file else {
        return;
    };
    read_file(shelf, &file, meta.len(), |it| target.note(it, place));
}

/// Searches a file from its beginning; tells whether it could be read.
pub(super) fn read_file(
    shelf: &mut Shelf<'_>,
    file: &File,
    length: u64,
    mut found: impl FnMut(dmtrace_core::search::Match),
) -> bool {
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
            Err(_) => return false,
        }
    }
    shelf.window.finish(shelf.needles, found);
    true
}
