//! Where the host's files are. Tests put a directory in place of the host.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
};

use super::stuck_reads;

/// Directories that stand for the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Roots {
    /// Its `/proc`.
    pub proc: PathBuf,
    /// Its `/`: `etc`, `run`, `usr`, `sys` are looked up below.
    pub fs: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self::host()
    }
}

/// Upper bound of a file that is read whole. The largest in use are `mountinfo` files.
const FILE_MAX: u64 = 64 << 20;

/// Arguments and environment together take 6 MiB at most (`bprm_stack_limits`: three quarters of
/// `_STK_LIM`).
const MEMORY_MAX: u64 = 6 << 20;

/// Memory of a process that is read by one call.
pub(super) const READ_AT_ONCE: usize = 64 << 10;

impl Roots {
    /// The host as seen from here. In a container that shares the host's process numbers the
    /// files of the host are those of process 1.
    pub fn host() -> Self {
        let proc = PathBuf::from("/proc");
        let same = |a: io::Result<PathBuf>, b: io::Result<PathBuf>| match (a, b) {
            (Ok(a), Ok(b)) => a == b,
            // Without the right to look at process 1 its files are out of reach anyway.
            _ => true,
        };
        let ours = fs::read_link(proc.join("self/ns/mnt"));
        let fs = if same(ours, fs::read_link(proc.join("1/ns/mnt"))) && !is_changed_root(&proc) {
            PathBuf::from("/")
        } else {
            proc.join("1/root")
        };
        Self { proc, fs }
    }

    /// A directory with `proc`, `etc`, `run`, `usr` in it.
    pub fn below(dir: &Path) -> Self {
        Self {
            proc: dir.join("proc"),
            fs: dir.to_path_buf(),
        }
    }

    /// Path below `/proc`.
    pub fn proc_path(&self, rest: impl AsRef<Path>) -> PathBuf {
        self.proc.join(rest)
    }

    /// Path of a file of the host, as text for messages and facts: without the root in front.
    pub fn display_path(&self, path: &Path) -> String {
        Path::new("/").join(path).display().to_string()
    }

    /// Reads a file below `/proc` whole.
    ///
    /// # Errors
    /// Those of opening and reading.
    pub fn read_proc(&self, rest: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        read_whole(&File::open(self.proc.join(rest))?)
    }

    /// Reads a file of a process below `/proc` that has to do with its memory: it may never be readable.
    ///
    /// # Errors
    /// Those of opening and reading; `TimedOut` after a second.
    pub(super) fn read_patiently(&self, rest: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        stuck_reads::read_patiently(self.proc.join(rest), read_whole)
    }

    /// Reads the environment or the arguments of a process below `/proc`: memory of its own, as large
    /// as it likes. Up to [`READ_AT_ONCE`] bytes are what was there at one moment; of more, the rest is
    /// missing if the process has begun another program meanwhile.
    ///
    /// # Errors
    /// Those of opening and reading; it is larger than `execve` allows; `TimedOut` after a second.
    pub fn read_memory(&self, rest: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        stuck_reads::read_patiently(self.proc.join(rest), read_block)
    }

    /// Reads a file of the host whole. Symbolic links are followed as the host would.
    ///
    /// # Errors
    /// Those of opening and reading.
    pub fn read_fs(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        read_whole(&self.open_fs(path.as_ref(), libc::O_RDONLY | libc::O_NONBLOCK)?)
    }

    /// Opens a regular file of the host for reading. It is looked at first: opening a device or a
    /// pipe has effects, and the path may come from an untrusted process.
    ///
    /// # Errors
    /// Those of opening; it is no regular file.
    pub fn open_regular(&self, path: &Path) -> io::Result<File> {
        let seen = self.open_fs(path, libc::O_PATH)?;
        if !seen.metadata()?.is_file() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        File::open(format!("/proc/thread-self/fd/{}", seen.as_raw_fd()))
    }

