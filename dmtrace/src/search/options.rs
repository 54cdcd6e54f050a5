//! How a search is made, and how far it is.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use dmtrace_core::ids::UnixTime;

/// How a search is made.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// Processes that read at the same time; 0: one for each processor, four at most.
    pub workers: usize,
    /// One process may take so long,
    pub process_limit: Duration,
    /// stand still for so long,
    pub stall_limit: Duration,
    /// and all together so long.
    pub total_limit: Duration,
    /// The list of processes is gone through so often at most.
    pub rounds: u32,
    /// So many bytes of one actor are brought back from swap.
    pub swap_budget: u64,
    /// Look into pipes, unlinked files and memfds, too.
    pub descriptors: bool,
    /// Look into files that were modified since, too.
    pub files: Option<FileSearch>,
    /// Only these processes; all when empty. Such a search proves nothing.
    pub only: BTreeSet<u32>,
    /// Set by whoever wants it to end.
    pub cancel: Arc<AtomicBool>,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self {
            workers: 0,
            process_limit: Duration::from_secs(60),
            stall_limit: Duration::from_secs(5),
            total_limit: Duration::from_secs(600),
            rounds: 30,
            swap_budget: 256 << 20,
            descriptors: true,
            files: None,
            only: BTreeSet::new(),
            cancel: Arc::default(),
        }
    }
}

/// Which files are searched.
#[derive(Clone, Debug)]
pub struct FileSearch {
    /// Modified or changed then or later.
    pub since: UnixTime,
    /// Files and folders that are left out: what dmtrace writes itself.
    pub except: Vec<PathBuf>,
    /// Where to begin; empty: every local file system of every mount namespace.
    pub below: Vec<PathBuf>,
    /// Larger ones are left out.
    pub largest: u64,
    /// All of them may take so long.
    pub limit: Duration,
}

impl FileSearch {
    /// All local file systems.
    pub const fn since(since: UnixTime) -> Self {
        Self {
            since,
            except: Vec::new(),
            below: Vec::new(),
            largest: 1 << 20,
            limit: Duration::from_secs(120),
        }
    }
}

/// How far a search is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Processes that are done.
    pub done: u64,
    /// Processes that are known.
    pub total: u64,
    /// Memory that was read.
    pub bytes: u64,
}
