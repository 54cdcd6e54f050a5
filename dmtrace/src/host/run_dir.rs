//! What commands of one boot leave for each other: files that only root may read or write.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Where they are.
pub(crate) const RUN_DIR: &str = "/run/dmtrace";

/// Makes a folder for them, unless it is there.
///
/// # Errors
/// The system refuses.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Makes a file that is not there yet.
///
/// # Errors
/// It is there, or the system refuses.
pub(crate) fn create_private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// The text of such a file of at most `max` bytes; nothing if it cannot be read, or anybody else could
/// have written it.
pub(crate) fn read_private_file(path: &Path, max: u64) -> Option<String> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    let about = file.metadata().ok()?;
    let ours = about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o077 == 0;
    if !about.is_file() || !ours || about.len() > max {
        return None;
    }
    let mut text = String::new();
    file.take(max).read_to_string(&mut text).ok()?;
    Some(text)
}
