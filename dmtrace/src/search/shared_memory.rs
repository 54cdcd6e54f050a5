//! Shared memory, read from its file: what is not in the page table of a process is there, too. A page
//! of it that was swapped out is in no page table, and not even marked in one.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
};

use dmtrace_core::search::{HolderClass, Place};
use rustix::fs::fstatfs;

use super::{mappings::Mapping, mounts::FsKind, shelf::Shelf, smaps::smaps_field, target::Target};
use crate::host::processes;

/// Of larger files only what is mapped is read.
const WHOLE: u64 = 64 << 20;

/// It is asked of so much at once which pages are there.
const CHUNK: u64 = 64 << 20;

const HUGETLBFS: u32 = 0x9584_58f6;
const TMPFS: u32 = 0x0102_1994;

/// What may be brought back from swap, and what was left there.
pub(super) struct SwapBudget {
    left: u64,
    /// Swapped memory of an actor for which it was not enough.
    pub beyond: u64,
}

impl SwapBudget {
    pub(super) const fn new(left: u64) -> Self {
        Self { left, beyond: 0 }
    }

    /// Swapped pages are brought back for actors only, and not without end.
    pub(super) fn take(&mut self, target: &mut Target, length: u64) -> bool {
        if target.class != HolderClass::Actor {
            target.swapped += length;
            return false;
        }
        match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.beyond += length;
                false
            }
        }
    }
}

/// Reads what is mapped of a file in memory from the file, without its holes. Tells whether that is
/// all; if not, what the page table has is to be read.
pub(super) fn read_shared_memory(
    shelf: &mut Shelf<'_>,
    target: &mut Target,
    mapping: &Mapping<'_>,
    swap: &mut SwapBudget,
) -> io::Result<bool> {
    // Only what is surely in memory is opened: opening asks the file system.
    let mounts = &mut shelf.mounts;
    let in_memory = mapping.is_kernel_memory()
        || mounts.kind_of_device(&target.task, mapping.device) == Some(FsKind::Memory);
    if !in_memory || mapping.name.starts_with("/secretmem") {
        return Ok(false);
    }
    let range = format!("{:x}-{:x}", mapping.start, mapping.end);
    let path: PathBuf = shelf.roots.proc_path(target.path("map_files")).join(range);
    let mut options = File::options();
    let file = match options.read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if processes::is_gone(&error) => return Ok(false),
        Err(_) => {
            // Without the right to open it: the page table has the rest.
            let swapped = smaps_field(shelf, target, mapping.start, "Swap:");
            let kib = swapped.and_then(|it| it.trim_end_matches("kB").trim().parse::<u64>().ok());
            match kib {
                Some(0) => {}
                Some(kib) if target.class != HolderClass::Actor => target.swapped += kib << 10,
                Some(kib) => swap.beyond += kib << 10,
                None => return Err(io::Error::other("how much of it is swapped is not known")),
            }
            return Ok(false);
        }
    };
    let system = fstatfs(&file)?.f_type as u32;
    let length = file.metadata()?.len();
    let (begin, end) = if length <= WHOLE {
        // Where in the file the mapping begins matters little: what is beside it is shared, too.
        (0, length)
    } else if system == HUGETLBFS {
        // Never swapped, and it does not tell its holes.
        return Ok(false);
    } else {
        let mapped = mapping.end - mapping.start;
        (
            mapping.offset,
            length.min(mapping.offset.saturating_add(mapped)),
        )
    };
    let reader = SharedFile {
        file,
        place: mapping.place(),
        system,
    };
    let read = reader.read(shelf, target, swap, begin, end);
    shelf.finish(target, reader.place);
    read.map(|()| true)
}

struct SharedFile {
    file: File,
    place: Place,
    /// Type of its file system.
    system: u32,
}

impl SharedFile {
    fn read(
        &self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        swap: &mut SwapBudget,
        begin: u64,
        end: u64,
    ) -> io::Result<()> {
        let mut at = begin;
        while at < end {
            let Some(data) = self.seek(at, libc::SEEK_DATA)? else {
                break;
            };
            let hole = self.seek(data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
            // Pages are asked of as wholes.
            at = data.max(at) / shelf.page * shelf.page;
            while at < hole {
                let next = hole.min(at + CHUNK);
                self.read_data(shelf, target, swap, at, next)?;
                at = next;
            }
            at = at.max(hole).max(data + 1);
        }
        Ok(())
    }

    /// Reads a part without a hole.
    fn read_data(
        &self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        swap: &mut SwapBudget,
        begin: u64,
        end: u64,
    ) -> io::Result<()> {
        if self.system == HUGETLBFS {
            return self.read_range(shelf, target, begin, end);
        }
        let pages = self.resident_pages(shelf.page, begin, end)?;
        let mut at = begin;
        for run in pages.chunk_by(|a, b| a & 1 == b & 1) {
            let next = end.min(at + run.len() as u64 * shelf.page);
            let resident = run.first().is_some_and(|it| it & 1 != 0);
            // What is not there is in swap; in ramfs it is a hole, which a reader would fill for ever.
            let wanted = resident || self.system == TMPFS && swap.take(target, next - at);
            if wanted {
                self.read_range(shelf, target, at, next)?;
            }
            at = next;
        }
        Ok(())
    }

    fn read_range(
        &self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        begin: u64,
        end: u64,
    ) -> io::Result<()> {
        if !shelf.window.continues_at(begin) {
            shelf.finish(target, self.place);
            shelf.window.start(begin);
        }
        let mut at = begin;
        while at < end {
            let space = shelf.window.space();
            let most = space.len().min(usize::try_from(end - at).unwrap_or(512));
            match self.file.read_at(&mut space[..most], at) {
                // It was made shorter.
                Ok(0) => break,
                Ok(read) => {
                    shelf.advance(target, read, self.place);
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next data or hole; `None` behind the end.
    fn seek(&self, at: u64, whence: i32) -> io::Result<Option<u64>> {
        // SAFETY: a descriptor that is open, and numbers.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), at.cast_signed(), whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Which pages are in memory, by whoever they were brought there: a byte for each, bit 0.
    fn resident_pages(&self, page: u64, begin: u64, end: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(end - begin).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(begin).map_err(io::Error::other)?;
        // SAFETY: a new mapping, which nobody touches: no page is brought in by it.
        let at = unsafe {
            let (rights, flags) = (libc::PROT_NONE, libc::MAP_SHARED);
            let fd = self.file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), length, rights, flags, fd, offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = usize::try_from(page).unwrap_or(4096);
        let mut pages = vec![0; length.div_ceil(page)];
        // SAFETY: the mapping is ours and as long as that, and there is a byte for each page of it.
        let asked = unsafe { libc::mincore(at, length, pages.as_mut_ptr()) };
        let failed = (asked != 0).then(io::Error::last_os_error);
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(at, length) };
        failed.map_or(Ok(pages), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::report::Found;

    #[test]
    fn swapped_memory_is_brought_back_for_actors_and_not_without_end() {
        let mut target = Target {
            task: "1".to_owned(),
            tid: 1,
            class: HolderClass::Actor,
            swapped: 0,
            found: Found::default(),
            problems: Vec::new(),
        };
        let mut swap = SwapBudget::new(100);
        let taken = [60, 60, 40].map(|length| swap.take(&mut target, length));
        assert_eq!(
            (taken, swap.beyond, target.swapped),
            ([true, false, true], 60, 0)
        );
        target.class = HolderClass::Capable;
        let mut swap = SwapBudget::new(100);
        assert!(!swap.take(&mut target, 60));
        assert_eq!((swap.beyond, target.swapped), (0, 60));
    }
}
