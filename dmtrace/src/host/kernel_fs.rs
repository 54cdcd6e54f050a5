//! The file systems in which the kernel shows itself: tracefs, debugfs, securityfs, bpffs.
//!
//! Nobody has to mount them for us. One that is mounted is used; otherwise a mount is made that is
//! attached nowhere, is seen by nobody else and ends with its descriptor (`fsopen`, Linux 5.2).

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, fstatfs, openat, statfs},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// One of these file systems.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KernelFs {
    /// tracefs: the numbers of tracepoints.
    Trace,
    /// debugfs: whether the scheduler preempts.
    Debug,
    /// securityfs: lockdown.
    Security,
    /// bpffs: what outlives its process. A private mount does not, so only a mounted one is of use.
    Bpf,
}

/// What belongs to one of them.
struct Properties {
    name: &'static str,
    /// For `mount -t`.
    fs_type: &'static str,
    /// `f_type` of `statfs(2)` (`linux/magic.h`).
    magic: u32,
    mount_point: &'static str,
    /// Option of the kernel's build.
    config: &'static str,
}

impl KernelFs {
    const fn properties(self) -> Properties {
        match self {
            Self::Trace => Properties {
                name: "tracefs",
                fs_type: "tracefs",
                magic: 0x7472_6163,
                mount_point: "/sys/kernel/tracing",
                config: "CONFIG_TRACING",
            },
            Self::Debug => Properties {
                name: "debugfs",
                fs_type: "debugfs",
                magic: 0x6462_6720,
                mount_point: "/sys/kernel/debug",
                config: "CONFIG_DEBUG_FS",
            },
            Self::Security => Properties {
                name: "securityfs",
                fs_type: "securityfs",
                magic: 0x7363_6673,
                mount_point: "/sys/kernel/security",
                config: "CONFIG_SECURITYFS",
            },
            Self::Bpf => Properties {
                name: "BPF file system",
                fs_type: "bpf",
                magic: 0xcafe_4a11,
                mount_point: "/sys/fs/bpf",
                config: "CONFIG_BPF_SYSCALL",
            },
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.properties().name
    }

    /// The command that mounts it where everybody looks for it.
    pub fn mount_command(self) -> String {
        let Properties {
            fs_type,
            mount_point,
            ..
        } = self.properties();
        format!("mount -t {fs_type} {fs_type} {mount_point}")
    }

    /// Opens it: the mounted one, or else a private mount.
    ///
    /// # Errors
    /// Neither is to be had.
    pub fn open(self) -> Result<KernelFsRoot, Unreachable> {
        self.open_by(
            || fs::read("/proc/self/mountinfo"),
            |path| self.open_mounted(path),
            || self.mount_privately(),
        )
    }

    /// Where it is mounted in this mount namespace.
    pub fn mount_point(self) -> Option<PathBuf> {
        let mounts = || fs::read("/proc/self/mountinfo");
        let (path, _) = self
            .find_root(mounts, |path| self.open_mounted(path))
            .ok()?;
        Some(path)
    }

    /// Whether a path is in it.
    ///
    /// # Errors
    /// Those of `statfs(2)`.
    pub fn contains(self, path: &Path) -> io::Result<bool> {
        Ok(statfs(path)?.f_type as u32 == self.properties().magic)
    }

    fn open_by(
        self,
        mounts: impl FnOnce() -> io::Result<Vec<u8>>,
        open: impl Fn(&Path) -> io::Result<OwnedFd>,
        create: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<KernelFsRoot, Unreachable> {
        let mounted = match self.find_root(mounts, open) {
            Ok((path, root)) => {
                return Ok(KernelFsRoot {
                    fs: self,
                    root,
                    place: FsPlace::Mounted(path),
                });
            }
            Err(why) => why,
        };
        match create() {
            Ok(root) => Ok(KernelFsRoot {
                fs: self,
                root,
                place: FsPlace::Private,
            }),
            Err(private) => Err(Unreachable {
                fs: self,
                mounted,
                private,
            }),
        }
    }

    /// The usual place first: who has many mounts need not read their list.
    fn find_root(
        self,
        mounts: impl FnOnce() -> io::Result<Vec<u8>>,
        open: impl Fn(&Path) -> io::Result<OwnedFd>,
    ) -> Result<(PathBuf, OwnedFd), NotMounted> {
        let usual = PathBuf::from(self.properties().mount_point);
        if let Ok(root) = open(&usual) {
            return Ok((usual, root));
        }
        let list = mounts().map_err(|error| NotMounted::Unknown(error_text(&error)))?;
        let mut refused = NotMounted::Nowhere;
        for path in mount_points(&list, self.properties().fs_type) {
            match open(&path) {
                Ok(root) => return Ok((path, root)),
                Err(error) => {
                    let why = format!("{}: {}", path.display(), error_text(&error));
                    refused = NotMounted::Refused(why);
                }
            }
        }
        Err(refused)
    }

    /// Without `O_DIRECTORY`, which would make the kernel mount tracefs below debugfs.
    fn open_mounted(self, path: &Path) -> io::Result<OwnedFd> {
        let root = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if fstatfs(&root)?.f_type as u32 == self.properties().magic {
            return Ok(root);
        }
        Err(io::Error::other("something else is mounted over it"))
    }

    fn mount_privately(self) -> Result<OwnedFd, Errno> {
        let context = fsopen(self.properties().fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
        // No options: there is one tracefs, debugfs and securityfs for all, which keeps its own.
        fsconfig_create(&context)?;
        // Read-only is this mount alone.
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, read_only)
    }
}

/// The root of such a file system. Held open it keeps the file system mounted.
#[derive(Debug)]
pub struct KernelFsRoot {
    fs: KernelFs,
    root: OwnedFd,
    place: FsPlace,
}

/// Where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FsPlace {
    /// Mounted there, for all.
    Mounted(PathBuf),
    /// For us alone.
    Private,
}

impl KernelFsRoot {
    /// Where it is.
    pub const fn place(&self) -> &FsPlace {
        &self.place
    }

