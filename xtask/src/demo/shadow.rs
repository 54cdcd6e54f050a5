//! Folders of the host that programs write to, shadowed in a mount namespace of one's own.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::Path,
};

/// Puts a folder in memory over `folder`, with all that is in it but `hidden`: what is written there
/// anew ends with the namespace, and the rest is the host's.
///
/// # Errors
/// The system refuses.
pub(super) fn shadow_folder(folder: &Path, hidden: &str) -> io::Result<()> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    // Held open to the end: the path through it does not see what is put over the folder.
    let held = options.open(folder)?;
    let below = Path::new("/proc/self/fd").join(held.as_raw_fd().to_string());
    let entries: Vec<_> = fs::read_dir(&below)?.collect::<io::Result<_>>()?;
    mount(Path::new("tmpfs"), folder, Some("tmpfs"), 0)?;
    for entry in entries {
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let (from, to) = (below.join(&name), folder.join(&name));
        if name == OsStr::new(hidden) {
            continue;
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
        } else {
            File::create(&to)?;
        }
        match mount(&from, &to, None, libc::MS_BIND | libc::MS_REC) {
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// `mount(2)`.
///
/// # Errors
/// The system refuses.
pub(super) fn mount(
    source: &Path,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let text = |path: &OsStr| CString::new(path.as_bytes()).map_err(io::Error::other);
    let (source, target) = (text(source.as_os_str())?, text(target.as_os_str())?);
    let kind = kind.map(|kind| text(OsStr::new(kind))).transpose()?;
    let kind = kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr());
    // SAFETY: strings that end with a zero and outlive the call, or none.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
