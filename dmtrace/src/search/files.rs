//! Numbers that are on disk only: files that were modified since the cookies were made.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Instant,
};

use dmtrace_core::{
    ids::Key,
    search::{HolderClass, counts_as_holder},
};

use super::{
    descriptors::read_file,
    mounts::{FsKind, Mount},
    options::FileSearch,
    report::Report,
    shelf::Shelf,
};
use crate::host::processes;

/// So many files are named for a number.
const MAX_NAMED: usize = 4;

/// Searches the files.
pub(super) fn search_files(shelf: &mut Shelf<'_>, search: &FileSearch) -> Report {
    let mut walk = Walk {
        search,
        end: Instant::now() + search.limit,
        named: HashMap::new(),
        borders: HashSet::new(),
        report: Report {
            files_done: true,
            ..Report::default()
        },
    };
    let begin = if search.below.is_empty() {
        walk.local_file_systems(shelf)
    } else {
        search.below.clone()
    };
    for folder in begin {
        walk.walk(shelf, folder);
    }
    walk.report
}

struct Walk<'a> {
    search: &'a FileSearch,
    end: Instant,
    named: HashMap<Key, usize>,
    /// Mount points: what is below them is another file system, or another part of this one.
    borders: HashSet<PathBuf>,
    report: Report,
}

impl Walk<'_> {
    /// Mount points of every local file system, each once, and not those of whom nobody here can see
    /// the mount namespace.
    fn local_file_systems(&mut self, shelf: &Shelf<'_>) -> Vec<PathBuf> {
        let mut begin = Vec::new();
        let mut namespaces = BTreeSet::new();
        let mut devices: HashMap<(u32, u32), BTreeSet<String>> = HashMap::new();
        let own = std::iter::once("self".to_owned());
        let pids = processes::list_pids(&shelf.roots).unwrap_or_default();
        for task in own.chain(pids.iter().map(u32::to_string)) {
            let path = |name: &str| shelf.roots.proc_path(format!("{task}/{name}"));
            let Ok(namespace) = fs::read_link(path("ns/mnt")) else {
                continue;
            };
            if !namespaces.insert(namespace) {
                continue;
            }
            let root = if task == "self" {
                PathBuf::from("/")
            } else {
                path("root")
            };
            let text = fs::read(path("mountinfo")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            for line in text.lines() {
                let Some(mount) = Mount::parse(line) else {
                    continue;
                };
                let point = root.join(unescape(mount.point).trim_start_matches('/'));
                self.borders.insert(point.clone());
                // Parts of a file system that is mounted whole are part of that.
                let part = line.split(' ').nth(3).unwrap_or("/").to_owned();
                let parts = devices.entry(mount.device).or_default();
                if mount.kind != FsKind::Remote && !parts.contains("/") && parts.insert(part) {
                    begin.push(point);
                }
            }
        }
        begin
    }

    fn walk(&mut self, shelf: &mut Shelf<'_>, begin: PathBuf) {
        let Ok(root) = fs::symlink_metadata(&begin) else {
            return;
        };
        let device = root.dev();
        if root.is_file() {
            self.look_at(shelf, &begin, &root);
            return;
        }
        let mut open = vec![begin];
        while let Some(folder) = open.pop() {
            if Instant::now() >= self.end {
                self.report.files_done = false;
                return;
            }
            if self.search.except.contains(&folder) {
                continue;
            }
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.missed(&error);
                    continue;
                }
            };
            shelf.count_bytes(1);
            for entry in entries.flatten() {
                let path = entry.path();
                // The type is in the directory: nothing is asked of what is no file.
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if kind.is_dir() && !self.borders.contains(&path) {
                    let same = entry.metadata().is_ok_and(|it| it.dev() == device);
                    if same {
                        open.push(path);
                    }
                } else if kind.is_file()
                    && let Ok(meta) = entry.metadata()
                {
                    self.look_at(shelf, &path, &meta);
                }
            }
        }
    }

    fn look_at(&mut self, shelf: &mut Shelf<'_>, path: &Path, meta: &fs::Metadata) {
        let changed = meta.mtime().max(meta.ctime());
        let wanted = changed >= self.search.since.0
            && (1..=self.search.largest).contains(&meta.len())
            && !self.search.except.iter().any(|it| it == path);
        if !wanted {
            return;
        }
        let file = match open_quietly(path) {
            Ok(file) => file,
            Err(error) => return self.missed(&error),
        };
        if !file.metadata().is_ok_and(|it| it.is_file()) {
            return;
        }
        let mut found = BTreeSet::new();
        // Four bytes anywhere are chance where there is so much.
        let whole = read_file(shelf, &file, self.search.largest, |it| {
            if counts_as_holder(HolderClass::Capable, it.form) {
                found.insert(it.key);
            }
        });
        self.report.files_done &= whole;
        for key in found {
            let named = self.named.entry(key).or_default();
            if *named < MAX_NAMED {
                *named += 1;
                let path = path.to_string_lossy().into_owned();
                self.report.files.push((key, path));
            }
        }
    }

    fn missed(&mut self, error: &io::Error) {
        self.report.files_done &= error.kind() == ErrorKind::NotFound;
    }
}

/// Without a trace in the file's time of access, where that is allowed.
fn open_quietly(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = |flags: i32| File::options().read(true).custom_flags(flags).open(path);
    match open(flags | libc::O_NOATIME) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => open(flags),
        result => result,
    }
}

/// `mountinfo` writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let octal = |it: &[u8]| {
            let text = std::str::from_utf8(it.get(..3)?).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match octal(more).filter(|_| first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &more[3..];
            }
            None => {
                out.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn blanks_in_mount_points() {
        assert_eq!(super::unescape("/mnt/a\\040b\\134"), "/mnt/a b\\");
        assert_eq!(super::unescape("/mnt\\0"), "/mnt\\0");
    }
}