    /// Reads a file whose path is below the root.
    ///
    /// # Errors
    /// Those of opening and reading.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.root, file, flags, Mode::empty())?;
        let mut text = String::new();
        fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    /// A file in it, for messages.
    pub fn display_path(&self, file: &str) -> String {
        match &self.place {
            FsPlace::Mounted(dir) => dir.join(file).display().to_string(),
            FsPlace::Private => format!("{file} in {}", self.fs.name()),
        }
    }
}

/// Why it is not found mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
enum NotMounted {
    /// No mount of it is in the list.
    Nowhere,
    /// It is, and cannot be opened.
    Refused(String),
    /// The list cannot be read.
    Unknown(String),
}

/// Neither the mounted one nor a private one can be had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unreachable {
    fs: KernelFs,
    mounted: NotMounted,
    private: Errno,
}

impl Unreachable {
    /// Both failures.
    pub fn cause(&self) -> String {
        let name = self.fs.name();
        if self.private == Errno::NODEV {
            return format!("this kernel has no {name}");
        }
        let mounted = match &self.mounted {
            NotMounted::Nowhere => "is not mounted".to_owned(),
            NotMounted::Refused(why) => format!("cannot be used where it is mounted ({why})"),
            NotMounted::Unknown(why) => {
                format!("is not where it usually is (/proc/self/mountinfo: {why})")
            }
        };
        let private = error_text(&self.private.into());
        format!("{name} {mounted}, and a private mount is refused ({private})")
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        let command = self.fs.mount_command();
        match self.private {
            Errno::NODEV => format!(
                "boot a kernel with {}=y, without switching {} off on its command line",
                self.fs.properties().config,
                self.fs.name()
            ),
            Errno::PERM | Errno::ACCESS => format!("run as root, or have root run: {command}"),
            // Before Linux 5.2, or a filter of system calls.
            _ => format!("have root run: {command}"),
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.fix())
    }
}

impl std::error::Error for Unreachable {}

/// An error without its number, which says the same again.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error ").next().unwrap_or(&text);
    words.to_owned()
}

/// Where the whole of a file system of this type is mounted (proc_pid_mountinfo(5)).
fn mount_points<'a>(mountinfo: &'a [u8], fs_type: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(move |line| {
            let mut words = line.split(|&byte| byte == b' ').skip(3);
            let (root, path) = (words.next()?, words.next()?);
            let found = words.skip_while(|word| *word != b"-").nth(1)?;
            (root == b"/" && found == fs_type.as_bytes()).then(|| unescape_path(path))
        })
}

