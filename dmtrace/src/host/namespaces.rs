//! Which IPC namespaces exist, and how to enter them.
//!
//! Kernels before 6.19 have no list of namespaces. Four places are searched: processes, threads
//! of processes that have more than one (a thread can `setns` alone), descriptors of nsfs files,
//! bind mounts of nsfs files. What only a SysV shared memory mapping, an open `/proc/sysvipc` file
//! or an mqueue mount keeps alive cannot be found.
//!
//! Nothing is held open between discovery and entry: a descriptor would pin the namespace and
//! prevent the very teardown that frees its leaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use dmtrace_core::{facts::NsHolder, ids::IpcNs};

use super::{
    Roots,
    processes::{ProcessList, list_tids, ns_of_link},
    text::printable,
};
use crate::wording;

/// Where to search besides the processes themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Search {
    /// Threads: one `readlink` for each thread of multi-threaded processes.
    pub threads: bool,
    /// Descriptors: one `readlink` for each open file of the host.
    pub descriptors: bool,
    /// Mounts: one file for each mount namespace.
    pub mounts: bool,
}

/// Whether this is not the user namespace of the host, by the number that the host's has (`PROC_USER_INIT_INO`).
pub(crate) fn in_other_user_ns() -> bool {
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() != "user:[4026531837]")
}

/// What helps where root may do something: root of a user namespace of its own may not.
pub(crate) fn root_fix() -> &'static str {
    if in_other_user_ns() {
        "run as root in the user namespace of the host"
    } else {
        "run as root"
    }
}

impl Default for Search {
    fn default() -> Self {
        Self {
            threads: true,
            descriptors: true,
            mounts: true,
        }
    }
}

/// An IPC namespace that exists.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Namespace {
    /// Which.
    pub ns: IpcNs,
    /// What keeps it alive.
    pub holder: NsHolder,
    /// Files that lead into it, best first; any of them can vanish at any time.
    pub(super) ways: Vec<PathBuf>,
}

/// What a search has found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Discovery {
    /// The namespaces, the host's first.
    pub namespaces: Vec<Namespace>,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// Ways in that are remembered for each namespace.
const MAX_PATHS: usize = 4;

#[derive(Default)]
struct NamespacePaths {
    processes: BTreeSet<u32>,
    descriptor: Option<u32>,
    mount: Option<String>,
    ways: Vec<PathBuf>,
}

impl NamespacePaths {
    fn add_path(&mut self, path: PathBuf) {
        if self.ways.len() < MAX_PATHS {
            self.ways.push(path);
        }
    }
}

/// Finds all IPC namespaces.
pub fn discover_namespaces(roots: &Roots, list: &ProcessList, search: Search) -> Discovery {
    let mut found: BTreeMap<IpcNs, NamespacePaths> = BTreeMap::new();
    if let Some(own) = own_ns() {
        // Always reachable, also where /proc does not show us.
        found.entry(own).or_default();
    }
    for (&pid, process) in &list.processes {
        if let Some(ns) = process.live.ipc_ns {
            let entry = found.entry(ns).or_default();
            entry.processes.insert(pid);
            entry.add_path(roots.proc_path(format!("{pid}/ns/ipc")));
        }
    }
    if search.threads {
        search_threads(roots, list, &mut found);
    }
    if search.descriptors {
        search_descriptors(roots, list, &mut found);
    }
    if search.mounts {
        search_mounts(roots, list, &mut found);
    }
    let mut namespaces: Vec<Namespace> = found.into_iter().map(with_holder).collect();
    namespaces.sort_by_key(|namespace| (namespace.ns != IpcNs::HOST, namespace.ns));
    Discovery {
        namespaces,
        incomplete: out_of_sight(list),
    }
}

/// Why namespaces may be missing from what these processes show.
fn out_of_sight(list: &ProcessList) -> Option<String> {
    let mut hidden = list.processes.iter().filter(|(_, process)| process.hidden);
    let Some((first, _)) = hidden.next() else {
        return list.incomplete.clone();
    };
    let count = hidden.count() + 1;
    Some(format!(
        "IPC namespaces of {} (the first is {first}) are out of sight; run as root",
        wording::count_noun(count, "process", "processes")
    ))
}

/// IPC namespace of the calling thread.
pub fn own_ns() -> Option<IpcNs> {
    ns_of_link(&fs::read_link("/proc/thread-self/ns/ipc").ok()?)
}

fn with_holder((ns, found): (IpcNs, NamespacePaths)) -> Namespace {
    let holder = if let Some(&first) = found.processes.first() {
        NsHolder::Processes {
            count: found.processes.len(),
            first,
        }
    } else if let Some(pid) = found.descriptor {
        NsHolder::Descriptor { pid }
    } else if let Some(path) = found.mount {
        NsHolder::Mount { path }
    } else {
        NsHolder::Unknown
    };
    Namespace {
        ns,
        holder,
        ways: found.ways,
    }
}

fn search_threads(roots: &Roots, list: &ProcessList, found: &mut BTreeMap<IpcNs, NamespacePaths>) {
    // Our own threads that sit in a namespace to read it do not make it lived in.
    let us = std::process::id();
    for (&pid, process) in &list.processes {
        if process.threads < 2 || pid == us {
            continue;
        }
        for tid in list_tids(roots, pid) {
            let path = roots.proc_path(format!("{pid}/task/{tid}/ns/ipc"));
            let Some(ns) = link_ns(&path) else { continue };
            if Some(ns) != process.live.ipc_ns {
                let entry = found.entry(ns).or_default();
                entry.processes.insert(pid);
                entry.add_path(path);
            }
        }
    }
}

