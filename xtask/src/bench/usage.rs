//! Commands with what they used.

use std::{
    io,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// What a process used until it ended.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// How it ended.
    pub status: ExitStatus,
    /// Processor time.
    pub cpu: Duration,
    /// Largest resident set, bytes.
    pub peak: u64,
}

/// Waits for a child.
pub fn wait(child: &Child) -> io::Result<Usage> {
    use std::os::unix::process::ExitStatusExt as _;
    let mut status = 0;
    // SAFETY: numbers only, for which all zeros is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id() as libc::pid_t;
    // SAFETY: both buffers outlive the call.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Usage {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak: usage.ru_maxrss as u64 * 1024,
    })
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<(Duration, Usage)> {
    let shown = command.get_program().display().to_string();
    let begun = Instant::now();
    let child = command.spawn().with_context(|| shown.clone())?;
    let usage = wait(&child).context(shown)?;
    Ok((begun.elapsed(), usage))
}

/// Asks a process to end, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    // SAFETY: a child of ours that was not waited for, so that the number is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
}
