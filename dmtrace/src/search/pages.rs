//! Which pages of a process are there.
//!
//! Linux 6.7 tells it in ranges (`PAGEMAP_SCAN`); before that there is a word for each page, also for
//! those that are not there.

use std::{fs::File, io, os::fd::AsRawFd as _, os::unix::fs::FileExt as _};

/// Adjacent pages of one kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PageRun {
    pub start: u64,
    pub end: u64,
    /// In memory; else in swap.
    pub present: bool,
    /// Of a file, or shared.
    pub file: bool,
}

const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
const IS_ZERO: u64 = 1 << 5;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl =
    (3 << 30 | (size_of::<ScanArgument>() as u32) << 16 | 0x66 << 8 | 16) as libc::Ioctl;

/// Entries of `/proc/PID/pagemap`.
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_GUARD: u64 = 1 << 58;

/// Entries that are read together: 16 MiB of pages.
const ENTRIES: usize = 4096;

/// The page map of one process.
pub(super) struct PageMap {
    file: File,
    page: u64,
    /// Whether the kernel tells ranges.
    scans: bool,
    entries: Vec<u8>,
}

impl PageMap {
    pub(super) fn new(file: File, page: u64) -> Self {
        Self {
            file,
            page,
            scans: true,
            entries: Vec::new(),
        }
    }

    /// As on a kernel that does not tell ranges.
    #[cfg(test)]
    pub(super) fn without_scan(mut self) -> Self {
        self.scans = false;
        self
    }

    /// Tells of all pages of a range that are there or in swap; `tell` says whether to go on.
    pub(super) fn for_each_run(
        &mut self,
        start: u64,
        end: u64,
        tell: &mut dyn FnMut(PageRun) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.scans {
            match self.scan(start, end, tell) {
                Err(error) if is_unknown(&error) => self.scans = false,
                result => return result,
            }
        }
        self.read_entries(start, end, tell)
    }

    fn scan(
        &self,
        start: u64,
        end: u64,
        tell: &mut dyn FnMut(PageRun) -> io::Result<()>,
    ) -> io::Result<()> {
        const REGIONS: usize = 256;
        let mut at = start;
        while at < end {
            let mut regions = [Region::default(); REGIONS];
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end,
                regions: regions.as_mut_ptr().addr() as u64,
                regions_len: REGIONS as u64,
                any_of: IS_PRESENT | IS_SWAPPED,
                returned: IS_PRESENT | IS_SWAPPED | IS_FILE | IS_ZERO,
                ..ScanArgument::default()
            };
            // SAFETY: the argument has its own size in it, and room for as many regions as it says;
            // both outlive the call.
            let count =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            for region in regions.iter().take(count) {
                if region.categories & IS_ZERO == 0 {
                    tell(PageRun {
                        start: region.start,
                        end: region.end,
                        present: region.categories & IS_PRESENT != 0,
                        file: region.categories & IS_FILE != 0,
                    })?;
                }
            }
            if argument.walk_end <= at {
                break;
            }
            at = argument.walk_end;
        }
        Ok(())
    }

    fn read_entries(
        &mut self,
        start: u64,
        end: u64,
        tell: &mut dyn FnMut(PageRun) -> io::Result<()>,
    ) -> io::Result<()> {
        self.entries.resize(ENTRIES * 8, 0);
        let mut at = start;
        let mut run: Option<PageRun> = None;
        while at < end {
            let count = usize::try_from((end - at) / self.page).unwrap_or(ENTRIES);
            let room = &mut self.entries[..count.clamp(1, ENTRIES) * 8];
            let read = self.file.read_at(room, at / self.page * 8)?;
            if read < 8 {
                break;
            }
            for entry in self.entries[..read].as_chunks().0 {
                let entry = u64::from_ne_bytes(*entry);
                let present = entry & ENTRY_PRESENT != 0;
                let swapped = entry & ENTRY_SWAPPED != 0 && entry & ENTRY_GUARD == 0;
                let next = (present || swapped).then_some(PageRun {
                    start: at,
                    end: at + self.page,
                    present,
                    file: entry & ENTRY_FILE != 0,
                });
                at += self.page;
                match (&mut run, next) {
                    (Some(run), Some(next))
                        if (run.present, run.file) == (next.present, next.file) =>
                    {
                        run.end = next.end;
                    }
                    (last, next) => {
                        if let Some(last) = last.take() {
                            tell(last)?;
                        }
                        run = next;
                    }
                }
            }
        }
        run.map_or(Ok(()), tell)
    }

    /// Whether a page is still there, and is none that only marks a place.
    pub(super) fn is_there(&self, address: u64) -> bool {
        let mut entry = [0; 8];
        let read = self.file.read_exact_at(&mut entry, address / self.page * 8);
        let entry = u64::from_ne_bytes(entry);
        read.is_ok()
            && entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0
            && (entry & ENTRY_PRESENT != 0 || entry & ENTRY_GUARD == 0)
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTTY | libc::EINVAL | libc::ENOSYS)
    )
}

/// The size of a page.
pub(super) fn page_size() -> u64 {
    // SAFETY: a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096).max(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_tell_the_same() {
        let page = page_size();
        let length = 64 << 20;
        // SAFETY: a new anonymous mapping.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the mapping is ours and as long as that.
        unsafe { libc::madvise(at, length, libc::MADV_NOHUGEPAGE) };
        let start = at.addr() as u64;
        let touched = [0, 1, 2, 700, 5000, 16383].map(|number| start + number * page);
        for address in touched {
            // SAFETY: inside the mapping.
            unsafe { (address as *mut u8).write_volatile(1) };
        }
        let open = || PageMap::new(File::open("/proc/self/pagemap").unwrap(), page);
        for mut map in [open(), open().without_scan()] {
            let mut found = Vec::new();
            let mut tell = |run: PageRun| {
                assert!(run.present && !run.file, "{run:?}");
                found.extend((run.start..run.end).step_by(usize::try_from(page).unwrap()));
                Ok(())
            };
            let end = start + length as u64;
            map.for_each_run(start, end, &mut tell).unwrap();
            assert_eq!(found, touched);
            assert!(map.is_there(touched[3]) && !map.is_there(touched[3] + page));
        }
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(at, length) };
    }
}
