//! The mark phase: the memory of every process that could act on a cookie is searched for its number.
//!
//! It asks first which pages are there (`/proc/PID/pagemap`), and reads no others: no lazy memory is
//! made real, and nobody is asked for a page that only he can deliver (FUSE, userfaultfd). All reading
//! is done by processes of its own (`worker.rs`): one that stands still is given up, and with it the
//! process that it read. Nothing but numbers that were looked for leaves such a worker.
//!
//! A number may be handed on by processes that live for milliseconds, so the list of processes is gone
//! through until none is new.

mod descriptors;
mod file_systems;
mod files;
mod mappings;
mod memory;
mod mounts;
mod options;
mod pages;
mod pool;
mod process;
mod program;
mod report;
mod shared_memory;
mod shelf;
mod smaps;
mod target;
#[cfg(test)]
mod tests;
mod worker;

use dmtrace_core::search::{Needles, Search};
pub use options::{FileSearch, Progress, SearchOptions};

/// Searches for numbers. `progress` is called now and then, and at the end.
pub fn run(
    needles: &Needles,
    options: &SearchOptions,
    progress: &mut dyn FnMut(Progress),
) -> Search {
    pool::Pool::new(needles, options).search(progress)
}
