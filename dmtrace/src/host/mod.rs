//! What is read from the host: all input and output behind the plain types of [`dmtrace_core::facts`].
//!
//! Nothing here changes the host, except that a thread enters IPC namespaces for the moment of a
//! reading. As an ordinary user everything works on what that user may see; what is missing is
//! said in the result.

pub mod carriers;
pub mod clock;
pub mod devices;
pub mod heap;
pub mod identity;
pub mod kernel_fs;
pub mod module_news;
pub mod namespaces;
pub mod package;
pub mod processes;
pub mod regular_file;
mod roots;
pub(crate) mod run_dir;
pub mod semaphores;
mod session;
pub(crate) mod stuck_reads;
mod sysv;
mod text;
pub mod udev;
pub mod users;
pub mod waiters;

use std::{collections::BTreeSet, io};

use dmtrace_core::{
    facts::{HostFacts, Snapshot},
    ids::IpcNs,
};
pub use namespaces::{Namespace, Search};
pub use roots::Roots;
pub use session::{Inside, NsSession};

use crate::wording::cause_text;

/// Why something of the host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No way into the namespace exists any more.
    #[error("IPC namespace {ns}: it has gone, with all semaphores in it")]
    Gone {
        /// Inode number of the IPC namespace.
        ns: IpcNs,
    },
    /// The kernel refuses the way in.
    #[error(
        "IPC namespace {ns}: cannot enter: {}; {}",
        cause_text(source),
        namespaces::root_fix()
    )]
    Enter {
        /// Inode number of the IPC namespace.
        ns: IpcNs,
        /// What the system call returned.
        source: io::Error,
    },
    #[error(
        "IPC namespace {ns}: no thread to enter it: {}; raise the limit of processes",
        cause_text(source)
    )]
    /// A thread for the namespace cannot be started.
    Thread {
        /// Inode number of the IPC namespace.
        ns: IpcNs,
        /// What the system call returned.
        source: io::Error,
    },
    /// The thread inside has ended before its time.
    #[error("IPC namespace {ns}: the thread inside has ended; please report this as a bug")]
    Ended {
        /// Inode number of the IPC namespace.
        ns: IpcNs,
    },
    /// `semctl` failed.
    #[error(
        "IPC namespace {ns}: cannot read semaphores: {}; check seccomp, the security module and CONFIG_SYSVIPC",
        cause_text(source)
    )]
    Read {
        /// Inode number of the IPC namespace.
        ns: IpcNs,
        /// What the system call returned.
        source: io::Error,
    },
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Where the host is.
    pub roots: Roots,
    /// Where to search namespaces.
    pub search: Search,
    /// Only these namespaces; all when empty.
    pub namespaces: BTreeSet<IpcNs>,
}

impl Scope {
    fn includes(&self, ns: IpcNs) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(&ns)
    }
}

/// Reads the semaphores, then everything else.
///
/// The order matters: a process that starts and makes a cookie between the two readings is in the
/// process list and its cookie in no snapshot. The other way round its cookie would look like one
/// without an owner.
pub fn gather_facts(scope: &Scope) -> (Snapshot, HostFacts) {
    let snapshot = take_snapshot(scope);
    let facts = read_facts(scope, &snapshot);
    (snapshot, facts)
}

/// Reads the semaphores only.
pub fn take_snapshot(scope: &Scope) -> Snapshot {
    semaphores::take_snapshot(&scope.roots, scope.search, |ns| scope.includes(ns))
}

/// Reads everything but the semaphores. `snapshot` says on which of them threads wait.
pub fn read_facts(scope: &Scope, snapshot: &Snapshot) -> HostFacts {
    let roots = &scope.roots;
    let list = processes::list_processes(roots);
    let waited_for = waiters::waited_for(snapshot);
    let waiting = waiters::find_waiters(roots, &list, &waited_for);
    let carried = carriers::find_carriers(roots, &list);
    let mut udev = udev::read_udev(roots, &list);
    if !waited_for.is_empty() {
        udev.details = Some(udev::details(roots, &list, &udev));
    }
    let commands = waiting
        .waiters
        .values()
        .flatten()
        .filter_map(|waiter| {
            let image = identity::image_of(roots, waiter.tgid)?;
            Some((waiter.tgid, image.command_line()))
        })
        .collect();
    let mut incomplete: Vec<String> = list.incomplete.iter().cloned().collect();
    incomplete.extend(waiting.incomplete);
    incomplete.extend(carried.incomplete.clone());
    // Only where there is a cookie do its stamps matter.
    let cookies = snapshot.sets().any(|(_, set)| set.looks_like_cookie());
    let records = if cookies {
        clock::history::Records::Needed
    } else {
        clock::history::Records::NotNeeded
    };
    let clocks = clock::history::read_clocks(roots, records);
    HostFacts {
        now: clocks.now,
        wall: clocks.wall,
        wall_nanos: clocks.wall_nanos,
        clock: clocks.history,
        processes_complete: list.incomplete.is_none(),
        processes: list
            .processes
            .into_iter()
            .map(|(pid, process)| (pid, process.live))
            .collect(),
        waiters: waiting.waiters,
        carriers: carried.carriers,
        carriers_complete: carried.incomplete.is_none(),
        carriers_unread: carried.unread,
        udev,
        dm: devices::read_devices(roots),
        commands,
        incomplete,
    }
}
