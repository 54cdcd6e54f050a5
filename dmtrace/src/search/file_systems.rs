//! Where a search of files begins: each part of a local file system once, wherever it is mounted.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::mounts::{FsKind, Mount};
use crate::{
    host::{Roots, processes},
    wording::cause_text,
};

/// A folder to begin at, or a file that is mounted by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Beginning {
    pub folder: PathBuf,
    /// By whose files it is seen, and the mount namespace of that.
    task: String,
    namespace: PathBuf,
    device: (u32, u32),
    /// What of the file system is mounted there.
    part: String,
}

impl Beginning {
    /// One that somebody asked for.
    pub(super) fn at(folder: PathBuf) -> Self {
        Self {
            folder,
            task: String::new(),
            namespace: PathBuf::new(),
            device: (0, 0),
            part: "/".to_owned(),
        }
    }

    /// Whether the process by whose files it is seen has gone, and with it the way to them.
    pub(super) fn is_lost(&self, roots: &Roots) -> bool {
        let link = || fs::read_link(roots.proc_path(format!("{}/ns/mnt", self.task)));
        !self.task.is_empty() && link().ok().as_ref() != Some(&self.namespace)
    }

    /// The way from its folder to that of another part of the same file system; `None` if that is not
    /// below it.
    fn way_to<'a>(&self, part: &'a str) -> Option<&'a str> {
        if part == self.part {
            return Some("");
        }
        // A folder or file that was removed, or replaced, while it was mounted.
        if part.ends_with("//deleted") || self.part.ends_with("//deleted") {
            return None;
        }
        let begin = self.part.trim_end_matches('/');
        part.strip_prefix(begin)?.strip_prefix('/')
    }
}

/// What is mounted where, in every mount namespace.
#[derive(Default)]
pub(super) struct FileSystems {
    /// Mount points: what is below them is another file system, or another part of this one.
    borders: HashSet<PathBuf>,
    known: HashMap<(u32, u32), Vec<Beginning>>,
}

impl FileSystems {
    /// Reads what is mounted now. Returns what is new and local.
    ///
    /// # Errors
    /// Something may be mounted that was not seen.
    pub(super) fn refresh(&mut self, roots: &Roots) -> Result<Vec<Beginning>, String> {
        let own = std::iter::once("self".to_owned());
        let pids = processes::list_pids(roots)
            .map_err(|error| format!("the list of processes: {}", cause_text(&error)))?;
        let mut namespaces = BTreeSet::new();
        let mut new = Vec::new();
        for task in own.chain(pids.iter().map(u32::to_string)) {
            let read = || -> io::Result<(PathBuf, Vec<u8>)> {
                let link = fs::read_link(roots.proc_path(format!("{task}/ns/mnt")))?;
                let known = namespaces.contains(&link);
                let text = (!known).then(|| roots.read_proc(format!("{task}/mountinfo")));
                Ok((link, text.transpose()?.unwrap_or_default()))
            };
            match read() {
                Ok((namespace, text)) => {
                    if namespaces.insert(namespace.clone()) {
                        let text = String::from_utf8_lossy(&text);
                        new.extend(self.add_namespace(roots, &task, &namespace, &text));
                    }
                }
                // A zombie has none any more.
                Err(error)
                    if processes::is_gone(&error)
                        || error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => {
                    let cause = cause_text(&error);
                    return Err(format!("what process {task} has mounted: {cause}"));
                }
            }
        }
        Ok(new)
    }

    /// What is mounted in one namespace.
    fn add_namespace(
        &mut self,
        roots: &Roots,
        task: &str,
        namespace: &Path,
        text: &str,
    ) -> Vec<Beginning> {
        let root = if task == "self" {
            PathBuf::from("/")
        } else {
            roots.proc_path(format!("{task}/root"))
        };
        let mut mounts = MountTree::default();
        for mount in text.lines().filter_map(Mount::parse) {
            // Of the root itself a slash stays behind: without it that is only a link.
            let point = root.join(unescape(mount.point).trim_start_matches('/'));
            self.borders.insert(point.clone());
            mounts.add(&mount, point);
        }
        // The larger part first: the others may be in it.
        let mut wanted: Vec<usize> = (0..mounts.all.len()).collect();
        wanted.retain(|&number| mounts.all[number].local);
        wanted.sort_by_key(|&number| mounts.all[number].part.len());
        let mut new = Vec::new();
        for number in wanted {
            let mount = &mounts.all[number];
            if !self.covers(mount.device, &mount.part) && !mounts.is_hidden(number) {
                let beginning = Beginning {
                    folder: mount.point.clone(),
                    task: task.to_owned(),
                    namespace: namespace.to_owned(),
                    device: mount.device,
                    part: mount.part.clone(),
                };
                let known = self.known.entry(mount.device).or_default();
                known.push(beginning.clone());
                new.push(beginning);
            }
        }
        new
    }

    /// Whether somebody who walks through what is known comes to this part, without a border.
    fn covers(&self, device: (u32, u32), part: &str) -> bool {
        let known = self.known.get(&device).into_iter().flatten();
        known.into_iter().any(|beginning| {
            let Some(way) = beginning.way_to(part) else {
                return false;
            };
            let mut at = beginning.folder.clone();
            way.split('/').filter(|it| !it.is_empty()).all(|name| {
                at.push(name);
                !self.borders.contains(&at)
            })
        })
    }

    pub(super) fn is_border(&self, path: &Path) -> bool {
        self.borders.contains(path)
    }

    /// It was not walked to its end: whoever else has it mounted is the next to begin at.
    pub(super) fn forget(&mut self, beginning: &Beginning) {
        if let Some(known) = self.known.get_mut(&beginning.device) {
            known.retain(|it| it != beginning);
        }
    }
}

