//! What kind of file system a file is on, without asking that file system.

use std::{collections::HashMap, fs, path::Path, rc::Rc};

use crate::host::Roots;

/// What reading a file may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FsKind {
    /// It is in memory: a page is never fetched from elsewhere, but may be swapped.
    Memory,
    /// On a disk of this machine.
    Local,
    /// Somebody else delivers its pages, when and if he likes.
    Remote,
}

/// File systems by mount and by device.
#[derive(Debug, Default)]
pub(super) struct MountTable {
    by_id: HashMap<u64, FsKind>,
    by_device: HashMap<(u32, u32), FsKind>,
}

const MEMORY: [&str; 5] = ["tmpfs", "ramfs", "rootfs", "hugetlbfs", "devtmpfs"];

const LOCAL: [&str; 20] = [
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs",
    "nilfs2", "ntfs3", "overlay", "reiserfs", "squashfs", "ubifs", "udf", "vfat", "xfs", "zfs",
];

/// One line of `mountinfo`.
pub(super) struct Mount<'a> {
    pub id: u64,
    /// What it is mounted on.
    pub parent: u64,
    pub device: (u32, u32),
    /// What of the file system is mounted, escaped as the next.
    pub part: &'a str,
    /// Escaped, as the kernel writes it.
    pub point: &'a str,
    pub kind: FsKind,
}

impl<'a> Mount<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        let device = parse_device(fields.next()?, 10)?;
        let part = fields.next()?;
        let point = fields.next()?;
        let name = system.split(' ').next()?;
        let kind = if MEMORY.contains(&name) {
            FsKind::Memory
        } else if LOCAL.contains(&name) {
            FsKind::Local
        } else {
            FsKind::Remote
        };
        Some(Self {
            id,
            parent,
            device,
            part,
            point,
            kind,
        })
    }
}

/// `8:1`; `maps` writes it in hexadecimal.
pub(super) fn parse_device(text: &str, radix: u32) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    let number = |text| u32::from_str_radix(text, radix).ok();
    Some((number(major)?, number(minor)?))
}

impl MountTable {
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for mount in text.lines().filter_map(Mount::parse) {
            table.by_id.insert(mount.id, mount.kind);
            table.by_device.insert(mount.device, mount.kind);
        }
        table
    }
}

/// Tables of the mount namespaces that were seen.
pub(super) struct MountTables {
    roots: Roots,
    own: MountTable,
    others: HashMap<String, Rc<MountTable>>,
}

impl MountTables {
    pub(super) fn new(roots: &Roots) -> Self {
        let text = roots.read_proc("self/mountinfo").unwrap_or_default();
        Self {
            roots: roots.clone(),
            own: MountTable::parse(&String::from_utf8_lossy(&text)),
            others: HashMap::new(),
        }
    }

    /// By the number of a mount (`mnt_id` in `fdinfo`); `None` for the kernel's own, and for what is
    /// mounted nowhere.
    pub(super) fn kind_of_mount(&mut self, task: &str, id: u64) -> Option<FsKind> {
        let own = self.own.by_id.get(&id).copied();
        own.or_else(|| self.table_of(task)?.by_id.get(&id).copied())
    }

    /// By the number of a device, as `maps` has it.
    pub(super) fn kind_of_device(&mut self, task: &str, device: (u32, u32)) -> Option<FsKind> {
        let own = self.own.by_device.get(&device).copied();
        own.or_else(|| self.table_of(task)?.by_device.get(&device).copied())
    }

    /// That of a task (`PID` or `PID/task/TID`).
    fn table_of(&mut self, task: &str) -> Option<Rc<MountTable>> {
        const MAX_CACHED: usize = 16;
        let link = fs::read_link(self.roots.proc_path(format!("{task}/ns/mnt"))).ok()?;
        let name = link.to_string_lossy().into_owned();
        if let Some(table) = self.others.get(&name) {
            return Some(Rc::clone(table));
        }
        let text = self.roots.read_proc(format!("{task}/mountinfo")).ok()?;
        let table = Rc::new(MountTable::parse(&String::from_utf8_lossy(&text)));
        if self.others.len() >= MAX_CACHED {
            self.others.clear();
        }
        self.others.insert(name, Rc::clone(&table));
        Some(table)
    }
}

/// A field of `fdinfo`.
pub(super) fn fdinfo_field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

/// The mount of a file that this process has open.
pub(super) fn mount_of_own(fd: i32) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{fd}");
    let text = fs::read_to_string(Path::new(&path)).ok()?;
    fdinfo_field(&text, "mnt_id:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_file_systems() {
        let text = "22 1 8:1 / / rw,noatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:26 / /dev/shm rw - tmpfs tmpfs rw\n\
            31 22 0:44 / /mnt/a\\040b rw shared:3 master:2 - fuse.sshfs x rw\n\
            junk\n";
        let table = MountTable::parse(text);
        assert_eq!(table.by_id[&22], FsKind::Local);
        assert_eq!(table.by_device[&(0, 26)], FsKind::Memory);
        assert_eq!(table.by_id[&31], FsKind::Remote);
        assert_eq!(table.by_id.len(), 3);
        assert_eq!(parse_device("fd:0a", 16), Some((253, 10)));
        let info = "pos:\t0\nflags:\t0100002\nmnt_id:\t15\n";
        assert_eq!(fdinfo_field(info, "mnt_id:").as_deref(), Some("15"));
    }
}
