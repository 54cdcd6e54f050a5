//! What a run came to.

use std::time::Duration;

use super::{accel::Accel, kernel::Kernel};

/// Exit code of a run in which the lab itself failed: no kernel, no boot.
pub const LAB_FAILED: i32 = 120;
/// Exit code of a run in which the kernel complained in its log.
const SPLAT: i32 = 121;
/// Exit code of a command that ran out of time.
const TIMED_OUT: i32 = 124;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The command ended with this code.
    Exited(i32),
    /// The command was stopped because its time was over.
    TimedOut,
    /// The guest failed, not the command; why.
    LabFailed(String),
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// The kernel it ran on.
    pub kernel: Kernel,
    /// How it ended.
    pub end: RunEnd,
    /// Lines of the kernel's log in which it complains of itself (oopses, warnings, lockups), or the
    /// taint that they left.
    pub splats: Vec<String>,
    /// Times the guest was booted.
    pub boots: u32,
    /// How QEMU ran it.
    pub accel: Accel,
    /// From power-on to the command's start, in the boot that got there.
    pub boot_time: Option<Duration>,
    /// All of it.
    pub total_time: Duration,
    /// The command's standard output, if captured.
    pub stdout: Vec<u8>,
    /// The command's standard error, if captured.
    pub stderr: Vec<u8>,
}

impl RunOutcome {
    /// An exit code for the run: the command's own if nothing else happened, 120 if the lab failed,
    /// 121 if the kernel complained, 124 if the command ran out of time. A splat outweighs all: what else went wrong may follow from it.
    pub fn exit_code(&self) -> i32 {
        match self.end {
            _ if !self.splats.is_empty() => SPLAT,
            RunEnd::Exited(code) => code,
            RunEnd::TimedOut => TIMED_OUT,
            RunEnd::LabFailed(_) => LAB_FAILED,
        }
    }

    /// The outcome in a few words.
    pub fn summary(&self) -> String {
        let end = match &self.end {
            RunEnd::Exited(0) => "ok".to_owned(),
            RunEnd::Exited(code) => format!("exit {code}"),
            RunEnd::TimedOut => "timed out".to_owned(),
            RunEnd::LabFailed(why) => format!("lab: {why}"),
        };
        match self.splats.first() {
            Some(line) => format!("{end}; SPLAT: {line}"),
            None => end,
        }
    }
}
