//! Tests in an IPC namespace of their own.

use std::{fs, io, thread};

use anyhow::{Context, anyhow};

use crate::actor::new_ipc_ns;

/// Runs `body` on a thread in a new IPC namespace. Processes that it starts are in there too, and
/// so are the limits that it sees and sets; everything vanishes with them.
///
/// # Errors
/// `unshare(2)` is not allowed.
///
/// # Panics
/// Where `body` does.
pub fn in_private_ns<R: Send>(body: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            new_ipc_ns().context("unshare(CLONE_NEWIPC); run as root")?;
            Ok(body())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether a mount namespace can be made.
///
/// # Errors
/// `unshare(2)` is not allowed.
pub(super) fn try_mount_ns() -> io::Result<()> {
    // Of a thread that ends with it.
    // SAFETY: one number.
    let thread = thread::spawn(|| match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    });
    thread
        .join()
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

/// Number of the IPC namespace of a process, or of the calling thread (`thread-self`).
///
/// # Errors
/// It has gone, or may not be looked at.
pub fn ns_of(task: &str) -> anyhow::Result<u32> {
    let path = format!("/proc/{task}/ns/ipc");
    let link = fs::read_link(&path).context(path)?;
    let text = link.to_string_lossy();
    let number = text
        .strip_prefix("ipc:[")
        .and_then(|text| text.strip_suffix(']'))
        .ok_or_else(|| anyhow!("{text}: not an IPC namespace"))?;
    Ok(number.parse()?)
}
