//! tracefs for the tracers that look for it where it is mounted; dmtrace does without.

use std::{ffi::CStr, io, path::Path, ptr};

use anyhow::{Context as _, Result};

const MOUNT_POINT: &CStr = c"/sys/kernel/tracing";

/// Mounts tracefs for this process and its children alone, where nobody has.
///
/// To be called before there is a second thread.
///
/// # Errors
/// The kernel refuses: this is not root, or it has no tracefs.
pub(super) fn mount_privately() -> Result<()> {
    let place = Path::new("/sys/kernel");
    if ["tracing/events", "debug/tracing/events"]
        .iter()
        .any(|it| place.join(it).is_dir())
    {
        return Ok(());
    }
    let why = "tracefs: cannot be mounted for the tracers dmtrace is compared with";
    // SAFETY: takes flags only.
    check_call(unsafe { libc::unshare(libc::CLONE_NEWNS) }).context(why)?;
    mount_kind(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE).context(why)?;
    mount_kind(c"tracefs", MOUNT_POINT, Some(c"tracefs"), 0).context(why)
}

fn mount_kind(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: u64) -> io::Result<()> {
    let kind = kind.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with a zero byte and outlive the call; no data is passed.
    check_call(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, ptr::null()) })
}

fn check_call(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