    /// Whether a path of the host exists, links followed.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.open_fs(path.as_ref(), libc::O_PATH).is_ok()
    }

    /// Whether a path of the host is a file that somebody may execute, links followed.
    pub fn is_executable(&self, path: impl AsRef<Path>) -> bool {
        self.open_fs(path.as_ref(), libc::O_PATH)
            .and_then(|file| file.metadata())
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    /// Names in a directory of the host, sorted; empty when it cannot be read.
    pub fn read_names(&self, path: impl AsRef<Path>) -> Vec<PathBuf> {
        let Ok(dir) = self.open_fs(path.as_ref(), libc::O_RDONLY | libc::O_DIRECTORY) else {
            return Vec::new();
        };
        // std cannot list an open directory; its entry in our own /proc stands for it.
        let Ok(entries) = fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())) else {
            return Vec::new();
        };
        let mut names: Vec<PathBuf> = entries
            .filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())))
            .collect();
        names.sort();
        names
    }

    /// Opens a file of the host.
    fn open_fs(&self, path: &Path, flags: i32) -> io::Result<File> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let root = open_path(libc::AT_FDCWD, self.fs.as_os_str(), libc::O_PATH)?;
        if self.fs != Path::new("/") {
            match open_in_root(&root, path.as_os_str(), flags) {
                // Kernel before 5.6, or a sandbox that does not know the call.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
                result => return result.map(File::from),
            }
        }
        open_path(root.as_raw_fd(), path.as_os_str(), flags).map(File::from)
    }
}

fn read_once(mut file: &File, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// What `execve` put on the stack of a process.
fn read_block(file: &File) -> io::Result<Vec<u8>> {
    // `read_to_end` begins with a few bytes.
    let mut bytes = vec![0; READ_AT_ONCE];
    let first = read_once(file, &mut bytes)?;
    bytes.truncate(first);
    if first == READ_AT_ONCE {
        let more = MEMORY_MAX + 1 - first as u64;
        file.take(more).read_to_end(&mut bytes)?;
    }
    bytes.shrink_to_fit();
    if bytes.len() as u64 > MEMORY_MAX {
        return Err(io::Error::other(
            "its environment or command line is larger than any real one",
        ));
    }
    Ok(bytes)
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn c_path(path: &OsStr) -> io::Result<std::ffi::CString> {
    let bytes = if path.is_empty() {
        b"."
    } else {
        path.as_bytes()
    };
    std::ffi::CString::new(bytes).map_err(io::Error::from)
}

fn open_path(dir: RawFd, path: &OsStr, flags: i32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: `path` is a C string that outlives the call; the kernel checks `dir`.
    let fd = unsafe { libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC) };
    owned_fd(fd.into())
}

/// `openat2` with `RESOLVE_IN_ROOT`: absolute links in the host's tree stay in the host's tree.
fn open_in_root(root: &OwnedFd, path: &OsStr, flags: i32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let path = c_path(path)?;
    let how = OpenHow {
        flags: u64::from((flags | libc::O_CLOEXEC).unsigned_abs()),
        mode: 0,
        resolve: RESOLVE_IN_ROOT,
    };
    // SAFETY: `path` and `how` outlive the call and the size of `how` is passed with it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        )
    };
    owned_fd(fd)
}

fn owned_fd(fd: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just handed out this descriptor and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process sees another directory as `/` than process 1 does: a chroot.
fn is_changed_root(proc: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match (of(Path::new("/")), of(&proc.join("1/root"))) {
        (Ok(ours), Ok(theirs)) => ours != theirs,
        // Without the right to look at process 1 its files are out of reach anyway.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn absolute_links_stay_in_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/here"), "inside").unwrap();
        symlink("/etc/here", dir.path().join("etc/link")).unwrap();
        let roots = Roots::below(dir.path());
        assert_eq!(roots.read_fs("/etc/link").unwrap(), b"inside");
        assert!(roots.exists("etc/link"));
        assert!(!roots.exists("/etc/passwd"));
        assert_eq!(
            roots.read_names("/etc"),
            [PathBuf::from("here"), PathBuf::from("link")]
        );
        assert_eq!(roots.display_path(Path::new("etc/here")), "/etc/here");
    }

    #[test]
    fn what_is_missing_is_an_error_or_empty() {
        let roots = Roots::below(Path::new("/nonexistent/tree"));
        assert!(roots.read_proc("1/stat").is_err());
        assert!(roots.read_fs("etc/passwd").is_err());
        assert!(roots.read_names("etc").is_empty());
    }
}
