//! The memory of one process.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, ErrorKind},
    os::unix::fs::FileExt as _,
};

use dmtrace_core::search::{Place, UnsearchedReason};

use super::{
    mappings::{Mapping, Wanted},
    pages::{PageMap, PageRun},
    shared_memory::{SwapBudget, read_shared_memory},
    shelf::Shelf,
    smaps::smaps_field,
    target::Target,
};
use crate::wording::cause_text;

/// Searches all memory of a process.
pub(super) fn search_memory(shelf: &mut Shelf<'_>, target: &mut Target) -> io::Result<()> {
    let path = |name: &str| shelf.roots.proc_path(target.path(name));
    let maps = BufReader::new(File::open(path("maps"))?);
    let map = PageMap::new(File::open(path("pagemap"))?, shelf.page);
    // What is opened now stays this program's, if another one is started.
    let memory = File::open(path("mem"))?;
    let mut reader = MemoryReader {
        map,
        memory,
        swap: SwapBudget::new(shelf.options.swap_budget),
        opaque: 0,
    };
    for line in maps.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&line) else {
            continue;
        };
        let mounts = &mut shelf.mounts;
        let kind = || mounts.kind_of_device(&target.task, mapping.device);
        let wanted = mapping.wanted(kind);
        match wanted {
            Wanted::Nothing => {}
            Wanted::Untouchable if reader.has_pages(&mapping)? => {
                let cause = "it has written to a file that it maps, on a file system that may not \
                             answer"
                    .to_owned();
                target.problem(UnsearchedReason::Failed { cause });
            }
            Wanted::Untouchable => {}
            _ => reader.read_mapping(shelf, target, &mapping, wanted)?,
        }
    }
    target.note_memory(reader.opaque, reader.swap.beyond);
    Ok(())
}

struct MemoryReader {
    map: PageMap,
    memory: File,
    swap: SwapBudget,
    opaque: u64,
}

impl MemoryReader {
    /// Whether any page of a mapping is there.
    fn has_pages(&mut self, mapping: &Mapping<'_>) -> io::Result<bool> {
        let found = self.map.for_each_run(mapping.start, mapping.end, &mut |_| {
            Err(ErrorKind::StorageFull.into())
        });
        match found {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(true),
            other => other.map(|()| false),
        }
    }

    fn read_mapping(
        &mut self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        mapping: &Mapping<'_>,
        wanted: Wanted,
    ) -> io::Result<()> {
        if mapping.shared && wanted == Wanted::Present {
            match read_shared_memory(shelf, target, mapping, &mut self.swap) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let cause = format!("its shared memory: {}", cause_text(&error));
                    target.problem(UnsearchedReason::Failed { cause });
                }
            }
        }
        // What is to be read is noted first: the page map is not read while memory is.
        let place = mapping.place();
        let mut at = mapping.start;
        while at < mapping.end {
            let mut runs: Vec<PageRun> = Vec::new();
            let mut end = mapping.end;
            let full = self.map.for_each_run(at, mapping.end, &mut |run| {
                const MOST: usize = 512;
                if runs.len() == MOST {
                    end = run.start;
                    return Err(ErrorKind::StorageFull.into());
                }
                runs.push(run);
                Ok(())
            });
            match full {
                Err(error) if error.kind() != ErrorKind::StorageFull => return Err(error),
                _ => {}
            }
            for run in runs {
                if run.file && wanted == Wanted::Copied {
                    continue;
                }
                if run.present || self.swap.take(target, run.end - run.start) {
                    self.read_run(shelf, target, mapping, run, place)?;
                }
            }
            at = end;
        }
        shelf.finish(target, place);
        Ok(())
    }

    fn read_run(
        &mut self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        mapping: &Mapping<'_>,
        run: PageRun,
        place: Place,
    ) -> io::Result<()> {
        let mut at = run.start;
        if !shelf.window.continues_at(at) {
            shelf.finish(target, place);
            shelf.window.start(at);
        }
        while at < run.end {
            let space = shelf.window.space();
            let left = usize::try_from(run.end - at).unwrap_or(usize::MAX);
            let length = space.len().min(left);
            let read = if mapping.readable {
                read_by_call(target.tid, at, &mut space[..length])
            } else {
                // A debugger's way: pages that the process itself may not read.
                self.memory.read_at(&mut space[..length], at)
            };
            match read {
                Ok(read) if read > 0 => {
                    at += read as u64;
                    shelf.advance(target, read, place);
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(error),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(error),
                _ => {
                    at = self.read_odd_page(shelf, target, mapping, at, place)?;
                }
            }
        }
        Ok(())
    }

    /// A page that is not read in the common way. Returns where to go on.
    fn read_odd_page(
        &mut self,
        shelf: &mut Shelf<'_>,
        target: &mut Target,
        mapping: &Mapping<'_>,
        at: u64,
        place: Place,
    ) -> io::Result<u64> {
        let next = (at / shelf.page + 1) * shelf.page;
        let space = shelf.window.space();
        let length = space.len().min(usize::try_from(next - at).unwrap_or(512));
        match self.memory.read_at(&mut space[..length], at) {
            Ok(read) if read > 0 => {
                shelf.advance(target, read, place);
                return Ok(at + read as u64);
            }
            _ => {}
        }
        // It may have gone since, or mark a place where nothing is, or belong to a device.
        if self.map.is_there(at) && !is_device_memory(shelf, target, mapping.start) {
            self.opaque += next - at;
        }
        shelf.finish(target, place);
        shelf.window.start(next);
        Ok(next)
    }
}

fn read_by_call(tid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let tid = i32::try_from(tid).map_err(io::Error::other)?;
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0)),
        iov_len: into.len(),
    };
    // SAFETY: `local` is a buffer of ours that outlives the call; the kernel checks `remote`.
    let read = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Whether a mapping is of a device (`VM_IO`, `VM_PFNMAP`).
fn is_device_memory(shelf: &Shelf<'_>, target: &Target, start: u64) -> bool {
    let flags = smaps_field(shelf, target, start, "VmFlags:");
    flags.is_some_and(|it| it.split(' ').any(|flag| matches!(flag, "io" | "pf")))
}