/// Undoes the kernel's `seq_escape`: `\040` is a blank.
fn unescape_path(path: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let octal = || {
            let digits = std::str::from_utf8(after.get(..3)?).ok()?;
            u8::from_str_radix(digits, 8).ok()
        };
        if let (b'\\', Some(byte)) = (first, octal()) {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const MOUNTS: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        40 22 0:12 / /mnt/a\\040b rw,nosuid shared:7 master:1 - tracefs tracefs rw\n\
        41 22 0:12 /instances/x /mnt/x rw - tracefs tracefs rw\n\
        42 22 0:13 / /mnt/tracefs rw - tmpfs tracefs rw\n";

    fn open_null() -> OwnedFd {
        fs::File::open("/dev/null").unwrap().into()
    }

    /// What is chosen where these can be opened, and what was tried.
    fn choose_place(
        mounts: &[u8],
        there: &[&str],
        private: Result<(), Errno>,
    ) -> (Result<FsPlace, Unreachable>, Vec<String>) {
        let tried = RefCell::new(Vec::new());
        let open = |path: &Path| {
            tried.borrow_mut().push(path.display().to_string());
            if there.iter().any(|it| Path::new(it) == path) {
                Ok(open_null())
            } else {
                Err(io::Error::from_raw_os_error(libc::EACCES))
            }
        };
        let create = || {
            tried.borrow_mut().push("private".to_owned());
            private.map(|()| open_null())
        };
        let chosen = KernelFs::Trace.open_by(|| Ok(mounts.to_vec()), open, create);
        let chosen = chosen.map(|root| root.place().clone());
        (chosen, tried.into_inner())
    }

    #[test]
    fn a_mounted_one_is_used_and_nothing_is_mounted_then() {
        let usual = "/sys/kernel/tracing";
        let (chosen, tried) = choose_place(MOUNTS, &[usual], Ok(()));
        assert_eq!(chosen, Ok(FsPlace::Mounted(usual.into())));
        assert_eq!(tried, [usual]);
        // Elsewhere, under a name that the kernel writes in its own way.
        let (chosen, tried) = choose_place(MOUNTS, &["/mnt/a b"], Ok(()));
        assert_eq!(chosen, Ok(FsPlace::Mounted("/mnt/a b".into())));
        assert_eq!(tried, [usual, "/mnt/a b"]);
    }

    #[test]
    fn else_a_private_one() {
        for mounts in [b"".as_slice(), MOUNTS] {
            let (chosen, tried) = choose_place(mounts, &[], Ok(()));
            assert_eq!(chosen, Ok(FsPlace::Private));
            assert_eq!(tried.last().unwrap(), "private");
        }
    }

    #[test]
    fn where_both_fail_both_are_said_in_one_line_with_the_fix() {
        let said = |mounts, error| {
            choose_place(mounts, &[], Err(error))
                .0
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            said(b"", Errno::PERM),
            "tracefs is not mounted, and a private mount is refused (Operation not permitted); \
             run as root, or have root run: mount -t tracefs tracefs /sys/kernel/tracing"
        );
        assert_eq!(
            said(MOUNTS, Errno::NOSYS),
            "tracefs cannot be used where it is mounted (/mnt/a b: Permission denied), and a \
             private mount is refused (Function not implemented); have root run: mount -t tracefs \
             tracefs /sys/kernel/tracing"
        );
        // Mounting cannot help, so it is not advised.
        let said = said(b"", Errno::NODEV);
        assert!(said.contains("this kernel has no tracefs"), "{said}");
        assert!(said.contains("CONFIG_TRACING=y"), "{said}");
        assert!(!said.contains("mount -t"), "{said}");
    }

    #[test]
    fn without_the_list_of_mounts_that_is_said() {
        let refuse = || Err(io::Error::from_raw_os_error(libc::ENOENT));
        let nothing = |_: &Path| Err(io::Error::from_raw_os_error(libc::ENOENT));
        let opened = KernelFs::Debug.open_by(refuse, nothing, || Err(Errno::PERM));
        let said = opened.unwrap_err().to_string();
        assert!(
            said.contains("/proc/self/mountinfo: No such file"),
            "{said}"
        );
        assert!(said.contains("mount -t debugfs"), "{said}");
    }

    #[test]
    fn another_file_system_in_its_place_is_not_taken_for_it() {
        for fs in [KernelFs::Trace, KernelFs::Bpf] {
            let error = fs.open_mounted(Path::new("/proc")).unwrap_err();
            assert!(error.to_string().contains("something else"), "{error}");
            assert!(!fs.contains(Path::new("/proc")).unwrap());
        }
    }
}
