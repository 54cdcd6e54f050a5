//! A running `dmtrace serve`, and what it said.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dmtrace_tests::harness::dmtrace_bin;
use serde_json::Value;

pub(crate) const SOCKET: &str = "/run/dmtrace/serve.sock";

/// Longest time for anything.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(60);

/// A service in the background. Killed when dropped.
pub(crate) struct Service {
    child: Child,
    stderr: File,
    said: String,
}

impl Service {
    /// Starts it and waits until it traces. `prepare` may set the environment; it gets the file
    /// that will be standard error.
    pub(crate) fn start_with(
        args: &[&str],
        prepare: impl FnOnce(&mut Command, &File) -> Result<()>,
    ) -> Result<Self> {
        let mut service = Self::spawn_with(args, prepare)?;
        service.wait_line("backend)")?;
        // It has said so, and takes requests.
        service.status()?;
        Ok(service)
    }

    /// Starts it, without waiting for anything.
    pub(crate) fn spawn(args: &[&str]) -> Result<Self> {
        Self::spawn_with(args, |_, _| Ok(()))
    }

    fn spawn_with(
        args: &[&str],
        prepare: impl FnOnce(&mut Command, &File) -> Result<()>,
    ) -> Result<Self> {
        let stderr = tempfile::tempfile()?;
        let mut command = Command::new(dmtrace_bin()?);
        command.arg("serve").args(args);
        if !args.iter().any(|arg| arg.starts_with("--history")) {
            // That of the machine is not for tests.
            command.arg("--no-history");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?);
        prepare(&mut command, &stderr)?;
        let child = command.spawn().context("dmtrace serve")?;
        Ok(Self {
            child,
            stderr,
            said: String::new(),
        })
    }

    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(args, |_, _| Ok(()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything on standard error so far.
    pub(crate) fn stderr_text(&mut self) -> Result<&str> {
        // Without moving the position, which belongs to the child as well.
        let length = usize::try_from(self.stderr.metadata()?.len())?;
        let mut bytes = vec![0; length];
        self.stderr.read_exact_at(&mut bytes, 0)?;
        self.said = String::from_utf8_lossy(&bytes).into_owned();
        Ok(&self.said)
    }

    /// Waits for a line with this text, and returns it.
    pub(crate) fn wait_line(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + SERVICE_TIMEOUT;
        loop {
            let found = self.stderr_text()?.lines().find(|line| line.contains(text));
            if let Some(line) = found {
                return Ok(line.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("dmtrace serve has ended, {status}: {}", self.stderr_text()?);
            }
            ensure!(
                Instant::now() < deadline,
                "dmtrace serve never said {text:?}: {}",
                self.stderr_text()?
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Its answer to `serve --status`.
    pub(crate) fn status(&self) -> Result<Value> {
        status_as(&mut Command::new(dmtrace_bin()?))
    }

    /// SIGTERM, then its exit status and everything that it said.
    pub(crate) fn stop_service(mut self) -> Result<(ExitStatus, String)> {
        self.send_signal(libc::SIGTERM)?;
        let status = self.child.wait()?;
        Ok((status, self.stderr_text()?.to_owned()))
    }

    pub(crate) fn kill_service(mut self) -> Result<()> {
        self.send_signal(libc::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn send_signal(&self, signal: i32) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        // SAFETY: two numbers; the child is not reaped yet, so the number is its.
        let sent = unsafe { libc::kill(pid, signal) };
        ensure!(sent == 0, "kill: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// `dmtrace serve --status --json` by this command.
pub(crate) fn status_as(command: &mut Command) -> Result<Value> {
    let output = command.args(["serve", "--status", "--json"]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| error.trim().to_owned())
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