/// The mounts of one namespace.
#[derive(Default)]
struct MountTree {
    all: Vec<MountNode>,
    by_id: HashMap<u64, usize>,
    children: HashMap<u64, Vec<usize>>,
}

struct MountNode {
    id: u64,
    parent: u64,
    device: (u32, u32),
    part: String,
    point: PathBuf,
    local: bool,
}

impl MountTree {
    fn add(&mut self, mount: &Mount<'_>, point: PathBuf) {
        let number = self.all.len();
        self.by_id.insert(mount.id, number);
        self.children.entry(mount.parent).or_default().push(number);
        self.all.push(MountNode {
            id: mount.id,
            parent: mount.parent,
            device: mount.device,
            part: unescape(mount.part),
            point,
            local: mount.kind != FsKind::Remote,
        });
    }

    /// Whether the way to a mount leads to something that was mounted over it.
    fn is_hidden(&self, number: usize) -> bool {
        let mut at = number;
        let on = |id: u64| self.children.get(&id).into_iter().flatten().copied();
        let top = &self.all[at];
        if on(top.id).any(|it| it != at && self.all[it].point == top.point) {
            return true;
        }
        // No chain of parents is longer.
        for _ in 0..self.all.len() {
            let node = &self.all[at];
            // Older kernels may have several at one place: all of them are looked at.
            let over = |it: usize| {
                let other = &self.all[it].point;
                node.point != *other && node.point.starts_with(other)
            };
            if on(node.parent).any(over) {
                return true;
            }
            match self.by_id.get(&node.parent) {
                Some(&parent) if parent != at => at = parent,
                _ => break,
            }
        }
        false
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
    use super::*;

    /// The folders at which a search begins.
    fn begin(systems: &mut FileSystems, task: &str, text: &str) -> Vec<String> {
        let roots = Roots::below(Path::new("/nowhere"));
        let new = systems.add_namespace(&roots, task, Path::new(task), text);
        let mut folders: Vec<String> = new
            .iter()
            .map(|it| it.folder.display().to_string())
            .collect();
        folders.sort();
        folders
    }

    #[test]
    fn blanks_in_mount_points() {
        assert_eq!(unescape("/mnt/a\\040b\\134"), "/mnt/a b\\");
        assert_eq!(unescape("/mnt\\0"), "/mnt\\0");
    }

    #[test]
    fn what_is_reached_from_its_root_is_walked_once() {
        let mut systems = FileSystems::default();
        let host = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:9 / /proc rw - proc p rw\n\
            3 1 8:1 /srv /mnt/srv rw - ext4 /dev/a rw\n\
            4 1 8:2 /x /y rw - ext4 /dev/b rw\n\
            5 1 8:2 / /mnt/b rw - ext4 /dev/b rw\n";
        assert_eq!(begin(&mut systems, "self", host), ["/", "/mnt/b"]);
        let other = "11 0 8:1 / / rw - ext4 /dev/a rw\n\
            12 11 8:1 /tmp/private /tmp rw - ext4 /dev/a rw\n\
            13 11 0:30 / /run rw - tmpfs t rw\n";
        assert_eq!(
            begin(&mut systems, "7", other),
            ["/nowhere/proc/7/root/run"]
        );
    }

    /// As a subvolume of btrfs that is mounted where it is in the file system, too.
    #[test]
    fn a_part_behind_a_border_is_walked_by_itself() {
        let mut systems = FileSystems::default();
        let text = "1 0 0:20 / / rw - btrfs /dev/a rw,subvol=/\n\
            2 1 0:20 /home /home rw - btrfs /dev/a rw,subvol=/home\n\
            3 1 0:20 /home/x /mnt/x rw - btrfs /dev/a rw\n\
            4 1 0:20 /srv /mnt/srv rw - btrfs /dev/a rw\n";
        assert_eq!(begin(&mut systems, "self", text), ["/", "/home"]);
        // What is mounted over a folder hides that: only a bind mount shows what is in it.
        let mut systems = FileSystems::default();
        let text = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:30 / /var/x rw - tmpfs t rw\n\
            3 1 8:1 /var/x/y /mnt/y rw - ext4 /dev/a rw\n\
            4 1 8:1 /etc/hosts//deleted /mnt/hosts rw - ext4 /dev/a rw\n";
        assert_eq!(
            begin(&mut systems, "self", text),
            ["/", "/mnt/hosts", "/mnt/y", "/var/x"]
        );
    }

    #[test]
    fn what_is_mounted_over_is_not_mistaken_for_what_is_below() {
        let text = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 / /mnt rw - ext4 /dev/b rw\n\
            3 2 8:3 / /mnt/c rw - ext4 /dev/c rw\n\
            4 2 0:30 / /mnt rw - tmpfs t rw\n\
            5 4 8:2 /d /mnt/d rw - ext4 /dev/b rw\n";
        let mut systems = FileSystems::default();
        assert_eq!(begin(&mut systems, "self", text), ["/", "/mnt", "/mnt/d"]);
    }

    #[test]
    fn whose_way_is_lost_is_sought_elsewhere() {
        let mut systems = FileSystems::default();
        let text = "1 0 0:30 / / rw - tmpfs t rw\n";
        let roots = Roots::below(Path::new("/nowhere"));
        let first = systems.add_namespace(&roots, "7", Path::new("mnt:[1]"), text);
        assert!(first[0].is_lost(&roots), "there is no such process");
        assert_eq!(begin(&mut systems, "8", text), [""; 0]);
        systems.forget(&first[0]);
        assert_eq!(begin(&mut systems, "8", text), ["/nowhere/proc/8/root/"]);
    }
}
