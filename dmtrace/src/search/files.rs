//! Numbers that are on disk only: files that were modified since the cookies were made.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::Instant,
};

use dmtrace_core::{
    duration::Span,
    ids::Key,
    search::{HolderClass, counts_as_holder},
};
use rustix::fs::statfs;

use super::{
    descriptors::read_file,
    file_systems::{Beginning, FileSystems},
    options::FileSearch,
    report::Report,
    shelf::Shelf,
};
use crate::wording::cause_text;

/// So many files are named for a number.
const MAX_NAMED: usize = 4;

/// A reason is no longer than that, in characters.
const MAX_REASON: usize = 200;

/// `f_type` of btrfs, and the number of the inode that a subvolume begins with; or that stands for one
/// in a snapshot of what it was in.
const BTRFS: u32 = 0x9123_683e;
const SUBVOLUME_ROOTS: [u64; 2] = [256, 2];

/// Searches the files.
pub(super) fn search_files(shelf: &mut Shelf<'_>, search: &FileSearch) -> Report {
    let mut walk = Walk {
        search,
        end: Instant::now() + search.limit,
        named: HashMap::new(),
        systems: FileSystems::default(),
        begin: Vec::new(),
        report: Report::default(),
    };
    if search.below.is_empty() {
        walk.find_systems(shelf);
    } else {
        walk.begin = search.below.iter().cloned().map(Beginning::at).collect();
    }
    while let Some(beginning) = walk.begin.pop() {
        if walk.is_late() {
            break;
        }
        walk.walk(shelf, &beginning.folder);
        if beginning.is_lost(&shelf.roots) {
            walk.systems.forget(&beginning);
            walk.find_systems(shelf);
        }
    }
    walk.report.files_done = walk.report.files_failed.is_none();
    walk.report
}

struct Walk<'a> {
    search: &'a FileSearch,
    end: Instant,
    named: HashMap<Key, usize>,
    systems: FileSystems,
    /// Where it still has to begin.
    begin: Vec<Beginning>,
    report: Report,
}

impl Walk<'_> {
    /// What was mounted since it was read last is walked, too.
    fn find_systems(&mut self, shelf: &Shelf<'_>) {
        match self.systems.refresh(&shelf.roots) {
            Ok(new) if self.search.below.is_empty() => {
                self.begin.extend(new.into_iter().rev());
            }
            Ok(_) => {}
            Err(why) => self.fail(&why),
        }
    }

    fn walk(&mut self, shelf: &mut Shelf<'_>, begin: &Path) {
        let root = match fs::symlink_metadata(begin) {
            Ok(root) => root,
            Err(error) => return self.missed(begin, &error),
        };
        if root.is_file() {
            self.look_at(shelf, begin, &root);
            return;
        }
        let mut open = vec![(begin.to_owned(), root.dev())];
        while let Some((folder, device)) = open.pop() {
            if self.search.except.contains(&folder) {
                continue;
            }
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.missed(&folder, &error);
                    continue;
                }
            };
            for entry in entries {
                shelf.count_bytes(1);
                if self.is_late() {
                    return;
                }
                // The type is in the directory: nothing is asked of what is no file.
                let entry = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
                let (kind, entry) = match entry {
                    Ok(both) => both,
                    Err(error) => {
                        self.missed(&folder, &error);
                        continue;
                    }
                };
                let path = entry.path();
                if !(kind.is_file() || kind.is_dir() && !self.systems.is_border(&path)) {
                    continue;
                }
                match entry.metadata() {
                    Ok(meta) if kind.is_file() => self.look_at(shelf, &path, &meta),
                    Ok(meta) if meta.dev() == device => open.push((path, device)),
                    Ok(meta) => {
                        if self.is_part(shelf, &folder, &path, &meta) {
                            open.push((path, meta.dev()));
                        }
                    }
                    Err(error) => self.missed(&path, &error),
                }
            }
        }
    }

    /// Whether a folder with another device than the one it is in belongs to the same file system.
    fn is_part(
        &mut self,
        shelf: &Shelf<'_>,
        folder: &Path,
        path: &Path,
        meta: &fs::Metadata,
    ) -> bool {
        // A subvolume has a device of its own, and need not be mounted.
        if is_subvolume(meta.ino(), || {
            statfs(folder).map_or(0, |it| it.f_type as u32)
        }) {
            return true;
        }
        // It may have been mounted just now.
        if self.report.files_failed.is_none() {
            self.find_systems(shelf);
            if !self.systems.is_border(path) {
                let path = path.display();
                self.fail(&format!(
                    "{path} is another file system, not known to be mounted"
                ));
            }
        }
        false
    }

    fn look_at(&mut self, shelf: &mut Shelf<'_>, path: &Path, meta: &fs::Metadata) {
        let changed = meta.mtime().max(meta.ctime());
        let wanted = changed >= self.search.since.0
            && (1..=self.search.largest).contains(&meta.len())
            && !self.search.except.iter().any(|it| it == path);
        if !wanted {
            return;
        }
        let opened = open_quietly(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
        let file = match opened {
            Ok((true, file)) => file,
            Ok((false, _)) => return,
            Err(error) => return self.missed(path, &error),
        };
        let mut found = BTreeSet::new();
        // Four bytes anywhere are chance where there is so much.
        let read = read_file(shelf, &file, self.search.largest, |it| {
            if counts_as_holder(HolderClass::Capable, it.form) {
                found.insert(it.key);
            }
        });
        if let Err(error) = read {
            self.missed(path, &error);
        }
        for key in found {
            let named = self.named.entry(key).or_default();
            if *named < MAX_NAMED {
                *named += 1;
                let path = path.to_string_lossy().into_owned();
                self.report.files.push((key, path));
            }
        }
    }

    fn is_late(&mut self) -> bool {
        let late = Instant::now() >= self.end;
        if late {
            let limit = Span(self.search.limit);
            self.fail(&format!("it took longer than {limit}"));
        }
        late
    }

    /// What has gone meanwhile, or became something else, is not missed.
    fn missed(&mut self, path: &Path, error: &io::Error) {
        const GONE: [i32; 4] = [libc::ENOENT, libc::ESRCH, libc::ENOTDIR, libc::ELOOP];
        if !error.raw_os_error().is_some_and(|it| GONE.contains(&it)) {
            self.fail(&format!("{}: {}", path.display(), cause_text(error)));
        }
    }

    /// The first reason is kept.
    fn fail(&mut self, why: &str) {
        let bounded = || why.chars().take(MAX_REASON).collect();
        self.report.files_failed.get_or_insert_with(bounded);
    }
}

/// Whether a folder is a subvolume of btrfs; `system`: the type of what it is in.
fn is_subvolume(inode: u64, system: impl FnOnce() -> u32) -> bool {
    SUBVOLUME_ROOTS.contains(&inode) && system() == BTRFS
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_subvolume_is_entered_without_a_mount() {
        assert!(is_subvolume(256, || BTRFS));
        assert!(!is_subvolume(256, || 0xef53), "a mount that nobody knows");
        assert!(!is_subvolume(1, || BTRFS), "a file system mounted on btrfs");
    }
}
