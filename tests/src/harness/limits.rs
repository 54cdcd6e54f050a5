//! `kernel.sem`: one test at a time, and back to what it was.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
};

use anyhow::Context;

const PATH: &str = "/proc/sys/kernel/sem";

/// Held by at most one test of all processes of this machine: for what is global to the host, as
/// its limits are. Tests in an IPC namespace of their own do not need it.
#[derive(Debug)]
pub struct GlobalLock {
    _file: File,
}

impl GlobalLock {
    /// Waits for it.
    ///
    /// # Errors
    /// The lock file cannot be made or locked.
    pub fn acquire() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join("dmtrace-tests.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("{}", path.display()))?;
        // SAFETY: two numbers; the descriptor is open. Closing the file unlocks.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error).with_context(|| format!("{}: flock", path.display()));
            }
        }
        Ok(Self { _file: file })
    }
}

/// `kernel.sem` of the IPC namespace of the calling thread. Set back at its end, which must come
/// in the same namespace.
#[derive(Debug)]
pub struct KernelSem {
    before: String,
}

impl KernelSem {
    /// Sets SEMMNI and leaves the other three.
    ///
    /// # Errors
    /// Those of reading and writing the file: it wants root.
    pub fn set_semmni(semmni: u32) -> anyhow::Result<Self> {
        let before = fs::read_to_string(PATH).context(PATH)?;
        let mut fields: Vec<String> = before.split_whitespace().map(String::from).collect();
        *fields
            .get_mut(3)
            .context("kernel.sem has no fourth field")? = semmni.to_string();
        let guard = Self { before };
        fs::write(PATH, fields.join(" ")).context(PATH)?;
        Ok(guard)
    }
}

impl Drop for KernelSem {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PATH, &self.before) {
            eprintln!(
                "{PATH}: {error}; set it back by hand: sysctl -w kernel.sem='{}'",
                self.before.trim()
            );
        }
    }
}
