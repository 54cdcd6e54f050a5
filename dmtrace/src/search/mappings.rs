//! The lines of `/proc/PID/maps`, and which of them may have a number of the process's own.

use dmtrace_core::search::Place;

use super::mounts::{FsKind, parse_device};

/// One mapping.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Mapping<'a> {
    pub start: u64,
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    pub shared: bool,
    /// Where in its file it begins.
    pub offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    pub name: &'a str,
}

/// Which of its pages are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Nothing,
    /// Those that the process has changed; the others are what the file is.
    Copied,
    /// All that are there.
    Present,
    /// Those that are there may hold what the process wrote, and must not be read.
    Untouchable,
}

impl<'a> Mapping<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let flags = fields.next()?.as_bytes();
        let offset = fields.next()?;
        let device = fields.next()?;
        let inode = fields.next()?.parse().ok()?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let flag = |at: usize, value: u8| flags.get(at) == Some(&value);
        Some(Self {
            start: address(start)?,
            end: address(end)?,
            readable: flag(0, b'r'),
            writable: flag(1, b'w'),
            shared: flag(3, b's'),
            offset: address(offset)?,
            device: parse_device(device, 16)?,
            inode,
            name: fields.next().unwrap_or("").trim_start(),
        })
    }

    /// The kernel's own file system for shared memory, which is mounted nowhere.
    pub(super) fn is_kernel_memory(&self) -> bool {
        const NAMES: [&str; 5] = [
            "/memfd:",
            "/SYSV",
            "/dev/zero (deleted)",
            "/anon_hugepage",
            "/secretmem",
        ];
        NAMES.iter().any(|name| self.name.starts_with(name))
    }

    /// Registers and queues of devices and of the kernel: reading them may have effects.
    fn is_device(&self) -> bool {
        const MEMORY: [&str; 3] = ["/dev/shm/", "/dev/zero", "/dev/hugepages/"];
        const KERNEL: [&str; 4] = ["[vvar", "[vsyscall]", "[vdso]", "/[aio]"];
        let begins = |names: &[&str]| names.iter().any(|name| self.name.starts_with(name));
        begins(&KERNEL)
            || self.name.starts_with("anon_inode:")
            || self.name.starts_with("/dev/") && !begins(&MEMORY)
    }

    /// Which pages matter; `kind` is asked for mappings of files only.
    pub(super) fn wanted(&self, kind: impl FnOnce() -> Option<FsKind>) -> Wanted {
        if self.is_device() {
            return Wanted::Nothing;
        }
        if self.inode == 0 || self.is_kernel_memory() {
            return Wanted::Present;
        }
        match kind() {
            Some(FsKind::Memory) => Wanted::Present,
            Some(FsKind::Local) if self.shared => Wanted::Present,
            // A page that was there a moment ago may be fetched again by whoever reads it. Without the
            // right to write, it is what the file is.
            _ if self.shared && self.writable => Wanted::Untouchable,
            _ if self.shared => Wanted::Nothing,
            _ => Wanted::Copied,
        }
    }

    pub(super) fn place(&self) -> Place {
        if self.name.starts_with("/memfd:") {
            Place::Memfd
        } else if self.shared && (self.is_kernel_memory() || self.name.starts_with("/dev/shm/")) {
            Place::SharedMemory
        } else if self.shared {
            Place::FileMapping
        } else if self.name.starts_with("[stack") {
            Place::Stack
        } else if self.name == "[heap]" {
            Place::Heap
        } else if self.inode == 0 || self.is_kernel_memory() {
            Place::Anonymous
        } else if self.writable {
            Place::Data
        } else {
            Place::FileMapping
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(line: &str, kind: Option<FsKind>) -> (Wanted, Place) {
        let mapping = Mapping::parse(line).unwrap();
        (mapping.wanted(|| kind), mapping.place())
    }

    #[test]
    fn which_pages_matter() {
        for (line, kind, expected, place) in [
            (
                "5500-5600 rw-p 00000000 00:00 0   [heap]",
                None,
                Wanted::Present,
                Place::Heap,
            ),
            (
                "7ffc-7ffd rw-p 00000000 00:00 0   [stack]",
                None,
                Wanted::Present,
                Place::Stack,
            ),
            (
                "7ffc-7ffd r-xp 00000000 00:00 0   [vdso]",
                None,
                Wanted::Nothing,
                Place::Anonymous,
            ),
            (
                "7f00-7f01 ---p 00000000 00:00 0 ",
                None,
                Wanted::Present,
                Place::Anonymous,
            ),
            (
                "7f00-7f01 rw-p 0001c000 08:01 77  /usr/lib/libc.so.6",
                Some(FsKind::Local),
                Wanted::Copied,
                Place::Data,
            ),
            (
                "7f00-7f01 r--p 0001c000 00:2c 77  /mnt/x",
                Some(FsKind::Remote),
                Wanted::Copied,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 rw-s 0001c000 00:2c 77  /mnt/x",
                Some(FsKind::Remote),
                Wanted::Untouchable,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 r--s 0001c000 00:2c 77  /mnt/x",
                Some(FsKind::Remote),
                Wanted::Nothing,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 rw-s 0001c000 08:01 77  /var/x",
                Some(FsKind::Local),
                Wanted::Present,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 r--p 0001c000 00:1a 77  /run/x",
                Some(FsKind::Memory),
                Wanted::Present,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 rw-s 00000000 00:01 77  /memfd:a b (deleted)",
                None,
                Wanted::Present,
                Place::Memfd,
            ),
            (
                "7f00-7f01 rw-s 00000000 00:01 77  /SYSV00000000 (deleted)",
                None,
                Wanted::Present,
                Place::SharedMemory,
            ),
            (
                "7f00-7f01 rw-s 00000000 00:05 77  /dev/dri/card0",
                None,
                Wanted::Nothing,
                Place::FileMapping,
            ),
            (
                "7f00-7f01 rw-s 00000000 00:1a 77  /dev/shm/x",
                Some(FsKind::Memory),
                Wanted::Present,
                Place::SharedMemory,
            ),
        ] {
            assert_eq!(wanted(line, kind), (expected, place), "{line}");
        }
        assert_eq!(Mapping::parse("junk"), None);
    }
}