fn search_descriptors(
    roots: &Roots,
    list: &ProcessList,
    found: &mut BTreeMap<IpcNs, NamespacePaths>,
) {
    for (&pid, process) in &list.processes {
        let Ok(entries) = fs::read_dir(roots.proc_path(process.proc_file(pid, "fd"))) else {
            continue;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if let Some(ns) = link_ns(&path) {
                let entry = found.entry(ns).or_default();
                entry.descriptor.get_or_insert(pid);
                entry.add_path(path);
            }
        }
    }
}

fn search_mounts(roots: &Roots, list: &ProcessList, found: &mut BTreeMap<IpcNs, NamespacePaths>) {
    let mut seen = BTreeSet::new();
    for (&pid, process) in &list.processes {
        // Without the link (no permission) mountinfo is out of reach as well.
        let Ok(mnt) = fs::read_link(roots.proc_path(process.proc_file(pid, "ns/mnt"))) else {
            continue;
        };
        if !seen.insert(mnt) {
            continue;
        }
        let Ok(mounts) = roots.read_proc(process.proc_file(pid, "mountinfo")) else {
            continue;
        };
        for line in mounts.split(|&byte| byte == b'\n') {
            if let Some((ns, point)) = nsfs_mount(line) {
                let entry = found.entry(ns).or_default();
                let shown = printable(&point);
                entry.mount.get_or_insert(shown);
                let point = PathBuf::from(OsString::from_vec(point));
                let inside = point.strip_prefix("/").unwrap_or(&point);
                entry.add_path(roots.proc_path(process.proc_file(pid, "root")).join(inside));
            }
        }
    }
}

fn link_ns(path: &Path) -> Option<IpcNs> {
    ns_of_link(&fs::read_link(path).ok()?)
}

/// Namespace and mount point of a line of mountinfo that is a bind mount of an IPC namespace:
/// `36 25 0:4 ipc:[4026532177] /run/ipc/blue rw shared:9 - nsfs nsfs rw`.
fn nsfs_mount(line: &[u8]) -> Option<(IpcNs, Vec<u8>)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = fields.nth(3)?;
    let ns = ns_of_link(Path::new(std::str::from_utf8(root).ok()?))?;
    let point = unescape_field(fields.next()?);
    let fs = fields.skip_while(|&field| field != b"-").nth(1)?;
    (fs == b"nsfs").then_some((ns, point))
}

/// Undoes `mangle_path`: blanks, tabs, newlines and backslashes are `\ooo`.
fn unescape_field(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'\\', Some([a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7'])) =
            (byte, tail.get(..3))
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::host::processes::RunningProcess;
    use dmtrace_core::facts::LiveProcess;

    #[test]
    fn mount_lines() {
        let line = b"36 25 0:4 ipc:[4026532177] /run/a\\040b rw shared:9 master:1 - nsfs nsfs rw";
        assert_eq!(
            nsfs_mount(line),
            Some((IpcNs(4_026_532_177), b"/run/a b".to_vec()))
        );
        let net = b"36 25 0:4 net:[4026532177] /run/netns/x rw shared:9 - nsfs nsfs rw";
        assert_eq!(nsfs_mount(net), None);
        let fake = b"36 25 0:4 ipc:[4026532177] /tmp/x rw - ext4 /dev/sda rw";
        assert_eq!(nsfs_mount(fake), None);
    }

    #[test]
    fn all_four_places_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path());
        let proc = &roots.proc;
        let link = |path: &str, to: &str| {
            let path = proc.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        };
        link("70000001/ns/ipc", "ipc:[1]");
        link("70000001/ns/mnt", "mnt:[9]");
        link("70000001/task/70000001/ns/ipc", "ipc:[1]");
        link("70000001/task/70000002/ns/ipc", "ipc:[2]");
        link("70000001/fd/7", "ipc:[3]");
        link("70000001/fd/8", "/dev/null");
        let mounts = "1 1 0:4 ipc:[4] /run/pin rw - nsfs nsfs rw\n";
        fs::write(proc.join("70000001/mountinfo"), mounts).unwrap();
        let mut list = ProcessList::default();
        let process = RunningProcess {
            live: LiveProcess {
                ipc_ns: Some(IpcNs(1)),
                ..LiveProcess::default()
            },
            threads: 2,
            ..RunningProcess::default()
        };
        list.processes.insert(70_000_001, process);
        let holders: BTreeMap<u32, NsHolder> =
            discover_namespaces(&roots, &list, Search::default())
                .namespaces
                .into_iter()
                .map(|namespace| (namespace.ns.0, namespace.holder))
                .collect();
        let process = NsHolder::Processes {
            count: 1,
            first: 70_000_001,
        };
        assert_eq!(holders[&1], process);
        assert_eq!(holders[&2], process);
        assert_eq!(holders[&3], NsHolder::Descriptor { pid: 70_000_001 });
        let path = "/run/pin".to_owned();
        assert_eq!(holders[&4], NsHolder::Mount { path });
    }

    proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _parsed = nsfs_mount(&line);
            let _path = unescape_field(&line);
        }
    }
}
