//! Commands with what they used.

use std::{
    fs, io,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// What a process used until it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub status: ExitStatus,
    /// Processor time.
    pub cpu: Duration,
    /// Largest resident set, bytes.
    pub peak: u64,
}

/// Makes this process' peak that of now. A child begins with the peak of its parent, whose memory it
/// shares until it runs its own program.
pub(super) fn forget_own_peak() {
    /// `Documentation/filesystems/proc.rst`, `clear_refs`.
    const RESET_PEAK: &str = "5";
    let _peaks_say_too_much = fs::write("/proc/self/clear_refs", RESET_PEAK);
}

/// Waits for a child.
pub(super) fn wait_child(child: &Child) -> io::Result<Usage> {
    Ok(reap_child(child, 0)?.ok_or(io::ErrorKind::WouldBlock)?)
}

/// Takes what a child leaves, if it has ended.
fn reap_child(child: &Child, flags: i32) -> io::Result<Option<Usage>> {
    use std::os::unix::process::ExitStatusExt as _;
    let mut status = 0;
    // SAFETY: numbers only, for which all zeros is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id() as libc::pid_t;
    // SAFETY: both buffers outlive the call.
    match unsafe { libc::wait4(pid, &raw mut status, flags, &raw mut usage) } {
        0 => return Ok(None),
        ..0 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Some(Usage {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak: usage.ru_maxrss as u64 * 1024,
    }))
}

/// Ends a tracer as Ctrl-C does, and waits for it. bpftrace misses a signal once in a while: it is
/// asked again, and killed in the end.
pub(super) fn end_tracer(child: &Child) -> io::Result<Usage> {
    const ASK_AGAIN: Duration = Duration::from_secs(10);
    for signal in [libc::SIGINT, libc::SIGINT, libc::SIGINT, libc::SIGKILL] {
        // SAFETY: a child of ours that was not waited for, so that the number is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        let asked = Instant::now();
        while asked.elapsed() < ASK_AGAIN {
            if let Some(usage) = reap_child(child, libc::WNOHANG)? {
                return Ok(usage);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Runs a command to its end.
pub(super) fn run_command(command: &mut Command) -> Result<(Duration, Usage)> {
    let shown = command.get_program().display().to_string();
    forget_own_peak();
    let begun = Instant::now();
    let child = command.spawn().with_context(|| shown.clone())?;
    let usage = wait_child(&child).context(shown)?;
    Ok((begun.elapsed(), usage))
}
